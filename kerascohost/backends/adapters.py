"""Keras's own data adapters, by their private names.

`fit` accepts arrays, datasets, generators and more; Keras's adapters and its `EpochIterator` know
how each kind behaves (number of batches, end of data, warnings, `on_epoch_end` of a `PyDataset`).
They are used as they are, so that a member sees the batches that its own `fit` would have seen.
Only arrays are read by kerascohost itself, so that many batches can be cut out of one at once;
their rows then come in the order that a `RowOrder` gives.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypedDict, Unpack

import keras
import numpy as np
from keras import tree

# None of these has a public name; `keras.Model.fit` imports the same ones.
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.trainers.data_adapters.array_data_adapter import (
    ArrayDataAdapter,
    can_convert_arrays,
)
from keras.src.trainers.data_adapters.data_adapter import DataAdapter
from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
from keras.src.trainers.data_adapters.tf_dataset_adapter import TFDatasetAdapter
from keras.src.trainers.data_adapters.torch_data_loader_adapter import TorchDataLoaderAdapter
from keras.src.trainers.epoch_iterator import EpochIterator

from kerascohost.arguments import Data
from kerascohost.backends import seeding
from kerascohost.backends.base import RandomState, Tree
from kerascohost.backends.row_order import RowOrder
from kerascohost.data import Subset, whole

if TYPE_CHECKING:
    import tensorflow as tf

# `x`, `y` and the sample weights.
_Columns: TypeAlias = tuple[Data, Data, Data]

# Python's and NumPy's.
_RandomStates: TypeAlias = tuple[RandomState, RandomState]


def batch_order(dataset: keras.utils.PyDataset) -> RowOrder | None:
    """Returns the order in which `fit` visits the batches of a dataset that it shuffles.

    It is drawn from Python's global random state as each pass begins. `None` if the dataset does
    not end, and so is not shuffled.
    """
    count = dataset.num_batches
    if count is None:
        return None

    def draw() -> Iterator[np.ndarray]:
        indices = list(range(count))
        random.shuffle(indices)
        yield np.array(indices)

    return RowOrder(draw)


class OwnRandom:
    """A context in which Python's and NumPy's random states are those of one member.

    The user's code that makes batches draws from these states, which all members share. In this
    context they are the member's own; these begin as copies of the shared ones.
    """

    def __init__(self) -> None:
        self._begun = self._own = _global_random()
        self._shared = self._begun

    def __enter__(self) -> None:
        self._shared = _global_random()
        _set_global_random(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = _global_random()
        _set_global_random(self._shared)

    def advance_global_rng(self) -> None:
        """Leaves the shared states where `fit` would, unless they were moved meanwhile."""
        python, numpy = _global_random()
        if python == self._begun[0] and all(map(np.array_equal, numpy, self._begun[1])):
            _set_global_random(self._own)


def _global_random() -> _RandomStates:
    return random.getstate(), np.random.get_state()


def _set_global_random(state: _RandomStates) -> None:
    with seeding.unrecorded():
        random.setstate(state[0])
        np.random.set_state(state[1])


class _EpochArguments(TypedDict, total=False):
    """The arguments of `EpochIterator`, but for `steps_per_epoch`."""

    x: Data
    y: Data
    sample_weight: Data
    batch_size: int | None
    shuffle: bool | str
    class_weight: Mapping[int, float] | None
    steps_per_execution: int


class Epochs(EpochIterator):
    """Keras's iterator over the epochs of some data, used as this backend's `fit` uses it.

    `fit` on TensorFlow and JAX iterates over executions and reads each batch itself, from the
    iterator that it is given: its own subclasses of `EpochIterator` replace `_get_iterator` and
    `__next__`, and so does this one. An iterator is made when `fit` makes one, as a seeded,
    reshuffling dataset has another order for each. Python code is called in the calling thread, one
    batch at a time.

    Args:
        group: The number of batches that are merged into one step.
        steps_per_epoch: As in `fit`; counts steps.
        arguments: The others of `EpochIterator`.
    """

    def __init__(
        self, group: int, steps_per_epoch: int | None, **arguments: Unpack[_EpochArguments]
    ):
        self._group = group
        batches = steps_per_epoch * group if steps_per_epoch else None
        super().__init__(steps_per_epoch=batches, **arguments)
        most = keras.config.max_steps_per_epoch()
        steps = min(steps_per_epoch or most, most) if most else steps_per_epoch
        self.steps_per_epoch: int | None = steps
        self._num_batches = self._num_steps()

    def ends_after(self, step: int) -> bool:
        """Returns whether the epoch is known to end after this step.

        `_steps_seen`, `_num_batches`: by these Keras's iterator decides it.
        """
        most, known = self.steps_per_epoch or self._num_batches, self._num_batches
        return bool(most and step + 1 >= most) or bool(known and self._steps_seen >= known)

    @property
    def is_dataset(self) -> bool:
        """Returns whether the data is a `tf.data.Dataset`."""
        return isinstance(self.data_adapter, TFDatasetAdapter)

    @property
    def are_fixed(self) -> bool:
        """Returns whether the type of a `tf.data.Dataset` says how many rows a batch has."""
        if self._group > 1:
            return False
        if hasattr(self.data_adapter, "are_fixed"):  # a view of a dataset that several read
            return bool(self.data_adapter.are_fixed)
        if not self.is_dataset:
            return False
        specs = tree.flatten(self.data_adapter.get_tf_dataset().element_spec)
        shapes = [getattr(spec, "shape", None) for spec in specs]
        return all(shape is not None and shape.rank and shape[0] is not None for shape in shapes)

    def _num_steps(self) -> int | None:
        batches = self.data_adapter.num_batches
        return None if batches is None else math.ceil(batches / self._group)

    def reset(self) -> None:
        """Goes back to the start of the data."""
        super().reset()
        self._num_batches = self._num_steps()

    def __next__(self) -> tuple[int, int, Iterator[Tree]]:
        return next(self._epoch_iterator)

    def batches(self) -> Iterator[Tree]:
        """Returns an iterator over the batches of a pass over the data."""
        return iter(self._get_iterator())

    def _get_iterator(self) -> Iterator[Tree]:
        adapter = self.data_adapter
        if isinstance(adapter, TFDatasetAdapter) and keras.backend.backend() == "tensorflow":
            return _Steps(iter(adapter.get_tf_dataset()), self._group, _as_numpy)
        return _Steps(self._converted(adapter), self._group)

    def _converted(self, adapter: DataAdapter) -> Iterator[Tree]:
        if keras.backend.backend() == "jax":
            return adapter.get_jax_iterator()
        return adapter.get_numpy_iterator()

    def first_known(self) -> Tree | None:
        """Returns a batch that `fit`, too, reads before its first step, to learn shapes, if any.

        `_first_batches`, `_standardize_batch`: where the adapters store and make such batches.
        """
        adapter = self.data_adapter
        on_tensorflow = keras.backend.backend() == "tensorflow"
        if isinstance(adapter, GeneratorDataAdapter):
            batches = adapter._first_batches
        elif isinstance(adapter, PyDatasetAdapter) and on_tensorflow:
            batches = self._signature_batches(adapter)
        elif isinstance(adapter, TorchDataLoaderAdapter) and on_tensorflow:
            # `_dataloader`: `fit` reads so many of its batches for their shapes, and starts again.
            most = data_adapter_utils.NUM_BATCHES_FOR_TENSOR_SPEC
            batches = [tuple(batch) for batch in itertools.islice(adapter._dataloader, most)]
        else:
            return None
        if not batches:
            return None
        convert = getattr(data_adapter_utils, f"get_{'numpy' if on_tensorflow else 'jax'}_iterator")
        return next(convert(batches[:1]))

    @staticmethod
    def _signature_batches(adapter: PyDatasetAdapter) -> list[Tree]:
        most = data_adapter_utils.NUM_BATCHES_FOR_TENSOR_SPEC
        dataset = adapter.py_dataset
        count = most if dataset.num_batches is None else min(most, dataset.num_batches)
        if not count:
            raise ValueError("The PyDataset has length 0")  # in Keras's words
        return [adapter._standardize_batch(dataset[i]) for i in range(count)]


class _Steps:
    """The batches of steps, each step's merged into one and read when the step is asked for."""

    def __init__(
        self,
        batches: Iterator[Tree],
        group: int,
        convert: Callable[[Tree], Tree] = lambda batch: batch,
    ):
        self._batches = batches
        self._group = group
        self._convert = convert

    def __iter__(self) -> Iterator[Tree]:
        return self

    def __next__(self) -> Tree:
        batches = [self._convert(b) for b in itertools.islice(self._batches, self._group)]
        if not batches:
            raise StopIteration
        if len(batches) == 1:
            return batches[0]
        return tree.map_structure(
            lambda *parts: None if parts[0] is None else np.concatenate(parts), *batches
        )


def _as_numpy(batch: Tree) -> Tree:
    """Returns tensors as arrays; what is sparse or ragged is left as it is."""
    return tree.map_structure(lambda t: t.numpy() if hasattr(t, "numpy") else t, batch)


def runs_python(data: Data) -> bool:
    """Returns whether the user's code runs in this process when a batch is read from `data`."""
    if hasattr(data, "element_spec"):
        return any(_calls_python(function) for node in pipeline(data) for function in node[1])
    is_loader = "DataLoader" in {kind.__name__ for kind in type(data).__mro__}
    return is_loader or hasattr(data, "__next__") or isinstance(data, keras.utils.PyDataset)


def pipeline(dataset: "tf.data.Dataset") -> list[tuple["tf.data.Dataset", list["tf.Graph"]]]:
    """Returns the datasets that a `tf.data.Dataset` is made of, with the graphs that each calls.

    `_inputs`, `_functions`: there is no public way to them. `DistributedDataset` has neither.
    """
    found: dict[int, tuple[tf.data.Dataset, list[tf.Graph]]] = {}
    waiting = [dataset]
    while waiting:
        node = waiting.pop()
        if id(node) in found or not hasattr(node, "_inputs"):
            continue
        found[id(node)] = (node, [wrapper.function.graph for wrapper in node._functions()])
        waiting.extend(node._inputs())
    return list(found.values())


def _calls_python(graph: "tf.Graph") -> bool:
    """Returns whether a function's graph, or one that it calls, runs Python (`tf.py_function`)."""
    definition = graph.as_graph_def()
    nodes = [definition.node, *(function.node_def for function in definition.library.function)]
    return any("PyFunc" in node.op for node in itertools.chain(*nodes))


def reshuffling(dataset: "tf.data.Dataset") -> list["tf.data.Dataset"]:
    """Returns the parts of a dataset that have a seed and another order for each iterator.

    `_seed`, `_seed2`, `_reshuffle_each_iteration`, `_rerandomize`: the arguments that they were
    made with, as TensorFlow stores them. Without a seed there is no order to reproduce.
    """
    return [
        node
        for node, _ in pipeline(dataset)
        if (
            getattr(node, "_reshuffle_each_iteration", False) is not False
            or getattr(node, "_rerandomize", False)
        )
        and any(int(getattr(node, name, 0)) for name in ("_seed", "_seed2"))
    ]


def columns(iterator: Epochs) -> Tree | None:
    """Returns the arrays that `iterator` cuts its batches from; `None` if its data is not arrays.

    `_inputs`: x, y and the sample weights (made from the class weights where those are given),
    checked against each other but not yet converted or copied.
    """
    adapter = iterator.data_adapter
    return adapter._inputs if isinstance(adapter, ArrayDataAdapter) else None


def split_validation(data: _Columns, fraction: float) -> tuple[_Columns, _Columns]:
    """Returns `(training, validation)` data; the last `fraction` of the rows validate."""
    numbers = tree.map_structure(
        lambda leaf: np.arange(len(leaf)) if isinstance(leaf, Subset) else leaf, data
    )
    parts = array_slicing.train_validation_split(numbers, validation_split=fraction)

    def rows_of(leaf: Data, part: Data) -> Data:
        return Subset(leaf, part) if isinstance(leaf, Subset) else part

    training, validation = (tree.map_structure(rows_of, data, part) for part in parts)
    return training, validation


def are_arrays(data: _Columns) -> bool:
    """Returns whether `fit` would cut its batches out of `(x, y, sample_weight)` itself."""
    return bool(can_convert_arrays(whole(data)))


def num_rows(data: _Columns, validation_split: float | None, validation_data: Data) -> int:
    """Returns the number of rows of the arrays `(x, y, sample_weight)` that `fit` trains on.

    Each of `x` may be `None`, for optional inputs.
    """
    rows = next((len(leaf) for leaf in tree.flatten(data) if leaf is not None), 0)
    if validation_split and validation_data is None:
        return math.floor(rows * (1.0 - validation_split))
    return rows
