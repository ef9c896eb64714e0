"""A record of which random states a program sets by itself."""

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import numpy as np

from kerascohost import patching
from kerascohost.backends import threads

P = ParamSpec("P")
T = TypeVar("T")

# The random states of a program by their source: Python's, NumPy's, the backend's, and the seeds
# that Keras keeps per thread.
Parts = dict[str, Any]


class _Paused(threading.local):
    """A flag of this thread: what it sets is not the doing of the program."""

    is_paused = False


_recording = _Paused()


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Sets random states without being recorded, within the block, as code of ours does."""
    outside, _recording.is_paused = _recording.is_paused, True
    try:
        yield
    finally:
        _recording.is_paused = outside


class Seeding:
    """A record of the random states that a program sets before it has drawn from them.

    Args:
        begin: The states that it begins with.
        now: Returns the present states.

    Attributes:
        own: The sources of those that it has set.
        drawn: The sources of those that it may have drawn from, or restored.
    """

    def __init__(self, begin: Parts, now: Callable[[], Parts]):
        self.own: set[str] = set()
        self.drawn: set[str] = set()
        self._begin = begin
        self._now = now

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Records what this thread sets within the block."""
        with contextlib.ExitStack() as patches:
            for owner, name, source, note in (
                (random, "seed", "python", self._seeded),
                (random, "setstate", "python", self._restored),
                (np.random, "seed", "numpy", self._seeded),
                (np.random, "set_state", "numpy", self._restored),
            ):
                replace = functools.partial(self._noting, note, {source})
                patches.enter_context(patching.patched(owner, name, replace))
            patches.enter_context(threads.setting_seed(self._about_to_seed))
            yield

    def _noting(
        self, note: Callable[[set[str]], None], sources: set[str], usual: Callable[P, T]
    ) -> Callable[P, T]:
        @functools.wraps(usual)
        def noting(*args: P.args, **kwargs: P.kwargs) -> T:
            if _recording.is_paused:
                return usual(*args, **kwargs)
            self._note_draws(sources)
            result = usual(*args, **kwargs)
            note(sources)
            return result

        return noting

    def _note_draws(self, sources: set[str]) -> None:
        now = self._now()
        self.drawn |= {s for s in sources - self.own if now[s] != self._begin[s]}

    def _about_to_seed(self) -> None:
        """Notes that `set_random_seed` is about to set the seeds of Keras and of the backend."""
        if not _recording.is_paused:
            self._note_draws({"keras", "backend"})
            self._seeded({"keras", "backend"})

    def _seeded(self, sources: set[str]) -> None:
        self.own |= sources - self.drawn

    def _restored(self, sources: set[str]) -> None:
        """Notes that a state was set that the program may have begun with."""
        self.own -= sources
        self.drawn |= sources
