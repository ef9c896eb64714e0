"""The state of a stack while it trains, and the batches and logs of its members."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import tree

from kerascohost.backends import resident
from kerascohost.backends.base import Logs, StepRange, Tensor, Tree
from kerascohost.backends.keras_internals import state_bytes, with_parts
from kerascohost.backends.stacking.signature import Stack

# From this transfer of a whole stack on, transfers are compiled: compiling takes as long as a
# hundred of them.
_OFTEN = 100


class StackedState:
    """The state of a stack while it trains: each variable of all members in one array.

    A member's row is loaded from its own variables before it is trained, and stored in them when
    code may read or change the model. In between the model's own variables are stale.

    Args:
        stack: The stack.
        models: Its models.

    Attributes:
        stack: The stack whose members' rows it has now.
        num_bytes: The size of all rows, in bytes.
    """

    def __init__(self, stack: Stack, models: Sequence[keras.Model]):
        self._stale: set[str] = set()
        self._transfers: collections.Counter[str] = collections.Counter()
        metrics = {id(variable) for variable in models[0].metrics_variables}
        self._metrics = [i for i, v in enumerate(stack.variables[0]) if id(v) in metrics]
        self._all = list(range(len(stack.variables[0])))
        self.num_bytes = len(stack.names) * state_bytes(models[0])

    def adopt(self, stack: Stack) -> None:
        """Makes it the state of another stack of the same signature; no row is loaded yet."""
        self.stack = stack
        self._row = {name: i for i, name in enumerate(stack.names)}

    def forget(self) -> None:
        """Releases the stack. All of its members' own variables must be current."""
        assert not self._stale
        self._transfers.clear()
        del self.stack

    @property
    def is_current(self) -> bool:
        """Returns whether all members' own variables are current."""
        return not self._stale

    def rows(self, names: Sequence[str]) -> list[int]:
        """Returns the rows of these members."""
        return [self._row[name] for name in names]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Returns these members in the order of their rows."""
        return sorted(names, key=self._row.__getitem__)

    def sync_from_models(self, ranges: Mapping[str, StepRange]) -> None:
        """Loads the rows of members whose own variables are current, and metrics that begin anew.

        Args:
            ranges: The steps of the members that are to be trained or tested.
        """
        missing = [name for name in ranges if name not in self._stale]
        reset = [name for name, own in ranges.items() if own.metrics_reset and name in self._stale]
        at_zero = [name for name, own in ranges.items() if own.metrics_at_zero]
        if missing:
            self.load(self.rows(missing), self._all)
        if reset:
            self.load(self.rows(reset), self._metrics)
        if at_zero:
            self.set_to_zero(self.rows(at_zero), self._metrics)
        self._stale |= set(missing)

    def read_from_models(self, names: Sequence[str], positions: Sequence[int]) -> None:
        """Loads what a step that changes nothing reads, where the models' variables are current."""
        missing = [name for name in names if name not in self._stale]
        if missing:
            self.load(self.rows(missing), positions)

    def sync_to_models(self, names: Sequence[str], begun: Sequence[str] = ()) -> None:
        """Stores the rows of these members in their own variables, if these are stale.

        Args:
            names: The members.
            begun: Those of them whose metrics have been reset since their last steps.
        """
        stale = [name for name in names if name in self._stale]
        reset = [name for name in stale if name in begun]
        others = [name for name in stale if name not in begun]
        if others:
            finished(lambda: self.store(self.rows(others), self._all))
        if reset:
            trained = [i for i in self._all if i not in self._metrics]
            finished(lambda: self.store(self.rows(reset), trained))
        self._stale -= set(stale)

    def is_often(self, what: str, rows: Sequence[int]) -> bool:
        """Counts a transfer; returns whether those of the whole stack are worth compiling.

        Args:
            what: The name of the transfer.
            rows: The rows that it copies; only a transfer of all rows counts.
        """
        if len(rows) < len(self.stack.names):
            return False
        self._transfers[what] += 1
        return self._transfers[what] >= _OFTEN

    def load(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Copies the variables at `positions` of these members into their rows."""
        raise NotImplementedError

    def set_to_zero(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Sets the variables at `positions` to zero in these rows."""
        raise NotImplementedError

    def store(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Copies these rows into the members' variables at `positions`."""
        raise NotImplementedError


def finished(write: Callable[[], None]) -> None:
    """Calls `write` to its end: an interrupt would leave old values beside new ones."""
    try:
        write()
    except KeyboardInterrupt:
        write()
        raise


class StackedBatches(NamedTuple):
    """The batches of several members, or the rows of which they consist.

    Attributes:
        structure: The structure of a batch, for `unflattened`.
        arrays: The arrays of the batches, `(steps, members, rows, ...)`, or arrays to take rows of.
        rows: In the second case the rows to take, `(steps, members, rows)`, else `None`.
        firsts: In the second case, for each array the first row of each member, `(members, 1)`.
    """

    structure: Tree
    arrays: list[Tensor]
    rows: np.ndarray | None
    firsts: list[np.ndarray]


def stacked_batches(ranges: Sequence[StepRange]) -> StackedBatches:
    """Stacks the batches of several members, which are of one shape and equally many."""
    chunks = [step_range.chunk for step_range in ranges]
    structure = tree.map_structure(lambda leaf: leaf is not None, chunks[0].data)
    leaves = [[leaf for leaf in tree.flatten(c.data) if leaf is not None] for c in chunks]

    def stack(parts: Sequence[Tensor]) -> Tensor:
        cut = [part[own.start : own.stop] for own, part in zip(ranges, parts, strict=True)]
        return (np.stack if isinstance(cut[0], np.ndarray) else keras.ops.stack)(cut, axis=1)

    by_leaf = list(zip(*leaves, strict=True))
    if chunks[0].rows is None:
        return StackedBatches(structure, list(map(stack, by_leaf)), None, [])
    pairs = [resident.together(own) for own in by_leaf]
    rows = stack([chunk.rows for chunk in chunks])
    return StackedBatches(
        structure, [array for array, _ in pairs], rows, [first[:, None] for _, first in pairs]
    )


def unflattened(structure: Tree, leaves: Sequence[Tensor]) -> Tree:
    """Returns the leaves of a batch in the structure that `stacked_batches` returned."""
    remaining = iter(leaves)
    return tree.map_structure(lambda there: next(remaining) if there else None, structure)


def logs_by_member(
    names: Sequence[str], rows: Sequence[int], logs: Logs, keys: Sequence[dict[str, str]]
) -> dict[str, Logs]:
    """Returns each member's own logs.

    Args:
        names: The members.
        rows: Their rows.
        logs: The prototype's logs, each of them a NumPy array with an item for each of `names`.
        keys: For each row the keys of its logs by those of the prototype's, where they differ.
    """
    by_member = {}
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        own = tree.map_structure(lambda leaf, i=i: leaf[i], logs)
        if keys[row] and isinstance(own, dict):
            own = {keys[row].get(key, key): value for key, value in own.items()}
        by_member[name] = own
    return by_member


def outputs_by_member(names: Sequence[str], outputs: Tree) -> dict[str, Tree]:
    """Returns each member's own outputs.

    Args:
        names: The members.
        outputs: NumPy arrays `(steps, members, rows, ...)`.
    """
    return {
        name: tree.map_structure(lambda array, i=i: array[:, i], outputs)
        for i, name in enumerate(names)
    }


def log_keys(models: Sequence[keras.Model]) -> list[dict[str, str]]:
    """Returns for each model the keys of its logs by those of the first's, if they differ.

    They may, as Keras numbers metrics that have no name.
    """
    first = _metric_names(models[0])
    return [
        {}
        if _metric_names(model) == first
        else dict(zip(models[0].get_metrics_result(), model.get_metrics_result(), strict=True))
        for model in models
    ]


def _metric_names(model: keras.Model) -> list[str]:
    return [metric.name for metric in with_parts(model.metrics)]
