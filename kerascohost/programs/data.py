"""Keras's own data adapters, by their private names.

`fit` accepts arrays, datasets, generators and more; what each kind means (number of batches, end of
data, warnings, `on_epoch_end` of a `PyDataset`) is known by Keras's adapters and its
`EpochIterator`. They are used as they are, so that a member sees the batches its own `fit` would
have seen. Only arrays are read by us, so that many batches can be cut out of one at once; their
rows then come in the order that a `RowOrder` gives.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from keras import tree

# None of these has a public name; `keras.Model.fit` imports the same ones.
from keras.src.trainers.data_adapters import array_slicing
from keras.src.trainers.data_adapters.array_data_adapter import (
    ArrayDataAdapter,
    can_convert_arrays,
)
from keras.src.trainers.epoch_iterator import EpochIterator


class RowOrder:
    """The rows of each coming epoch, in the order in which `fit` would visit them.

    Members take turns, so each draws from its own copy of the random state as it was when its
    training began: every member shuffles as it would have alone.

    Args:
        draw: Yields the order of one epoch, in parts as they are drawn.
    """

    def __init__(self, draw: Callable[[], Iterator[np.ndarray]]):
        self._draw = draw

    def __call__(self) -> np.ndarray:
        parts = list(self._draw())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def look_ahead(self) -> None:
        """Draws what `fit` draws when it takes a first batch to build a model, and drops it."""
        next(self._draw(), None)

    def settle(self) -> None:
        """Leaves the global random state where `fit` would, unless it was moved meanwhile.

        Without this a second fit would shuffle like the first one.
        """


def shuffled_rows(
    permutation: Callable, num_rows: int, batch_size: int, shuffle: bool | str
) -> Iterator[np.ndarray]:
    """An epoch's rows, shuffled by `permutation(n)`: all of them, or inside each batch."""
    if shuffle != "batch":
        yield permutation(num_rows)
        return
    for start in range(0, num_rows, batch_size):
        yield permutation(min(batch_size, num_rows - start)) + start


def epoch_iterator(
    data: tuple[Any, Any, Any],
    batch_size: int | None,
    steps_per_epoch: int | None,
    shuffle: bool | str,
    class_weight: dict | None,
) -> EpochIterator:
    """Keras's iterator over the epochs of `data`, its arguments as in `fit`.

    Raises:
        ValueError: If `x`, `y` and the weights do not go together, as in `fit`.
    """
    x, y, sample_weight = data
    return EpochIterator(
        x=x,
        y=y,
        sample_weight=sample_weight,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        shuffle=shuffle,
        class_weight=class_weight,
    )


def columns(iterator: EpochIterator) -> Any:
    """The arrays that `iterator` cuts its batches from, or `None` if its data is not arrays.

    `_inputs`: x, y and the sample weights (made from the class weights where those are given),
    checked against each other but not yet converted or copied.
    """
    adapter = iterator.data_adapter
    return adapter._inputs if isinstance(adapter, ArrayDataAdapter) else None


def split_validation(data: tuple[Any, Any, Any], fraction: float) -> tuple[tuple, tuple]:
    """`(training, validation)` data; the last `fraction` of the rows validate, as in `fit`."""
    return array_slicing.train_validation_split(data, validation_split=fraction)


def are_arrays(data: tuple[Any, Any, Any]) -> bool:
    """Whether `fit` would cut its batches out of `(x, y, sample_weight)` itself."""
    return bool(can_convert_arrays(data))


def num_rows(x: Any, validation_split: float | None, validation_data: Any) -> int:
    """The number of rows of the arrays `x` that `fit` trains on."""
    rows = len(next(leaf for leaf in tree.flatten(x) if leaf is not None))
    if validation_split and validation_data is None:
        return math.floor(rows * (1.0 - validation_split))
    return rows
