"""The random states that a process has once: Python's, NumPy's and the backend's."""

import pickle
import random
from typing import Any

import numpy as np

from kerascohost.backends import seeding, threads
from kerascohost.backends.base import get_backend


def random_state() -> bytes:
    """Returns the random states of the process: Python's, NumPy's and the backend's."""
    return pickle.dumps((random.getstate(), np.random.get_state(), get_backend().random_state()))


def set_random_state(state: bytes) -> None:
    """Restores the random states that `random_state` returned."""
    of_python, of_numpy, of_backend = pickle.loads(state)
    with seeding.unrecorded():
        random.setstate(of_python)
        np.random.set_state(of_numpy)
    get_backend().set_random_state(of_backend)


def parts(state: bytes, of_keras: threads.State) -> seeding.Parts:
    """Returns what `random_state` returned, and the seeds in a thread's state, by its source."""
    of_process = dict(zip(_SOURCES, map(pickle.dumps, pickle.loads(state)), strict=True))
    return of_process | {"keras": threads.seeds(of_keras)}


def joined(given: seeding.Parts) -> bytes:
    """Returns the states of the process as `random_state` does, from `parts`."""
    return pickle.dumps(tuple(pickle.loads(given[source]) for source in _SOURCES))


_SOURCES = ("python", "numpy", "backend")


def is_drawn_from(expected: bytes, found: bytes, ended: bytes, at_most: int = 5000) -> bool:
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


def _twisters(state: bytes) -> list[tuple[np.ndarray, int]]:
    """Returns the words of Python's and of NumPy's generator, and how many of them are used."""
    (_, of_python, _), of_numpy, _ = pickle.loads(state)
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
