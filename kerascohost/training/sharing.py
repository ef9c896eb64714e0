"""Checks of what members of a cohort may not share, and copies of what each needs for itself."""

import copy
import random
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import keras
import numpy as np
from keras import tree

from kerascohost import backends
from kerascohost.arguments import Argument, Callbacks
from kerascohost.backends import adapters, reached
from kerascohost.errors import CohortError
from kerascohost.tracing.reads import changed_by_reading, paths_of


def check_arguments(arguments: Mapping[str, Mapping[str, Argument]]) -> None:
    """Raises an error if members were given one object that changes while one of them uses it.

    Args:
        arguments: Each member's arguments, by name.

    Raises:
        CohortError: If they were; the message names the argument and two members.
    """
    owner: dict[int, str] = {}
    for key in ("x", "validation_data", "callbacks"):
        for name, given in arguments.items():
            for thing in stateful(given.get(key)):
                first = owner.setdefault(id(thing), name)
                if first != name:
                    way_out = (
                        ""
                        if key == "callbacks"
                        else (", or all of them one that is read once: kerascohost.shared(...)")
                    )
                    raise CohortError(
                        f"Expected `{key}` that each member has for itself. Received: one "
                        f"{_described(thing)} for {first!r} and {name!r}, which changes "
                        f"while it is used; give each its own: {key}={{{first!r}: ..., "
                        f"{name!r}: ...}}{way_out}."
                    )
    _check_paths(arguments)


def stateful(value: Argument) -> list[Argument]:
    """Returns the objects in an argument that change while a member uses them."""

    def changes(thing: Argument) -> bool:
        if isinstance(thing, keras.utils.PyDataset):
            return any(
                getattr(type(thing), hook) is not getattr(keras.utils.PyDataset, hook)
                for hook in ("on_epoch_begin", "on_epoch_end")
            )
        return isinstance(thing, keras.callbacks.Callback) or hasattr(thing, "__next__")

    parts = _parts(value)
    read = [
        changing
        for part in parts
        if isinstance(part, keras.utils.PyDataset) or reached.is_dataset(part)
        for changing in changed_by_reading(part)
    ]
    sources = [
        node for part in parts if reached.is_dataset(part) for node in reached.pipeline(part)
    ]
    return [
        *(thing for thing in parts if changes(thing)),
        *(shuffle for part in parts for shuffle in adapters.reshuffling(part)),
        *(seed for source in sources for seed in reached.captured(source)),
        *read,
    ]


def _parts(value: Argument) -> list[Argument]:
    """Returns the objects that an argument consists of."""
    if isinstance(value, keras.callbacks.CallbackList):
        return backends.callbacks_in(value)
    return [value] if hasattr(value, "__next__") else tree.flatten(value)


def _described(thing: Argument) -> str:
    if hasattr(thing, "element_spec"):
        return "tf.data.Dataset that is shuffled anew each time"
    if reached.is_handle(thing):
        return "random layer in a dataset's `map`"
    if isinstance(thing, keras.Variable):
        return f"random layer in a dataset ({thing.path})"
    if isinstance(thing, (random.Random, np.random.RandomState, np.random.Generator)):
        return f"random generator ({type(thing).__name__})"
    return type(thing).__name__


def _check_paths(arguments: Mapping[str, Mapping[str, Argument]]) -> None:
    """Raises an error if callbacks of two members write to one file or folder."""
    owners: dict[Path, str] = {}
    for name, given in arguments.items():
        for callback in _parts(given.get("callbacks")):
            for attribute, path in paths_of(callback).items():
                first = owners.setdefault(path.absolute(), name)
                if first != name:
                    raise CohortError(
                        "Expected callbacks that write to a place of their own for each member. "
                        f"Received: {attribute}={str(path)!r} in a {type(callback).__name__} of "
                        f"{first!r} and in one of {name!r}; give each a path of its own."
                    )


def own_callbacks(callbacks: Callbacks, names: Collection[str]) -> dict[str, Callbacks]:
    """Returns for each member its own copies of callbacks, as a callback holds one model's state.

    Args:
        callbacks: The callbacks that were given for all members.
        names: The members' names.

    Raises:
        CohortError: If they cannot be copied, or all copies would write to one place.
    """
    if not callbacks or len(names) < 2:
        return dict.fromkeys(names, callbacks)
    for callback in _parts(callbacks):
        for attribute in ("filepath", "filename", "log_dir", "backup_dir", "directory"):
            path = getattr(callback, attribute, None)
            if path:
                raise CohortError(
                    f"Expected a {type(callback).__name__} for each member, as all would write to "
                    f"one place. Received: {attribute}={str(path)!r} for all members; give "
                    f"callbacks={{{next(iter(names))!r}: [...], ...}}."
                )
    return {name: _copied(_parts(callbacks)) for name in names}


def _copied(callbacks: list[keras.callbacks.Callback]) -> list[keras.callbacks.Callback]:
    """Returns copies, which share objects as the callbacks do; their models are not copied."""
    models = {id(model): model for model in (callback.model for callback in callbacks)}
    try:
        return copy.deepcopy(callbacks, models)
    except Exception as error:
        raise CohortError(
            f"Expected callbacks that can be copied, one for each member. Received: {callbacks!r}, "
            f"which cannot ({error}). Give each member its own: callbacks={{name: [...]}}."
        ) from error


def check_models(models: Mapping[str, keras.Model]) -> None:
    """Raises if one model's training changes what another one holds.

    Otherwise neither would end as if alone. Objects that no training changes may be shared.

    Raises:
        CohortError: If so; the message names two members and what they share.
    """
    check_optimizers(models)
    _check(
        models,
        lambda model: backends.with_parts([*model.metrics, *backends.unbuilt_metrics(model)]),
        lambda metric: f"metric ({metric.name}). Compile each model with metrics of its own.",
    )
    changed: dict[int, tuple[str, keras.Variable]] = {}
    for model in models.values():
        changed |= backends.changed_variables(model)
    _check(
        models,
        lambda model: [v for v in backends.variables(model) if id(v) in changed],
        lambda variable: (
            f"variable ({variable.path}) {changed[id(variable)][0]}. Give each a layer of its "
            "own; to apply one model several times, make it one member with `replicas`."
        ),
    )


def check_optimizers(models: Mapping[str, keras.Model]) -> None:
    """Raises if two models have the same optimizer.

    Raises:
        CohortError: If they have; the message names both.
    """
    _check(
        models,
        lambda model: [one for one in [getattr(model, "optimizer", None)] if one is not None],
        lambda one: f"optimizer ({one.name}). Compile each model with an optimizer of its own.",
    )


def _check(
    models: Mapping[str, keras.Model],
    parts_of: Callable[[keras.Model], list[Argument]],
    described: Callable[[Argument], str],
) -> None:
    """Raises if two models have the same part; `described` says what it is, and the way out."""
    owner: dict[int, str] = {}
    for name, model in models.items():
        for part in parts_of(model):
            first = owner.setdefault(id(part), name)
            if first != name:
                raise CohortError(
                    "Expected members that share nothing that training changes. Received: "
                    f"{first!r} and {name!r} with the same {described(part)}"
                )
