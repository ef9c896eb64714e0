"""Arguments for several models: one value for all of them, or a dict by member."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, get_args

import keras
import numpy as np

from kerascohost.errors import CohortError, about, did_you_mean

# The placement of a cohort's members in its program.
Layout = Literal["joined", "stacked", "auto"]

# The layouts that a benchmark compares; "separate" is each model's own `fit`.
MeasuredLayout = Literal["separate", "joined", "grouped", "replicated", "stacked"]

# The layouts offered in the widget: "grouped" and "replicated" are "joined" with these factors.
ChosenLayout = Literal["joined", "grouped", "replicated", "stacked", "auto"]

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MEASURED_LAYOUTS: tuple[MeasuredLayout, ...] = get_args(MeasuredLayout)
CHOSEN_LAYOUTS: tuple[ChosenLayout, ...] = get_args(ChosenLayout)

# The argument of `Cohort` that stands for a layout which only a benchmark and the widget name.
_FACTORS = {"grouped": "group_factor", "replicated": "replicas"}

# Arguments whose value for one model may itself be a dict.
_MAY_BE_DICTS = ("x", "y", "sample_weight", "class_weight")

# Data that Keras accepts: arrays, tensors, a DataFrame, a dataset, a generator, structures of
# arrays. No type covers them: Keras inspects them at run time.
Data: TypeAlias = Any

# One argument of `fit`, of any type, for one model or as a dict by member.
Argument: TypeAlias = Any

Callbacks: TypeAlias = (
    keras.callbacks.Callback | keras.callbacks.CallbackList | list[keras.callbacks.Callback] | None
)


class FitArguments(TypedDict):
    """The arguments of one member's `fit`, as `keras.Model.fit` has them."""

    x: Data
    y: Data
    batch_size: int | None
    epochs: int
    verbose: int | str
    callbacks: Callbacks
    validation_split: float
    validation_data: Data
    shuffle: bool | str
    class_weight: Mapping[int, float] | None
    sample_weight: Data
    initial_epoch: int
    steps_per_epoch: int | None
    validation_steps: int | None
    validation_batch_size: int | None
    validation_freq: int | list[int]


class EvaluateArguments(TypedDict):
    """The arguments of one member's `evaluate`, but for `return_dict`."""

    x: Data
    y: Data
    batch_size: int | None
    verbose: int | str
    sample_weight: Data
    steps: int | None
    callbacks: Callbacks


class PredictArguments(TypedDict):
    """The arguments of one member's `predict`."""

    x: Data
    batch_size: int | None
    verbose: int | str
    steps: int | None
    callbacks: Callbacks


T = TypeVar("T")
PerMember: TypeAlias = T | Mapping[str, T]

# Marks an argument without a default: a dict by member has to name every member.
_REQUIRED: Argument = object()


def per_member(
    argument: str, value: PerMember[T], names: Collection[str], default: T = _REQUIRED
) -> dict[str, T]:
    """Splits an argument that is one value for all members or a dict by member.

    A dict none of whose keys is a member's name is one value for all where the argument of one
    model may be a dict (`x`, `y`, `sample_weight`, `class_weight`), but for dicts from strings to
    dicts in place of `class_weight`, of which Keras would ignore all.

    Args:
        argument: The argument's name, for errors.
        value: The value for all, or a dict from names to values.
        names: The members' names.
        default: The value of members that a dict does not name. Without it, each must be named.

    Returns:
        A dict from each member's name to its value.

    Raises:
        CohortError: If a key is not a member's name, or a member without a default is not named.

    Example:

    >>> per_member("epochs", {"a": 5}, ["a", "b"], default=1)
    {'a': 5, 'b': 1}
    """
    for_all: Any = value  # a dict may be one value or a dict by member: types cannot tell
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, for_all)
    strangers = [name for name in value if name not in names]
    may_be_one = argument in _MAY_BE_DICTS and len(strangers) == len(value)
    if may_be_one and not (argument == "class_weight" and _is_by_name(value)):
        return dict.fromkeys(names, for_all)
    if strangers:
        raise no_member(argument, strangers[0], names)
    missing = [name for name in names if name not in value]
    if missing and default is _REQUIRED:
        raise CohortError(
            f"Expected `{argument}` to hold data for every member. "
            f"Received: none for {missing[0]!r}."
        )
    return {name: value.get(name, default) for name in names}


def _is_by_name(class_weight: Mapping[Any, Any]) -> bool:
    return bool(class_weight) and all(
        isinstance(name, str) and (own is None or isinstance(own, Mapping))
        for name, own in class_weight.items()
    )


def no_member(argument: str, name: object, names: Collection[str]) -> CohortError:
    """Returns the error for a dict by member with a key that is not a member's name."""
    return CohortError(
        f"Expected the keys of `{argument}` to be names of members: {', '.join(names)}. "
        f"Received: {name!r}.{did_you_mean(name, names)}"
    )


def counts_per_member(
    argument: str, value: PerMember[int], names: Collection[str], default: int = 1
) -> dict[str, int]:
    """Splits an argument as `per_member` does and checks that its values are positive integers.

    Args:
        argument: The argument's name, for errors.
        value: The count for all, or a dict from names to counts.
        names: The members' names.
        default: The count of members that a dict does not name.

    Returns:
        A dict from each member's name to its count, as an `int`.

    Raises:
        CohortError: As `per_member`, or if a value is not an integer of at least 1.

    Example:

    >>> counts_per_member("group_factor", {"mlp": 2}, ["cnn", "mlp"])
    {'cnn': 1, 'mlp': 2}
    """
    split = per_member(argument, value, names, default)
    for name, count in split.items():
        with about(name):
            check_count(argument, count)
    return {name: int(count) for name, count in split.items()}


def check_count(argument: str, value: object) -> None:
    """Raises if `value` is not an integer of at least 1.

    Raises:
        CohortError: If it is not; the message names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise CohortError(
            f"Expected `{argument}` to be a whole number of at least 1. "
            f"Received: {argument}={value!r}"
        )


def check_layout(layout: str, takes_factors: bool = True) -> None:
    """Raises if `layout` is not one of a cohort's layouts.

    Args:
        layout: The layout.
        takes_factors: Whether what it is for takes the arguments by which batches are merged.

    Raises:
        CohortError: If it is not; the message lists the layouts that exist. For a layout that only
            benchmarks have, it gives the arguments of `Cohort` to use instead.
    """
    if layout in LAYOUTS:
        return
    factor = _FACTORS.get(layout) if isinstance(layout, str) else None
    way_out = did_you_mean(layout, LAYOUTS)
    if factor and takes_factors:
        way_out = f" Use layout='joined' with `{factor}`, as {factor}=2 or {factor}={{name: 2}}."
    elif factor:
        way_out = f" Only `Cohort` and `cohost` merge batches, by `{factor}`."
    raise CohortError(
        f"Expected `layout` to be one of {', '.join(map(repr, LAYOUTS))}. "
        f"Received: layout={layout!r}.{way_out}"
    )


def check_workers(workers: Argument) -> None:
    """Raises an error if `workers` is given and is no engine that trains elsewhere."""
    if workers is not None and not hasattr(workers, "num_workers"):
        raise CohortError(
            "Expected `workers` to be `kerascohost.RayWorkers`, such as "
            f"`kc.RayWorkers(num_workers=2)`, or None. Received: workers={workers!r}."
        )


def measured_layouts(layouts: Sequence[str]) -> list[MeasuredLayout]:
    """Returns the layouts to measure, in their usual order; "separate" is always included.

    Raises:
        CohortError: If one of them is unknown.
    """
    for layout in layouts:
        if layout not in MEASURED_LAYOUTS:
            raise CohortError(
                f"Expected `layouts` among {', '.join(map(repr, MEASURED_LAYOUTS))}. "
                f"Received: {layout!r}.{did_you_mean(layout, MEASURED_LAYOUTS)}"
            )
    return [layout for layout in MEASURED_LAYOUTS if layout in ("separate", *layouts)]


def named_models(
    models: Mapping[str, keras.Model] | Sequence[keras.Model],
) -> dict[str, keras.Model]:
    """Returns the models by name; the models of a list are named by their attribute `name`.

    Raises:
        CohortError: If one of them is not a model, or a model or a name occurs twice.
    """
    pairs: list[tuple[Any, keras.Model]]  # the names are checked below
    if isinstance(models, Mapping):
        pairs = list(models.items())
    elif isinstance(models, Sequence) and not isinstance(models, str):
        pairs = [(getattr(model, "name", None), model) for model in models]
    else:
        raise CohortError(
            f"Expected `models` to be a dict or a list of models. Received: {models!r}"
        )
    if not pairs:
        raise CohortError(f"Expected at least one model. Received: models={models!r}")
    named: dict[str, keras.Model] = {}
    for name, model in pairs:
        _check_member(name, model, named)
        named[name] = model
    return named


def _check_member(name: object, model: object, others: Mapping[str, keras.Model]) -> None:
    if not isinstance(model, keras.Model):
        raise CohortError(f"Expected member {name!r} to be a keras.Model. Received: {model!r}")
    if not isinstance(name, str) or not name:
        raise CohortError(f"Expected names that are non-empty strings. Received: {name!r}")
    for other, known in others.items():
        if known is model:
            raise CohortError(
                f"Expected different models. Received: the same one as {other!r} and {name!r}. "
                "To apply one model several times, make it one member with `replicas`."
            )
    if name in others:
        raise CohortError(
            f"Expected members with different names. Received: {name!r} twice. "
            'Name them in a dict: {"first": model1, "second": model2}.'
        )
