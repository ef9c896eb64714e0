"""What can be reached from Keras's objects and from `tf.data` pipelines, by their private names."""

import functools
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import keras

from kerascohost.backends.base import Thing

# A `tf.data.Dataset`: a class that is there only where TensorFlow is.
Dataset: TypeAlias = Any

# What has attributes that Keras reads while it traces or runs hooks.
KERAS = (
    keras.Layer,
    keras.optimizers.Optimizer,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.callbacks.Callback,
    keras.utils.PyDataset,
    keras.optimizers.schedules.LearningRateSchedule,
)

# The attribute of a model that keeps what its steps were traced with, by kind. (Not a table of weak
# references: what is kept refers to the model.)
TRACED_WITH = "_kerascohost_traced_with"

# Public attributes which training, building or saving sets, or which `trainable` is told by.
_BOOKKEEPING = frozenset(
    {
        "built", "compiled", "history", "model", "name", "params", "stop_training",
        "stop_evaluating", "stop_predicting", "test_function", "train_function",
        "predict_function", "trainable", "validation_data",
    }
)  # fmt: skip


@functools.cache
def _own_of_layers() -> frozenset[str]:
    """The private attributes that layers and models of Keras's have of themselves."""
    inputs = keras.Input((1,), name="_0")
    # Zeros: other initializers draw a seed from the program's random numbers.
    dense = keras.layers.Dense(1, kernel_initializer="zeros", name="_1")
    functional = keras.Model(inputs, dense(inputs), name="_2")
    things = [dense, functional, keras.Sequential([inputs, dense], name="_3")]
    return frozenset(name for thing in things for name in vars(thing))


def is_bookkeeping(thing: Thing, name: str) -> bool:
    """Whether an attribute is Keras's own note, and not something that a step or a hook reads.

    Private attributes of a user's own class are the user's, unless Keras's base class sets them.
    `_self_`: what TensorFlow's tracking sets.
    """
    if not isinstance(thing, KERAS):
        return False
    if name in _BOOKKEEPING or name == TRACED_WITH or name.startswith("_self_"):
        return True
    return name.startswith("_") and (
        name in ("_model", "_tracker", "_lock", "_auto_config")
        or (isinstance(thing, keras.Layer) and name in _own_of_layers())
    )


def learning_rate(optimizer: Thing) -> float | None:
    """The learning rate that an optimizer holds in a variable, or `None` with a schedule.

    `_learning_rate`: the public property calls a schedule instead of returning it. `_value`:
    reading the public `value` may be observed.
    """
    rate = getattr(optimizer, "_learning_rate", None)
    value = getattr(rate, "_value", None) if isinstance(rate, keras.Variable) else None
    return None if value is None else float(keras.ops.convert_to_tensor(value))


def schedule(optimizer: Thing) -> Thing:
    """The learning-rate schedule of an optimizer; `_learning_rate`: see `learning_rate`."""
    rate = getattr(optimizer, "_learning_rate", None)
    return None if isinstance(rate, keras.Variable) else rate


def profiles(callback: Thing) -> bool:
    """Whether a callback turns TensorFlow's profiler on, of which a process has one.

    `_should_trace`: what `TensorBoard` makes of `profile_batch`.
    """
    return isinstance(callback, keras.callbacks.TensorBoard) and callback._should_trace


def trained_with(layer: keras.Layer) -> list[Thing]:
    """The layer and all that training it changes: its inner layers and their variables.

    `_flatten_layers`: only it finds layers inside layers.
    """
    inner = [one for one in layer._flatten_layers() if one.variables or not one.built]
    return [*inner, *layer.variables]


def handles(variables: list[keras.Variable]) -> list[Thing]:
    """On TensorFlow, what functions that use these variables capture of them.

    `_value`: reading the public `value` may be observed.
    """
    values = [getattr(variable, "_value", None) for variable in variables]
    found = [getattr(value, "handle", None) for value in values]
    return [handle for handle in found if handle is not None]


def is_handle(thing: Thing) -> bool:
    """Whether this is TensorFlow's handle of a variable."""
    return getattr(getattr(thing, "dtype", None), "name", None) == "resource"


def is_dataset(thing: Thing) -> bool:
    """Whether this is a `tf.data.Dataset`; TensorFlow is not imported for it."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(thing, tensorflow.data.Dataset)


def pipeline(dataset: Dataset) -> Iterator[Dataset]:
    """A dataset and those that it is made from; `_inputs`: there is no public way to them."""
    yield dataset
    for source in dataset._inputs():
        yield from pipeline(source)


def mapped(dataset: Dataset) -> list[Thing]:
    """The Python functions of one dataset's `map`, `filter` and so on.

    `_functions`, `_func`: there is no public way to them.
    """
    return [getattr(wrapped, "_func", None) for wrapped in dataset._functions()]


def captured(dataset: Dataset) -> list[Thing]:
    """The handles of variables that one dataset's functions draw from: states of seeds.

    They are told by their integers: other variables, as those of an adapted `Normalization`, are
    read only. `_functions`: there is no public way to them.
    """
    graphs = [wrapped.function.graph for wrapped in dataset._functions()]
    variables = [variable for graph in graphs for variable in graph.variables]
    return [variable.handle for variable in variables if variable.dtype.is_integer]


def is_shuffle(dataset: Dataset) -> bool:
    """Whether one dataset shuffles, each time in another order.

    `_ShuffleDataset`: the class has no public name.
    """
    return type(dataset).__name__ == "_ShuffleDataset"


def cache_file(dataset: Dataset) -> str | None:
    """The file that one dataset caches to; `_filename`: there is no public way to it."""
    if type(dataset).__name__ != "CacheDataset":
        return None
    return dataset._filename.numpy().decode() or None
