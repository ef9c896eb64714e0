"""The state that Keras keeps per thread, used in other threads."""

import collections
import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

# Each thread has a default dtype policy, a global seed and counts of automatic names of its own; no
# public function copies them to another thread. (The oldest supported Keras has no
# `GLOBAL_SETTINGS_TRACKER`.)
from keras.src.backend.common import global_state

# Returns the generator from which `keras.random` takes a seed when it is given none.
from keras.src.random.seed_generator import global_seed_generator

from kerascohost import patching

State = list[dict[str, Any]]

# The global seed, and the state of the global seed generator, if there are any.
Seeds = tuple[int | None, tuple[int, ...] | None]


def thread_state() -> State:
    """Returns the state that Keras keeps for the calling thread; not a copy."""
    trackers = ("GLOBAL_STATE_TRACKER", "GLOBAL_SETTINGS_TRACKER")
    return [vars(getattr(global_state, name)) for name in trackers if hasattr(global_state, name)]


@contextlib.contextmanager
def as_in_thread(theirs: State) -> Iterator[None]:
    """Copies the state that Keras keeps for another thread into that of this thread.

    At the end of the block, objects that Keras has made in it for the first time, such as the
    global seed generator, are added to the other thread's state.

    Args:
        theirs: The other thread's `thread_state`.
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

# The entries that programs set or draw from; the others belong to calls in progress.
_SETTINGS = (
    "custom_objects_scope_dict",
    "distribution",
    "dtype_policy",
    "flash_attention",
    "global_random_seed",
    _SEEDS,
    "interactive_logging",
    "nnx_enabled",
    "object_name_uids",
    "safe_mode_saving",
    "torch_device",
    "traceback_filtering",
)


_COPIED = ("custom_objects_scope_dict", "object_name_uids")
_OF_SEEDS = ("global_random_seed", _SEEDS)
# The scopes in which a program may call functions.
_SCOPES = ("name_scope_stack", "remat_scope_stack")


def scopes() -> dict[str, Any]:
    """Returns copies of the stacks of name scopes and of rematerialisation of this thread."""
    return {key: list(part[key]) for part in thread_state() for key in _SCOPES if part.get(key)}


def settings(state: State) -> State:
    """Returns a copy of the entries of a thread's state that programs set."""
    return [{key: part[key] for key in _SETTINGS if key in part} for part in state]


def copied_settings(state: State) -> State:
    """Returns `settings` of their own: with a global seed generator and counts of names apart."""
    copied = settings(state)
    for part in copied:
        for key in _COPIED:
            if key in part:
                part[key] = copy.copy(part[key])
    set_seeds(copied, seeds(state))
    return copied


def unseeded(state: State) -> State:
    """Returns a copy of `settings` without the seeds, to compare it later.

    Without the counts of names that are given while a model is built, too: those of symbolic
    tensors and, on TensorFlow, of the graphs in which shapes are computed.
    """
    known = [{k: v for k, v in part.items() if v is not None} for part in settings(state)]
    copied = [{k: copy.copy(v) if k in _COPIED else v for k, v in p.items()} for p in known]
    for part in copied:
        for key in _OF_SEEDS:
            part.pop(key, None)
        for name in ("keras_tensor", "scratch_graph"):
            part.get("object_name_uids", {}).pop(name, None)
    return copied


def take_over_names(state: State, begun: State, ended: State) -> bool:
    """Makes a thread's state one that follows another, if it has used nothing that differs.

    Args:
        state: The thread's state.
        begun: What it began with, as `unseeded` returns it.
        ended: What it should have begun with.

    Returns:
        Whether it has used nothing that differs.
    """
    names = "object_name_uids"
    others = [[{k: v for k, v in p.items() if k != names} for p in s] for s in (begun, ended)]
    if others[0] != others[1]:
        return False
    counts, right = (part[0].get(names, {}) for part in (begun, ended))
    now = state[0].setdefault(names, collections.defaultdict(int))
    differs = [key for key in counts.keys() | right.keys() if counts.get(key) != right.get(key)]
    if any(now.get(key) != counts.get(key) for key in differs):
        return False
    for key in differs:
        now[key] = right.get(key, 0)
    return True


def setting_seed(called: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which `called` is called before `set_random_seed` sets anything.

    Programs may have imported `set_random_seed` itself, so what it calls first is replaced.
    """

    def replace(usual: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
        def set_global_attribute(name: str, value: Any) -> None:  # noqa: ANN401
            if name == "global_random_seed":
                called()
            usual(name, value)

        return set_global_attribute

    return patching.patched(global_state, "set_global_attribute", replace)


def clearing_own_state() -> contextlib.AbstractContextManager[None]:
    """Returns a context in which `keras.backend.clear_session` clears this thread's state only.

    Keras's own replaces that of all threads, such as the seeds and settings of other functions in
    turn, and clears TensorFlow's caches of kernels, which they use.
    """

    def clear_session(free_memory: bool = True) -> None:
        for part in thread_state():
            part.clear()

    return patching.patched(keras.backend, "clear_session", lambda usual: clear_session)


def set_settings(state: State, theirs: State) -> None:
    """Sets the entries of a thread's state that programs set, see `settings`."""
    for part, other in zip(state, theirs, strict=True):
        for key in _SETTINGS:
            if key in other:
                part[key] = other[key]
            else:
                part.pop(key, None)


def seeds(state: State) -> Seeds:
    """Returns the global seed of a thread, and the state of its global seed generator."""
    generator = state[0].get(_SEEDS)
    own = None if generator is None else tuple(map(int, generator.state.numpy()))
    return state[0].get("global_random_seed"), own


def set_seeds(state: State, target: Seeds) -> None:
    """Sets what `seeds` returns, with a new global seed generator."""
    state[0]["global_random_seed"], own = target
    if own is None:
        state[0][_SEEDS] = None
        return
    state[0][_SEEDS] = generator = _new_seeds()
    generator.state.assign(np.array(own))


def _new_seeds() -> keras.random.SeedGenerator:
    """Returns a generator like the global one.

    It is given a name, as an automatic one would change the automatic names of the program.
    """
    return keras.random.SeedGenerator(0, name=_SEEDS)


@contextlib.contextmanager
def configured(theirs: State) -> Iterator[None]:
    """Applies the settings in `theirs` to this thread within the block.

    At the end of the block `theirs` is updated to the present settings, and this thread's own are
    restored. If neither had a global seed generator, both have the one that the block made.
    """
    own = settings(thread_state())
    set_settings(thread_state(), theirs)
    lacks_seeds = thread_state()[0].get(_SEEDS) is None
    try:
        yield
    finally:
        set_settings(theirs, thread_state())
        if lacks_seeds and own[0].get(_SEEDS) is None and _SEEDS in theirs[0]:
            own[0][_SEEDS] = theirs[0][_SEEDS]
        set_settings(thread_state(), own)


class OwnSeeds:
    """A copy of Keras's global seed generator, for the steps of one model.

    With the global one, steps that run side by side would draw from it alternately.
    """

    def __init__(self) -> None:
        self._own = _new_seeds()

    def begin(self) -> None:
        """Copies the state of the global generator, or the one that it would be made with."""
        known = vars(global_state.GLOBAL_STATE_TRACKER).get(_SEEDS)
        if known is not None:
            self._begun = known.state.numpy()
        else:  # the first draw makes it, with a seed from Python's random numbers
            ahead = random.Random()
            ahead.setstate(random.getstate())
            self._begun = np.array([ahead.randint(1, int(1e9)), 0])
        self._own.state.assign(self._begun)

    def advance_global_rng(self) -> None:
        """Sets the global generator to this one's state, unless it was used since `begin`."""
        drawn = self._own.state.numpy()
        if np.array_equal(drawn, self._begun):
            return
        shared = global_seed_generator()
        if np.array_equal(shared.state.numpy(), self._begun):
            shared.state.assign(drawn)

    @contextlib.contextmanager
    def given(self) -> Iterator[None]:
        """Replaces this thread's global generator by this one, within the block."""
        state = vars(global_state.GLOBAL_STATE_TRACKER)
        outside = state.get(_SEEDS)
        state[_SEEDS] = self._own
        try:
            yield
        finally:
            state[_SEEDS] = outside
