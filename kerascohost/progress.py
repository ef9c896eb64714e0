"""Progress of a cohort: a tqdm bar per member, or a line per epoch."""

from typing import Any

import keras
from tqdm.auto import tqdm


class Progress(keras.callbacks.Callback):
    """Shows one member's training as Keras's own progress bar would, beside the other members'.

    Args:
        name: The member's name.
        verbose: 1 or `"auto"`: a bar with the metrics; 2: a line per epoch; 0: nothing.
        position: The line on which the bar stands.
    """

    def __init__(self, name: str, verbose: int | str, position: int):
        super().__init__()
        self._name, self._position = name, position
        self._verbose = 1 if verbose == "auto" else int(verbose)
        self._bar: Any = None
        self._epoch = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self._verbose == 1:
            self._bar = tqdm(
                total=self._total(self.params["epochs"]),
                desc=self._name,
                position=self._position,
                unit="step",
                dynamic_ncols=True,
            )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch

    def advance(self, steps: int) -> None:
        """Counts `steps` more training steps."""
        if self._bar is not None:
            self._bar.update(steps)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        epochs = f"{epoch + 1}/{self.params['epochs']}"
        values = {name: _short(value) for name, value in (logs or {}).items()}
        if self._verbose == 2:
            text = "".join(f" - {name}: {value}" for name, value in values.items())
            tqdm.write(f"{self._name}: Epoch {epochs}{text}")
        if self._bar is not None:
            self._bar.set_postfix({"epoch": epochs, **values}, refresh=False)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            if self.model.stop_training:
                self._bar.total = self._bar.n  # stopped early: what was asked is done
            self._bar.close()

    def _total(self, epochs: int) -> int | None:
        return self.params["steps"] * epochs if self.params["steps"] else None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
