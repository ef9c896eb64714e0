"""Progress of a cohort: a tqdm bar per member, or a line per epoch; and of many functions."""

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import NoReturn

import keras
from tqdm.asyncio import tqdm as terminal_tqdm
from tqdm.auto import tqdm

# With more functions, one bar for all of them is shown in place of the bars of their fits.
_MOST_BARS = 8


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


class TotalProgress:
    """Shows how many functions or trials have ended: one bar for all of them, or a line for each.

    Args:
        verbose: 0: nothing; 1: the bar; 2: a line for each; `"auto"`: what each fit shows by
            itself, or with more than 8 functions the bar.
        total: The number of functions, or `None` if it is not known.
        unit: What they are called.

    Attributes:
        of_fits: What replaces the `verbose` of each fit; `None` if each keeps its own.
    """

    def __init__(self, verbose: int | str, total: int | None, unit: str):
        if verbose == "auto" and (total is None or total > _MOST_BARS):
            verbose = 1
        self._verbose = verbose
        self.of_fits = None if verbose == "auto" else 0
        self._bar: tqdm[NoReturn] = tqdm(total=total, desc=unit, disable=verbose != 1)

    def __enter__(self) -> "TotalProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def ended(self, line: str, best: float | None = None, total: int | None = None) -> None:
        """Counts one that has ended.

        Args:
            line: The line for it, for `verbose=2`.
            best: The best result so far, if there is one.
            total: The number of functions, if it has changed.
        """
        if total is not None:
            self._bar.total = total
        if best is not None:
            self._bar.set_postfix({"best": _short(best)}, refresh=False)
        self._bar.update()
        if self._verbose == 2:
            print(line)


def _is_interactive() -> bool:
    """Returns whether a bar can be drawn over itself."""
    return tqdm is not terminal_tqdm or getattr(sys.stderr, "isatty", bool)()


def _short(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
