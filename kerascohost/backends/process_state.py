"""The state of a process that programs change, stored for each deferred fit and each script."""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Hashable, Iterator
from typing import Any

import keras

from kerascohost import backends
from kerascohost.backends import threads


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of the process: Keras's configuration, working directory, warning filters."""

    floatx: str
    epsilon: float
    image_data_format: str
    runs_functions_eagerly: bool
    folder: str | None
    filters: tuple[Any, ...]

    @classmethod
    def now(cls) -> "Settings":
        """Returns the present settings."""
        return cls(
            keras.config.floatx(),
            keras.config.epsilon(),
            keras.config.image_data_format(),
            backends.get_backend().runs_functions_eagerly(),
            _folder(),
            tuple(warnings.filters),
        )

    def apply(self, present: "Settings") -> None:
        """Applies these settings where they differ from `present`."""
        if self == present:
            return
        keras.config.set_floatx(self.floatx)
        keras.config.set_epsilon(self.epsilon)
        keras.config.set_image_data_format(self.image_data_format)
        if self.runs_functions_eagerly != present.runs_functions_eagerly:
            backends.get_backend().run_functions_eagerly(self.runs_functions_eagerly)
        if self.folder is not None and self.folder != present.folder:
            os.chdir(self.folder)
        if self.filters != present.filters:
            warnings.resetwarnings()  # also makes Python forget which warnings it has shown
            warnings.filters.extend(self.filters)  # type: ignore[attr-defined]  # a list


class Configuration:
    """The settings of the process, and Keras's of this thread, at the time when this is made."""

    def __init__(self) -> None:
        self._settings = Settings.now()
        self._of_keras = threads.settings(threads.thread_state())

    @property
    def traced(self) -> Hashable:
        """The settings that decide what a step computes."""
        own = self._settings
        policy = self._of_keras[0].get("dtype_policy")
        return own.floatx, own.epsilon, own.image_data_format, getattr(policy, "name", None)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Applies this configuration within the block, and stores the one at the block's end."""
        outside = Settings.now()
        self._settings.apply(outside)
        try:
            with threads.configured(self._of_keras):
                yield
        finally:
            self._settings = Settings.now()
            outside.apply(self._settings)


class ProcessState:
    """The configuration and the random states of the process, at the time when this is made.

    Attributes:
        random: The random states, see `random_states`.
        configuration: The configuration.
    """

    def __init__(self) -> None:
        self.random = backends.random_state()
        self.configuration = Configuration()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Applies this state within the block, and stores the one at the block's end."""
        with self.drawing(), self.configuration.entered():
            yield

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Applies and stores the random states only, as `entered` does."""
        outside = backends.random_state()
        backends.set_random_state(self.random)
        try:
            yield
        finally:
            self.random = backends.random_state()
            backends.set_random_state(outside)


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  # a tenth of the time of `Path.cwd`, at every turn
    except FileNotFoundError:  # it has been removed, so it cannot be restored
        return None
