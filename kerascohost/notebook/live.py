"""The progress of a training or a benchmark: one thread writes it, another one reads it."""

import math
import time
from collections.abc import Callable, Sequence
from typing import SupportsFloat, TypeAlias, TypedDict, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd

from kerascohost import errors
from kerascohost.backends.base import Logs
from kerascohost.results import plotting
from kerascohost.results.progress import Progress

# The curves of a training: by member and by metric, as `val_loss`, its values by epoch from 1 on.
# A value that is no finite number is `None`, which JSON has a word for.
Curves: TypeAlias = dict[str, dict[str, list[tuple[int, float | None]]]]

# All curves together are drawn with at most so many points, and each with no fewer than the second.
_MOST_POINTS, _FEWEST_POINTS = 16_000, 50


class MemberProgress(TypedDict):
    """The progress of one member, as it is shown.

    `fraction` goes from 0 to 1, `epoch` is as `"2/5"`, `state` is `"waiting"`, `"tracing"`,
    `"training"` or `"ended"`; after a failure `"failed"` or, as another member's has ended the
    training, `"stopped"`. `note` says what is wrong with its numbers, or why it has failed.
    """

    fraction: float
    epoch: str
    state: str
    note: str
    metrics: dict[str, float]


class BenchmarkProgress(TypedDict):
    """The progress of a benchmark: `fraction` from 0 to 1, and a text."""

    fraction: float
    text: str


class TrainingProgress(BenchmarkProgress):
    """The progress of a training, and of its members by name."""

    members: dict[str, MemberProgress]


class _LiveMember(TypedDict):
    """The progress of one member, as its callback writes it.

    `done` and `total` count steps of training, `epoch` and `epochs` epochs; a `total` of 0 is
    unknown. `values` has a list of epochs and one of values for each metric.
    """

    state: str
    note: str
    done: int
    total: int
    epoch: int
    epochs: int
    logs: dict[str, npt.ArrayLike]
    values: dict[str, tuple[list[int], list[float]]]


class LiveTraining:
    """The progress of the members of a training.

    Args:
        names: The members.
        stops: Returns how often the user has asked to stop.
    """

    def __init__(self, names: Sequence[str], stops: Callable[[], int]):
        self.stops = stops
        self.began = time.perf_counter()
        self.traced: float | None = None  # when the first step had been done
        self._has_failed = False
        self.members: dict[str, _LiveMember] = {
            name: {
                "state": "waiting", "note": "", "done": 0, "total": 0, "epoch": 0, "epochs": 0,
                "logs": {}, "values": {},
            }
            for name in names
        }  # fmt: skip

    def fail(self, error: Exception) -> None:
        """Writes that the training has ended by this error."""
        self._has_failed = True
        failed = errors.member_of(error) if errors.is_attributed(error) else None
        for name, live in self.members.items():
            if live["state"] == "ended":
                continue
            if name == failed:
                live.update({"state": "failed", "note": errors.in_words(error).splitlines()[0]})
            else:
                live["state"] = "stopped"

    def progress(self) -> TrainingProgress:
        """Returns the current value of `CohostSession.progress`."""
        members = {name: _shown(live) for name, live in list(self.members.items())}
        fraction = sum(member["fraction"] for member in members.values()) / len(members)
        return {"fraction": fraction, "text": self._text(fraction), "members": members}

    def _text(self, fraction: float) -> str:
        now = time.perf_counter()
        if self._has_failed:
            return f"failed at {100 * fraction:.0f} %"
        if self.traced is None:
            return f"tracing… {now - self.began:.0f} s so far"
        left = (now - self.traced) * (1 - fraction) / max(fraction, 1e-9)
        is_told = fraction > 0.01 and now - self.traced > 0.5
        return f"{100 * fraction:.0f} %" + (f", about {_seconds(left)} left" if is_told else "")

    def curves(self) -> Curves:
        """Returns the current value of `CohostSession.curves`."""
        count = sum(len(live["values"]) for live in list(self.members.values()))
        most = max(_FEWEST_POINTS, _MOST_POINTS // max(1, count))
        return {
            name: {key: _thinned(*pair, most) for key, pair in list(live["values"].items())}
            for name, live in list(self.members.items())
        }


def frame(curves: Curves) -> pd.DataFrame:
    """Returns curves as `CohortHistory.frame` has them; a member without any has a loss of NaN."""
    rows = [
        plotting.row(name, epoch - 1, key, np.nan if value is None else value)
        for name, metrics in curves.items()
        for key, points in (metrics or {"loss": [(1, None)]}).items()
        for epoch, value in points
    ]
    return pd.DataFrame(rows, columns=plotting.COLUMNS)


def _thinned(epochs: list[int], values: list[float], most: int) -> list[tuple[int, float | None]]:
    """Returns every point of a curve, or each `n`-th and the last if there are more than `most`."""
    count = min(len(epochs), len(values))  # of lists that grow meanwhile
    step = math.ceil(count / most) or 1
    kept = [*range(0, count, step)]
    kept += [count - 1] if kept and kept[-1] != count - 1 else []
    return [(epochs[i], values[i] if math.isfinite(values[i]) else None) for i in kept]


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _shown(live: _LiveMember) -> MemberProgress:
    if live["total"]:
        fraction = min(1.0, live["done"] / live["total"])
    else:
        fraction = live["epoch"] / max(1, live["epochs"])
    metrics = {name: float(value) for name, value in live["logs"].items() if _is_number(value)}
    return {
        "fraction": 1.0 if live["state"] == "ended" else fraction,
        "epoch": f"{live['epoch']}/{live['epochs']}",
        "state": live["state"],
        "note": live["note"],
        "metrics": metrics,
    }


def _is_number(value: npt.ArrayLike) -> TypeGuard[SupportsFloat]:
    return isinstance(value, (int, float)) or getattr(value, "shape", None) == ()


class LiveProgress(Progress):
    """Writes the progress of a member, and shows nothing, as showing takes the training's time.

    Args:
        name: The member.
        live: The progress of the training, to write to.
    """

    def __init__(self, name: str, live: LiveTraining):
        super().__init__(name, "train", 0, 0)
        self._training = live
        self._live = live.members[name]

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Writes how many steps and epochs there will be."""
        steps, epochs = self.params["steps"], self.params["epochs"]
        total = steps * epochs if steps else 0
        self._live.update({"total": total, "epochs": epochs, "state": "tracing"})
        if self._training.stops():  # before the training began, which resets `stop_training`
            self.model.stop_training = True

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Stops the validation at once if the user has asked twice."""
        if self._training.stops() > 1:
            self.model.stop_evaluating = True

    def advance(self, kind: str, steps: int, logs: Logs) -> None:
        """Writes the number of steps done, and their metrics."""
        if kind != "train":
            return
        if self._training.traced is None:
            self._training.traced = time.perf_counter()
        done = self._live["done"] + steps
        self._live.update({"state": "training", "done": done, "logs": dict(logs)})

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Writes the metrics of an epoch."""
        self._live.update({"epoch": epoch + 1, "logs": dict(logs or {})})
        for key, value in (logs or {}).items():
            if not _is_number(value):
                continue
            epochs, values = self._live["values"].setdefault(key, ([], []))
            values.append(float(value))
            epochs.append(epoch + 1)  # last: a reader counts the epochs
            if not math.isfinite(values[-1]) and not self._live["note"]:
                word = "NaN" if math.isnan(values[-1]) else "infinite"
                self._live["note"] = f"{key} is {word} since epoch {epoch + 1}"

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Writes that it has ended."""
        self._live["state"] = "ended"


class StoppedError(Exception):
    """Raised in a benchmark to end it, as the user has asked to stop."""


class LiveBenchmark:
    """The progress of a benchmark; called as its `progress`.

    Args:
        stops: Returns how often the user has asked to stop.
    """

    def __init__(self, stops: Callable[[], int]):
        self._stops = stops
        self._began = time.perf_counter()
        self._said = (0.0, "starting")

    def __call__(self, fraction: float, text: str) -> None:
        """Writes the progress.

        Args:
            fraction: The part that is done, from 0 to 1.
            text: What is being measured.

        Raises:
            StoppedError: If the user has asked to stop.
        """
        if self._stops():
            raise StoppedError
        self._said = (fraction, text)

    def progress(self) -> BenchmarkProgress:
        """Returns the current value of `CohostSession.progress`."""
        fraction, text = self._said
        spent = time.perf_counter() - self._began
        return {"fraction": fraction, "text": f"{text} · {spent:.0f} s so far"}
