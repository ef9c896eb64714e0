"""Arrays that stay on the device while a run lasts: each once, however many members read them."""

import math
import weakref
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from kerascohost.backends.base import Tensor, get_backend

# The part of the free memory that the arrays of a run may take: of the GPU's where the backend
# knows it, and of the RAM without a GPU. What is beyond it is transferred chunk by chunk.
_SHARE = 0.25

# In bytes, what counts as free where nothing tells: a GPU under TensorFlow, RAM without `/proc`.
_FREE_IF_UNKNOWN = 2 * 2**30

# In bytes: arrays are converted and compared in blocks of about this size.
_BLOCK_BYTES = 2**20

# In bytes: JAX shares NumPy's memory only if it begins at a multiple of 64, and TensorFlow ends the
# process if shared memory does not begin at a multiple of what its vector instructions need.
_ALIGNMENT = 128


class Source(Protocol):
    """An array of the user's, as it is read.

    Attributes:
        is_tensor: Whether it is a tensor of the backend.
    """

    is_tensor: bool

    @property
    def key(self) -> Hashable:
        """Returns a key that is equal for sources of the same rows."""

    def __len__(self) -> int: ...

    def take(self, rows: slice | np.ndarray, steps: int) -> Tensor:
        """Returns rows as `(steps, batch, ...)`, converted as `fit` converts them."""


class ResidentArray:
    """An array that is put on the device when a program first reads it.

    Args:
        source: The user's array. It stays alive as long as this object.

    Attributes:
        shape: Its shape, `(rows, ...)`.
        dtype: Its type, NumPy's or the backend's; JAX may narrow it on the device.
        host_dtype: The same as NumPy's type.
        num_bytes: Its size, in bytes.
    """

    def __init__(self, source: Source):
        first = source.take(slice(0, 1), 1)
        self.shape = (len(source), *map(int, first.shape[2:]))
        self.dtype = first.dtype
        self.host_dtype = np.dtype(keras.backend.standardize_dtype(first.dtype))
        self.num_bytes = math.prod(self.shape) * self.host_dtype.itemsize
        self._source = source
        self._own: Tensor | None = None
        self._copies: list[tuple[Tensor, int]] = []  # on the device, each with its first row there

    @property
    def on_device(self) -> Tensor:
        """The array on the device; where programs are compiled per shape, with rows added."""
        if self._own is None:
            is_there = self._source.is_tensor
            self._own = self._source.take(slice(None), 1)[0] if is_there else _put([self])
        return self._own

    def take(self, rows: np.ndarray) -> Tensor:
        """Returns these rows of the user's array."""
        return self._source.take(rows, 1)[0]

    def has_changed(self) -> bool:
        """Returns whether the user's array differs from its copies on the device."""
        if self._source.is_tensor:
            return False
        return any(not self._equals(copy, first) for copy, first in self._copies)

    def _equals(self, copy: Tensor, first: int) -> bool:
        to_host = get_backend().to_host
        for rows in self.blocks():
            there = to_host(copy, slice(first + rows.start, first + rows.stop))
            here = self._source.take(rows, 1)[0].astype(there.dtype, copy=False)
            if not np.array_equal(_as_bytes(here), _as_bytes(there)):  # as bytes: NaN equals NaN
                return False
        return True

    def blocks(self) -> list[slice]:
        """Returns slices that cover all rows."""
        count = self.shape[0]
        size = max(1, _BLOCK_BYTES * count // max(1, self.num_bytes))
        return [slice(start, min(count, start + size)) for start in range(0, count, size)]

    def copy_to(self, host: np.ndarray) -> None:
        """Copies the rows into an array of their number."""
        for rows in self.blocks():
            values = self._source.take(rows, 1)[0]
            host[rows] = keras.ops.convert_to_numpy(values) if self._source.is_tensor else values

    def note_copy(self, tensor: Tensor, first: int) -> None:
        """Notes that `tensor` has this array's rows, from row `first` on."""
        self._copies.append((tensor, first))

    def first_in(self, tensor: Tensor) -> int | None:
        """Returns the number of the first of this array's rows in `tensor`, if it has them."""
        return next((first for copy, first in self._copies if copy is tensor), None)

    def forget(self, stale: Sequence[Tensor]) -> None:
        """Forgets these copies: the array is put on the device again when it is next read."""
        self._copies = [pair for pair in self._copies if not any(pair[0] is t for t in stale)]
        if any(self._own is tensor for tensor in stale):
            self._own = None

    @property
    def copies(self) -> list[Tensor]:
        """The arrays on the device that have its rows."""
        return [copy for copy, _ in self._copies]


class ResidentArrays:
    """The arrays of one run, within a budget. They are freed with the last one that uses them."""

    def __init__(self) -> None:
        self._arrays: weakref.WeakValueDictionary[Hashable, ResidentArray]
        self._arrays = weakref.WeakValueDictionary()
        self._added_in: dict[Hashable, int] = {}
        self._round = 0
        self._budget = int(_SHARE * free_bytes())

    def begin_round(self) -> None:
        """Notes that code of the user's may have run: arrays known so far may have been changed."""
        self._round += 1

    def of(self, sources: Sequence[Source]) -> list[ResidentArray] | None:
        """Returns these arrays, or `None` if not all may stay on the device.

        An array that is known already is renewed if the user's code may have run since.
        """
        known = dict(self._arrays)
        found = {source.key: known.get(source.key) or ResidentArray(source) for source in sources}
        fresh = [array for key, array in found.items() if key not in known]
        taken = sum(array.num_bytes for array in known.values())
        if taken + sum(array.num_bytes for array in fresh) > self._budget:
            return None
        for key, array in found.items():
            if key in known and self._added_in[key] < self._round:
                self.renew(array)
            self._added_in[key] = self._round
        self._arrays |= found
        return [found[source.key] for source in sources]

    def renew(self, array: ResidentArray) -> None:
        """Has an array put on the device again if the user's array has changed."""
        if array.has_changed():
            stale = array.copies
            for other in list(self._arrays.values()):  # copies may have rows of several
                other.forget(stale)


def together(arrays: Sequence[ResidentArray]) -> tuple[Tensor, np.ndarray]:
    """Returns one array on the device that has the rows of all, and where those of each begin.

    One that has them already is used, also if it has more. Otherwise the distinct ones are put
    there one behind the other.
    """
    distinct = list(dict.fromkeys(arrays))
    for copy in distinct[0].copies:
        if all(array.first_in(copy) is not None for array in distinct):
            break
    else:
        if len(distinct) == 1:
            return distinct[0].on_device, np.zeros(len(arrays), np.int32)
        copy = _put(distinct)
    return copy, np.array([array.first_in(copy) for array in arrays], np.int32)


def padded_length(length: int) -> int:
    """Returns `length` rounded up to one of 16 lengths between each two powers of two.

    So few lengths have to be compiled, at the price of at most a sixteenth of memory.
    """
    step = 1 << max(0, length.bit_length() - 5)
    return -(-length // step) * step


def _put(arrays: Sequence[ResidentArray]) -> Tensor:
    """Puts arrays of one row shape and type on the device, one behind the other.

    They are copied once: the device may share the memory, and no change of the user's arrays may
    reach a training that is under way.
    """
    count = sum(array.shape[0] for array in arrays)
    length = padded_length(count) if get_backend().COMPILES_PER_SHAPE else count
    host = _aligned((length, *arrays[0].shape[1:]), arrays[0].host_dtype)
    firsts = [sum(array.shape[0] for array in arrays[:i]) for i in range(len(arrays))]
    for array, first in zip(arrays, firsts, strict=True):
        array.copy_to(host[first : first + array.shape[0]])
    tensor = get_backend().to_device(host)
    for array, first in zip(arrays, firsts, strict=True):
        array.note_copy(tensor, first)
    return tensor


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _as_bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def free_bytes() -> int:
    """Returns the free memory of the device, in bytes, or a guess."""
    backend = get_backend()
    free = backend.free_device_bytes() if backend.device_bytes() else _free_ram()
    return _FREE_IF_UNKNOWN if free is None else free


def _free_ram() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kib[0] * 1024 if kib else None
