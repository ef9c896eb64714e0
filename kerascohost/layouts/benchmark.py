"""Measurement of the layout in which given models train fastest on this machine."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import keras
import numpy as np
import pandas as pd
from keras import tree
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
from kerascohost.layouts import memory, speedup, usage
from kerascohost.layouts.result import COLUMNS, BenchmarkResult, Row
from kerascohost.layouts.sample_data import sample_data
from kerascohost.layouts.suggestions import MOST, suggest_group_factors
from kerascohost.layouts.usage import Usage
from kerascohost.training.cohort import Cohort

# The rounds that are measured whatever the budget: fewer have no interval.
_FEWEST = 2

# What is expected to take less is done even if the budget is spent, so that small ones measure all.
_SHORT_S = 8.0

# The order in which layouts are measured; others come after them.
_FIRST = ("separate", "joined", "stacked")

# At least so many of the `steps` are left where steps are slow.
_LEAST_STEPS = 4

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
    so_far: Callable[[BenchmarkResult], None] | None = None,
) -> BenchmarkResult:
    """Measures how fast the models train in each layout, and says which one to use.

    Your models are trained, and then restored: weights, optimizers, metrics, seeds, histories and
    compiled functions, also after an interrupt. In each layout every member sees the same samples,
    and each round begins with the same weights. Of models that are alike one is timed for all where
    they are trained alone. The layouts are measured in turn, so that other
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
        steps: Batches per member in each round, which is one epoch; fewer are taken where so many
            would take too much of the budget. The fixed cost of an epoch is
            included, so with few steps fusing looks better than it is in long epochs: if your
            epochs are short, set the number of steps that they have.
        repeats: The least number of rounds.
        budget_s: Time in seconds after which no new round begins, except for the first two, and
            nothing else that is expected to take more than 8 seconds: a layout that is not measured
            for this has a note. Before that, rounds go on until all speed-ups are known to 5 %.
        progress: Whether to show a progress bar; or a function that is called before each fit with
            the fraction that is done and with a text on what comes next (with an estimate of the
            time left once there is one). It may raise to end the benchmark.
        so_far: A function that is called with what is known whenever more is.

    Returns:
        A `BenchmarkResult`.

    Raises:
        CohortError: If a model is not compiled, or the data does not suit it.

    Example:

    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="net")
    >>> net.compile("adam", "mse")
    >>> result = benchmark([net], layouts=["joined"], steps=4, budget_s=1, progress=False)
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
    if not isinstance(budget_s, (int, float, np.number)) or not 0 <= budget_s < math.inf:
        raise CohortError(
            f"Expected `budget_s` to be finite and no less than 0 seconds. Received: {budget_s!r}"
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
    factors = _factors_by_layout(named, group_factor, replicas)
    with (
        preserved(named.values()),
        tqdm(total=1.0, desc="benchmark", disable=progress is not True) as bar,
    ):
        bar.bar_format = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"

        def show(fraction: float, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(fraction - bar.n)

        clock = _Clock(budget_s, progress if callable(progress) else show)
        trial = _Trial(named, data, sizes, clock)
        return _measured(asked, factors, trial, repeats, clock, so_far or (lambda result: None))


def _cohorts(factors: dict[str, int]) -> Literal["auto"] | dict[str, int]:
    """Returns a cohort's factors, or `"auto"` if all of them are 1."""
    return factors if set(factors.values()) != {1} else "auto"


def _factors_by_layout(
    models: Mapping[str, keras.Model],
    group_factor: Literal["auto"] | PerMember[int],
    replicas: Literal["auto"] | PerMember[int],
) -> dict[str, dict[str, int]]:
    """Returns how many batches are in each member's step; not yet those that depend on times."""
    factors = {
        "separate": dict.fromkeys(models, 1),
        "joined": dict.fromkeys(models, 1),
        "stacked": dict.fromkeys(models, 1),
        "replicated": counts_per_member("replicas", 2 if replicas == "auto" else replicas, models),
    }
    if group_factor != "auto":
        factors["grouped"] = counts_per_member("group_factor", group_factor, models)
    return factors


def _measured(
    layouts: Sequence[str],
    factors: dict[str, dict[str, int]],
    trial: "_Trial",
    repeats: int,
    clock: "_Clock",
    so_far: Callable[[BenchmarkResult], None],
) -> BenchmarkResult:
    """Measures the layouts: traces each, then runs rounds of all, then each member alone.

    Args:
        layouts: The layouts, the first of which is `"separate"`.
        factors: As `_factors_by_layout` returns them; those of the grouped layout are added.
        trial: The models and their data.
        repeats: As in `benchmark`.
        clock: The clock, started.
        so_far: As in `benchmark`.
    """
    notes: dict[str, str] = {}
    measured: dict[str, _Layout] = {}

    def result() -> BenchmarkResult:
        return _result(layouts, measured, notes, factors, trial)

    # One that traces a step once for all models comes before those that trace each anew.
    order = sorted(layouts, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    for i, layout in enumerate(order):
        clock.doing = f"tracing {layout} ({i + 1} of {len(layouts)} layouts)"
        clock.traced = i / len(layouts)
        if measured and not clock.has_time_for(_tracing_s(layout, measured, trial)):
            notes[layout] = "its tracing would take more time than was left of the budget"
            continue
        try:
            one = _traced(layout, factors, trial, measured)
        except (ValueError, TypeError) as error:  # a step that fails at another batch size
            notes[layout] = f"not possible: {error}"
            continue
        if layout == "separate" and trial.shorten(one.last_s, len(layouts), repeats):
            one.forget_rounds()
            one.round()
        measured[layout] = one
        so_far(result())
    separate = measured["separate"].times
    while True:
        a_round, alone = _expected_s(measured, trial)
        is_enough = _is_known(measured.values(), separate, repeats)
        if len(separate) >= _FEWEST and (is_enough or clock.left_s < a_round + alone):
            break
        clock.doing = f"round {len(separate) + 1}"
        clock.expect(max((_FEWEST - len(separate)) * a_round, clock.left_s, 0.0) + alone)
        for one in measured.values():
            one.round()
        so_far(result())
    clock.doing = "each member alone"
    clock.expect(_expected_s(measured, trial)[1])
    for one in measured.values():
        one.time_members()
        one.compare_weights(measured["separate"])
    return result()


def _traced(
    layout: str,
    factors: dict[str, dict[str, int]],
    trial: "_Trial",
    measured: Mapping[str, "_Layout"],
) -> "_Layout":
    """Returns the measurement of a layout, with its first round and one more."""
    if layout not in factors:
        factors[layout] = _auto_factors(measured["separate"])
    one = _Layout(layout, factors[layout], trial)
    one.round()
    return one


def _result(
    layouts: Sequence[str],
    measured: Mapping[str, "_Layout"],
    notes: Mapping[str, str],
    factors: dict[str, dict[str, int]],
    trial: "_Trial",
) -> BenchmarkResult:
    """Returns what has been measured so far."""
    separate = measured["separate"].times
    rows: list[Row] = []
    for layout in layouts:
        row: Row = {"layout": layout}
        if layout in measured:
            row |= measured[layout].row(separate)
        elif layout in notes:
            row["note"] = notes[layout]
        else:
            row["note"] = "not yet"
        rows.append(row)
    parts = [measured[layout].members() for layout in layouts if layout in measured]
    members = pd.concat(parts, ignore_index=True)
    models = trial.models  # the result holds these, and not the data

    def make(layout: str) -> Cohort:
        return _cohort(models, layout, factors[layout])

    frame = pd.DataFrame(map(dict, rows), columns=COLUMNS)
    return BenchmarkResult(frame, members, make, trial.longest_epoch)


def _tracing_s(layout: str, measured: Mapping[str, "_Layout"], trial: "_Trial") -> float:
    """Returns how long the first round of a layout is expected to take, in seconds."""
    joined = [one.first_s for name, one in measured.items() if name not in ("separate", "stacked")]
    # One program for all is traced in about half the time that programs for each take.
    longest = max(joined, default=0.5 * measured["separate"].first_s)
    kinds = len(set(trial.kinds.values()))
    return longest * kinds / len(trial.kinds) if layout == "stacked" else longest


def _auto_factors(separate: "_Layout") -> dict[str, int]:
    separate.time_members()
    own = separate.alone_ms
    known = {name: ms for name, ms in own.items() if not math.isnan(ms)}
    factors = suggest_group_factors(known, "speed", 1, MOST) if known else {}
    found = {name: factors.get(name, 1) for name in own}
    return dict.fromkeys(own, 2) if set(found.values()) == {1} else found


def _is_known(layouts: Iterable["_Layout"], separate: list[float], repeats: int) -> bool:
    if len(separate) < repeats:
        return False
    speedups = [speedup.ratio(separate, one.times) for one in layouts]
    return all(high <= middle * (1 + speedup.ENOUGH) for middle, _, high in speedups)


def _expected_s(layouts: Mapping[str, "_Layout"], trial: "_Trial") -> tuple[float, float]:
    """Returns the expected times of a round, and of what comes after the rounds, in seconds."""
    last = {layout: one.last_s for layout, one in layouts.items()}
    a_round = sum(last.values())
    # One member of each kind alone in each layout, a few times, then all at each batch size.
    kinds = len(set(trial.kinds.values())) / len(trial.kinds)
    return a_round, _ALONE * a_round * kinds + (len(last) - 1) * last["separate"]


def _cohort(models: Mapping[str, keras.Model], layout: str, factors: dict[str, int]) -> Cohort:
    """Returns the models as a cohort of this layout, which is not `"separate"`."""
    if layout == "stacked":
        cohort = Cohort(models, layout="stacked")
        if not (cohort.plan.frame["layout"] == "stacked").any():
            raise CohortError(f"no two of the models can be stacked: {cohort.plan.summary}")
        return cohort
    return Cohort(
        models,
        group_factor=factors if layout == "grouped" else 1,
        replicas=factors if layout == "replicated" else 1,
    )


class _Layout:
    """The measurement of one layout; its first round, which traces and compiles, has been run.

    Attributes:
        times: The times of the rounds after it, in seconds.
        first_s: The time of the first round.
        alone_ms: The time of each member's step when it is the only one in the program; NaN until
            it is known.
    """

    def __init__(self, layout: str, factors: dict[str, int], trial: "_Trial"):
        self.times: list[float] = []
        self._used: list[Usage] = []
        self._layout = layout
        self._factors = factors
        self._trial = trial
        self._sizes = {name: trial.batch_sizes[name] * k for name, k in factors.items()}
        self._cohort = None if layout == "separate" else _cohort(trial.models, layout, factors)
        self.alone_ms: dict[str, float] = dict.fromkeys(factors, math.nan)
        self._difference = math.nan
        with memory.peak() as peak:
            self.first_s = self._train()
        self._compile_s = math.nan
        self._memory_mb = peak["mb"]
        self._weights = trial.weights()

    def round(self) -> None:
        """Trains all members on all the data."""
        with usage.measured() as used:
            self.times.append(self._train())
        self._used.append(used)
        if math.isnan(self._compile_s):
            self._compile_s = max(0.0, self.first_s - self.times[0])

    def forget_rounds(self) -> None:
        """Forgets the rounds, as those that follow are shorter."""
        self.times.clear()
        self._used.clear()

    def _train(self) -> float:
        self._trial.restart()
        if self._cohort is None:
            counts = self._trial.counts
            return sum(count * self._trial.separate(name) for name, count in counts.items())
        return self._trial.together(self._cohort)

    @property
    def last_s(self) -> float:
        """The time of the last round."""
        return self.times[-1] if self.times else self.first_s

    def time_members(self) -> None:
        """Sets `alone_ms`, as far as there is time: members that are alike are timed once."""
        kinds = {name: (kind, self._factors[name]) for name, kind in self._trial.kinds.items()}
        times = {kinds[n]: ms for n, ms in self.alone_ms.items() if not math.isnan(ms)}
        for name, factor in self._factors.items():
            if kinds[name] in times:
                continue
            if not self._trial.clock.has_time_for((1 + _ALONE) * self.last_s / len(kinds)):
                break
            times[kinds[name]] = 1000 * self._alone(name) / self._trial.steps(name, factor)
        self.alone_ms = {name: times.get(kind, math.nan) for name, kind in kinds.items()}

    def _alone(self, name: str) -> float:
        """Trains one member on all its data, a few times; returns the shortest, in seconds.

        The first of them may trace or compile what this member alone needs.
        """
        if self._cohort is None:
            return min(self._trial.separate(name) for _ in range(_ALONE))
        return min(self._trial.together(self._cohort, only=name) for _ in range(_ALONE))

    def members(self) -> pd.DataFrame:
        """Returns its rows of `BenchmarkResult.members`."""
        sizes, factors = self._sizes, self._factors
        own = self.alone_ms
        slowest = math.nan if any(map(math.isnan, own.values())) else max(own.values())
        return pd.DataFrame(
            [
                (self._layout, n, ms, sizes[n], factors[n], 1 - ms / slowest)
                for n, ms in own.items()
            ],
            columns=["layout", "member", "step_ms", "samples", "batches", "waiting"],
        )

    def row(self, separate: list[float]) -> Row:
        """Returns its row of `BenchmarkResult.frame`.

        Args:
            separate: The times of the rounds of separate training, in seconds.
        """
        seconds = statistics.median(self.times)
        middle, low, high = speedup.ratio(separate, self.times)
        # Of members that are alike one stands for all in separate training.
        alike = len(self._factors) / len(self._trial.counts) if self._cohort is None else 1.0
        return {
            "samples_per_s": sum(self._trial.samples.values()) / seconds,
            "step_ms": 1000 * seconds / self._trial.longest_epoch,
            "speedup": middle,
            "low": low,
            "high": high,
            "compile_s": self._compile_s,
            "memory_mb": self._memory_mb,
            "cpu_s": alike * statistics.median(used.cpu_s for used in self._used),
            "gpu_utilization": statistics.median(used.gpu_utilization for used in self._used),
            "energy_j": alike * statistics.median(used.energy_j for used in self._used),
            "batch_size": ", ".join(f"{name}: {size}" for name, size in self._sizes.items()),
            "same_training": self._sizes == self._trial.batch_sizes,
            "weight_difference": self._difference,
        }

    def compare_weights(self, separate: "_Layout") -> None:
        """Sets the largest difference from separate training at its batch sizes, if there is time.

        Args:
            separate: The layout that is compared with.
        """
        if self._cohort is None:
            self._difference = 0.0
            return
        is_traced = self._sizes == self._trial.batch_sizes
        seconds = separate.last_s if is_traced else separate.first_s
        alike = len(self._trial.counts) / len(self._factors)
        if not self._trial.clock.has_time_for(seconds * alike):
            return
        self._trial.restart()
        own: list[tuple[np.ndarray, np.ndarray]] = []
        for name in self._trial.counts:
            self._trial.separate(name, self._factors[name])
            own += zip(self._weights[name], self._trial.weights()[name], strict=True)
        self._difference = max((float(np.abs(a - b).max(initial=0.0)) for a, b in own), default=0.0)


class _Trial:
    """The models, their data and everything else that is the same in each layout.

    Attributes:
        models: The models by name; they are built.
        batch_sizes: The samples per batch, by member.
        samples: The samples per round, by member.
        clock: The clock.
        kinds: A number for each member, equal for those that take equally long: models of one
            architecture with batches and data of one size.
        counts: The first member of each kind, and how many there are of it. Alone, only these are
            trained.
    """

    def __init__(
        self,
        models: dict[str, keras.Model],
        data: dict[str, tuple[Tree, Tree]],
        batch_sizes: dict[str, int],
        clock: "_Clock",
    ):
        self.models = models
        self.batch_sizes = batch_sizes
        self.samples = {name: len(tree.flatten(x)[0]) for name, (x, _) in data.items()}
        self._data = data
        self.clock = clock
        xs, ys = self._columns()
        Cohort(models).build(xs, ys, batch_sizes)
        self._start = VariableSnapshot(models.values())
        self.kinds = self._kinds()
        first = {kind: name for name, kind in reversed(self.kinds.items())}
        self.counts = {name: list(self.kinds.values()).count(kind) for kind, name in first.items()}

    def _kinds(self) -> dict[str, int]:
        plan = Cohort(self.models, layout="stacked").plan.frame.set_index("member")["stack"]
        known: dict[tuple[object, ...], int] = {}
        kinds = {}
        for name in self.models:
            stack = name if pd.isna(plan[name]) else int(plan[name])
            key = (stack, self.batch_sizes[name], self.samples[name])
            kinds[name] = known.setdefault(key, len(known))
        return kinds

    def shorten(self, round_s: float, layouts: int, repeats: int) -> bool:
        """Leaves fewer steps in a round if the rounds would take more than half of the budget.

        Args:
            round_s: The time of a round of separate training, in seconds.
            layouts: The number of layouts.
            repeats: The least number of rounds.

        Returns:
            Whether it did.
        """
        share = 0.5 * self.clock.budget_s / max(round_s * layouts * (repeats + _ALONE), 1e-9)
        is_long = round_s * layouts > _SHORT_S / 2 and share < 1
        fewest = self.longest_epoch if not is_long else _LEAST_STEPS
        steps = max(fewest, int(self.longest_epoch * share))
        if steps >= self.longest_epoch:
            return False
        for name, size in self.batch_sizes.items():
            rows = size * steps
            self._data[name] = tree.map_structure(
                lambda leaf, rows=rows: None if leaf is None else leaf[:rows], self._data[name]
            )
            self.samples[name] = min(self.samples[name], rows)
        return True

    def separate(self, name: str, factor: int = 1) -> float:
        """Trains one member by its own `fit`; returns the time in seconds."""
        (x, y), model = self._data[name], self.models[name]
        self.clock.tell()
        began = time.perf_counter()
        model.fit(x, y, batch_size=self.batch_sizes[name] * factor, shuffle=False, verbose=0)
        _wait_for([model])
        return time.perf_counter() - began

    def together(self, cohort: Cohort, only: str | None = None) -> float:
        """Trains the members, or one of them, in a cohort; returns the time in seconds."""
        self.clock.tell()
        began = time.perf_counter()
        xs, ys = self._columns()
        epochs = {name: int(only in (None, name)) for name in self.models}
        cohort.fit(xs, ys, batch_size=self.batch_sizes, epochs=epochs, shuffle=False, verbose=0)
        _wait_for(self.models.values())
        return time.perf_counter() - began

    def _columns(self) -> tuple[dict[str, Tree], dict[str, Tree]]:
        """Returns the inputs and the targets by member."""
        xs, ys = ({name: pair[i] for name, pair in self._data.items()} for i in (0, 1))
        return xs, ys

    def restart(self) -> None:
        """Restores the weights and seeds with which each round begins."""
        self._start.restore()

    def weights(self) -> dict[str, list[np.ndarray]]:
        """Returns the weights of each member that are numbers, unlike those of lookup tables."""
        arrays = {n: [np.array(w) for w in model.get_weights()] for n, model in self.models.items()}
        return {n: [a for a in own if a.dtype.kind in "fiu"] for n, own in arrays.items()}

    def steps(self, name: str, factor: int = 1) -> int:
        """Returns a member's steps in a round, with so many batches in each."""
        return math.ceil(self.samples[name] / (self.batch_sizes[name] * factor))

    @property
    def longest_epoch(self) -> int:
        """The most steps that a member has in a round."""
        return max(self.steps(name) for name in self.models)


class _Clock:
    """The budget of a benchmark and its progress, which is shown before each fit.

    While layouts are traced, the time left is not known.

    Attributes:
        doing: What is done now.
        traced: The fraction of the layouts that have been traced.
        budget_s: The budget.
    """

    def __init__(self, budget_s: float, show: Callable[[float, str], None]):
        self.doing = "building"
        self.traced = 0.0
        self.budget_s = budget_s
        self._show = show
        self._began = time.perf_counter()
        self._end: float | None = None

    @property
    def left_s(self) -> float:
        """The rest of the budget."""
        return self._began + self.budget_s - time.perf_counter()

    def has_time_for(self, seconds: float) -> bool:
        """Returns whether the rest of the budget is enough, or little time is needed."""
        return seconds <= max(self.left_s, _SHORT_S)

    def expect(self, seconds: float) -> None:
        """Sets how long the benchmark is expected to take from now on."""
        self._end = time.perf_counter() + seconds

    def tell(self) -> None:
        """Shows the fraction that is done, and what is done now with the time that is left."""
        now = time.perf_counter()
        spent = now - self._began
        if self._end is None:
            self._show(min(self.traced, spent / max(self.budget_s, 1e-9)), self.doing)
            return
        left = max(0.0, self._end - now)
        text = f"{self.doing}, at most about {math.ceil(left)} s left"
        self._show(spent / max(spent + left, 1e-9), text)


def _wait_for(models: Iterable[keras.Model]) -> None:
    """Waits until the device has computed the models' values, by reading one of each."""
    for model in models:
        keras.ops.convert_to_numpy(model.variables[-1].value)
