"""Keras in another thread: what it keeps per thread, carried over."""

import contextlib
from collections.abc import Iterator
from typing import Any

# Default dtype policy, global seed, automatic names: each thread begins with none of them, and
# nothing public hands them on. (The oldest supported Keras has no `GLOBAL_SETTINGS_TRACKER`.)
from keras.src.backend.common import global_state

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


# What of it programs set, or draw from; the rest is Keras's own work in progress.
_SETTINGS = (
    "custom_objects_scope_dict",
    "dtype_policy",
    "flash_attention",
    "global_random_seed",
    "global_seed_generator",
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

    What the block leaves there is in `theirs` afterwards.
    """
    own = settings(thread_state())
    _set(thread_state(), theirs)
    try:
        yield
    finally:
        _set(theirs, thread_state())
        _set(thread_state(), own)


def _set(parts: State, others: State) -> None:
    for part, other in zip(parts, others, strict=True):
        for key in _SETTINGS:
            if key in other:
                part[key] = other[key]
            else:
                part.pop(key, None)
