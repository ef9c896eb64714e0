"""Suggestions of group factors, from the members' numbers of samples and times of a step."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np
import pandas as pd

from kerascohost.errors import CohortError
from kerascohost.results.table import Table

if TYPE_CHECKING:
    from kerascohost.layouts.result import BenchmarkResult

# A number of samples, the time of a step, or times of a step by group factor.
Measure: TypeAlias = float | Mapping[int, float]

# The largest factor without a limit by the user: much larger batches change the training.
MOST = 8

# The smallest factor is suggested whose epoch takes at most this many times that of the fastest.
_NEAR = 1.02


class _Row(TypedDict, total=False):
    """A member's row of `GroupFactors.frame`, with what is known."""

    member: str
    group_factor: int
    batch_size: int
    samples: int
    steps: int
    last_step: int
    step_s: float
    epoch_s: float


class GroupFactors(dict[str, int]):
    """A dict of each member's group factor, as `Cohort` takes it, with predictions.

    Attributes:
        frame: A row for each member: `group_factor`, `batch_size` of its step, and what is known:
            `samples`, `steps` of an epoch, samples in its last step (`last_step`; a full batch if
            the samples divide evenly), `step_s` and `epoch_s`, both predicted in seconds.
        tried: The same for every factor that was compared, with `by="both"`.
    """

    def __init__(self, factors: Mapping[str, int], frame: pd.DataFrame, tried: pd.DataFrame):
        super().__init__(factors)
        self.frame = frame
        self.tried = tried

    def _repr_html_(self) -> str:
        return Table(self.frame, float_format="{:.4g}".format).html()


def suggest_group_factors(
    measures: "Mapping[str, float] | Mapping[str, Mapping[int, float]] | BenchmarkResult",
    by: str = "size",
    batch_size: int = 32,
    max_batch_size: int | None = None,
    samples: Mapping[str, int] | None = None,
) -> GroupFactors:
    """Suggests group factors with which members keep the same pace, or epochs are short.

    Args:
        measures: A measure of each member, by name. With `by="size"` it is the number of samples:
            members with more samples take more batches in a step, so that all end their epoch
            together. With `by="speed"` it is the time of a step (in any unit): faster members take
            more batches, so that all steps last equally long. With `by="both"` it is the times of
            steps at two or more group factors, as `{1: 0.0021, 4: 0.0035}` in seconds: the times at
            other factors are assumed to lie on a line through these, and the smallest factor is
            suggested whose epoch takes at most 2 % longer than the shortest. For the last two,
            `measures` may be a `BenchmarkResult`.
        by: `"size"`, `"speed"` or `"both"`.
        batch_size: The batch size that is multiplied.
        max_batch_size: The largest batch; by default 8 times `batch_size` with `by="both"`, and
            unlimited with the others.
        samples: Each member's number of samples; needed with `by="both"`, and used for predictions
            with `by="speed"`.

    Returns:
        A dict with the group factor of each member, whose `frame` has the predictions.

    Raises:
        CohortError: If a measure is missing, or not a positive number.

    Example:

    >>> suggest_group_factors({"cnn": 300, "mlp": 600})
    {'cnn': 1, 'mlp': 2}
    >>> suggest_group_factors({"cnn": 2.8, "mlp": 0.7}, by="speed", max_batch_size=96)
    {'cnn': 1, 'mlp': 3}
    >>> times = {"cnn": {1: 0.002, 2: 0.004}, "mlp": {1: 0.0010, 2: 0.0011}}
    >>> suggest_group_factors(times, by="both", samples={"cnn": 3000, "mlp": 6000})
    {'cnn': 1, 'mlp': 8}
    """
    if by not in ("size", "speed", "both"):
        raise CohortError(f"Expected `by` to be 'size', 'speed' or 'both'. Received: by={by!r}.")
    if hasattr(measures, "step_times"):
        if by == "size":
            raise CohortError(
                "Expected `by` to be 'speed' or 'both' for what a benchmark measured. "
                "Received: by='size', which needs numbers of samples: {'cnn': 300, 'mlp': 600}."
            )
        measures = measures.step_times
    if not isinstance(measures, Mapping):
        raise CohortError(
            "Expected a dict from members' names to numbers, as {'cnn': 300, 'mlp': 600}, or a "
            f"BenchmarkResult. Received: {measures!r}"
        )
    known: Mapping[str, Any] = measures  # numbers or dicts of times, as `by` says
    samples = known if by == "size" else samples or {}
    _check(known, samples, by)
    most = max(1, (max_batch_size or (MOST * batch_size if by == "both" else 2**31)) // batch_size)
    times = {} if by == "size" else {name: _line(time) for name, time in known.items()}
    tried = pd.DataFrame()
    if by == "both":
        tables = [
            pd.DataFrame(
                dict(_row(name, k, batch_size, samples, times)) for k in range(1, most + 1)
            )
            for name in known
        ]
        tried = pd.concat(tables, ignore_index=True)
        near = [table[table["epoch_s"] <= _NEAR * table["epoch_s"].min()] for table in tables]
        factors = {
            name: int(rows["group_factor"].min()) for name, rows in zip(known, near, strict=True)
        }
    else:
        paces = {n: sum(times[n]) if times else known[n] for n in known}
        least, largest = min(paces.values(), default=1), max(paces.values(), default=1)
        ratios = {n: v / least if by == "size" else largest / v for n, v in paces.items()}
        factors = {name: max(1, min(most, round(ratio))) for name, ratio in ratios.items()}
    rows = [dict(_row(name, k, batch_size, samples, times)) for name, k in factors.items()]
    return GroupFactors(factors, pd.DataFrame(rows), tried)


def _check(measures: Mapping[str, Measure], samples: Mapping[str, int], by: str) -> None:
    for name, value in measures.items():
        times = value if isinstance(value, Mapping) else {1: value}
        if not times or not all(time > 0 for time in times.values()):
            raise CohortError(
                f"Member {name!r}: expected a positive number of samples, or time of a step. "
                f"Received: {value!r}."
            )
        if by != "both":
            continue
        if len(times) < 2:
            raise CohortError(
                f"Member {name!r}: expected the times of its steps at two group factors or more, "
                f"as {{1: 0.0021, 4: 0.0035}}, or a benchmark with `group_factor=4`. "
                f"Received: {value!r}."
            )
        if not samples.get(name, 0) > 0:
            raise CohortError(
                f"Member {name!r}: expected its number of samples, as samples={{{name!r}: 3000}}. "
                f"Received: {samples.get(name)!r}."
            )


def _line(times: Measure) -> tuple[float, float]:
    """Returns the fixed time of a step and the time per batch in it, by least squares."""
    if not isinstance(times, Mapping):
        return 0.0, times
    if len(times) == 1:
        [(factor, time)] = times.items()
        return 0.0, time / factor
    slope, start = np.polyfit(list(times), list(times.values()), 1)
    return max(0.0, float(start)), max(0.0, float(slope))


def _row(
    name: str,
    factor: int,
    batch_size: int,
    samples: Mapping[str, int],
    times: Mapping[str, tuple[float, float]],
) -> _Row:
    size = factor * batch_size
    row: _Row = {"member": name, "group_factor": factor, "batch_size": size}
    if name in samples:
        steps = math.ceil(samples[name] / size)
        left = samples[name] - (steps - 1) * size
        row |= {"samples": samples[name], "steps": steps, "last_step": left}
    if name in times:
        row["step_s"] = times[name][0] + times[name][1] * factor
    if name in samples and name in times:
        row["epoch_s"] = row["steps"] * row["step_s"]
    return row
