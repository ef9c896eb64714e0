"""Batches of the data that `fit` accepts, as chunks: arrays of many batches for one program call.

Arguments of `fit` that are used here:

- `x`, `y`, `sample_weight`: read as batches, of arrays or of a stream.
- `class_weight`: turned into sample weights, by Keras's data adapter.
- `batch_size`: times the group factor and the replicas, the rows of a step, if the data is arrays.
- `shuffle`: the order of the rows of arrays; passed to Keras's data adapter, which shuffles the
  batches of a `PyDataset` by it.
- `steps_per_epoch`: the end of an epoch.

The data of validations is read here, too: `member` passes `validation_data`, with
`validation_batch_size` as `batch_size` and `validation_steps` as `steps_per_epoch`.
"""

import functools
import itertools
import math
import mmap
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from keras import tree

from kerascohost import backends
from kerascohost.arguments import Data
from kerascohost.backends import Chunk, Tensor, Tree, adapters
from kerascohost.backends.resident import ResidentArrays, padded_length
from kerascohost.backends.row_order import RowOrder
from kerascohost.backends.shared_reader import View
from kerascohost.data import Shared, common_rows, copied, whole
from kerascohost.errors import CohortError

# In bytes: large enough that calls of a program cost little, small enough for a hundred members.
_CHUNK_BYTES = 8 * 2**20

# Marks a position among batches: those before it are trained before anything more is read.
_PAUSE = object()

# TensorFlow's and JAX's tensors that are not one block of numbers, by name, as neither is imported.
_NOT_DENSE = ("RaggedTensor", "SparseTensor", "BCOO", "BCSR")


def batches(
    data: tuple[Data, Data, Data],
    row_order: Callable[[int, int, bool | str], RowOrder],
    batch_size: int | None = None,
    steps_per_epoch: int | None = None,
    shuffle: bool | str = False,
    class_weight: Mapping[int, float] | None = None,
    group: int = 1,
    steps_per_execution: int = 1,
) -> "ArrayBatches | StreamBatches":
    """Returns the batches of one member, epoch by epoch.

    They are the batches that `keras.Model.fit` would see, in the same order; nothing is padded,
    repeated or dropped.

    Args:
        data: `(x, y, sample_weight)`, each as `fit` takes it.
        row_order: The backend's `row_order`, see `kerascohost.backends.base.Backend`.
        batch_size: Rows per batch; `None` is 32, as in `fit`.
        steps_per_epoch: As in `fit`.
        shuffle: As in `fit`.
        class_weight: As in `fit`.
        group: How many batches are merged into one step. The last step of an epoch holds what is
            left.
        steps_per_execution: As in `compile`: `fit` runs whole executions, also beyond
            `steps_per_epoch`.

    Raises:
        CohortError: If the data is sparse, ragged or empty.
        ValueError: If `x`, `y` and the weights do not go together, as in `fit`.
    """
    if isinstance(data[0], Shared):
        return _of_shared(data, class_weight, steps_per_epoch, group, steps_per_execution)
    chosen = common_rows(data)
    if chosen is None:
        x, y, sample_weight = map(copied, data)
    else:  # Keras's adapter is given the whole arrays, and must not count their rows
        x, y, sample_weight = map(whole, data)
        if not batch_size:
            parts = steps_per_epoch * group if steps_per_epoch else None
            batch_size = math.ceil(len(chosen) / parts) if parts else 32
    _check_spec(x)
    epochs = adapters.Epochs(
        group,
        steps_per_epoch,
        x=x,
        y=y,
        sample_weight=sample_weight,
        batch_size=batch_size,
        shuffle=shuffle,
        class_weight=class_weight,
        steps_per_execution=steps_per_execution,
    )
    columns = adapters.columns(epochs)
    if columns is None:
        return StreamBatches(epochs, adapters.runs_python(x))
    rows = epochs.data_adapter.batch_size * group
    return ArrayBatches(
        columns, rows, steps_per_epoch, shuffle, row_order, steps_per_execution, chosen
    )


def _of_shared(
    data: tuple[Data, Data, Data],
    class_weight: Mapping[int, float] | None,
    steps_per_epoch: int | None,
    group: int,
    steps_per_execution: int,
) -> "StreamBatches":
    """Returns the batches that a member reads of a `Shared`."""
    given = dict(zip(("y", "sample_weight"), data[1:], strict=True)) | {
        "class_weight": class_weight
    }
    for name, value in given.items():
        if value is not None:
            raise CohortError(
                f"Expected `x=kc.shared(...)` without `{name}`: the dataset's batches are "
                f"`(x, y)` or `(x, y, sample_weight)`. Received: {name}={type(value).__name__}."
            )
    epochs = adapters.Epochs(
        group, steps_per_epoch, x=View(data[0]), steps_per_execution=steps_per_execution
    )
    return StreamBatches(epochs, runs_python=False)


class ArrayBatches:
    """Batches cut out of arrays.

    They are rows of arrays that stay on the device, where these may: see `ResidentArrays`.
    Otherwise they are copied chunk by chunk.

    Args:
        columns: The structure of arrays `(x, y, sample_weight)`, without what is missing.
        rows: How many rows make one step.
        steps_per_epoch: As in `fit`.
        shuffle: As in `fit`.
        row_order: As in `batches`.
        steps_per_execution: As in `batches`.
        chosen: The numbers of the rows that are used of the arrays; `None`: all.
    """

    must_wait = False
    ran_out = False  # their number is known
    steps_taken = 0  # of this epoch, as far as they are trained; set by the member
    fixed_rows = None  # of interest only where their number is not known
    are_weighted = False

    def __init__(
        self,
        columns: Tree,
        rows: int,
        steps_per_epoch: int | None,
        shuffle: bool | str,
        row_order: Callable[[int, int, bool | str], RowOrder],
        steps_per_execution: int = 1,
        chosen: np.ndarray | None = None,
    ):
        self._columns = _map(_Column, columns)
        if keras.backend.backend() == "tensorflow":
            self._columns = tree.lists_to_tuples(self._columns)  # as `tf.data` hands them over
        leaves = _leaves(self._columns)
        self._chosen = chosen
        self._num_rows = len(leaves[0]) if chosen is None else len(chosen)
        if self._num_rows == 0:
            raise CohortError("Expected at least one row of data. Received: arrays of 0 rows.")
        self._rows = rows
        self._execution = steps_per_execution
        self._row_bytes = sum(column.row_bytes for column in leaves)
        self._resident: Tree = None  # the columns on the device
        self._may_stay = all(column.may_stay for column in leaves)
        self._per_epoch = _capped(steps_per_epoch)
        self._order = row_order(self._num_rows, rows, shuffle) if shuffle else None
        self._pass: tuple[np.ndarray | None, int] | None = None
        self._begun_at: int | None = None  # the step of the pass at which a running epoch began
        # Then `fit` on TensorFlow traces with the number of rows of a batch.
        self._is_fixed = self._num_rows % rows == 0

    @property
    def rows_per_step(self) -> int:
        """The number of rows of a full step, also where there are fewer."""
        return self._rows

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps of an epoch."""
        return self._per_epoch or self._num_steps

    @property
    def form(self) -> Hashable:
        """A key that is equal for data whose batches have the same structure, types and shapes."""
        first = self.peek()
        told = tree.map_structure(lambda a: None if a is None else (a.shape, str(a.dtype)), first)
        return repr(told), self._num_rows % self._rows

    @property
    def _num_steps(self) -> int:
        return math.ceil(self._num_rows / self._rows)

    def peek(self, whole: bool = False) -> Tree:
        """Returns the rows of a first step, for their shapes; nothing is consumed."""
        rows = self._numbers(None, slice(0, min(self._rows, self._num_rows)))
        return _map(lambda column: column.take(rows, 1)[0], self._columns)

    def reset(self) -> None:
        """Returns to the start of the data, as `evaluate` does before it begins."""
        self._pass = None

    def read_to_build(self) -> Tree:
        """Returns the first batch, read as `fit` reads it to build a model; see `RowOrder`."""
        if self._order is not None:
            self._order.consume_build_draw()
        return self.peek()

    def advance_global_rng(self) -> None:
        """Ends the use of the data; see `RowOrder.advance_global_rng`."""
        if self._order is None:
            return
        if self._begun_at is not None:  # the epoch was not finished
            self._order.advance_global_rng(self._begun_at + self.steps_taken)
        else:
            self._order.advance_global_rng(self._pass[1] if self._pass is not None else None)

    def epoch(
        self,
        at_most: int | None = None,
        resident: ResidentArrays | None = None,
        may_have_changed: bool = False,
    ) -> Iterator[Chunk]:
        """Yields the chunks of the next epoch.

        Args:
            at_most: If given, hooks run between the steps, and rows are copied only when due.
            resident: The arrays that stay on the device in this run; `None`: copy all chunks.
            may_have_changed: Whether the user's code may have changed the arrays since the last
                epoch. Then they are compared, and put there again if it has.
        """
        self._use_resident(resident, may_have_changed)
        order, step, stop = self._begin_epoch()
        is_copied = self._resident is None and at_most is None and not may_have_changed
        yield from (
            self._windows_ahead(order, step, stop)
            if is_copied
            else self._windows(order, step, stop)
        )
        self._begun_at = None

    def _windows(self, order: np.ndarray | None, step: int, stop: int) -> Iterator[Chunk]:
        while step < stop:
            chunk = self._window(order, step, stop)
            step += chunk.stop - chunk.start
            yield chunk

    def _windows_ahead(self, order: np.ndarray | None, step: int, stop: int) -> Iterator[Chunk]:
        """Yields the chunks; a thread copies the rows of each while the one before is trained."""
        chunk = self._window(order, step, stop)
        step += chunk.stop - chunk.start
        if step == stop:
            yield chunk
            return
        with ThreadPoolExecutor(1) as copying:
            while step < stop:
                coming = copying.submit(self._window, order, step, stop)
                yield chunk
                chunk = coming.result()
                step += chunk.stop - chunk.start
        yield chunk

    def skip(self, epochs: int, reads_to_build: bool) -> None:
        """Draws for epochs that have been trained elsewhere, and drops them.

        Args:
            epochs: The number of epochs.
            reads_to_build: Whether a batch was read there to build the model.
        """
        if reads_to_build:
            self.read_to_build()
        for _ in range(epochs):
            self._begin_epoch()
            self._begun_at = None

    def _begin_epoch(self) -> tuple[np.ndarray | None, int, int]:
        """Returns the order of the next epoch, its first step, and the step before which it ends.

        These are steps of one pass over the data.
        """
        order, step = self._next_pass()
        self._begun_at, self.steps_taken = step, 0
        due = self._whole_executions(self.steps_per_epoch)
        left = self._whole_executions(self._num_steps - step)
        if self._per_epoch and due > left:
            _warn_out_of_data()
        # With `steps_per_epoch` the next epoch continues where this one ends.
        goes_on = self._per_epoch and due < left
        stop = min(self._num_steps, step + due)
        self._pass = (order, stop) if goes_on else None
        return order, step, stop

    def _use_resident(self, resident: ResidentArrays | None, may_have_changed: bool) -> None:
        if resident is None or not self._may_stay:
            self._resident = None
        elif self._resident is None:
            found = resident.of(_leaves(self._columns))
            self._may_stay = found is not None  # decided once, as other chunks are compiled anew
            if found is not None:
                remaining = iter(found)
                self._resident = _map(lambda _: next(remaining), self._columns)
        elif may_have_changed:
            for array in _leaves(self._resident):
                resident.renew(array)

    def _whole_executions(self, steps: int) -> int:
        return math.ceil(steps / self._execution) * self._execution

    def _next_pass(self) -> tuple[np.ndarray | None, int]:
        if self._pass is not None:
            return self._pass
        return (self._order() if self._order is not None else None), 0

    def _window(self, order: np.ndarray | None, step: int, stop: int) -> Chunk:
        """Returns the chunk that holds the batches from `step` on, but not beyond `stop`.

        All chunks of full batches have one shape: the last one begins with batches that have been
        taken already.
        """
        full = self._num_rows // self._rows
        if step >= full:  # what is left over, or all there is
            rows = slice(full * self._rows, self._num_rows)
            return self._chunk(order, rows, 1, 0, 1, is_first_shape=full == 0)
        row_bytes = self._row_bytes if self._resident is None else np.dtype(np.int32).itemsize
        most = max(1, _CHUNK_BYTES // max(1, row_bytes * self._rows))
        size = min(most, full, self.steps_per_epoch)
        first = min(step, full - size)
        rows = slice(first * self._rows, (first + size) * self._rows)
        start, stop = step - first, min(size, stop - first)
        return self._chunk(order, rows, size, start, stop, True, self._is_fixed)

    def _numbers(self, order: np.ndarray | None, positions: slice) -> slice | np.ndarray:
        """Returns the rows of the arrays at these positions of an order."""
        rows = positions if order is None else order[positions]
        return rows if self._chosen is None else self._chosen[rows]

    def _chunk(
        self,
        order: np.ndarray | None,
        rows: slice,
        steps: int,
        start: int,
        stop: int,
        is_first_shape: bool,
        is_fixed: bool = False,
    ) -> Chunk:
        """Returns the chunk of `steps` batches at these positions of the order."""
        chosen = self._numbers(order, rows)
        if self._resident is None:
            data = _map(lambda column: column.take(chosen, steps), self._columns)
            return Chunk(data, start, stop, is_first_shape, is_fixed)
        if isinstance(chosen, slice):
            chosen = np.arange(chosen.start, chosen.stop)
        numbers = _few_lengths(chosen.astype(np.int32).reshape(steps, -1))
        return Chunk(self._resident, start, stop, is_first_shape, is_fixed, numbers)


class StreamBatches:
    """Batches that are made elsewhere: by a dataset, a `PyDataset`, a `DataLoader` or a generator.

    They are read in the order of `fit`, which also calls `on_epoch_begin` and `on_epoch_end`. Where
    the user's code could notice a difference, a batch is read only after all before it are trained.

    Args:
        epochs: Keras's own iterator over their epochs.
        runs_python: Whether reading runs code of the user's.
    """

    rows_per_step = None  # not known before a batch is seen
    steps_taken = 0  # as of `ArrayBatches`; batches are read when they are trained

    def __init__(self, epochs: adapters.Epochs, runs_python: bool):
        self._epochs = epochs
        self._runs_python = runs_python
        self._are_fixed = epochs.are_fixed
        self._first_known = _checked(epochs.first_known())
        self._usual: tuple[Hashable, ...] | None = None
        self._rows: int | None = None
        self.are_weighted = False  # whether the batches of an epoch that has begun have weights
        self._waiting: Iterator[Tree] | None = None
        self._is_reset = False
        adapter = epochs.data_adapter
        self._view = adapter if isinstance(adapter, View) else None
        self.ran_out = False  # whether the last epoch ended where no more batch was found

    @property
    def steps_per_epoch(self) -> int | None:
        """The number of steps of an epoch, or `None` where that is not known yet."""
        return self._epochs.num_batches

    def peek(self, whole: bool = False) -> Tree:
        """Returns a batch with the shapes of those to come; none is consumed.

        Args:
            whole: Whether the batch must be that of a whole step, which may be merged from several.
                It is read in any case then. Otherwise the result is `None` where the user's code
                would notice that a batch is read now.

        Raises:
            CohortError: If there is no batch.
        """
        if self._first_known is not None and not whole:
            return self._first_known
        if self._epochs.num_batches == 0:
            raise _no_data()
        if self._runs_python and not whole and not self._epochs.is_dataset:
            return None
        items = self._items()
        first = next(items, None)
        if first is None:
            raise _no_data()
        self._waiting = itertools.chain([first], items)
        self._is_reset = True
        return first

    @property
    def fixed_rows(self) -> int | None:
        """The number of rows of the present epoch's batches, if the data's type says it."""
        return self._rows if self._are_fixed else None

    def reset(self) -> None:
        """Returns to the start of the data, as `fit` and `evaluate` do before they begin.

        A batch that was only peeked at is still to come, and nothing has to be read again.
        """
        if not self._is_reset:
            self._epochs.reset()
            self._is_reset = True

    def read_to_build(self) -> Tree:
        """Returns the first batch of a new epoch and consumes it, as `fit` does to build a model.

        Raises:
            CohortError: If there is no batch.
        """
        first = next(self._items(), None)
        if first is None:
            raise _no_data()
        return first

    def advance_global_rng(self) -> None:
        """Does nothing: such data has its own random state, or that of its member."""

    @property
    def must_wait(self) -> bool:
        """Returns whether members that read the same dataset more slowly must go on first."""
        return self._view is not None and self._view.must_wait

    def begin(self) -> None:
        """Begins the use of the data: members that read the same dataset may wait for this one."""
        if self._view is not None:
            self._view.begin()

    def close(self) -> None:
        """Ends the use of the data."""
        if self._view is not None:
            self._view.close()

    def epoch(self, at_most: int | None = None, *_: object) -> Iterator[Chunk]:
        """Yields the chunks of the next epoch, each of no more than `at_most` steps."""
        self.begin()
        items, self._waiting = self._waiting or self._items(), None
        self._is_reset = False
        first = next(items, None)
        if first is None:
            return
        size = sum(np.asarray(leaf).nbytes for leaf in _leaves(first))
        most = max(1, min(at_most or 2**31, _CHUNK_BYTES // max(1, size)))
        items = itertools.chain([first], items)
        # On JAX `fit` takes the variables from the model while an epoch runs, so that code which
        # makes batches can only tell by callbacks how far it is, and they limit `at_most`.
        could_tell = self._runs_python and keras.backend.backend() != "jax"
        for run in _runs(items, 1 if could_tell else most):
            data = _combine(np.stack, [*run, *self._padding(run)])
            self._usual = self._usual or _signature(data)
            self._rows = np.shape(_leaves(data)[0])[1]
            self.are_weighted = keras.utils.unpack_x_y_sample_weight(data)[2] is not None
            is_usual = _signature(data) == self._usual
            yield Chunk(data, 0, len(run), is_usual, is_fixed=self._are_fixed)

    def _padding(self, run: list[Tree]) -> list[Tree]:
        """Returns batches to append beyond the chunk's stop, so that runs have few lengths."""
        if not backends.get_backend().COMPILES_PER_SHAPE:
            return []
        return [run[-1]] * (2 ** math.ceil(math.log2(len(run))) - len(run))

    def _items(self) -> Iterator[Tree]:
        """Yields the batches of the next epoch, one for each step, in whole executions.

        Yields `_PAUSE` before `on_epoch_end` is called. Keras's iterator does what `fit` does when
        the data ends early.
        """
        self._is_reset = self.ran_out = False
        with self._epochs.catch_stop_iteration():
            for _, end, source in self._epochs:
                first = next(source, None)
                if first is None:
                    self.ran_out = True
                    raise StopIteration  # noted by Keras's iterator, as an end of the data
                yield _checked(first)
                for _ in range(self._epochs.steps_per_execution - 1):
                    following = next(source, None)
                    if following is None:
                        break
                    yield _checked(following)
                if self._epochs.ends_after(end):
                    yield _PAUSE


class _Column:
    """One array of the data, read by rows.

    Tensors of the current backend stay where they are; everything else is read through NumPy.
    Floats come out as what `keras.config.floatx()` was when it was made, as in `fit`.
    """

    def __init__(self, array: Tensor):
        _check_dense(array)
        self._floatx = keras.config.floatx()
        self._is_frame = hasattr(array, "iloc")
        self.is_tensor = not self._is_frame and keras.ops.is_tensor(array)
        # NumPy does not copy here: it is given an array, or shares its memory.
        self._array: Tensor = array if self._is_frame or self.is_tensor else np.asarray(array)
        if self._array.ndim == 0:  # NumPy makes this of a type that it does not know
            raise _not_dense(type(array).__name__)

    def __len__(self) -> int:
        return int(self._array.shape[0])

    @functools.cached_property
    def may_stay(self) -> bool:
        """Returns whether it may stay on the device, as far as its kind tells.

        Not what is read from a file, what is text, what is converted column by column, and what
        would take more memory there than here (windows that overlap).
        """
        if np.dtype(self._floatx).str not in _NUMBERS:  # NumPy does not know bfloat16
            return False
        if self._is_frame:
            dtypes = [self._array.dtype] if self._array.ndim == 1 else list(self._array.dtypes)
            are_alike = len(set(dtypes)) == 1 and getattr(dtypes[0], "str", "") in _NUMBERS
            return are_alike and not _is_mapped(self._array.iloc[:1].to_numpy())
        if self.is_tensor:
            return not hasattr(self._array, "assign") and _is_on_one_device(self._array)
        return (
            self._array.dtype.str in _NUMBERS
            and not _is_mapped(self._array)
            and not _overlaps(self._array)
        )

    @property
    def key(self) -> Hashable:
        """A key that is equal for columns of the same memory and type."""
        if self._is_frame or self.is_tensor:
            return id(self._array), self._floatx
        memory = self._array.__array_interface__["data"][0]
        kind = (self._array.shape, self._array.strides, self._array.dtype.str)
        return memory, kind, self._floatx

    @property
    def row_bytes(self) -> int:
        row = self.take(slice(0, 1), 1)
        return math.prod(row.shape) * getattr(row.dtype, "itemsize", 8)

    def take(self, rows: slice | np.ndarray, steps: int) -> Tree:
        """Returns the rows as `(steps, batch, ...)`."""
        if self.is_tensor:
            values = self._tensor_rows(rows)
            return keras.ops.reshape(values, (steps, values.shape[0] // steps, *values.shape[1:]))
        values = self._array.iloc[rows].to_numpy() if self._is_frame else self._array[rows]
        of_unlike_columns = self._is_frame and values.dtype == object
        if of_unlike_columns or keras.backend.is_float_dtype(values.dtype.name):
            values = values.astype(self._floatx, copy=False)
        return values.reshape((steps, len(values) // steps, *values.shape[1:]))

    def _tensor_rows(self, rows: slice | np.ndarray) -> Tree:
        if isinstance(rows, slice):
            values = self._array[rows]
        else:
            values = keras.ops.take(self._array, rows, axis=0)
        floats = keras.backend.is_float_dtype(keras.backend.standardize_dtype(values.dtype))
        return keras.ops.cast(values, self._floatx) if floats else values


# NumPy's types of numbers that every backend has, in this machine's byte order.
_NUMBERS = {np.dtype(code).str for code in "?bhilqBHILQefd"}


def _is_on_one_device(tensor: Tensor) -> bool:
    sharding = getattr(tensor, "sharding", None)  # JAX's
    return sharding is None or len(sharding.device_set) == 1


def _is_mapped(array: Tensor) -> bool:
    """Returns whether an array's memory is a file."""
    while array is not None:
        if isinstance(array, (np.memmap, mmap.mmap)):
            return True
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return False


def _overlaps(array: np.ndarray) -> bool:
    """Returns whether elements of an array share memory, as in windows made by strides."""
    pairs = zip(array.shape, array.strides, strict=True)
    return sum((size - 1) * abs(stride) for size, stride in pairs) + array.itemsize < array.nbytes


def _few_lengths(rows: np.ndarray) -> np.ndarray:
    """Returns the rows of batches; where lengths are compiled, batches without use are added."""
    if not backends.get_backend().COMPILES_PER_SHAPE:
        return rows
    added = padded_length(len(rows)) - len(rows)
    return np.concatenate([rows, np.zeros((added, rows.shape[1]), rows.dtype)]) if added else rows


def _check_spec(dataset: Data) -> None:
    """Raises an error for a `tf.data.Dataset` that Keras would make dense for NumPy."""
    for spec in tree.flatten(getattr(dataset, "element_spec", None)):
        kind = type(spec).__name__.removesuffix("Spec")
        if kind in _NOT_DENSE:
            raise _not_dense(f"a dataset of {kind}")


def _checked(batch: Tree) -> Tree:
    for leaf in _leaves(batch):
        _check_dense(leaf)
    return batch


def _check_dense(array: Tensor) -> None:
    """Raises an error for data that is not one block of numbers or strings."""
    kind = type(array)
    if kind.__name__ in _NOT_DENSE or kind.__module__.startswith("scipy.sparse"):
        raise _not_dense(kind.__name__)
    if kind is np.ndarray and array.dtype == object and array.ndim and array.size:
        first = array.flat[0]
        if isinstance(first, (np.ndarray, list, tuple)) or keras.ops.is_tensor(first):
            raise _not_dense(f"an array of {type(first).__name__}s")


def _no_data() -> CohortError:
    return CohortError("Expected at least one batch of data. Received: none.")


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


def _runs(items: Iterator[Tree], limit: int) -> Iterator[list[Tree]]:
    """Cuts `items` into lists of at most `limit` neighbours of equal shapes.

    If reading fails, the items read before are yielded before the exception is raised.
    """
    run: list[Tree] = []
    while True:
        try:
            item = next(items, None)
        except Exception:
            if run:
                yield run
            raise
        pauses = item is None or item is _PAUSE
        if run and (pauses or _signature(run[-1]) != _signature(item)):
            yield run
            run = []
        if item is None:
            return
        if pauses:
            continue
        run.append(item)
        if len(run) == limit:  # yielded at once, before the next item is requested of a generator
            yield run
            run = []


def _combine(function: Callable[..., Tensor], batches: list[Tree]) -> Tree:
    return tree.map_structure(
        lambda *parts: None if parts[0] is None else function(parts), *batches
    )


def _map(function: Callable[..., Tensor], structure: Tree) -> Tree:
    return tree.map_structure(lambda leaf: None if leaf is None else function(leaf), structure)


def _leaves(batch: Tree) -> list[Tree]:
    return [leaf for leaf in tree.flatten(batch) if leaf is not None]


def _signature(batch: Tree) -> tuple[Hashable, ...]:
    return tuple(
        None if leaf is None else (np.shape(leaf), getattr(leaf, "dtype", None))
        for leaf in tree.flatten(batch)
    )
