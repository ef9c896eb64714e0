"""The history of a cohort: each member's `History`, and all of them as one table."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import keras
import numpy as np
import pandas as pd

from kerascohost.results import plotting
from kerascohost.results.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Printer(Protocol):
    """The printer that IPython passes to `_repr_pretty_`."""

    def text(self, text: str) -> None:
        """Adds text."""


class CohortHistory(Mapping[str, keras.callbacks.History]):
    """A mapping from each member's name to its `keras.callbacks.History`, as `fit` returns it.

    Args:
        histories: The members' histories by name.
        validated: The epochs after which a member was validated, where that is not after each:
            Keras records the values, but not when.
        seconds: How long each member's training took, where that was measured.

    Example:

    >>> history = CohortHistory({"mlp": keras.callbacks.History()})
    >>> list(history)
    ['mlp']
    """

    def __init__(
        self,
        histories: Mapping[str, keras.callbacks.History],
        validated: Mapping[str, list[int]] | None = None,
        seconds: Mapping[str, float] | None = None,
    ):
        self._histories = dict(histories)
        self._validated = dict(validated or {})
        self._seconds = dict(seconds or {})

    def __getitem__(self, member: str) -> keras.callbacks.History:
        if member not in self._histories:
            raise KeyError(f"{member!r} is none of the members: {', '.join(self._histories)}")
        return self._histories[member]

    def __iter__(self) -> Iterator[str]:
        return iter(self._histories)

    def __len__(self) -> int:
        return len(self._histories)

    @property
    def frame(self) -> pd.DataFrame:
        """A DataFrame with the columns `member`, `epoch`, `metric`, `split` and `value`.

        `epoch` counts from 0, as `History.epoch` does; `split` is `"train"` or `"val"`, and
        `metric` has no `val_` prefix.
        """
        rows = [
            plotting.row(member, epoch, metric, value)
            for member, history in self.items()
            for metric, values in getattr(history, "history", {}).items()
            for epoch, value in zip(self._epochs(member, len(values)), values, strict=True)
        ]
        return pd.DataFrame(rows, columns=plotting.COLUMNS)

    @property
    def table(self) -> pd.DataFrame:
        """A DataFrame with a row for each member: its epochs, its time, its last metrics."""
        rows = {
            member: {
                "epochs": len(getattr(history, "epoch", [])),
                **({"seconds": self._seconds[member]} if member in self._seconds else {}),
                **{name: values[-1] for name, values in getattr(history, "history", {}).items()},
            }
            for member, history in self.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def plot(
        self, ax: "Axes | None" = None, metric: str = "loss", subplots: bool = False
    ) -> plotting.Shown:
        """Draws the members' losses; see `kerascohost.plot_losses`.

        Args:
            ax: The matplotlib `Axes` to draw on; a new figure's by default.
            metric: Which metric to draw, without `val_`.
            subplots: Whether each member has Axes of its own.

        Returns:
            The matplotlib `Axes`.
        """
        return plotting.plot_losses(self.frame, ax=ax, metric=metric, subplots=subplots)

    def _epochs(self, member: str, recorded: int) -> list[int]:
        """The epochs at which a metric with this many values was recorded."""
        epochs = self[member].epoch
        validated = self._validated.get(member, epochs)
        return validated if recorded == len(validated) != len(epochs) else epochs[-recorded:]

    def __repr__(self) -> str:
        if len(self) < 2:
            return f"CohortHistory({''.join(map(self._describe, self))})"
        lines = [f"    {self._describe(member)}," for member in self]
        return "\n".join(["CohortHistory(", *lines, ")"])

    def _describe(self, member: str) -> str:
        history = self[member]
        last = {name: values[-1] for name, values in getattr(history, "history", {}).items()}
        values = "".join(f", {name}={value:.4g}" for name, value in last.items())
        return f"{member}: {len(getattr(history, 'epoch', []))} epochs{values}"

    def _repr_html_(self) -> str:
        return Table(self._text, index=True).html()

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        """Prints the table in a terminal, for IPython."""
        printer.text(Table(self._text, index=True).text() if len(self) else repr(self))

    @property
    def _text(self) -> pd.DataFrame:
        """The table as it is read: blank where a member has no such metric, `nan` where it has."""
        table = self.table
        rows = {
            member: {
                name: _shown(row[name]) if name in self._columns(member) else "" for name in table
            }
            for member, row in zip(self, table.to_dict("records"), strict=True)
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(table))

    def _columns(self, member: str) -> set[str]:
        own = getattr(self[member], "history", {})
        return {"epochs", *own, *(["seconds"] if member in self._seconds else [])}


def _shown(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)
