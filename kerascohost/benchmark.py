"""Which layout is best for these models, on this machine: measured, never assumed."""

import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import tree
from tqdm.auto import tqdm

from kerascohost import errors, plotting, programs
from kerascohost.cohort import LAYOUTS as COHORT_LAYOUTS
from kerascohost.cohort import Cohort
from kerascohost.errors import CohortError
from kerascohost.fusion import factors_of, named_models

LAYOUTS = ("separate", "joined", "grouped", "replicated", "stacked")

# A speed-up is known well enough when its 95 % interval is no wider than this to either side.
_ENOUGH = 0.05

# So many rounds are measured whatever the budget: fewer have no interval.
_FEWEST = 2

# The fast member of a pair is grouped up to this factor: beyond it training is another one.
_MOST = 8

_NOT_THERE = "not available: models of one architecture are not stacked yet"


def benchmark(
    models: Mapping[str, keras.Model] | Sequence[keras.Model] | Cohort,
    x: Any = None,
    y: Any = None,
    batch_size: int = 32,
    layouts: Sequence[str] = LAYOUTS,
    group_factor: str | int | Mapping[str, int] = "auto",
    replicas: int | Mapping[str, int] = 2,
    steps: int = 50,
    repeats: int = 5,
    budget_s: float = 30.0,
    progress: bool = True,
) -> "BenchmarkResult":
    """Measures how fast the models train in each layout, and says which one to use.

    Copies of the models are trained, so that yours stay as they are. In each layout every member
    sees the same samples. The layouts take turns, so that whatever else the machine does hits all
    of them; the first round of each, which traces and compiles, is timed apart.

    Args:
        models: The compiled models: a dict, a list, or a `Cohort`.
        x: Arrays for all members or as a dict by member; by default random ones of the models'
            shapes.
        y: Targets, likewise; by default random ones that suit the models' losses.
        batch_size: Samples per batch.
        layouts: Which layouts to measure, besides `"separate"`.
        group_factor: For the grouped layout. `"auto"` lets each member take as many batches in a
            step as the slowest one takes time for one of its own, at most 8 (2 for all, where all
            are alike).
        replicas: For the replicated layout.
        steps: Batches per member in each round.
        repeats: Rounds at least.
        budget_s: Time in seconds after which no new round is begun, but for the first two. Before
            that, rounds go on until all speed-ups are known to 5 %.
        progress: Whether to show a progress bar.

    Returns:
        A `BenchmarkResult`.

    Raises:
        CohortError: If the models cannot be copied, or the data is not made of arrays.

    Example:

    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="net")
    >>> net.compile("adam", "mse")
    >>> result = benchmark([net], layouts=["joined"], steps=4, repeats=2, progress=False)
    >>> list(result.frame["layout"])
    ['separate', 'joined']
    """
    named = models.members if isinstance(models, Cohort) else named_models(models)
    asked = _layouts(layouts)
    for name, model in named.items():
        with errors.about(name):
            _check_ready(model)
    data = {name: _data(name, named, x, y, batch_size * steps) for name in named}
    before = programs.random_state()
    try:
        with tqdm(total=budget_s, unit="s", desc="benchmark", disable=not progress) as bar:
            bar.bar_format = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"
            bench = _Bench(named, data, batch_size, group_factor, replicas)
            return bench.measured(asked, repeats, budget_s, bar)
    finally:
        programs.set_random_state(before)


def suggest_group_factors(
    measures: Mapping[str, float],
    by: str = "size",
    batch_size: int = 32,
    max_batch_size: int | None = None,
) -> dict[str, int]:
    """Group factors that make members of one pace out of unlike ones.

    Args:
        measures: What is known of each member, by name. With `by="size"` its number of samples:
            the larger one takes more batches in a step, so that all end their epoch together. With
            `by="speed"` the time of one of its steps (in any unit): the faster one takes more, so
            that all steps last equally long.
        by: `"size"` or `"speed"`.
        batch_size: The batch size that is multiplied.
        max_batch_size: How large a batch may become.

    Returns:
        The group factor of each member, as `Cohort` takes it.

    Raises:
        CohortError: If a measure is not a positive number.

    Example:

    >>> suggest_group_factors({"cnn": 300, "mlp": 600})
    {'cnn': 1, 'mlp': 2}
    >>> suggest_group_factors({"cnn": 2.8, "mlp": 0.7}, by="speed", max_batch_size=96)
    {'cnn': 1, 'mlp': 3}
    """
    if by not in ("size", "speed"):
        raise CohortError(f"Expected `by` to be 'size' or 'speed'. Received: by={by!r}.")
    for name, value in measures.items():
        if not value > 0:
            raise CohortError(
                f"Member {name!r}: expected a positive number of samples, or time of a step. "
                f"Received: {value!r}."
            )
    most = max(1, (max_batch_size or 2**31) // batch_size)
    least, largest = min(measures.values(), default=1), max(measures.values(), default=1)
    ratios = {n: v / least if by == "size" else largest / v for n, v in measures.items()}
    return {name: min(most, round(ratio)) for name, ratio in ratios.items()}


class BenchmarkResult:
    """What a `benchmark` has found.

    Attributes:
        frame: A row for each layout: `samples_per_s` of all members together, `step_ms` (a batch of
            each), `speedup` over separate training with its 95 % interval (`low`, `high`),
            `first_run_s` (tracing and compiling included), `batch_size` (of each member's step),
            `same_training`, `weight_difference` (the largest, from separate training at that batch
            size), and a `note` where there is something to say.
        members: A row for each member: `step_ms` alone, and `waiting`, the share of a common step
            in which it would wait for the slowest.
        best: The fastest layout.
        best_exact: The fastest of those that do not change any training.
        reason: Why, in a sentence.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        members: pd.DataFrame,
        make: Callable[[str], Cohort],
    ):
        self.frame = frame
        self.members = members
        self._make = make
        measured = frame[frame["speedup"].notna()]
        self.best = _fastest(measured)
        self.best_exact = _fastest(measured[measured["same_training"]])
        self.reason = _reason(measured.set_index("layout"), self.best, self.best_exact)

    def cohort(self) -> Cohort:
        """A `Cohort` of your models in the best layout.

        Raises:
            CohortError: If separate training is best.
        """
        return self._make(self.best)

    def plot(self, ax: Any = None) -> Any:
        """Draws the speed-ups; see `kerascohost.plotting.plot_benchmark`."""
        return plotting.plot_benchmark(self.frame, ax=ax)

    def to_markdown(self) -> str:
        """The table as GitHub shows it."""
        cells = [list(self._text), *self._text.to_numpy().tolist()]
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in cells]
        return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])

    def to_csv(self, path: Any = None) -> str | None:
        """The table as comma-separated values, see `pandas.DataFrame.to_csv`."""
        return self.frame.to_csv(path, index=False)

    @property
    def _text(self) -> pd.DataFrame:
        return pd.DataFrame([_described(row) for _, row in self.frame.iterrows()]).fillna("")

    def __repr__(self) -> str:
        return f"{self._text.to_string(index=False)}\n\n{self.reason}"

    def _repr_html_(self) -> str:
        return f"{self._text.to_html(index=False, border=0)}<p>{self.reason}</p>"


class _Bench:
    """The models, and everything that is the same in each layout."""

    def __init__(
        self,
        models: dict[str, keras.Model],
        data: dict[str, tuple],
        batch_size: int,
        group_factor: Any,
        replicas: Any,
    ):
        self.models = models
        self.samples = {name: len(tree.flatten(x)[0]) for name, (x, _) in data.items()}
        self.batch_size = batch_size
        self.own_seconds: dict[str, list[float]] = {name: [] for name in models}
        self._data = data
        self._group_factor = group_factor
        self._factors: dict[str, dict[str, int]] = {
            "replicated": factors_of("replicas", replicas, models)
        }
        if group_factor != "auto":
            self._factors["grouped"] = factors_of("group_factor", group_factor, models)

    def measured(
        self, layouts: list[str], repeats: int, budget_s: float, bar: Any
    ) -> BenchmarkResult:
        began = time.perf_counter()
        rounds: dict[str, Callable[[], float]] = {}
        firsts: dict[str, float] = {}
        rows: dict[str, dict[str, Any]] = {layout: {"layout": layout} for layout in layouts}
        for layout in layouts:
            bar.set_postfix_str(f"tracing {layout}")
            if layout == "stacked" and layout not in COHORT_LAYOUTS:
                rows[layout]["note"] = _NOT_THERE
                continue
            try:
                self._begin(layout, rounds, firsts, rows[layout])
            except CohortError as error:
                rows[layout]["note"] = f"not possible: {error}"
                rounds.pop(layout, None)
        times: dict[str, list[float]] = {layout: [] for layout in rounds}
        while len(times["separate"]) < _FEWEST or (
            not _is_known(times, repeats) and time.perf_counter() - began < budget_s
        ):
            for layout, run in rounds.items():
                times[layout].append(run())
            bar.n = min(time.perf_counter() - began, budget_s)
            bar.set_postfix_str(f"round {len(times['separate'])}")
        for layout in rounds:
            rows[layout] |= self._numbers(times, firsts, layout)
        return BenchmarkResult(
            pd.DataFrame(rows.values(), columns=_COLUMNS), self._members(), self.cohort
        )

    def _begin(self, layout: str, rounds: dict, firsts: dict, row: dict) -> None:
        """The first round of a layout, and how far its weights are from separate training."""
        if layout == "grouped" and layout not in self._factors:
            self._factors[layout] = self._auto_factors()
        copies = _copies(self.models)
        rounds[layout] = self._round(layout, copies)
        firsts[layout] = rounds[layout]()
        if layout == "separate":
            self.own_seconds = {name: [] for name in self.models}
            for _ in range(2):  # what `"auto"` goes by: without tracing
                rounds[layout]()
        factors = self._factors.get(layout, dict.fromkeys(self.models, 1))
        sizes = {name: self.batch_size * factor for name, factor in factors.items()}
        row["batch_size"] = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        row["same_training"] = set(factors.values()) == {1}
        row["weight_difference"] = 0.0 if layout == "separate" else self._difference(copies, sizes)

    def _difference(self, copies: dict[str, keras.Model], sizes: dict[str, int]) -> float:
        apart = _copies(self.models)
        for name, model in apart.items():
            x, y = self._data[name]
            model.fit(x, y, batch_size=sizes[name], shuffle=False, verbose=0)
        return max(
            float(np.abs(one - other).max(initial=0.0))
            for name in apart
            for one, other in zip(
                apart[name].get_weights(), copies[name].get_weights(), strict=True
            )
        )

    def _auto_factors(self) -> dict[str, int]:
        own = {name: statistics.median(times) for name, times in self.own_seconds.items()}
        factors = suggest_group_factors(own, "speed", self.batch_size, _MOST * self.batch_size)
        return dict.fromkeys(own, 2) if set(factors.values()) == {1} else factors

    def _round(self, layout: str, copies: dict[str, keras.Model]) -> Callable[[], float]:
        if layout == "separate":
            return lambda: self._separate(copies)
        cohort = self._cohort(layout, copies)
        xs, ys = ({name: pair[i] for name, pair in self._data.items()} for i in (0, 1))

        def run() -> float:
            began = time.perf_counter()
            cohort.fit(xs, ys, batch_size=self.batch_size, shuffle=False, verbose=0)
            _wait_for(copies)
            return time.perf_counter() - began

        return run

    def _separate(self, copies: dict[str, keras.Model]) -> float:
        for name, model in copies.items():
            began = time.perf_counter()
            x, y = self._data[name]
            model.fit(x, y, batch_size=self.batch_size, shuffle=False, verbose=0)
            _wait_for({name: model})
            self.own_seconds[name].append(time.perf_counter() - began)
        return sum(times[-1] for times in self.own_seconds.values())

    def _cohort(self, layout: str, models: dict[str, keras.Model]) -> Cohort:
        if layout == "stacked":
            return Cohort(models, layout="stacked")
        return Cohort(
            models,
            group_factor=self._factors["grouped"] if layout == "grouped" else 1,
            replicas=self._factors["replicated"] if layout == "replicated" else 1,
        )

    def cohort(self, layout: str) -> Cohort:
        """A cohort of the user's own models."""
        if layout == "separate":
            raise CohortError(
                "Expected a layout that is faster than separate training. Received: none is; train "
                "each model by its own `fit`."
            )
        return self._cohort(layout, self.models)

    def _numbers(self, times: dict, firsts: dict[str, float], layout: str) -> dict[str, Any]:
        seconds = statistics.median(times[layout])
        speedup, low, high = _ratio(times["separate"], times[layout])
        steps = max(math.ceil(n / self.batch_size) for n in self.samples.values())
        return {
            "samples_per_s": sum(self.samples.values()) / seconds,
            "step_ms": 1000 * seconds / steps,
            "speedup": speedup,
            "low": low,
            "high": high,
            "first_run_s": firsts[layout],
        }

    def _members(self) -> pd.DataFrame:
        own = {
            name: 1000 * statistics.median(times) / math.ceil(self.samples[name] / self.batch_size)
            for name, times in self.own_seconds.items()
        }
        slowest = max(own.values())
        return pd.DataFrame(
            [(name, ms, 1 - ms / slowest) for name, ms in own.items()],
            columns=["member", "step_ms", "waiting"],
        )


_COLUMNS = [
    "layout",
    "samples_per_s",
    "step_ms",
    "speedup",
    "low",
    "high",
    "first_run_s",
    "batch_size",
    "same_training",
    "weight_difference",
    "note",
]


def _described(row: Any) -> dict[str, str]:
    """A row as a person reads it."""
    if pd.isna(row["speedup"]):
        return {"layout": row["layout"], "note": row["note"]}
    exact = row["same_training"]
    return {
        "layout": row["layout"],
        "speed-up": f"{row['speedup']:.2f}x ({row['low']:.2f} to {row['high']:.2f})",
        "samples/s": f"{row['samples_per_s']:,.0f}",
        "step ms": f"{row['step_ms']:.2f}",
        "first run s": f"{row['first_run_s']:.2f}",
        "same training?": "yes" if exact else f"batch size {row['batch_size']}",
        "weight difference": f"{row['weight_difference']:.0e}" if row["weight_difference"] else "0",
        "note": row["note"] if isinstance(row["note"], str) else "",
    }


def _ratio(baseline: list[float], times: list[float]) -> tuple[float, float, float]:
    """The speed-up and its 95 % interval, from the logarithms of the rounds' ratios."""
    logs = [math.log(one / other) for one, other in zip(baseline, times, strict=True)]
    middle = statistics.median(logs)
    spread = statistics.stdev(logs) if len(logs) > 1 else math.inf
    half = 1.96 * spread / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def _is_known(times: dict[str, list[float]], repeats: int) -> bool:
    if len(times["separate"]) < repeats:
        return False
    ratios = [_ratio(times["separate"], mine) for mine in times.values()]
    return all(high <= middle * (1 + _ENOUGH) for middle, _, high in ratios)


def _fastest(rows: pd.DataFrame) -> str:
    return str(rows.set_index("layout")["speedup"].idxmax())


def _reason(frame: pd.DataFrame, best: str, exact: str) -> str:
    rows: dict[str, Any] = frame.to_dict("index")  # type: ignore[assignment]  # its index: names
    if best == "separate":
        return "separate: don't fuse. No layout is faster than each model's own `fit` here."
    row = rows[best]
    text = f"{best}: {row['speedup']:.1f} times as fast as separate training"
    text += "." if row["same_training"] else f", with batch sizes {row['batch_size']}."
    close = [other for other in rows if other != best and rows[other]["high"] > row["low"]]
    if close:
        text += f" Too noisy to tell it from {' and '.join(close)}."
    if exact not in (best, "separate"):
        text += f" {exact} is {rows[exact]['speedup']:.1f} times as fast, and changes nothing."
    return text


def _layouts(layouts: Sequence[str]) -> list[str]:
    for layout in layouts:
        if layout not in LAYOUTS:
            raise CohortError(
                f"Expected `layouts` among {', '.join(map(repr, LAYOUTS))}. Received: {layout!r}."
                f"{errors.did_you_mean(layout, LAYOUTS)}"
            )
    return [layout for layout in LAYOUTS if layout == "separate" or layout in layouts]


def _check_ready(model: keras.Model) -> None:
    if not model.compiled:
        raise CohortError("You must call `compile()` before measuring how the model trains.")
    if not model.built:
        raise CohortError(
            "Expected a model that is built. Received: one without weights; call it on some data, "
            "or give its first layer an `Input`."
        )


def _copies(models: dict[str, keras.Model]) -> dict[str, keras.Model]:
    copies = {}
    for name, model in models.items():
        try:
            with warnings.catch_warnings():
                # Of an optimizer that has not trained yet, and so has nothing to be copied.
                warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
                copies[name] = copy.deepcopy(model)
        except Exception as error:
            raise CohortError(
                f"Expected {name!r} to be a model that can be saved, as copies are measured. "
                f"Received: {type(model).__name__}, which cannot ({error})."
            ) from error
    return copies


def _wait_for(models: dict[str, keras.Model]) -> None:
    """Until the device has done what it was asked: reading a value waits for it."""
    for model in models.values():
        keras.ops.convert_to_numpy(model.variables[-1].value)


def _data(name: str, models: dict[str, keras.Model], x: Any, y: Any, rows: int) -> tuple:
    if x is None:
        with errors.about(name):
            return _random_data(models[name], rows)
    pair = []
    for key, value in (("x", x), ("y", y)):
        per_member = isinstance(value, Mapping) and set(value) == set(models)
        own = value[name] if per_member else value
        if own is None or not all(hasattr(leaf, "shape") for leaf in tree.flatten(own)):
            raise CohortError(
                f"Member {name!r}: expected `{key}` made of arrays. "
                f"Received: {type(own).__name__}. Without x and y, random data is used."
            )
        pair.append(tree.map_structure(lambda leaf: np.asarray(leaf)[:rows], own))
    return tuple(pair)


def _random_data(model: keras.Model, rows: int) -> tuple:
    random = np.random.default_rng(0)
    if not getattr(model, "inputs", None):
        raise CohortError(
            "Expected a model whose inputs are known. Received: a subclassed one; give x and y."
        )
    # A Sequential knows both as lists only; other models know how they are nested.
    is_sequential = isinstance(model, keras.Sequential)
    given, made = (
        (model.inputs[0], model.outputs[0]) if is_sequential else (model.input, model.output)
    )
    inputs = tree.map_structure(lambda tensor: _random_input(random, tensor, rows), given)
    losses = _per_output(model)
    outputs = [
        _random_target(random, tensor, loss, rows)
        for tensor, loss in zip(model.outputs, losses, strict=True)
    ]
    return inputs, tree.pack_sequence_as(made, outputs)


def _per_output(model: keras.Model) -> list[str]:
    losses = tree.flatten(model.loss) if isinstance(model.loss, (list, tuple, dict)) else None
    found = losses if losses and len(losses) == len(model.outputs) else None
    each = found or [model.loss] * len(model.outputs)
    return [
        loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
        for loss in each
    ]


def _random_input(random: np.random.Generator, tensor: Any, rows: int) -> np.ndarray:
    shape = (rows, *(size or 16 for size in tensor.shape[1:]))
    if "int" in tensor.dtype:
        return random.integers(0, 2, shape).astype(tensor.dtype)  # in any vocabulary
    return random.normal(size=shape).astype("float32")


def _random_target(random: np.random.Generator, tensor: Any, loss: str, rows: int) -> np.ndarray:
    shape = (rows, *(size or 16 for size in tensor.shape[1:]))
    if loss.startswith("sparse_categorical"):
        return random.integers(0, shape[-1], shape[:-1])
    if loss.startswith(("categorical", "kl_divergence")):
        return np.eye(shape[-1], dtype="float32")[random.integers(0, shape[-1], shape[:-1])]
    if loss.startswith("binary"):
        return random.integers(0, 2, shape).astype("float32")
    return random.normal(size=shape).astype("float32")
