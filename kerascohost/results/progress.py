"""Progress of a cohort: a tqdm bar per member, or a line per epoch."""

import sys
from collections.abc import Mapping
from typing import NoReturn

import keras
from tqdm.asyncio import tqdm as terminal_tqdm
from tqdm.auto import tqdm


class Progress(keras.callbacks.Callback):
    """Shows one member's run as Keras's own progress bar would, beside the other members'.

    Args:
        name: The member's name.
        kind: What is run: `"train"`, `"test"` or `"predict"`. A validation is part of training.
        verbose: 1: a bar with the metrics; 2: a line per epoch; 0: nothing; `"auto"`: 1 in a
            terminal and in a notebook, 2 elsewhere, as in the log of a job.
        position: The line on which the bar stands.
    """

    def __init__(self, name: str, kind: str, verbose: int | str, position: int):
        super().__init__()
        self._name, self._kind, self._position = name, kind, position
        self._verbose = (1 if _is_interactive() else 2) if verbose == "auto" else int(verbose)
        self._bar: tqdm[NoReturn] | None = None

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Opens the bar."""
        self._open("train")

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        """Opens the bar, unless a training has opened it."""
        self._open("test")

    def on_predict_begin(self, logs: dict[str, float] | None = None) -> None:
        """Opens the bar."""
        self._open("predict")

    def _open(self, kind: str) -> None:
        if self._verbose == 1 and kind == self._kind:
            steps = self.params["steps"]
            self._bar = tqdm(
                total=steps * self.params["epochs"] if steps else None,
                desc=self._name,
                position=self._position,
                unit="step",
                dynamic_ncols=True,
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Sets the bar's length, from the first epoch that is trained."""
        if self._bar is not None and self._bar.n == 0 and self.params["steps"]:
            self._bar.total = self.params["steps"] * (self.params["epochs"] - epoch)

    def advance(self, kind: str, steps: int, logs: Mapping[str, float] | None) -> None:
        """Counts `steps` more steps, if they are of the kind shown.

        Args:
            kind: `"train"`, `"test"` or `"predict"`.
            steps: How many.
            logs: The metrics after the last one, as tensors; outputs, if they are predictions.
        """
        if self._bar is not None and kind == self._kind:
            self._bar.update(steps)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Shows the epoch's metrics."""
        self._show(logs, f"{epoch + 1}/{self.params['epochs']}")

    def on_test_end(self, logs: dict[str, float] | None = None) -> None:
        """Shows the metrics of an evaluation."""
        if self._kind == "test":
            self._show(logs)

    def _show(self, logs: dict[str, float] | None, epoch: str = "") -> None:
        values = {name: _short(value) for name, value in (logs or {}).items()}
        if self._verbose == 2:
            text = " - ".join(f"{name}: {value}" for name, value in values.items())
            tqdm.write(f"{self._name}: " + (f"Epoch {epoch} - " if epoch else "") + text)
        if self._bar is not None:
            self._bar.set_postfix({"epoch": epoch, **values} if epoch else values, refresh=False)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Ends the bar; that of a training that stopped early is shown as done."""
        if self._bar is not None and getattr(self.model, "stop_training", False):
            self._bar.total = self._bar.n  # stopped early: what was asked is done
            self._bar.refresh()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _is_interactive() -> bool:
    """Returns whether a bar can be drawn over itself."""
    return tqdm is not terminal_tqdm or getattr(sys.stderr, "isatty", bool)()


def _short(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
