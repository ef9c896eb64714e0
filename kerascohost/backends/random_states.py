"""The random states that a process has once: Python's, NumPy's and the backend's."""

import functools
import pickle
import random
from typing import Any, NamedTuple

import numpy as np

from kerascohost.backends import base, seeding, threads
from kerascohost.backends.base import get_backend


class _States(NamedTuple):
    """A state of each generator, as the generator gives it."""

    python: tuple[Any, ...]
    numpy: Any
    backend: base.RandomState


class RandomStates:
    """The random states of the process at one time.

    They are read and set at every change between members, but seldom compared: so only a comparison
    makes bytes of them.

    Args:
        states: The states, which are not changed afterwards.

    Attributes:
        states: The states.
    """

    def __init__(self, states: _States):
        self.states = states

    @functools.cached_property
    def _bytes(self) -> bytes:
        return pickle.dumps(tuple(self.states))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomStates):
            return NotImplemented
        return self.states is other.states or self._bytes == other._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)


def random_state() -> RandomStates:
    """Returns the random states of the process: Python's, NumPy's and the backend's."""
    backend = get_backend().random_state()
    return RandomStates(_States(random.getstate(), np.random.get_state(), backend))


def set_random_state(state: RandomStates) -> None:
    """Restores the random states that `random_state` returned."""
    with seeding.unrecorded():
        random.setstate(state.states.python)
        np.random.set_state(state.states.numpy)
    get_backend().set_random_state(state.states.backend)


def parts(state: RandomStates, of_keras: threads.State) -> seeding.Parts:
    """Returns what `random_state` returned, and the seeds in a thread's state, by its source."""
    of_process = {source: pickle.dumps(part) for source, part in state.states._asdict().items()}
    return of_process | {"keras": threads.seeds(of_keras)}


def joined(given: seeding.Parts) -> RandomStates:
    """Returns the states of the process as `random_state` does, from `parts`."""
    return RandomStates(_States(*(pickle.loads(given[source]) for source in _States._fields)))


def is_drawn_from(
    expected: RandomStates, found: RandomStates, ended: RandomStates, at_most: int = 5000
) -> bool:
    """Returns whether a program drew Python's or NumPy's random numbers from a wrong state.

    Both generators (Mersenne Twister) make their numbers in blocks of 624 words.

    Args:
        expected: The state from which the program drew, if it did.
        found: The state after the program's draws.
        ended: The state from which the program should have drawn.
        at_most: The number of blocks after `expected` in which `found` is looked for.
    """
    states = zip(*map(_twisters, (expected, found, ended)), strict=True)
    return any(
        not _is_same_twister(begun, right) and _leads_to(begun, there, at_most)
        for begun, there, right in states
    )


def _twisters(state: RandomStates) -> list[tuple[np.ndarray, int]]:
    """Returns the words of Python's and of NumPy's generator, and how many of them are used."""
    (_, of_python, _), of_numpy, _ = state.states
    python = np.array(of_python[:-1], "uint32"), of_python[-1]
    return [python, (of_numpy[1], of_numpy[2])]


def _is_same_twister(one: tuple[np.ndarray, int], other: tuple[np.ndarray, int]) -> bool:
    return one[1] == other[1] and np.array_equal(one[0], other[0])


def _leads_to(begun: tuple[np.ndarray, int], found: tuple[np.ndarray, int], at_most: int) -> bool:
    if np.array_equal(begun[0], found[0]):
        return begun[1] < found[1]
    state: Any = np.random.RandomState()
    state.set_state(("MT19937", *begun))
    for _ in range(at_most):
        state.bytes(4 * 624)
        if np.array_equal(state.get_state()[1], found[0]):
            return True
    return False
