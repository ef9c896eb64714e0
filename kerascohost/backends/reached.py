"""Objects that Keras's objects and `tf.data` pipelines refer to by private names."""

import concurrent.futures
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any, TypeAlias

import keras

from kerascohost.backends.base import Thing

# A `tf.data.Dataset`: the class exists only where TensorFlow is installed.
Dataset: TypeAlias = Any

# Classes whose attributes Keras reads while it traces steps or calls hooks.
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

# Public attributes that training, building or saving sets, and `trainable`, which `tracing.reads`
# compares by a place of its own.
_BOOKKEEPING = frozenset(
    {
        "built", "compiled", "history", "model", "name", "params", "stop_training",
        "stop_evaluating", "stop_predicting", "test_function", "train_function",
        "predict_function", "trainable", "validation_data",
    }
)  # fmt: skip


@functools.cache
def _own_of_layers() -> frozenset[str]:
    """Returns the names of the private attributes of Keras's own layers and models."""
    # In a thread of its own, as Keras counts per thread how it names what a program makes.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(_names_in_new_models).result()


def _names_in_new_models() -> frozenset[str]:
    """Makes layers and models, and returns the names of their attributes."""
    inputs = keras.Input((1,), name="_0")
    # Zeros: other initializers draw a seed from the program's random numbers.
    dense = keras.layers.Dense(1, kernel_initializer="zeros", name="_1")
    functional = keras.Model(inputs, dense(inputs), name="_2")
    things = [dense, functional, keras.Sequential([inputs, dense], name="_3")]
    return frozenset(name for thing in things for name in vars(thing))


def is_bookkeeping(thing: Thing, name: str) -> bool:
    """Returns whether Keras has an attribute for its own use, so that it need not be compared.

    A private attribute of a user's own class counts only if Keras's base class sets it. `_self_`:
    the prefix of the attributes that TensorFlow's tracking sets.
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
    """Returns the learning rate that an optimizer holds in a variable; `None` with a schedule.

    `_learning_rate`: the public property calls a schedule instead of returning it. `_value`:
    reading the public `value` may be observed.
    """
    rate = getattr(optimizer, "_learning_rate", None)
    value = getattr(rate, "_value", None) if isinstance(rate, keras.Variable) else None
    return None if value is None else float(keras.ops.convert_to_tensor(value))


def schedule(optimizer: Thing) -> Thing:
    """Returns the learning-rate schedule of an optimizer, or `None`.

    `_learning_rate`: see `learning_rate`.
    """
    rate = getattr(optimizer, "_learning_rate", None)
    return None if isinstance(rate, keras.Variable) else rate


def profiles(callback: Thing) -> bool:
    """Returns whether a callback uses TensorFlow's profiler, of which a process has only one.

    `_should_trace`: the attribute that `TensorBoard` sets according to `profile_batch`.
    """
    return isinstance(callback, keras.callbacks.TensorBoard) and callback._should_trace


def seeds(layer: keras.Layer) -> list[keras.Variable]:
    """Returns the states of the seed generators of a layer and of its inner layers.

    `_flatten_layers`, `_seed_generators`: only these find inner layers and what they draw from.
    """
    return [one.state for inner in layer._flatten_layers() for one in inner._seed_generators]


def trained_with(layer: keras.Layer) -> list[Thing]:
    """Returns the objects that training a layer changes: itself, its inner layers, their variables.

    `_flatten_layers`: only it finds layers inside layers.
    """
    inner = [one for one in layer._flatten_layers() if one.variables or not one.built]
    return [*inner, *layer.variables]


def handles(variables: list[keras.Variable]) -> list[Thing]:
    """Returns the handles of variables, which functions on TensorFlow capture; none elsewhere.

    `_value`: reading the public `value` may be observed.
    """
    values = [getattr(variable, "_value", None) for variable in variables]
    found = [getattr(value, "handle", None) for value in values]
    return [handle for handle in found if handle is not None]


def is_handle(thing: Thing) -> bool:
    """Returns whether this is TensorFlow's handle of a variable."""
    return getattr(getattr(thing, "dtype", None), "name", None) == "resource"


def is_dataset(thing: Thing) -> bool:
    """Returns whether this is a `tf.data.Dataset`; TensorFlow is not imported for it."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(thing, tensorflow.data.Dataset)


def pipeline(dataset: Dataset) -> Iterator[Dataset]:
    """Yields a dataset and those that it is made from; `_inputs`: no public name leads to them."""
    yield dataset
    for source in dataset._inputs():
        yield from pipeline(source)


def mapped(dataset: Dataset) -> list[Thing]:
    """Returns the Python functions of one dataset's `map`, `filter` and so on.

    `_functions`, `_func`: there is no public way to them.
    """
    return [getattr(wrapped, "_func", None) for wrapped in dataset._functions()]


def generators(dataset: Dataset) -> list[Thing]:
    """Returns the function that one dataset calls to read from, made by `from_generator`.

    `_GeneratorState`, `_generator`: only the closures of TensorFlow's own functions lead to it.
    """
    cells = [cell for function in mapped(dataset) for cell in _closure(function)]
    found = [cell.cell_contents for inner in cells for cell in _closure(inner.cell_contents)]
    return [one._generator for one in found if type(one).__name__ == "_GeneratorState"]


def _closure(function: Thing) -> tuple[types.CellType, ...]:
    return getattr(function, "__closure__", None) or ()


def captured(dataset: Dataset) -> list[Thing]:
    """Returns the handles of the seeds' states that one dataset's functions draw from.

    They are recognized by their integer types: other variables, such as those of an adapted
    `Normalization`, are only read. `_functions`: there is no public way to them.
    """
    graphs = [wrapped.function.graph for wrapped in dataset._functions()]
    variables = [variable for graph in graphs for variable in graph.variables]
    return [variable.handle for variable in variables if variable.dtype.is_integer]


def is_shuffle(dataset: Dataset) -> bool:
    """Returns whether one dataset shuffles, each time in another order.

    `_ShuffleDataset`: the class has no public name.
    """
    return type(dataset).__name__ == "_ShuffleDataset"


def cache_file(dataset: Dataset) -> str | None:
    """Returns the file that one dataset caches to, or `None`.

    `_filename`: there is no public way to it.
    """
    if type(dataset).__name__ != "CacheDataset":
        return None
    return dataset._filename.numpy().decode() or None
