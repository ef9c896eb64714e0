"""Models are restored with the content of all containers that they hold."""

import collections

import keras
import pytest

from kerascohost.backends.snapshot import preserved

CONTAINERS = {
    "dict": lambda: {"a": 1, "b": 2},
    "OrderedDict": lambda: collections.OrderedDict(a=1, b=2),
    "list": lambda: [1, 2],
    "set": lambda: {1, 2},
    "deque": lambda: collections.deque([1, 2], maxlen=2),
}


def change(held):
    if isinstance(held, dict):
        held["c"] = len(held)
        held.pop("b", None)
    else:
        getattr(held, "append" if hasattr(held, "append") else "add")(len(held) + 7)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_items_of_a_container_are_restored_in_their_order(kind):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.held = CONTAINERS[kind]()
    with preserved([model]):
        change(model.held)
        assert model.held != CONTAINERS[kind]()
    assert model.held == CONTAINERS[kind]() and list(model.held) == list(CONTAINERS[kind]())
    assert repr(model.held)  # an `OrderedDict` whose order is lost has none
