"""The result of a benchmark: its tables, and which layout is best."""

import math
from collections.abc import Callable
from os import PathLike
from typing import TextIO, TypedDict

import pandas as pd
from matplotlib.axes import Axes

from kerascohost.errors import CohortError
from kerascohost.layouts.speedup import ENOUGH
from kerascohost.results import plotting
from kerascohost.results.table import Table
from kerascohost.training.cohort import Cohort

# Of a speed-up with a wider interval than this, only the ends of the interval are shown.
_VAGUE = 0.5


class Row(TypedDict, total=False):
    """A layout's row of `BenchmarkResult.frame`; of one that was not measured, only its note."""

    layout: str
    samples_per_s: float
    step_ms: float
    speedup: float
    low: float
    high: float
    compile_s: float
    memory_mb: float
    cpu_s: float
    gpu_utilization: float
    energy_j: float
    batch_size: str
    same_training: bool
    weight_difference: float
    note: str


COLUMNS = list(Row.__annotations__)


class BenchmarkResult:
    """The result of a `benchmark`.

    Attributes:
        frame: A row for each layout: `samples_per_s` of all members together, `step_ms` (a batch of
            each), `speedup` over separate training with its 95 % interval (`low`, `high`),
            `compile_s` (how much longer the first round took, which traces and compiles),
            `memory_mb` (the most memory that the first round took in addition: of the GPU where
            there is one, else of the process), `cpu_s` (what a round takes of all processors, in
            seconds), `gpu_utilization` (from 0 to 1) and `energy_j` (in joules, of a round), both
            of an NVIDIA GPU if `nvidia-ml-py` is installed (the extra `gpu`), else NaN;
            `batch_size` (of each member's step), `same_training`, `weight_difference` (the largest,
            from separate training at that batch size), and a `note` on a layout that was not
            measured.
        members: A row for each layout and member: `step_ms`, the time of its own step when it runs
            alone in that layout, `samples` and `batches` in the step, and `waiting`, the share of a
            common step in which it would wait for the slowest member.
        best: The fastest layout; `"separate"` unless another one is known to be faster.
        best_exact: The fastest layout of those that do not change any training.
        reason: The reason for `best`, in a sentence.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        members: pd.DataFrame,
        make: Callable[[str], Cohort],
        steps: int | None = None,
    ):
        self.frame = frame
        self.members = members
        self._make = make
        measured = frame[frame["speedup"].notna()]
        self.best = _fastest(measured)
        self.best_exact = _fastest(measured[measured["same_training"]])
        self.reason = _reason(measured.set_index("layout"), self.best, self.best_exact, steps)

    def cohort(self) -> Cohort:
        """Returns a `Cohort` of your models in the best layout.

        Raises:
            CohortError: If separate training is best.
        """
        if self.best == "separate":
            raise CohortError(
                "Expected a layout that is faster than separate training. Received: none is; train "
                "each model by its own `fit`."
            )
        return self._make(self.best)

    @property
    def step_times(self) -> dict[str, dict[int, float]]:
        """The time of a step in seconds, by member and by the number of batches in the step."""
        alone = self.members[self.members["layout"].isin(["joined", "grouped"])]
        times: dict[str, dict[int, float]] = {}
        for member, batches, ms in zip(
            alone["member"], alone["batches"], alone["step_ms"], strict=True
        ):
            if not pd.isna(ms):  # there was no time for it
                times.setdefault(member, {})[int(batches)] = ms / 1000
        return times

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the speed-ups; see `kerascohost.plot_benchmark`."""
        return plotting.plot_benchmark(self.frame, ax=ax)

    def to_markdown(self) -> str:
        """Returns the table in GitHub's Markdown."""
        text = self._table.frame
        cells = [list(text), *text.to_numpy().tolist()]
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in cells]
        return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])

    def to_csv(self, path: str | PathLike[str] | TextIO | None = None) -> str | None:
        """Writes the table as comma-separated values, see `pandas.DataFrame.to_csv`.

        Args:
            path: The file to write to; by default, the text is returned.
        """
        return self.frame.to_csv(path, index=False)

    def described(self, row: pd.Series) -> dict[str, str]:
        """Returns a row of `frame` as texts, by headings for the user."""
        difference = row["weight_difference"]
        return {
            "layout": row["layout"],
            "speed-up": _speed_up(row),
            "samples/s": f"{row['samples_per_s']:,.0f}",
            "step ms": f"{row['step_ms']:.2f}",
            "compile s": f"{row['compile_s']:.1f}",
            "CPU s": "" if pd.isna(row.get("cpu_s")) else f"{row['cpu_s']:.2f}",
            "memory MB": "" if pd.isna(row["memory_mb"]) else f"{row['memory_mb']:,.0f}",
            "same training?": "yes" if row["same_training"] else self._changed(row["layout"]),
            "weight difference": ""
            if pd.isna(difference)
            else f"{difference:.0e}"
            if difference
            else "0",
        }

    def _changed(self, layout: str) -> str:
        """Returns which batch sizes a layout changes, of models that it changes alike together."""
        sizes = self.members.pivot(index="member", columns="layout", values="samples")
        changes: dict[str, list[str]] = {}
        for name, (own, plain) in sizes[[layout, "separate"]].iterrows():
            if own != plain:
                changes.setdefault(f"{own:.0f} instead of {plain:.0f}", []).append(str(name))
        parts = [
            f"{', '.join(names) if len(names) < 4 else f'{len(names)} models'} {change}"
            for change, names in changes.items()
        ]
        return f"no, batch sizes: {'; '.join(parts)}"

    @property
    def _table(self) -> Table:
        """The measured layouts, the reason for the best, and why others were not measured."""
        is_measured = self.frame["speedup"].notna()
        rows = [self.described(row) for _, row in self.frame[is_measured].iterrows()]
        missing = self.frame[~is_measured]
        pairs = zip(missing["layout"], missing["note"], strict=True)
        notes = [f"{layout} was not measured: {note}" for layout, note in pairs]
        return Table(pd.DataFrame(rows), [self.reason, *notes])

    def __repr__(self) -> str:
        return self._table.text()

    def _repr_html_(self) -> str:
        return self._table.html()


def _speed_up(row: pd.Series) -> str:
    if math.isinf(row["high"]):
        return f"about {row['speedup']:.2g}x (one round)"
    if row["high"] > row["speedup"] * (1 + _VAGUE):
        return f"{row['low']:.2g}x to {row['high']:.2g}x"
    return f"{row['speedup']:.2f}x ({row['low']:.2f} to {row['high']:.2f})"


def _fastest(rows: pd.DataFrame) -> str:
    faster = rows[(rows["low"] > 1) & (rows["speedup"] > 1 + ENOUGH)]
    return str(faster.set_index("layout")["speedup"].idxmax()) if len(faster) else "separate"


def _reason(frame: pd.DataFrame, best: str, exact: str, steps: int | None) -> str:
    rows: dict[str, Row] = frame.to_dict("index")  # type: ignore[assignment]  # its index: names
    if best == "separate":
        faster = [other for other in rows if rows[other]["speedup"] > 1 + ENOUGH]
        noisy = f" Too noisy to tell it from {_listed(faster)}." if faster else ""
        return f"separate: don't fuse. No layout is known to be faster than `fit` here.{noisy}"
    row = rows[best]
    text = f"{best}: {_times(row)} as fast as separate training"
    text += f" in epochs of {steps} steps" if steps else ""
    text += "." if row["same_training"] else f", with batch sizes {row['batch_size']}."
    close = [other for other in rows if other != best and rows[other]["high"] > row["low"]]
    if close:
        text += f" Too noisy to tell it from {_listed(close)}."
    if exact not in (best, "separate"):
        text += f" {exact} is {_times(rows[exact])} as fast, and changes nothing."
    return text


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _times(row: Row) -> str:
    """Returns a speed-up in words; with a wide interval, only its lower end."""
    if row["high"] > row["speedup"] * (1 + _VAGUE):
        return f"at least {row['low']:.1f} times"
    return f"{row['speedup']:.1f} times"
