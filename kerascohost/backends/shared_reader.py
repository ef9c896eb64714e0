"""One reader of a dataset for all members that train on it: each batch is read once.

A `Shared` holds the dataset. Each member reads it through a `View`, which Keras's `EpochIterator`
takes for a data adapter, at its own speed: what one member has read is stored until all have.
"""

import copy
import weakref
from collections.abc import Iterator

import keras
from keras import tree

from kerascohost.backends.adapters import DataAdapter, Epochs
from kerascohost.backends.base import Tree
from kerascohost.data import Shared

# In bytes: a member that would have more than this stored for slower ones waits for them.
_MOST_STORED = 64 * 2**20


class _Pass:
    """One pass over the dataset: its batches from the first that is still to be read by a member.

    Args:
        epochs: The iterator over the dataset.

    Attributes:
        first: The number of the first batch that is stored.
        num_bytes: The size of what is stored.
    """

    def __init__(self, epochs: Epochs):
        epochs.data_adapter.on_epoch_begin()
        self._source = epochs.batches()
        self._batches: list[Tree] = []
        self._sizes: list[int] = []  # of the batches, in bytes
        self.num_bytes = 0
        self._failure: Exception | None = None
        self.first = 0

    def batch(self, i: int) -> Tree:
        """Returns batch `i`, which is read now if it is the next one; raises `StopIteration`.

        What reading it raises is raised for each member that comes so far.
        """
        if i == self.first + len(self._batches):
            if self._failure is not None:  # a generator that has failed would only seem to end
                raise _copied(self._failure, self._failure.__cause__)
            try:
                batch = next(self._source)
            except StopIteration:
                raise
            except Exception as error:
                self._failure = _copied(error, error)
                raise
            self._batches.append(batch)
            self._sizes.append(sum(getattr(leaf, "nbytes", 0) for leaf in tree.flatten(batch)))
            self.num_bytes += self._sizes[-1]
        return self._batches[i - self.first]

    def drop_before(self, i: int) -> None:
        """Forgets batches that all members have read."""
        count = max(0, i - self.first)
        self.num_bytes -= sum(self._sizes[:count])
        del self._batches[:count], self._sizes[:count]
        self.first += count


def _copied(error: Exception, cause: BaseException | None) -> Exception:
    """Returns an equal exception, so that each member puts its name on one of its own."""
    try:
        copied = copy.copy(error)
    except Exception:  # its class cannot be called with its arguments
        copied = type(error).__new__(type(error), *error.args)
        vars(copied).update(vars(error))
    copied.args, copied.__cause__ = error.args, cause
    if hasattr(error, "__notes__"):
        copied.__notes__ = [*error.__notes__]
    return copied


class _Reader:
    """Reads a dataset once for the members that begin together.

    Args:
        shared: The dataset.
    """

    def __init__(self, shared: Shared):
        dataset = shared.dataset
        # Keras warns of `shuffle` for other datasets, which have an order of their own.
        shuffle = shared.shuffle and isinstance(dataset, keras.utils.PyDataset)
        self.epochs = Epochs(1, None, x=dataset, shuffle=shuffle)
        self._passes: dict[int, _Pass] = {}
        self._views: weakref.WeakSet[View] = weakref.WeakSet()
        self._ended = -2  # -1 is what `fit` ends before its first pass
        self.has_begun = False  # before, all that is read is stored, for members yet to be prepared

    @property
    def may_be_joined(self) -> bool:
        """Returns whether a member that begins now finds all batches."""
        return bool(self._views) and not self.has_begun

    def add(self, view: "View") -> None:
        """Adds a member that reads, too."""
        self._views.add(view)

    def remove(self, view: "View") -> None:
        """Stores nothing more for a member that has ended."""
        self._views.discard(view)
        self._drop()

    def read(self, view: "View") -> Tree:
        """Returns the next batch of a member; raises `StopIteration` at the end of its pass."""
        number, i = view.position
        if number not in self._passes:
            self._passes[number] = _Pass(self.epochs)
        batch = self._passes[number].batch(i)
        view.position = number, i + 1
        self._drop()
        return batch

    def end(self, number: int) -> None:
        """Calls the dataset's `on_epoch_end`, once for each pass that members end."""
        if number > self._ended:
            self._ended = number
            self.epochs.data_adapter.on_epoch_end()

    def is_behind(self, view: "View") -> bool:
        """Returns whether so much is stored that this member has to wait for slower ones.

        Not for those that have not begun: they may begin only when this one has ended.
        """
        begun = [other.position for other in self._views if other.has_begun]
        if view.position == min(begun, default=view.position):
            return False
        return sum(own.num_bytes for own in self._passes.values()) > _MOST_STORED

    def _drop(self) -> None:
        if not self.has_begun:
            return
        if not self._views:
            self._passes.clear()
            return
        number, i = min(view.position for view in self._views)
        for known in [known for known in self._passes if known < number]:
            del self._passes[known]
        if number in self._passes:
            self._passes[number].drop_before(i)


class View(DataAdapter):
    """A member's own position in a dataset that several members read.

    Args:
        shared: The dataset.

    Attributes:
        position: The number of its pass, and of the next batch in it.
        has_begun: Whether it has begun to read for steps.
    """

    def __init__(self, shared: Shared):
        if shared.reader is None or not shared.reader.may_be_joined:
            shared.reader = _Reader(shared)
        self._reader: _Reader = shared.reader
        self._passes = 0
        self.position = (0, 0)
        self.has_begun = False
        self._reader.add(self)

    def __iter__(self) -> Iterator[Tree]:
        """Yields the batches of the next pass, which begins when the first is asked for."""
        self.position = self._passes, 0
        self._passes += 1
        while True:
            try:
                batch = self._reader.read(self)
            except StopIteration:
                return
            yield batch

    def begin(self) -> None:
        """Notes that members train now: no other one can join them."""
        self.has_begun = self._reader.has_begun = True

    @property
    def must_wait(self) -> bool:
        """Returns whether slower members must read first."""
        return self._reader.is_behind(self)

    @property
    def are_fixed(self) -> bool:
        """Returns whether the type of the dataset says how many rows a batch has."""
        return self._reader.epochs.are_fixed

    def get_numpy_iterator(self) -> Iterator[Tree]:
        """Returns the batches of the next pass."""
        return iter(self)

    def get_jax_iterator(self) -> Iterator[Tree]:
        """Returns the batches of the next pass."""
        return iter(self)

    @property
    def num_batches(self) -> int | None:
        """The number of batches of a pass; `None` if it is not known."""
        return self._reader.epochs.data_adapter.num_batches

    @property
    def batch_size(self) -> int | None:
        """The number of rows of a batch; `None` if it is not known."""
        return self._reader.epochs.data_adapter.batch_size

    @property
    def has_partial_batch(self) -> bool | None:
        """The answer whether the last batch of a pass may be smaller; `None` if it is not known."""
        return self._reader.epochs.data_adapter.has_partial_batch

    @property
    def partial_batch_size(self) -> int | None:
        """The number of rows of the last batch, if it is smaller."""
        return self._reader.epochs.data_adapter.partial_batch_size

    def on_epoch_end(self) -> None:
        """Notes that this member has ended its pass."""
        self._reader.end(self._passes - 1)

    def close(self) -> None:
        """Ends the use of the dataset by this member."""
        self._reader.remove(self)
