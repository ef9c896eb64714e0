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
    """

    def __init__(self, begin: Parts, now: Callable[[], Parts]):
        self.own: set[str] = set()
        self._begin = begin
        self._now = now
        self._drawn: set[str] = set()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Records what this thread sets within the block."""
        with contextlib.ExitStack() as patches:
            for owner, name, source in (
                (random, "seed", "python"),
                (random, "setstate", "python"),
                (np.random, "seed", "numpy"),
                (np.random, "set_state", "numpy"),
            ):
                replace = functools.partial(self._noting, {source})
                patches.enter_context(patching.patched(owner, name, replace))
            patches.enter_context(threads.setting_seed(lambda: self._note({"keras", "backend"})))
            yield

    def _noting(self, sources: set[str], usual: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(usual)
        def noting(*args: P.args, **kwargs: P.kwargs) -> T:
            self._note(sources)
            return usual(*args, **kwargs)

        return noting

    def _note(self, sources: set[str]) -> None:
        if _recording.is_paused:
            return
        now = self._now()
        self._drawn |= {s for s in sources - self.own if now[s] != self._begin[s]}
        self.own |= sources - self._drawn
