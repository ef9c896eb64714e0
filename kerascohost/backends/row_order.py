"""The order in which a member visits its rows, drawn as `fit` draws it."""

import collections
import itertools
from collections.abc import Callable, Iterator

import numpy as np


class RowOrder:
    """The rows of each coming epoch, in the order in which `fit` would visit them.

    Members take turns, so each draws from its own copy of the random state as it was when its
    training began: every member shuffles as it would have alone.

    Args:
        draw: Yields the order of one epoch, in parts as they are drawn: arrays of row indices.
    """

    def __init__(self, draw: Callable[[], Iterator[np.ndarray]]):
        self._draw = draw

    def __call__(self) -> np.ndarray:
        """Returns the order of the next epoch."""
        parts = list(self._draw())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def consume_build_draw(self) -> None:
        """Draws what `fit` draws when it takes a first batch to build a model, and drops it."""
        next(self._draw(), None)

    def advance_global_rng(self, batches: int | None = None) -> None:
        """Leaves the global random state where `fit` would, unless it was moved meanwhile.

        Without this a second fit would shuffle like the first one.

        Args:
            batches: How many batches of the last epoch were taken; `None`: all, and the data has
                ended. Rows that are shuffled inside each batch are drawn batch by batch.
        """

    def draw_again(self, batches: int) -> None:
        """Draws for the first `batches` of an epoch, and drops it."""
        collections.deque(itertools.islice(self._draw(), batches), maxlen=0)


def shuffled_rows(
    permutation: Callable[[int], np.ndarray], num_rows: int, batch_size: int, shuffle: bool | str
) -> Iterator[np.ndarray]:
    """Yields an epoch's rows, shuffled as a whole or inside each batch.

    Args:
        permutation: Returns the numbers below its argument in random order.
        num_rows: The number of rows.
        batch_size: The number of rows in a batch.
        shuffle: `"batch"` to shuffle inside each batch; anything else shuffles all rows.
    """
    if shuffle != "batch":
        yield permutation(num_rows)
        return
    for start in range(0, num_rows, batch_size):
        yield permutation(min(batch_size, num_rows - start)) + start
