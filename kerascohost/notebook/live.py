"""How far a training or a benchmark is: one thread works and writes it, another one tells it."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kerascohost.results import plotting
from kerascohost.results.progress import Progress


class LiveTraining:
    """How far each member of a training is.

    Args:
        names: The members.
        stops: Tells how often the user has asked to stop.
    """

    def __init__(self, names: Sequence[str], stops: Callable[[], int]):
        self.stops = stops
        self.members: dict[str, dict[str, Any]] = {
            name: {"done": 0, "total": 0, "epoch": 0, "epochs": 0, "logs": {}, "rows": []}
            for name in names
        }

    def progress(self) -> dict[str, Any]:
        """What `CohostSession.progress` is now."""
        members = {name: _shown(dict(live)) for name, live in self.members.items()}
        fraction = sum(member["fraction"] for member in members.values()) / len(members)
        return {"fraction": fraction, "text": f"{100 * fraction:.0f} %", "members": members}

    def curves(self) -> pd.DataFrame:
        """What `CohostSession.curves` is now."""
        # A member without a row yet gets an empty one, so that it keeps its colour in the plots.
        rows = [
            row
            for name, live in self.members.items()
            for row in list(live["rows"]) or [plotting.row(name, 0, "loss", np.nan)]
        ]
        return pd.DataFrame(rows, columns=plotting.COLUMNS)


def _shown(live: dict[str, Any]) -> dict[str, Any]:
    if live["total"]:
        fraction = min(1.0, live["done"] / live["total"])
    else:
        fraction = live["epoch"] / max(1, live["epochs"])
    metrics = {name: float(value) for name, value in live["logs"].items() if _is_number(value)}
    epoch = f"{live['epoch']}/{live['epochs']}"
    return {"fraction": fraction, "epoch": epoch, "metrics": metrics}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "shape", None) == ()


class LiveProgress(Progress):
    """Notes how far a member is; the thread that trains does no more than that."""

    def __init__(self, name: str, live: LiveTraining):
        super().__init__(name, "train", 0, 0)
        self._stops = live.stops
        self._live = live.members[name]

    def on_train_begin(self, logs: dict | None = None) -> None:
        steps, epochs = self.params["steps"], self.params["epochs"]
        self._live.update(total=steps * epochs if steps else 0, epochs=epochs)
        if self._stops():  # while the members were made ready, which forgets it
            self.model.stop_training = True

    def on_test_begin(self, logs: dict | None = None) -> None:
        if self._stops() > 1:
            self.model.stop_evaluating = True

    def advance(self, kind: str, steps: int, logs: Any) -> None:
        if kind == "train":
            self._live.update(done=self._live["done"] + steps, logs=dict(logs))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._live.update(epoch=epoch + 1, logs=dict(logs or {}))
        self._live["rows"] += [
            plotting.row(self._name, epoch, *log) for log in (logs or {}).items()
        ]


class StoppedError(Exception):
    """Ends a benchmark."""


class LiveBenchmark:
    """How far a benchmark is; called as its `progress`.

    Args:
        stops: Tells how often the user has asked to stop.
    """

    def __init__(self, stops: Callable[[], int]):
        self._stops = stops
        self._began = time.perf_counter()
        self._said = (0.0, "starting")

    def __call__(self, fraction: float, text: str) -> None:
        if self._stops():
            raise StoppedError
        self._said = (fraction, text)

    def progress(self) -> dict[str, Any]:
        """What `CohostSession.progress` is now."""
        fraction, text = self._said
        spent = time.perf_counter() - self._began
        return {"fraction": fraction, "text": f"{text} · {spent:.0f} s so far"}
