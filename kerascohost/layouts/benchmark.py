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
) -> BenchmarkResult:
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
    if not 0 <= budget_s < math.inf:
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
        return _measured(asked, factors, _Trial(named, data, sizes, clock), repeats, clock)


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
) -> BenchmarkResult:
    """Measures the layouts: traces each, then runs rounds of all, then each member alone.

    Args:
        layouts: The layouts, the first of which is `"separate"`.
        factors: As `_factors_by_layout` returns them; those of the grouped layout are added.
        trial: The models and their data.
        repeats: As in `benchmark`.
        clock: The clock, started.
    """
    rows: dict[str, Row] = {layout: {"layout": layout} for layout in layouts}
    measured: dict[str, _Layout] = {}
    for i, layout in enumerate(layouts):
        clock.doing = f"tracing {layout} ({i + 1} of {len(layouts)} layouts)"
        clock.traced = i / len(layouts)
        if layout not in factors:
            factors[layout] = _auto_factors(measured["separate"])
        try:
            measured[layout] = _Layout(layout, factors[layout], trial)
        except (ValueError, TypeError) as error:  # a step that fails at another batch size
            rows[layout]["note"] = f"not possible: {error}"
    separate = measured["separate"].times
    while len(separate) < _FEWEST or (
        not _is_known(measured.values(), separate, repeats) and clock.left_s > 0
    ):
        a_round, alone = _expected_s(measured)
        clock.doing = f"round {len(separate) + 1}"
        clock.expect(max((_FEWEST - len(separate)) * a_round, clock.left_s, 0.0) + alone)
        for one in measured.values():
            one.round()
    clock.doing = "each member alone"
    clock.expect(_expected_s(measured)[1])
    members = pd.concat([one.members() for one in measured.values()], ignore_index=True)
    for layout, one in measured.items():
        rows[layout] |= one.row(separate)
    frame = pd.DataFrame(map(dict, rows.values()), columns=COLUMNS)
    models = trial.models  # the result holds these, and not the data

    def make(layout: str) -> Cohort:
        return _cohort(models, layout, factors[layout])

    return BenchmarkResult(frame, members, make, trial.longest_epoch)


def _auto_factors(separate: "_Layout") -> dict[str, int]:
    own = separate.alone_ms()
    factors = suggest_group_factors(own, "speed", 1, MOST)
    return dict.fromkeys(own, 2) if set(factors.values()) == {1} else dict(factors)


def _is_known(layouts: Iterable["_Layout"], separate: list[float], repeats: int) -> bool:
    if len(separate) < repeats:
        return False
    speedups = [speedup.ratio(separate, one.times) for one in layouts]
    return all(high <= middle * (1 + speedup.ENOUGH) for middle, _, high in speedups)


def _expected_s(layouts: Mapping[str, "_Layout"]) -> tuple[float, float]:
    """Returns the expected times of a round, and of what comes after the rounds, in seconds."""
    last = {layout: one.last_s for layout, one in layouts.items()}
    a_round = sum(last.values())
    # Each member alone in each layout, a few times, then by itself at each layout's batch size.
    return a_round, _ALONE * a_round + (len(last) - 1) * last["separate"]


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
    """

    def __init__(self, layout: str, factors: dict[str, int], trial: "_Trial"):
        self.times: list[float] = []
        self._used: list[Usage] = []
        self._layout = layout
        self._factors = factors
        self._trial = trial
        self._sizes = {name: trial.batch_sizes[name] * k for name, k in factors.items()}
        self._cohort = None if layout == "separate" else _cohort(trial.models, layout, factors)
        with memory.peak() as peak:
            self._first_s = self._train()
        self._memory_mb = peak["mb"]
        self._weights = trial.weights()

    def round(self) -> None:
        """Trains all members on all the data."""
        with usage.measured() as used:
            self.times.append(self._train())
        self._used.append(used)

    def _train(self) -> float:
        self._trial.restart()
        if self._cohort is None:
            return sum(self._trial.separate(name) for name in self._factors)
        return self._trial.together(self._cohort)

    @property
    def last_s(self) -> float:
        """The time of the last round."""
        return self.times[-1] if self.times else self._first_s

    def alone_ms(self) -> dict[str, float]:
        """Returns the time of each member's step when it is the only one in the program."""
        return {
            name: 1000 * self._alone(name) / self._trial.steps(name, factor)
            for name, factor in self._factors.items()
        }

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
        own = self.alone_ms()
        slowest = max(own.values())
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
        return {
            "samples_per_s": sum(self._trial.samples.values()) / seconds,
            "step_ms": 1000 * seconds / self._trial.longest_epoch,
            "speedup": middle,
            "low": low,
            "high": high,
            "compile_s": max(0.0, self._first_s - seconds),
            "memory_mb": self._memory_mb,
            "cpu_s": statistics.median(used.cpu_s for used in self._used),
            "gpu_utilization": statistics.median(used.gpu_utilization for used in self._used),
            "energy_j": statistics.median(used.energy_j for used in self._used),
            "batch_size": ", ".join(f"{name}: {size}" for name, size in self._sizes.items()),
            "same_training": self._sizes == self._trial.batch_sizes,
            "weight_difference": self._weight_difference(),
        }

    def _weight_difference(self) -> float:
        """Returns the largest difference from separate training at its batch size."""
        if self._cohort is None:
            return 0.0
        self._trial.restart()
        for name, factor in self._factors.items():
            self._trial.separate(name, factor)
        pairs = zip(self._weights, self._trial.weights(), strict=True)
        return max((float(np.abs(a - b).max(initial=0.0)) for a, b in pairs), default=0.0)


class _Trial:
    """The models, their data and everything else that is the same in each layout.

    Attributes:
        models: The models by name; they are built.
        batch_sizes: The samples per batch, by member.
        samples: The samples per round, by member.
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
        self._clock = clock
        xs, ys = self._columns()
        Cohort(models).build(xs, ys, batch_sizes)
        self._start = VariableSnapshot(models.values())

    def separate(self, name: str, factor: int = 1) -> float:
        """Trains one member by its own `fit`; returns the time in seconds."""
        (x, y), model = self._data[name], self.models[name]
        self._clock.tell()
        began = time.perf_counter()
        model.fit(x, y, batch_size=self.batch_sizes[name] * factor, shuffle=False, verbose=0)
        _wait_for([model])
        return time.perf_counter() - began

    def together(self, cohort: Cohort, only: str | None = None) -> float:
        """Trains the members, or one of them, in a cohort; returns the time in seconds."""
        self._clock.tell()
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

    def weights(self) -> list[np.ndarray]:
        """Returns all weights that are numbers, unlike those of lookup tables."""
        models = self.models.values()
        arrays = [np.array(weight) for model in models for weight in model.get_weights()]
        return [array for array in arrays if array.dtype.kind in "fiu"]

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
    """

    def __init__(self, budget_s: float, show: Callable[[float, str], None]):
        self.doing = "building"
        self.traced = 0.0
        self._budget_s = budget_s
        self._show = show
        self._began = time.perf_counter()
        self._end: float | None = None

    @property
    def left_s(self) -> float:
        """The rest of the budget."""
        return self._began + self._budget_s - time.perf_counter()

    def expect(self, seconds: float) -> None:
        """Sets how long the benchmark is expected to take from now on."""
        self._end = time.perf_counter() + seconds

    def tell(self) -> None:
        """Shows the fraction that is done, and what is done now with the time that is left."""
        now = time.perf_counter()
        spent = now - self._began
        if self._end is None:
            self._show(min(self.traced, spent / max(self._budget_s, 1e-9)), self.doing)
            return
        left = max(0.0, self._end - now)
        text = f"{self.doing}, at most about {math.ceil(left)} s left"
        self._show(spent / max(spent + left, 1e-9), text)


def _wait_for(models: Iterable[keras.Model]) -> None:
    """Waits until the device has computed the models' values, by reading one of each."""
    for model in models:
        keras.ops.convert_to_numpy(model.variables[-1].value)
