"""What a process has once and programs change: kept for each deferred fit and for each script."""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from typing import Any

import keras

from kerascohost import programs


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the process is set to: Keras's configuration, working directory, warnings' filters."""

    floatx: str
    epsilon: float
    image_data_format: str
    runs_functions_eagerly: bool
    folder: str | None
    filters: tuple[Any, ...]

    @classmethod
    def now(cls) -> "Settings":
        """Returns the present ones."""
        return cls(
            keras.config.floatx(),
            keras.config.epsilon(),
            keras.config.image_data_format(),
            programs.backend_module().runs_functions_eagerly(),
            _folder(),
            tuple(warnings.filters),
        )

    def apply(self, present: "Settings") -> None:
        """Sets what differs from `present`."""
        if self == present:
            return
        keras.config.set_floatx(self.floatx)
        keras.config.set_epsilon(self.epsilon)
        keras.config.set_image_data_format(self.image_data_format)
        if self.runs_functions_eagerly != present.runs_functions_eagerly:
            programs.backend_module().run_functions_eagerly(self.runs_functions_eagerly)
        if self.folder is not None and self.folder != present.folder:
            os.chdir(self.folder)
        if self.filters != present.filters:
            warnings.resetwarnings()  # which also lets what was shown once be judged anew
            warnings.filters.extend(self.filters)  # type: ignore[attr-defined]  # a list


class ProcessState:
    """The settings and the random states of the process, as they are when this is made.

    Attributes:
        random: The random states, see `programs.random_state`.
    """

    def __init__(self) -> None:
        self.random = programs.random_state()
        self._settings = Settings.now()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Lets the block find this state; what the block leaves is this state's from then on."""
        outside = programs.random_state()
        programs.set_random_state(self.random)
        try:
            with self.configured():
                yield
        finally:
            self.random = programs.random_state()
            programs.set_random_state(outside)

    @contextlib.contextmanager
    def configured(self) -> Iterator[None]:
        """As `entered`, but for the settings only."""
        outside = Settings.now()
        self._settings.apply(outside)
        try:
            yield
        finally:
            self._settings = Settings.now()
            outside.apply(self._settings)


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  # a tenth of the time of `Path.cwd`, at every turn
    except FileNotFoundError:  # it has been removed: then there is none to come back to
        return None
