"""Attributes of what is not ours, replaced for the calling thread only.

At the place stands, while at least one thread has a replacement for it, an object that looks up
which thread asks; every other thread finds there what it would have found anyway.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, TypeAlias

_MISSING = object()
_LOCK = threading.Lock()
_PLACES: dict[tuple[int, str], "_Place"] = {}


# A class, module, object or table of others, or what stands there under a name.
Thing: TypeAlias = Any


@contextlib.contextmanager
def patched(owner: Thing, name: str, replace: Callable[[Thing], Thing]) -> Iterator[None]:
    """Within the block the calling thread, and no other, finds something else at `owner.name`.

    Blocks may be nested, and run in several threads at once. In the end everything is as it was: an
    attribute that was inherited is inherited again.

    Args:
        owner: A class, a module, or an object with a `__dict__`.
        name: The attribute. Of a class it may hold anything; of a module or an object a function or
            a dict, as no other value can tell who reads it.
        replace: Makes the replacement from what the thread found until now: of a class what
            `owner.name` is, a function or a property; of a module or an object the function or the
            dict. It has to use that, and not `owner.name`, which is the replacement itself later.

    Raises:
        TypeError: If what stands there cannot be replaced for one thread only.

    Example:

    >>> import math
    >>> with patched(math, "sqrt", lambda usual: lambda x: -usual(x)):
    ...     math.sqrt(4.0)
    -2.0
    >>> math.sqrt(4.0)
    2.0
    """
    place = _enter(owner, name)
    try:
        with place.replaced(replace):
            yield
    finally:
        _leave(place)


def _enter(owner: Thing, name: str) -> "_Place":
    with _LOCK:
        place = _PLACES.get((id(owner), name))
        if place is None or not place.stands:
            place = _Place(owner, name)
            place.install()
            _PLACES[id(owner), name] = place
        place.users += 1
        return place


def _leave(place: "_Place") -> None:
    with _LOCK:
        place.users -= 1
        if place.users:
            return
        place.remove()
        key = (id(place.owner), place.name)
        if _PLACES.get(key) is place:
            del _PLACES[key]


class _Place:
    """A place that threads have replacements for.

    Args:
        owner: As in `patched`.
        name: The attribute.

    Attributes:
        users: How many blocks need it.
    """

    def __init__(self, owner: Thing, name: str):
        self.owner = owner
        self.name = name
        self.users = 0
        usual = getattr(owner, name)  # first, as some modules make an attribute when it is read
        self._original = vars(owner).get(name, _MISSING)
        self._own = threading.local()
        self._stand_in = self._made(usual)

    def _made(self, usual: Thing) -> Thing:
        if isinstance(self.owner, type):
            return _DataDescriptor(self) if _is_data(self.raw(self.owner)) else _Descriptor(self)
        if isinstance(usual, dict):
            return _Table(self)
        if not callable(usual):
            raise TypeError(
                f"Expected a function or a dict at {self.name!r} of {self.owner!r}. "
                f"Received: {usual!r}, which is the same for every thread that reads it."
            )

        @functools.wraps(usual)
        def dispatch(*args: Thing, **kwargs: Thing) -> Thing:
            return self.value()(*args, **kwargs)

        return dispatch

    @property
    def stands(self) -> bool:
        """Whether nobody has put something else there meanwhile."""
        return vars(self.owner).get(self.name) is self._stand_in

    def install(self) -> None:
        """Puts at the place what looks up which thread asks."""
        self._put(self._stand_in)

    def remove(self) -> None:
        """Puts back what was there, unless something else stands there now, which is left."""
        if self.stands:
            self._put(self._original)

    def _put(self, value: Thing) -> None:
        owner, is_missing = self.owner, value is _MISSING
        is_class = isinstance(owner, type)
        attributes: Thing = vars(owner)
        if is_class and is_missing:
            delattr(self.owner, self.name)
        elif is_class:
            setattr(self.owner, self.name, value)
        elif is_missing:  # here and below past `__setattr__`: Keras notes what is set
            del attributes[self.name]
        else:
            attributes[self.name] = value

    @contextlib.contextmanager
    def replaced(self, replace: Callable[[Thing], Thing]) -> Iterator[None]:
        """Within the block this thread has a replacement."""
        usual = getattr(self.owner, self.name) if isinstance(self.owner, type) else self.value()
        replacement = replace(usual)
        if isinstance(self.owner, type) and _is_data(replacement) != _is_data(usual):
            raise TypeError(f"Expected a property for a property. Received: {replacement!r}")
        own = self._own.__dict__.setdefault("replacements", [])
        own.append(replacement)
        try:
            yield
        finally:
            own.pop()

    def raw(self, kind: type | None) -> Thing:
        """What this thread finds there, unbound.

        Args:
            kind: The class with which a lookup began, for what the owner only inherits.
        """
        own = self._own.__dict__.get("replacements")
        found = own[-1] if own else self._original
        if found is _MISSING:
            order = kind.__mro__ if kind is not None else type(self.owner).__mro__
            after = order.index(self.owner) + 1 if isinstance(self.owner, type) else 0
            found = next(vars(k)[self.name] for k in order[after:] if self.name in vars(k))
        return found

    def value(self) -> Thing:
        """What this thread finds at the place of a module or an object."""
        own = self._own.__dict__.get("replacements")
        if own or self._original is not _MISSING:
            return self.raw(None)
        return _bound(self.raw(None), self.owner, type(self.owner))


def _is_data(thing: Thing) -> bool:
    """Whether an attribute of a class goes before one of the same name of its instances."""
    return hasattr(type(thing), "__set__") or hasattr(type(thing), "__delete__")


def _bound(found: Thing, instance: Thing, kind: type) -> Thing:
    get = getattr(type(found), "__get__", None)
    return found if get is None else get(found, instance, kind)


class _Descriptor:
    """Stands at a place of a class."""

    def __init__(self, place: _Place):
        self.place = place

    def __get__(self, instance: Thing, kind: type) -> Thing:
        return _bound(self.place.raw(kind), instance, kind)


class _DataDescriptor(_Descriptor):
    """Stands at the place of a property."""

    def __set__(self, instance: Thing, value: Thing) -> None:
        found = self.place.raw(type(instance))
        type(found).__set__(found, instance, value)

    def __delete__(self, instance: Thing) -> None:
        found = self.place.raw(type(instance))
        type(found).__delete__(found, instance)


class _Table(MutableMapping[Thing, Thing], dict[Thing, Thing]):  # type: ignore[misc, metaclass]  # a dict is no subclass
    """Stands at a place that holds a table: each thread reads and writes its own."""

    def __init__(self, place: _Place):
        self._place = place

    def __getitem__(self, key: Thing) -> Thing:
        return self._place.value()[key]

    def __setitem__(self, key: Thing, value: Thing) -> None:
        self._place.value()[key] = value

    def __delitem__(self, key: Thing) -> None:
        del self._place.value()[key]

    def __iter__(self) -> Iterator[Thing]:
        return iter(self._place.value())

    def __len__(self) -> int:
        return len(self._place.value())

    def __repr__(self) -> str:
        return repr(self._place.value())

    def copy(self) -> dict[Thing, Thing]:
        return dict(self._place.value())

    def __or__(self, other: Thing) -> Thing:  # `dict`'s would look into this object, which is empty
        return self.copy() | other

    def __ior__(self, other: Thing) -> Thing:
        self._place.value().update(other)
        return self
