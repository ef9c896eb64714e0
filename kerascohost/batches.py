"""From what `fit` accepts to chunks: many batches in one array, ready for one call of a program."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from kerascohost import programs
from kerascohost.errors import CohortError
from kerascohost.programs import Chunk
from kerascohost.programs import data as keras_data
from kerascohost.programs.data import RowOrder

# Large enough for a call of a program not to be felt, small enough for a hundred members.
_CHUNK_BYTES = 8 * 2**20

# TensorFlow's and JAX's tensors that are not one block of numbers, by name, as neither is imported.
_NOT_DENSE = ("RaggedTensor", "SparseTensor", "BCOO", "BCSR")


def batches(
    data: tuple[Any, Any, Any],
    row_order: Callable[[int, int, bool | str], RowOrder],
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    shuffle: bool | str = False,
    class_weight: dict | None = None,
    group: int = 1,
) -> "ArrayBatches | StreamBatches":
    """The batches of one member, epoch by epoch.

    They are the batches that `keras.Model.fit` would see, in the same order; nothing is padded,
    repeated or dropped.

    Args:
        data: `(x, y, sample_weight)`, each as `fit` takes it.
        row_order: The backend's way to shuffle, see `kerascohost.programs`.
        batch_size: Rows per batch; `None` is 32, as in `fit`.
        steps_per_epoch: As in `fit`.
        shuffle: As in `fit`.
        class_weight: As in `fit`.
        group: How many batches are merged into one step. The last step of an epoch holds what is
            left.

    Raises:
        CohortError: If the data is sparse or ragged.
    """
    _check_dense(data[0])
    steps = steps_per_epoch * group if steps_per_epoch else None
    iterator = keras_data.epoch_iterator(data, batch_size, steps, shuffle, class_weight)
    columns = keras_data.columns(iterator)
    if columns is None:
        return StreamBatches(iterator, group)
    rows = iterator.data_adapter.batch_size * group
    return ArrayBatches(columns, rows, steps_per_epoch, shuffle, row_order)


class ArrayBatches:
    """Batches cut out of arrays, which are never copied whole.

    Args:
        columns: The structure of arrays `(x, y, sample_weight)`, without what is missing.
        rows: How many rows make one step.
        steps_per_epoch: As in `fit`.
        shuffle: As in `fit`.
        row_order: As in `batches`.
    """

    def __init__(
        self,
        columns: Any,
        rows: int,
        steps_per_epoch: int | None,
        shuffle: bool | str,
        row_order: Callable[[int, int, bool | str], RowOrder],
    ):
        self._columns = _map(_Column, columns)
        if keras.backend.backend() == "tensorflow":
            self._columns = tree.lists_to_tuples(self._columns)  # as `tf.data` hands them over
        leaves = _leaves(self._columns)
        self._num_rows = len(leaves[0])
        self._rows = rows
        self._row_bytes = sum(column.row_bytes for column in leaves)
        self._per_epoch = _capped(steps_per_epoch)
        self._order = row_order(self._num_rows, rows, shuffle) if shuffle else None
        self._pass: tuple[np.ndarray | None, int] | None = None

    @property
    def rows_per_step(self) -> int:
        """How many rows a full step takes, also where there are fewer."""
        return self._rows

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps of an epoch."""
        return self._per_epoch or self._num_steps

    @property
    def _num_steps(self) -> int:
        return math.ceil(self._num_rows / self._rows)

    def peek(self) -> Any:
        """The first rows, for their shapes; what is still to come is not touched."""
        rows = slice(0, min(self._rows, self._num_rows))
        return _map(lambda column: column.take(rows, 1)[0], self._columns)

    def reset(self) -> None:
        """Goes back to the start of the data, as `evaluate` does before it begins."""
        self._pass = None

    def look_ahead(self) -> None:
        """Draws what `fit` draws before its first epoch; see `RowOrder.look_ahead`."""
        if self._order is not None:
            self._order.look_ahead()

    def settle(self) -> None:
        """Ends the use of the data; see `RowOrder.settle`."""
        if self._order is not None:
            self._order.settle()

    def epoch(self, at_most: int | None = None) -> Iterator[Chunk]:
        """The chunks of the next epoch; arrays may be read ahead, so `at_most` does not matter."""
        order, step = self._next_pass()
        stop = min(self._num_steps, step + self.steps_per_epoch)
        if self._per_epoch and step + self._per_epoch > self._num_steps:
            _warn_out_of_data()
        # With `steps_per_epoch` the next epoch goes on where this one ends.
        goes_on = self._per_epoch and stop < self._num_steps
        self._pass = (order, stop) if goes_on else None
        while step < stop:
            chunk = self._window(order, step, stop)
            yield chunk
            step += chunk.stop - chunk.start

    def _next_pass(self) -> tuple[np.ndarray | None, int]:
        if self._pass is not None:
            return self._pass
        return (self._order() if self._order is not None else None), 0

    def _window(self, order: np.ndarray | None, step: int, stop: int) -> Chunk:
        """The chunk that holds the batches from `step` on, but not beyond `stop`.

        All chunks of full batches have one shape; the last one reaches back over batches that have
        been taken already.
        """
        full = self._num_rows // self._rows
        if step >= full:  # what is left over, or all there is
            rows = slice(full * self._rows, self._num_rows)
            return Chunk(self._take(order, rows, 1), 0, 1, usual=full == 0)
        most = max(1, _CHUNK_BYTES // max(1, self._row_bytes * self._rows))
        size = min(most, full, self.steps_per_epoch)
        first = min(step, full - size)
        rows = slice(first * self._rows, (first + size) * self._rows)
        data = self._take(order, rows, size)
        return Chunk(data, step - first, min(size, stop - first), usual=True)

    def _take(self, order: np.ndarray | None, rows: slice, steps: int) -> Any:
        chosen = rows if order is None else order[rows]
        return _map(lambda column: column.take(chosen, steps), self._columns)


class StreamBatches:
    """Batches that are made elsewhere: by a dataset, a `PyDataset`, a `DataLoader` or a generator.

    Args:
        iterator: Keras's own iterator over their epochs.
        group: How many batches are joined into one step.
    """

    rows_per_step = None  # not known before a batch is seen

    def __init__(self, iterator: Any, group: int):
        self._iterator = iterator
        self._group = group
        self._usual: tuple | None = None
        self._waiting: Iterator | None = None

    @property
    def steps_per_epoch(self) -> int | None:
        """The number of steps of an epoch, or `None` where that is not known yet."""
        batches = self._iterator.num_batches
        return None if batches is None else math.ceil(batches / self._group)

    def peek(self) -> Any:
        """The first batch to come, or `None` where there is none; it stays the first to come."""
        items = self._items()
        first = next(items, None)
        self._waiting = items if first is None else itertools.chain([first], items)
        return first

    def reset(self) -> None:
        """Goes back to the start of the data, as `fit` and `evaluate` do before they begin.

        A batch that was only peeked at is still to come, and nothing has to be read again.
        """
        if self._waiting is None:
            self._iterator.reset()

    def look_ahead(self) -> None:
        """Nothing: such data has its own order."""

    def settle(self) -> None:
        """Nothing: such data has its own random state."""

    def epoch(self, at_most: int | None = None) -> Iterator[Chunk]:
        """The chunks of the next epoch, each of no more than `at_most` steps."""
        items, self._waiting = self._waiting or self._items(), None
        first = next(items, None)
        if first is None:
            return
        size = sum(np.asarray(leaf).nbytes for leaf in _leaves(first))
        most = max(1, min(at_most or 2**31, _CHUNK_BYTES // max(1, size)))
        for run in _runs(itertools.chain([first], items), most):
            data = _combine(np.stack, [*run, *self._padding(run)])
            self._usual = self._usual or _signature(data)
            yield Chunk(data, 0, len(run), usual=_signature(data) == self._usual)

    def _padding(self, run: list) -> list:
        """Batches beyond the chunk's stop: they let runs of many lengths share few shapes."""
        if not programs.backend_module().COMPILES_PER_SHAPE:
            return []
        return [run[-1]] * (2 ** math.ceil(math.log2(len(run))) - len(run))

    def _items(self) -> Iterator:
        """Whole batches, one for each step."""
        single = (batch for _, _, [batch] in self._iterator)
        while group := list(itertools.islice(single, self._group)):
            yield group[0] if self._group == 1 else _combine(np.concatenate, group)


class _Column:
    """One array of the data, read by rows.

    Tensors of the current backend stay where they are; everything else is read through NumPy.
    Floats come out as `keras.config.floatx()`, as in `fit`.
    """

    def __init__(self, array: Any):
        if type(array).__name__ in _NOT_DENSE:
            raise _not_dense(type(array).__name__)
        self._is_frame = hasattr(array, "iloc")
        self._is_tensor = not self._is_frame and keras.ops.is_tensor(array)
        # NumPy does not copy here: it is given an array, or shares its memory.
        self._array: Any = array if self._is_frame or self._is_tensor else np.asarray(array)
        if self._array.ndim == 0:  # NumPy's form of what it does not know, as SciPy's matrices
            raise _not_dense(type(array).__name__)

    def __len__(self) -> int:
        return int(self._array.shape[0])

    @property
    def row_bytes(self) -> int:
        row = self.take(slice(0, 1), 1)
        return math.prod(row.shape) * getattr(row.dtype, "itemsize", 8)

    def take(self, rows: slice | np.ndarray, steps: int) -> Any:
        """The rows as `(steps, batch, ...)`."""
        if self._is_tensor:
            values = self._tensor_rows(rows)
            return keras.ops.reshape(values, (steps, values.shape[0] // steps, *values.shape[1:]))
        values = self._array.iloc[rows].to_numpy() if self._is_frame else self._array[rows]
        of_unlike_columns = self._is_frame and values.dtype == object
        if of_unlike_columns or keras.backend.is_float_dtype(values.dtype.name):
            values = values.astype(keras.config.floatx(), copy=False)
        return values.reshape((steps, len(values) // steps, *values.shape[1:]))

    def _tensor_rows(self, rows: slice | np.ndarray) -> Any:
        if isinstance(rows, slice):
            values = self._array[rows]
        else:
            values = keras.ops.take(self._array, rows, axis=0)
        floats = keras.backend.is_float_dtype(keras.backend.standardize_dtype(values.dtype))
        return keras.ops.cast(values, keras.config.floatx()) if floats else values


def _check_dense(dataset: Any) -> None:
    """Refuses a `tf.data.Dataset` that Keras would make dense on its way through NumPy."""
    for spec in tree.flatten(getattr(dataset, "element_spec", None)):
        kind = type(spec).__name__.removesuffix("Spec")
        if kind in _NOT_DENSE:
            raise _not_dense(f"a dataset of {kind}")


def _not_dense(received: str) -> CohortError:
    return CohortError(
        f"Expected dense data. Received: {received}. Make it dense (`.toarray()`, `.to_tensor()`), "
        "or train this model by its own `fit`."
    )


def _capped(steps_per_epoch: int | None) -> int | None:
    most = keras.config.max_steps_per_epoch()
    return min(steps_per_epoch or most, most) if most else steps_per_epoch


def _warn_out_of_data() -> None:
    warnings.warn(
        "The data ended before the epoch did; the epoch ends here. Make sure that there are at "
        "least `steps_per_epoch * epochs` batches.",
        stacklevel=2,
    )


def _runs(items: Iterator, limit: int) -> Iterator[list]:
    """Cuts `items` into lists of at most `limit` neighbours of equal shapes."""
    run: list = []
    for item in items:
        if run and _signature(run[-1]) != _signature(item):
            yield run
            run = []
        run.append(item)
        if len(run) == limit:  # handed over at once: a generator must not be asked for more
            yield run
            run = []
    if run:
        yield run


def _combine(function: Callable, batches: list) -> Any:
    return tree.map_structure(
        lambda *parts: None if parts[0] is None else function(parts), *batches
    )


def _map(function: Callable, structure: Any) -> Any:
    return tree.map_structure(lambda leaf: None if leaf is None else function(leaf), structure)


def _leaves(batch: Any) -> list:
    return [leaf for leaf in tree.flatten(batch) if leaf is not None]


def _signature(batch: Any) -> tuple:
    return tuple(
        None if leaf is None else (np.shape(leaf), getattr(leaf, "dtype", None))
        for leaf in tree.flatten(batch)
    )
