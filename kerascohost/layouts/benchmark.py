"""Measurement of the layout in which given models train fastest on this machine."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Literal, TextIO, TypedDict

import keras
import numpy as np
import pandas as pd
from keras import tree
from matplotlib.axes import Axes
from tqdm.auto import tqdm

from kerascohost import errors
from kerascohost.arguments import (
    MEASURED_LAYOUTS,
    Data,
    MeasuredLayout,
    PerMember,
    check_count,
    counts_per_member,
    measured_layouts,
    named_models,
    per_member,
)
from kerascohost.backends import Tree
from kerascohost.backends.snapshot import VariableSnapshot, preserved
from kerascohost.errors import CohortError
from kerascohost.layouts import memory
from kerascohost.layouts.sample_data import sample_data
from kerascohost.layouts.suggestions import MOST, suggest_group_factors
from kerascohost.results import plotting
from kerascohost.results.table import Table
from kerascohost.training.cohort import Cohort

# A speed-up is known well enough when its 95 % interval reaches no further than this (as a part of
# it) to either side. A speed-up smaller than this is not worth another layout.
_ENOUGH = 0.05

# Of a speed-up with a wider interval than this, only the ends of the interval are shown.
_VAGUE = 0.5

# The rounds that are measured whatever the budget: fewer have no interval.
_FEWEST = 2

# The number of times that each member is timed by itself.
_ALONE = 3


def benchmark(
    models: Mapping[str, keras.Model] | Sequence[keras.Model] | Cohort,
    x: PerMember[Data] = None,
    y: PerMember[Data] = None,
    batch_size: PerMember[int | None] = 32,
    layouts: Sequence[MeasuredLayout] = MEASURED_LAYOUTS,
    group_factor: Literal["auto"] | PerMember[int] = "auto",
    replicas: Literal["auto"] | PerMember[int] = "auto",
    steps: int = 50,
    repeats: int = 5,
    budget_s: float = 30.0,
    progress: bool | Callable[[float, str], None] = True,
) -> "BenchmarkResult":
    """Measures how fast the models train in each layout, and says which one to use.

    Your models are trained, and then restored: weights, optimizers, metrics, seeds, histories and
    compiled functions, also after an interrupt. In each layout every member sees the same samples,
    and each round begins with the same weights. The layouts are measured in turn, so that other
    load on the machine affects all of them. The first round of each layout, which traces and
    compiles, is timed separately.

    Args:
        models: The compiled models: a dict, a list, or a `Cohort`.
        x: Arrays or datasets, for all members or as a dict by member; by default random arrays of
            the models' shapes.
        y: Targets, likewise; by default random ones that suit the models' losses.
        batch_size: Samples per batch, for all or by member (one that is not named, or `None`:
            32); a dataset has its own.
        layouts: Which layouts to measure, besides `"separate"`.
        group_factor: For the grouped layout. `"auto"`: those of a `Cohort` that has any. Otherwise
            each member takes so many batches in a step that its step lasts about as long as that of
            the slowest member, at most 8 (2 for all, if all are equally fast).
        replicas: For the replicated layout. `"auto"`: those of a `Cohort` that has any, else 2.
        steps: Batches per member in each round, which is one epoch. The fixed cost of an epoch is
            included, so with few steps fusing looks better than it is in long epochs: if your
            epochs are short, set the number of steps that they have.
        repeats: The least number of rounds.
        budget_s: Time in seconds after which no new round begins, except for the first two. Before
            that, rounds go on until all speed-ups are known to 5 %.
        progress: Whether to show a progress bar; or a function that is called before each fit with
            the fraction that is done and with a text on what comes next (with an estimate of the
            time left once there is one). It may raise to end the benchmark.

    Returns:
        A `BenchmarkResult`.

    Raises:
        CohortError: If a model is not compiled, or the data does not suit it.

    Example:

    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="net")
    >>> net.compile("adam", "mse")
    >>> result = benchmark([net], layouts=["joined"], steps=4, repeats=2, progress=False)
    >>> list(result.frame["layout"])
    ['separate', 'joined']
    """
    named = models.members if isinstance(models, Cohort) else named_models(models)
    asked = measured_layouts(layouts)
    if isinstance(models, Cohort):
        group_factor = _cohorts(models.group_factor) if group_factor == "auto" else group_factor
        replicas = _cohorts(models.replicas) if replicas == "auto" else replicas
    check_count("steps", steps)
    check_count("repeats", repeats)
    if not budget_s >= 0:
        raise CohortError(
            f"Expected `budget_s` to be no less than 0 seconds. Received: {budget_s!r}"
        )
    for name, model in named.items():
        with errors.about(name):
            if not model.compiled:
                raise CohortError("You must call `compile()` before measuring how a model trains.")
    given = per_member("batch_size", batch_size, named, default=None)
    sizes = counts_per_member(
        "batch_size", {n: 32 if s is None else s for n, s in given.items()}, named
    )
    data, sizes = sample_data(named, x, y, sizes, steps)
    bench = _Bench(named, data, sizes, group_factor, replicas)
    with (
        preserved(named.values()),
        tqdm(total=1.0, desc="benchmark", disable=progress is not True) as bar,
    ):
        bar.bar_format = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"

        def show(fraction: float, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(fraction - bar.n)

        return bench.measured(asked, repeats, budget_s, progress if callable(progress) else show)


def _cohorts(factors: dict[str, int]) -> Literal["auto"] | dict[str, int]:
    """Returns a cohort's factors, or `"auto"` if all of them are 1."""
    return factors if set(factors.values()) != {1} else "auto"


class _Row(TypedDict, total=False):
    """A layout's row of `BenchmarkResult.frame`; of one that was not measured, only its note."""

    layout: str
    samples_per_s: float
    step_ms: float
    speedup: float
    low: float
    high: float
    compile_s: float
    memory_mb: float
    batch_size: str
    same_training: bool
    weight_difference: float
    note: str


class BenchmarkResult:
    """The result of a `benchmark`.

    Attributes:
        frame: A row for each layout: `samples_per_s` of all members together, `step_ms` (a batch of
            each), `speedup` over separate training with its 95 % interval (`low`, `high`),
            `compile_s` (how much longer the first round took, which traces and compiles),
            `memory_mb` (the most memory that the first round took in addition: of the GPU where
            there is one, else of the process), `batch_size` (of each member's step),
            `same_training`, `weight_difference` (the largest, from separate training at that batch
            size), and a `note` on a layout that was not measured.
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
        return self._make(self.best)

    @property
    def step_times(self) -> dict[str, dict[int, float]]:
        """The time of a step in seconds, by member and by the number of batches in the step."""
        alone = self.members[self.members["layout"].isin(["joined", "grouped"])]
        times: dict[str, dict[int, float]] = {}
        for member, batches, ms in zip(
            alone["member"], alone["batches"], alone["step_ms"], strict=True
        ):
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

    @property
    def _table(self) -> Table:
        """The measured layouts, the reason for the best, and why others were not measured."""
        is_measured = self.frame["speedup"].notna()
        rows = [_described(row) for _, row in self.frame[is_measured].iterrows()]
        missing = self.frame[~is_measured]
        pairs = zip(missing["layout"], missing["note"], strict=True)
        notes = [f"{layout} was not measured: {note}" for layout, note in pairs]
        return Table(pd.DataFrame(rows), [self.reason, *notes])

    def __repr__(self) -> str:
        return self._table.text()

    def _repr_html_(self) -> str:
        return self._table.html()


class _Bench:
    """The models, their data and everything else that is the same in each layout."""

    def __init__(
        self,
        models: dict[str, keras.Model],
        data: dict[str, tuple[Tree, Tree]],
        batch_sizes: dict[str, int],
        group_factor: Literal["auto"] | PerMember[int],
        replicas: Literal["auto"] | PerMember[int],
    ):
        self.models = models
        self.batch_sizes = batch_sizes
        self._report: Callable[[], None] = lambda: None
        self.samples = {name: len(tree.flatten(x)[0]) for name, (x, _) in data.items()}
        self._data = data
        self._factors = {
            "separate": dict.fromkeys(models, 1),
            "joined": dict.fromkeys(models, 1),
            "stacked": dict.fromkeys(models, 1),
            "replicated": counts_per_member(
                "replicas", 2 if replicas == "auto" else replicas, models
            ),
        }
        if group_factor != "auto":
            self._factors["grouped"] = counts_per_member("group_factor", group_factor, models)

    def measured(
        self,
        layouts: Sequence[str],
        repeats: int,
        budget_s: float,
        show: Callable[[float, str], None],
    ) -> BenchmarkResult:
        """Measures the layouts.

        Args:
            layouts: The layouts, the first of which is `"separate"`.
            repeats: As in `benchmark`.
            budget_s: As in `benchmark`.
            show: Called before each fit with the fraction that is done and a text.
        """
        began = time.perf_counter()
        doing = "building"
        clock = _Clock(budget_s)

        def report() -> None:
            show(*clock.told(doing))

        self._report = report
        xs, ys = self._columns()
        Cohort(self.models).build(xs, ys, self.batch_sizes)
        self._start = VariableSnapshot(self.models.values())
        rows: dict[str, _Row] = {layout: {"layout": layout} for layout in layouts}
        rounds: dict[str, _Layout] = {}
        for i, layout in enumerate(layouts):
            doing = f"tracing {layout} ({i + 1} of {len(layouts)} layouts)"
            clock.traced = i / len(layouts)
            if layout not in self._factors:
                self._factors[layout] = self._auto_factors(rounds["separate"])
            try:
                rounds[layout] = _Layout(self, layout)
            except (ValueError, TypeError) as error:  # a step that fails at another batch size
                rows[layout]["note"] = f"not possible: {error}"
        times: dict[str, list[float]] = {layout: [] for layout in rounds}
        while len(times["separate"]) < _FEWEST or (
            not _is_known(times, repeats) and time.perf_counter() - began < budget_s
        ):
            doing = f"round {len(times['separate']) + 1}"
            clock.expect(rounds, times)
            for layout, one in rounds.items():
                times[layout].append(one.round())
        doing = "each member alone"
        clock.expect(rounds, times, ended=True)
        members = pd.concat([self._alone(one) for one in rounds.values()], ignore_index=True)
        for layout, one in rounds.items():
            rows[layout] |= self._numbers(times, layout) | one.about(times[layout])
        frame = pd.DataFrame(map(dict, rows.values()), columns=_COLUMNS)
        return BenchmarkResult(frame, members, self._users_cohort, self._longest_epoch)

    def separate(self, name: str, factor: int = 1) -> float:
        """Trains one member by its own `fit`; returns the time in seconds."""
        (x, y), model = self._data[name], self.models[name]
        self._report()
        began = time.perf_counter()
        model.fit(x, y, batch_size=self.batch_sizes[name] * factor, shuffle=False, verbose=0)
        _wait_for([model])
        return time.perf_counter() - began

    def together(self, cohort: Cohort, only: str | None = None) -> float:
        """Trains the members, or one of them, in a cohort; returns the time in seconds."""
        self._report()
        began = time.perf_counter()
        self._fit(cohort, {name: int(only in (None, name)) for name in self.models})
        _wait_for(self.models.values())
        return time.perf_counter() - began

    def _columns(self) -> tuple[dict[str, Tree], dict[str, Tree]]:
        """Returns the inputs and the targets by member."""
        xs, ys = ({name: pair[i] for name, pair in self._data.items()} for i in (0, 1))
        return xs, ys

    def _fit(self, cohort: Cohort, epochs: PerMember[int]) -> None:
        xs, ys = self._columns()
        cohort.fit(xs, ys, batch_size=self.batch_sizes, epochs=epochs, shuffle=False, verbose=0)

    def restart(self) -> None:
        """Restores the weights and seeds with which each round begins."""
        self._start.restore()

    def sizes(self, layout: str) -> dict[str, int]:
        """Returns the number of samples in each member's step."""
        return {name: self.batch_sizes[name] * k for name, k in self._factors[layout].items()}

    def factors(self, layout: str) -> dict[str, int]:
        """Returns the number of batches in each member's step."""
        return self._factors[layout]

    def cohort(self, layout: str) -> Cohort:
        """Returns the members as a cohort of this layout."""
        if layout == "stacked":
            cohort = Cohort(self.models, layout="stacked")
            if not (cohort.plan.frame["layout"] == "stacked").any():
                raise CohortError(f"no two of the models can be stacked: {cohort.plan.summary}")
            return cohort
        return Cohort(
            self.models,
            group_factor=self._factors["grouped"] if layout == "grouped" else 1,
            replicas=self._factors["replicated"] if layout == "replicated" else 1,
        )

    def _users_cohort(self, layout: str) -> Cohort:
        if layout == "separate":
            raise CohortError(
                "Expected a layout that is faster than separate training. Received: none is; train "
                "each model by its own `fit`."
            )
        return self.cohort(layout)

    def _auto_factors(self, separate: "_Layout") -> dict[str, int]:
        own = {name: separate.alone(name) / self._steps(name, "separate") for name in self.models}
        factors = suggest_group_factors(own, "speed", 1, MOST)
        return dict.fromkeys(own, 2) if set(factors.values()) == {1} else dict(factors)

    def _steps(self, name: str, layout: str) -> int:
        return math.ceil(self.samples[name] / self.sizes(layout)[name])

    @property
    def _longest_epoch(self) -> int:
        """The most steps that a member has in a round."""
        return max(self._steps(name, "separate") for name in self.models)

    def _alone(self, one: "_Layout") -> pd.DataFrame:
        """Returns the time of each member's step when it is the only one in the program."""
        sizes, factors = self.sizes(one.layout), self._factors[one.layout]
        own = {n: 1000 * one.alone(n) / self._steps(n, one.layout) for n in self.models}
        slowest = max(own.values())
        return pd.DataFrame(
            [(one.layout, n, ms, sizes[n], factors[n], 1 - ms / slowest) for n, ms in own.items()],
            columns=["layout", "member", "step_ms", "samples", "batches", "waiting"],
        )

    def _numbers(self, times: dict[str, list[float]], layout: str) -> _Row:
        seconds = statistics.median(times[layout])
        speedup, low, high = _ratio(times["separate"], times[layout])
        sizes = self.sizes(layout)
        return {
            "samples_per_s": sum(self.samples.values()) / seconds,
            "step_ms": 1000 * seconds / self._longest_epoch,
            "speedup": speedup,
            "low": low,
            "high": high,
            "batch_size": ", ".join(f"{name}: {size}" for name, size in sizes.items()),
            "same_training": sizes == self.batch_sizes,
        }


class _Layout:
    """One layout; its first round, which traces and compiles, has been run."""

    def __init__(self, bench: _Bench, layout: str):
        self.layout = layout
        self._bench = bench
        self._cohort = None if layout == "separate" else bench.cohort(layout)
        with memory.peak() as peak:
            self.first_s = self.round()
        self._memory_mb = peak["mb"]
        self._weights = _weights(bench.models)

    def round(self) -> float:
        """Trains all members on all the data; returns the time in seconds."""
        self._bench.restart()
        if self._cohort is None:
            return sum(self._bench.separate(name) for name in self._bench.models)
        return self._bench.together(self._cohort)

    def alone(self, name: str) -> float:
        """Trains one member on all its data, a few times; returns the shortest, in seconds.

        The first of them may trace or compile what this member alone needs.
        """
        if self._cohort is None:
            return min(self._bench.separate(name) for _ in range(_ALONE))
        return min(self._bench.together(self._cohort, only=name) for _ in range(_ALONE))

    def about(self, times: list[float]) -> _Row:
        """Returns what the first round has shown.

        Args:
            times: The times of the later rounds, in seconds.
        """
        return {
            "compile_s": max(0.0, self.first_s - statistics.median(times)),
            "memory_mb": self._memory_mb,
            "weight_difference": self._weight_difference(),
        }

    def _weight_difference(self) -> float:
        """Returns the largest difference from separate training at its batch size."""
        if self._cohort is None:
            return 0.0
        self._bench.restart()
        for name, factor in self._bench.factors(self.layout).items():
            self._bench.separate(name, factor)
        pairs = zip(self._weights, _weights(self._bench.models), strict=True)
        return max((float(np.abs(a - b).max(initial=0.0)) for a, b in pairs), default=0.0)


class _Clock:
    """The progress of a benchmark.

    While layouts are traced, the time left is not known. After that, it is estimated by the rest of
    the budget, or by the rounds that are still due, and the fits of single members at the end.
    """

    def __init__(self, budget_s: float):
        self.traced = 0.0
        self._budget_s = budget_s
        self._began = time.perf_counter()
        self._end: float | None = None

    def expect(
        self, layouts: Mapping[str, _Layout], times: Mapping[str, list[float]], ended: bool = False
    ) -> None:
        """Estimates the end from the rounds so far.

        Args:
            layouts: The layouts that are measured.
            times: The times of their rounds, in seconds.
            ended: Whether all rounds have been run.
        """
        last = {
            name: times[name][-1] if times[name] else one.first_s for name, one in layouts.items()
        }
        a_round = sum(last.values())
        now = time.perf_counter()
        due = max(0, _FEWEST - len(times["separate"])) * a_round
        rounds = 0.0 if ended else max(due, self._began + self._budget_s - now)
        # Each member alone in each layout, a few times, then by itself at each layout's batch size.
        self._end = now + rounds + _ALONE * a_round + (len(last) - 1) * last["separate"]

    def told(self, doing: str) -> tuple[float, str]:
        """Returns the fraction that is done, and `doing` with the time that is left."""
        now = time.perf_counter()
        spent = now - self._began
        if self._end is None:
            return min(self.traced, spent / max(self._budget_s, 1e-9)), doing
        left = max(0.0, self._end - now)
        return spent / max(spent + left, 1e-9), f"{doing}, at most about {math.ceil(left)} s left"


_COLUMNS = [
    "layout",
    "samples_per_s",
    "step_ms",
    "speedup",
    "low",
    "high",
    "compile_s",
    "memory_mb",
    "batch_size",
    "same_training",
    "weight_difference",
    "note",
]


def _weights(models: Mapping[str, keras.Model]) -> list[np.ndarray]:
    """Returns all weights that are numbers, unlike those of lookup tables."""
    arrays = [np.array(weight) for model in models.values() for weight in model.get_weights()]
    return [array for array in arrays if array.dtype.kind in "fiu"]


def _described(row: pd.Series) -> dict[str, str]:
    """Returns a row as texts, by headings for the user."""
    exact = row["same_training"]
    return {
        "layout": row["layout"],
        "speed-up": _speed_up(row),
        "samples/s": f"{row['samples_per_s']:,.0f}",
        "step ms": f"{row['step_ms']:.2f}",
        "compile s": f"{row['compile_s']:.1f}",
        "memory MB": "" if pd.isna(row["memory_mb"]) else f"{row['memory_mb']:,.0f}",
        "same training?": "yes" if exact else f"batch size {row['batch_size']}",
        "weight difference": f"{row['weight_difference']:.0e}" if row["weight_difference"] else "0",
    }


def _speed_up(row: pd.Series) -> str:
    if row["high"] > row["speedup"] * (1 + _VAGUE):
        return f"{row['low']:.2g}x to {row['high']:.2g}x"
    return f"{row['speedup']:.2f}x ({row['low']:.2f} to {row['high']:.2f})"


def _ratio(baseline: list[float], times: list[float]) -> tuple[float, float, float]:
    """Returns the speed-up and its 95 % interval, from the logarithms of the rounds' ratios.

    The interval is that of Student's t, as few rounds say little about the spread (with two rounds
    it reaches 12.7 standard errors to either side).
    """
    logs = [math.log(one / other) for one, other in zip(baseline, times, strict=True)]
    middle = statistics.median(logs)
    if len(logs) < 2:
        return math.exp(middle), 0.0, math.inf
    half = _student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(min(middle + half, _LARGEST))


# The largest logarithm of a speed-up; `math.exp` raises not much above it.
_LARGEST = 700.0


def _student(freedom: int) -> float:
    """Returns the 97.5 % quantile of Student's t: from a table, then by a series (to 0.1 %)."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**i for i, term in enumerate(terms))


_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571)


def _is_known(times: dict[str, list[float]], repeats: int) -> bool:
    if len(times["separate"]) < repeats:
        return False
    ratios = [_ratio(times["separate"], mine) for mine in times.values()]
    return all(high <= middle * (1 + _ENOUGH) for middle, _, high in ratios)


def _fastest(rows: pd.DataFrame) -> str:
    faster = rows[(rows["low"] > 1) & (rows["speedup"] > 1 + _ENOUGH)]
    return str(faster.set_index("layout")["speedup"].idxmax()) if len(faster) else "separate"


def _reason(frame: pd.DataFrame, best: str, exact: str, steps: int | None) -> str:
    rows: dict[str, _Row] = frame.to_dict("index")  # type: ignore[assignment]  # its index: names
    if best == "separate":
        faster = [other for other in rows if rows[other]["speedup"] > 1 + _ENOUGH]
        noisy = f" Too noisy to tell it from {' and '.join(faster)}." if faster else ""
        return f"separate: don't fuse. No layout is known to be faster than `fit` here.{noisy}"
    row = rows[best]
    text = f"{best}: {_times(row)} as fast as separate training"
    text += f" in epochs of {steps} steps" if steps else ""
    text += "." if row["same_training"] else f", with batch sizes {row['batch_size']}."
    close = [other for other in rows if other != best and rows[other]["high"] > row["low"]]
    if close:
        text += f" Too noisy to tell it from {' and '.join(close)}."
    if exact not in (best, "separate"):
        text += f" {exact} is {_times(rows[exact])} as fast, and changes nothing."
    return text


def _times(row: _Row) -> str:
    """Returns a speed-up in words; with a wide interval, only its lower end."""
    if row["high"] > row["speedup"] * (1 + _VAGUE):
        return f"at least {row['low']:.1f} times"
    return f"{row['speedup']:.1f} times"


def _wait_for(models: Iterable[keras.Model]) -> None:
    """Waits until the device has computed the models' values, by reading one of each."""
    for model in models:
        keras.ops.convert_to_numpy(model.variables[-1].value)
