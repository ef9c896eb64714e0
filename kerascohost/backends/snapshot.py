"""Restores models to what they were, so that a measurement can train a user's own models."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras.src.saving.keras_saveable import KerasSaveable  # layers, optimizers, losses, metrics

from kerascohost.backends import random_state, set_random_state, variables


class VariableSnapshot:
    """The values that all variables of some models have now, and the global random state.

    Args:
        models: The models.
    """

    def __init__(self, models: Iterable[keras.Model]):
        found = {id(v): v for model in models for v in variables(model)}.values()
        # Copies: compiled steps reuse the memory of the variables that they change.
        self._values = [(v, np.array(v.numpy())) for v in found]
        self._random = random_state()

    def restore(self) -> None:
        """Gives all variables these values again."""
        for variable, value in self._values:
            variable.assign(value)
        set_random_state(self._random)


@contextlib.contextmanager
def preserved(models: Iterable[keras.Model]) -> Iterator[None]:
    """Puts the models back to what they were when the block ends, also on an exception.

    What was not built is not built again; compiled functions and histories are the old ones. (A
    copy would be the other way to leave models untouched. Copies of Keras models go through saving,
    which much of what notebooks define cannot: classes without `get_config`, lambdas.)
    """
    models = list(models)
    values, attributes = VariableSnapshot(models), _attributes(models)
    try:
        yield
    finally:
        for thing, items, own in attributes:
            _fill(thing, items, own)
        values.restore()


def _attributes(roots: Iterable[Any]) -> list[tuple[Any, Any, dict]]:
    """Everything of Keras that can be reached from `roots`: the things, their items, attributes."""
    found: dict[int, tuple[Any, Any, dict]] = {}
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) not in found and _is_followed(thing):
            items, attributes = _items(thing), dict(getattr(thing, "__dict__", {}))
            found[id(thing)] = (thing, items, attributes)
            waiting += [*(items.values() if isinstance(items, dict) else items)]
            waiting += attributes.values()
    return list(found.values())


def _is_followed(thing: Any) -> bool:
    """Containers, and objects of Keras's or a model's; not the variables, kept by their values."""
    if isinstance(thing, (type, keras.Variable)):
        return False
    # TensorFlow's: its `ListWrapper`, in which an optimizer there keeps its variables.
    library = type(thing).__module__.partition(".")[0]
    if isinstance(thing, (list, tuple, set, dict)):
        return library in ("builtins", "collections", "keras", "tensorflow")
    return library == "keras" or isinstance(thing, KerasSaveable)


def _items(thing: Any) -> dict | list:
    """What is in a container, past methods of its own."""
    if isinstance(thing, dict):
        return dict(thing)
    kind = next((kind for kind in (list, tuple, set) if isinstance(thing, kind)), None)
    return list(kind.__iter__(thing)) if kind else []


def _fill(thing: Any, items: Any, attributes: dict) -> None:
    """Gives `thing` its items and attributes again, past what it does when something is set."""
    if isinstance(thing, dict):
        inner = getattr(thing, "__wrapped__", thing)
        dict.clear(inner)
        dict.update(inner, items)
        if hasattr(thing, "_update_snapshot"):  # TensorFlow's `_DictWrapper` sees what goes past it
            thing._update_snapshot()
    elif isinstance(thing, list):
        list.__setitem__(thing, slice(None), items)
    elif isinstance(thing, set):
        set.clear(thing)
        set.update(thing, items)
    if attributes:
        thing.__dict__.clear()
        thing.__dict__.update(attributes)
