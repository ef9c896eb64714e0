"""Copies of the arguments of `fit`, made at the call, so that later changes do not affect them."""

import copy
import weakref
from collections.abc import Callable
from typing import TypeAlias

import keras
import numpy as np

from kerascohost.tracing.places import Bytes, Place, UserObject, copies_on_write

# Arrays are copied while all copies together have at most this many bytes. Beyond that, an array is
# only compared by a checksum, and a change raises an error.
_COPIED_BYTES = 2**30

# An array's address in memory, its shape, its strides in bytes and its dtype.
_Memory: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], str]

# The copies that are in use, by the memory of the original. Fits of one array share a copy.
_copies: weakref.WeakValueDictionary[_Memory, np.ndarray] = weakref.WeakValueDictionary()


def copied(path: str, value: UserObject, compare: Callable[[Place], None]) -> UserObject:
    """Returns an argument of `fit` in a form that later changes by the program do not affect.

    Containers are rebuilt; arrays and DataFrames are copied. Callbacks, tensors, datasets and
    generators are returned as they are.

    Args:
        path: The expression that a user would write for it, such as `x['image']`.
        value: The argument, or a part of it.
        compare: Called with the place of an array that is too large to copy, which is compared
            before the training instead.
    """
    if isinstance(value, np.ndarray):
        return _copied_array(path, value, compare)
    if isinstance(value, keras.callbacks.CallbackList):
        return value
    if isinstance(value, dict):
        new = copy.copy(value)
        for key, item in value.items():
            new[key] = copied(f"{path}[{key!r}]", item, compare)
        return new
    if isinstance(value, (list, tuple)):
        items = [copied(f"{path}[{i}]", item, compare) for i, item in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return items if isinstance(value, list) else tuple(items)
    package = type(value).__module__.partition(".")[0]
    if package == "pandas" and hasattr(value, "copy"):
        return value.copy(deep=not copies_on_write())
    if package == "scipy" and hasattr(value, "copy"):
        return value.copy()
    return value


def _copied_array(path: str, array: np.ndarray, compare: Callable[[Place], None]) -> np.ndarray:
    if isinstance(array, np.memmap) and not array.flags.writeable:
        return array
    memory = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str)
    known = _copies.get(memory)
    if known is not None and type(known) is type(array) and _has_same_bytes(array, known):
        return known
    if array.nbytes + sum(other.nbytes for other in list(_copies.values())) > _COPIED_BYTES:
        compare(Bytes(f"`{path}`", array))
        return array
    new = array.copy(order="K")
    _copies[memory] = new
    return new


def _has_same_bytes(array: np.ndarray, other: np.ndarray) -> bool:
    if array.dtype.hasobject:
        return False
    dtype = np.uint64 if array.nbytes % 8 == 0 else np.uint8
    return np.array_equal(_as_integers(array, dtype), _as_integers(other, dtype))


def _as_integers(array: np.ndarray, dtype: type) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(dtype)
