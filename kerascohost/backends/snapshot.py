"""Restores models to an earlier state, so that a measurement can train the user's own models."""

import collections
import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import keras
import numpy as np
from keras.src.saving.keras_saveable import KerasSaveable  # layers, optimizers, losses, metrics

from kerascohost.backends import random_state, set_random_state, variables
from kerascohost.backends.base import Thing


class _Content(NamedTuple):
    """The content of an object: its items, if it is a container, and its attributes."""

    thing: Thing
    items: dict[Thing, Thing] | list[Thing]
    attributes: dict[str, Thing]


class VariableSnapshot:
    """The present values of all variables of some models, and the global random state.

    Args:
        models: The models.
    """

    def __init__(self, models: Iterable[keras.Model]):
        found = {id(v): v for model in models for v in variables(model)}.values()
        # Copies: compiled steps reuse the memory of the variables that they change.
        self._values = [(v, np.array(v.numpy())) for v in found]
        self._random = random_state()

    def restore(self) -> None:
        """Sets all variables to these values, and the global random state to this one."""
        for variable, value in self._values:
            variable.assign(value)
        set_random_state(self._random)


class ModelSnapshot:
    """The present state of some models: variables, built parts, compiled functions, histories.

    (Training copies instead is no alternative: Keras copies models by saving them, and much that
    notebooks define cannot be saved, as classes without `get_config` and lambdas.)

    Args:
        models: The models.
    """

    def __init__(self, models: Iterable[keras.Model]):
        models = list(models)
        self._values, self._contents = VariableSnapshot(models), _contents(models)

    def restore(self) -> None:
        """Restores the models and the global random state.

        What was not built then is not built afterwards.
        """
        for content in self._contents:
            _fill(content)
        self._values.restore()


@contextlib.contextmanager
def preserved(models: Iterable[keras.Model]) -> Iterator[None]:
    """Restores the models when the block ends, also on an exception; see `ModelSnapshot`."""
    snapshot = ModelSnapshot(models)
    try:
        yield
    finally:
        snapshot.restore()


def _contents(models: Iterable[keras.Model]) -> list[_Content]:
    """Returns the contents of everything of Keras that can be reached from the models."""
    found: dict[int, _Content] = {}
    waiting: list[Thing] = list(models)
    while waiting:
        thing = waiting.pop()
        if id(thing) not in found and _is_followed(thing):
            items, attributes = items_of(thing), dict(getattr(thing, "__dict__", {}))
            found[id(thing)] = _Content(thing, items, attributes)
            waiting += [*(items.values() if isinstance(items, dict) else items)]
            waiting += attributes.values()
    return list(found.values())


def _is_followed(thing: Thing) -> bool:
    """Returns whether `thing` is a container or an object of Keras or of a model.

    Variables are not followed: a `VariableSnapshot` has their values.
    """
    if isinstance(thing, (type, keras.Variable)):
        return False
    # TensorFlow's: its `ListWrapper`, in which an optimizer there keeps its variables.
    library = type(thing).__module__.partition(".")[0]
    if isinstance(thing, (list, tuple, set, dict, collections.deque)):
        return library in ("builtins", "collections", "keras", "tensorflow")
    return library == "keras" or isinstance(thing, KerasSaveable)


def items_of(thing: Thing) -> dict[Thing, Thing] | list[Thing]:
    """Returns the items of a container, without calling methods that its class overrides."""
    if isinstance(thing, dict):
        return dict(thing)
    kind = next(
        (kind for kind in (list, tuple, set, collections.deque) if isinstance(thing, kind)), None
    )
    return list(kind.__iter__(thing)) if kind else []


def set_items(thing: Thing, items: dict[Thing, Thing] | list[Thing]) -> None:
    """Sets the items of a container, without calling methods that its class overrides."""
    if isinstance(thing, dict):
        inner = getattr(thing, "__wrapped__", thing)
        # The methods of `dict` would leave the order of an `OrderedDict` as it was.
        kind = collections.OrderedDict if isinstance(inner, collections.OrderedDict) else dict
        kind.clear(inner)
        for key, item in dict(items).items():
            kind.__setitem__(inner, key, item)
        if hasattr(thing, "_update_snapshot"):  # TensorFlow's `_DictWrapper` checks for changes
            thing._update_snapshot()
    elif isinstance(thing, list):
        list.__setitem__(thing, slice(None), items)
    elif isinstance(thing, set):
        set.clear(thing)
        set.update(thing, items)
    elif isinstance(thing, collections.deque):
        collections.deque.clear(thing)
        collections.deque.extend(thing, items)


def _fill(content: _Content) -> None:
    """Restores items and attributes, without calling methods that the object's class overrides."""
    thing, items, attributes = content
    set_items(thing, items)
    if attributes:
        thing.__dict__.clear()
        thing.__dict__.update(attributes)
