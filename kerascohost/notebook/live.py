"""The progress of a training or a benchmark: one thread writes it, another one reads it."""

import time
from collections.abc import Callable, Sequence
from typing import SupportsFloat, TypeAlias, TypedDict, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd

from kerascohost.backends.base import Logs
from kerascohost.results import plotting
from kerascohost.results.progress import Progress

# A row of `CohortHistory.frame`: member, epoch, metric, split ("train" or "val"), value.
_Row: TypeAlias = tuple[str, int, str, str, npt.ArrayLike]


class MemberProgress(TypedDict):
    """The progress of one member, as it is shown: `fraction` from 0 to 1, `epoch` as `"2/5"`."""

    fraction: float
    epoch: str
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
    unknown.
    """

    done: int
    total: int
    epoch: int
    epochs: int
    logs: dict[str, npt.ArrayLike]
    rows: list[_Row]


class LiveTraining:
    """The progress of the members of a training.

    Args:
        names: The members.
        stops: Returns how often the user has asked to stop.
    """

    def __init__(self, names: Sequence[str], stops: Callable[[], int]):
        self.stops = stops
        self.members: dict[str, _LiveMember] = {
            name: {"done": 0, "total": 0, "epoch": 0, "epochs": 0, "logs": {}, "rows": []}
            for name in names
        }

    def progress(self) -> TrainingProgress:
        """Returns the current value of `CohostSession.progress`."""
        members = {name: _shown(live.copy()) for name, live in self.members.items()}
        fraction = sum(member["fraction"] for member in members.values()) / len(members)
        return {"fraction": fraction, "text": f"{100 * fraction:.0f} %", "members": members}

    def curves(self) -> pd.DataFrame:
        """Returns the current value of `CohostSession.curves`."""
        # A member without a row yet gets an empty one, so that its colour in the plots stays.
        rows = [
            row
            for name, live in self.members.items()
            for row in list(live["rows"]) or [plotting.row(name, 0, "loss", np.nan)]
        ]
        return pd.DataFrame(rows, columns=plotting.COLUMNS)


def _shown(live: _LiveMember) -> MemberProgress:
    if live["total"]:
        fraction = min(1.0, live["done"] / live["total"])
    else:
        fraction = live["epoch"] / max(1, live["epochs"])
    metrics = {name: float(value) for name, value in live["logs"].items() if _is_number(value)}
    epoch = f"{live['epoch']}/{live['epochs']}"
    return {"fraction": fraction, "epoch": epoch, "metrics": metrics}


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
        self._stops = live.stops
        self._live = live.members[name]

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Writes how many steps and epochs there will be."""
        steps, epochs = self.params["steps"], self.params["epochs"]
        self._live.update({"total": steps * epochs if steps else 0, "epochs": epochs})
        if self._stops():  # before the training began, which resets `stop_training`
            self.model.stop_training = True

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Stops the validation at once if the user has asked twice."""
        if self._stops() > 1:
            self.model.stop_evaluating = True

    def advance(self, kind: str, steps: int, logs: Logs) -> None:
        """Writes the number of steps done, and their metrics."""
        if kind == "train":
            self._live.update({"done": self._live["done"] + steps, "logs": dict(logs)})

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Writes the metrics of an epoch."""
        self._live.update({"epoch": epoch + 1, "logs": dict(logs or {})})
        self._live["rows"] += [
            plotting.row(self._name, epoch, *log) for log in (logs or {}).items()
        ]


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
