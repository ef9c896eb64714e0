"""Data that a member may be given beyond what Keras takes: rows of an array that is not copied."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from kerascohost.arguments import Data
from kerascohost.errors import CohortError


class Subset:
    """Rows of an array, such as a fold or a bootstrap sample, at the price of their numbers.

    Members train on it as on `x[rows]`, but many subsets of one `x` share it: it is put on the
    device once. So it is if all arrays of a member (`x`, `y` and weights) are subsets with the same
    rows, and the arrays have equally many; otherwise the rows are copied.

    The name, and the order of the arguments, are those of `torch.utils.data.Subset`.

    Args:
        x: An array, a tensor or a DataFrame `(samples, ...)`, or another `Subset`.
        rows: The numbers of the rows, in order, perhaps several times: integers `(rows,)`, from
            `-samples` to `samples - 1`; a slice; or booleans `(samples,)`, which rows to take.

    Attributes:
        array: The array.
        rows: The numbers of the rows: an array of integers that are not negative, `(rows,)`.
        shape: The shape of `x[rows]`.
        dtype: The type of the values.

    Raises:
        CohortError: If `x` is no array, or a row does not exist.

    Example:

    >>> import keras, numpy as np
    >>> import kerascohost as kc
    >>> x, y = np.arange(40.0).reshape(10, 4), np.arange(10.0)
    >>> models = {}
    >>> for fold in range(2):
    ...     net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ...     net.compile("adam", "mse")
    ...     models[f"fold {fold}"] = net
    >>> rows = {f"fold {fold}": np.arange(10) % 2 != fold for fold in range(2)}
    >>> history = kc.Cohort(models).fit(
    ...     {name: kc.Subset(x, own) for name, own in rows.items()},
    ...     {name: kc.Subset(y, own) for name, own in rows.items()}, verbose=0)
    >>> kc.Subset(x, [0, -1]).shape
    (2, 4)
    """

    array: Data
    rows: np.ndarray

    def __init__(self, x: Data, rows: Sequence[int] | np.ndarray | slice):
        if isinstance(x, Subset):
            rows = x.rows[_numbers(rows, len(x))]
            x = x.array
        if not hasattr(x, "shape") or not len(x.shape):
            raise CohortError(
                "Expected `x` to be an array, a tensor or a DataFrame; of a structure of arrays, "
                f"give a Subset of each. Received: {type(x).__name__}."
            )
        if hasattr(x, "nnz"):  # a sparse array of SciPy
            raise CohortError(
                f"Expected dense data. Received: {type(x).__name__}. Make it dense (`.toarray()`)."
            )
        self.array = x
        self.rows = _numbers(rows, int(x.shape[0]))
        self.shape = (len(self.rows), *map(int, x.shape[1:]))
        self.ndim = len(self.shape)
        self.dtype = dtype_of(x)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: int | slice | np.ndarray) -> Data:
        """Returns a copy of some of its rows, as an array."""
        chosen = self.rows[rows]
        if hasattr(self.array, "iloc"):
            return self.array.iloc[chosen]
        if keras.ops.is_tensor(self.array):
            return keras.ops.take(self.array, chosen, axis=0)
        return self.array[chosen]

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> np.ndarray:
        values = self[:]
        if keras.ops.is_tensor(values):
            values = keras.ops.convert_to_numpy(values)
        return np.asarray(values, dtype)

    def __repr__(self) -> str:
        return f"Subset({type(self.array).__name__} {tuple(self.array.shape)}, {len(self)} rows)"


class Shared:
    """A dataset that is read once for all members; see `shared`."""

    def __init__(self, dataset: Data, shuffle: bool = True):
        self.dataset = dataset
        self.shuffle = shuffle
        self.reader: Any = None  # of the members that read it now; made in `backends`

    def __repr__(self) -> str:
        return f"shared({self.dataset!r})"


def shared(dataset: Data, shuffle: bool = True) -> Shared:
    """Returns a dataset in a form that all members of a cohort can be given: it is read once.

    Each batch is read, or made, once, and every member takes it. Given as it is, a dataset is read
    by each member for itself, as by its own `fit`; a generator or a dataset that changes while it
    is read cannot be given to several members at all.

    All members see the batches of an epoch in one order. It is drawn once: by the `tf.data`
    pipeline, by the `PyDataset`, or by `fit`'s `shuffle` for a `PyDataset`. Its `on_epoch_end` is
    called once an epoch, as the first member ends it, and once before the first epoch, as by `fit`.
    A member thus ends as by its own `fit` on these batches, in this order. Members that end early
    let it go on. Faster members are at most some 64 MiB of batches ahead of slower ones, but where
    each would wait for another, and all that is read is stored for members that have not begun
    (`at_once`).

    Args:
        dataset: A `tf.data.Dataset`, a `keras.utils.PyDataset`, a torch `DataLoader` or a generator
            of batches, as `fit` takes them: `(x, y)`, `(x, y, sample_weight)` or, without targets,
            `(x,)`; a generator may not yield a bare `x`.
        shuffle: Whether the batches of a `PyDataset` are shuffled, as by the `shuffle` of `fit`.
            Default `True`.

    Returns:
        An object to give as `x` or `validation_data`. Its members must begin together: it is
        another reading if one `fit` follows another.

    Raises:
        CohortError: If `dataset` is none of these; arrays need no reader.

    Example:

    >>> import keras, numpy as np
    >>> import kerascohost as kc
    >>> def batches():
    ...     random = np.random.default_rng(0)
    ...     while True:
    ...         x = random.normal(size=(8, 4))
    ...         yield x, x.sum(axis=1, keepdims=True)
    >>> models = {}
    >>> for units in (2, 3):
    ...     net = keras.Sequential([keras.layers.Dense(units), keras.layers.Dense(1)])
    ...     net.compile("adam", "mse")
    ...     models[f"net{units}"] = net
    >>> history = kc.Cohort(models).fit(
    ...     kc.shared(batches()), steps_per_epoch=5, epochs=2, verbose=0)
    >>> {name: len(history[name].epoch) for name in history}
    {'net2': 2, 'net3': 2}
    """
    others = (list, tuple, dict, str, bytes, Subset)
    has_batches = any(hasattr(dataset, name) for name in ("__next__", "__iter__", "__getitem__"))
    if isinstance(dataset, others) or not has_batches or hasattr(dataset, "shape"):
        hint = (
            "Give it to all members as it is."
            if isinstance(dataset, Shared)
            else "Arrays are given to all members as they are: they are on the device once."
        )
        raise CohortError(
            "Expected `dataset` to be a tf.data.Dataset, a PyDataset, a DataLoader or a generator. "
            f"Received: {type(dataset).__name__}. {hint}"
        )
    return Shared(dataset, shuffle)


def _numbers(rows: Sequence[int] | np.ndarray | slice, count: int) -> np.ndarray:
    if isinstance(rows, slice):
        return np.arange(count)[rows]
    numbers = np.asarray(rows)
    if numbers.size == 0:
        return np.zeros(0, np.int64)
    if numbers.dtype == bool and numbers.shape == (count,):
        return np.flatnonzero(numbers)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise CohortError(
            f"Expected `rows` to be integers, `(rows,)`, or booleans, `({count},)`. "
            f"Received: {numbers.dtype} {numbers.shape}."
        )
    least, most = int(numbers.min()), int(numbers.max())
    if least < -count or most >= count:
        raise CohortError(
            f"Expected `rows` from {-count} to {count - 1}, as `x` has {count} rows. "
            f"Received: {least if least < -count else most}."
        )
    numbers = numbers.astype(np.int64)  # a smaller type may not hold `count`
    return np.where(numbers < 0, numbers + count, numbers)


def dtype_of(array: Data) -> object:
    """Returns the type of the values of an array, a tensor, a DataFrame or a Series."""
    return array.iloc[:1].to_numpy().dtype if hasattr(array, "iloc") else array.dtype


def common_rows(data: Data) -> np.ndarray | None:
    """Returns the rows of all arrays in `data`; `None` if not all are subsets, or rows differ."""
    leaves = [leaf for leaf in tree.flatten(data) if leaf is not None]
    if not leaves or not all(isinstance(leaf, Subset) for leaf in leaves):
        return None
    first = leaves[0].rows
    same = all(leaf.rows is first or np.array_equal(leaf.rows, first) for leaf in leaves)
    return first if same and len({len(leaf.array) for leaf in leaves}) == 1 else None


def whole(data: Data) -> Data:
    """Returns `data` with the whole arrays in place of their subsets."""
    return _map(lambda subset: subset.array, data)


def copied(data: Data) -> Data:
    """Returns `data` with copies of their rows in place of subsets."""
    return _map(lambda subset: subset[:], data)


def _map(function: Callable[[Subset], Data], data: Data) -> Data:
    if not any(isinstance(leaf, Subset) for leaf in tree.flatten((data,))):
        return data
    return tree.map_structure(
        lambda leaf: function(leaf) if isinstance(leaf, Subset) else leaf, data
    )
