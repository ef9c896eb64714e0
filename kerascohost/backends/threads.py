"""Keras in another thread: what it keeps per thread, carried over."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

# Default dtype policy, global seed, automatic names: each thread begins with none of them, and
# nothing public hands them on. (The oldest supported Keras has no `GLOBAL_SETTINGS_TRACKER`.)
from keras.src.backend.common import global_state

# Makes the generator that `keras.random` takes seeds from where it is given none.
from keras.src.random.seed_generator import global_seed_generator

State = list[dict[str, Any]]


def thread_state() -> State:
    """What Keras keeps for the thread that asks; not a copy."""
    trackers = ("GLOBAL_STATE_TRACKER", "GLOBAL_SETTINGS_TRACKER")
    return [vars(getattr(global_state, name)) for name in trackers if hasattr(global_state, name)]


@contextlib.contextmanager
def as_in_thread(theirs: State) -> Iterator[None]:
    """Lets Keras do in this thread what it would do in another one, whose `thread_state` is given.

    What is made meanwhile for the first time, such as the global generator of seeds, is theirs too.
    """
    mine = thread_state()
    for own, other in zip(mine, theirs, strict=True):
        own.update(other)
    try:
        yield
    finally:
        for own, other in zip(mine, theirs, strict=True):
            other.update({key: value for key, value in own.items() if other.get(key) is None})


_SEEDS = "global_seed_generator"

# What of it programs set, or draw from; the rest is Keras's own work in progress.
_SETTINGS = (
    "custom_objects_scope_dict",
    "dtype_policy",
    "flash_attention",
    "global_random_seed",
    _SEEDS,
    "interactive_logging",
    "object_name_uids",
    "traceback_filtering",
)


def settings(state: State) -> State:
    """Returns a copy of what programs set in the state of a thread."""
    return [{key: part[key] for key in _SETTINGS if key in part} for part in state]


@contextlib.contextmanager
def configured(theirs: State) -> Iterator[None]:
    """Lets Keras find the settings of `theirs` in this thread within the block.

    What the block leaves there is in `theirs` afterwards. A global generator of seeds that it makes
    is this thread's, too.
    """
    own = settings(thread_state())
    _set(thread_state(), theirs)
    lacks_seeds = thread_state()[0].get(_SEEDS) is None
    try:
        yield
    finally:
        _set(theirs, thread_state())
        if lacks_seeds and own[0].get(_SEEDS) is None and _SEEDS in theirs[0]:
            own[0][_SEEDS] = theirs[0][_SEEDS]
        _set(thread_state(), own)


def _set(parts: State, others: State) -> None:
    for part, other in zip(parts, others, strict=True):
        for key in _SETTINGS:
            if key in other:
                part[key] = other[key]
            else:
                part.pop(key, None)


class OwnSeeds:
    """A copy of Keras's global seed generator, for the steps of one model.

    Steps that run side by side would take turns in drawing from the one of all.
    """

    def __init__(self) -> None:
        # Named, as its automatic name would count among those of the program.
        self._own = keras.random.SeedGenerator(0, name=_SEEDS)

    def begin(self) -> None:
        """Takes up the state of the global generator, or that which it would be made with."""
        known = vars(global_state.GLOBAL_STATE_TRACKER).get(_SEEDS)
        if known is not None:
            self._begun = known.state.numpy()
        else:  # the first draw makes it, with a seed from Python's random numbers
            ahead = random.Random()
            ahead.setstate(random.getstate())
            self._begun = np.array([ahead.randint(1, int(1e9)), 0])
        self._own.state.assign(self._begun)

    def advance_global_rng(self) -> None:
        """Moves the global generator to where this one is, unless another has moved it."""
        drawn = self._own.state.numpy()
        if np.array_equal(drawn, self._begun):
            return
        shared = global_seed_generator()
        if np.array_equal(shared.state.numpy(), self._begun):
            shared.state.assign(drawn)

    @contextlib.contextmanager
    def given(self) -> Iterator[None]:
        """Lets Keras find this generator in this thread."""
        state = vars(global_state.GLOBAL_STATE_TRACKER)
        outside = state.get(_SEEDS)
        state[_SEEDS] = self._own
        try:
            yield
        finally:
            state[_SEEDS] = outside
