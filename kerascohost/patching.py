"""Replacement of attributes of other libraries, for the calling thread only.

While at least one thread replaces an attribute, its value is an object that looks up which thread
reads it. Every thread without a replacement finds the usual value.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, TypeAlias

_MISSING = object()
_LOCK = threading.Lock()
_PLACES: dict[tuple[int, str], "_Place"] = {}


# A class, module, object or dict of another library, or the value of an attribute of it.
Thing: TypeAlias = Any


@contextlib.contextmanager
def patched(owner: Thing, name: str, replace: Callable[[Thing], Thing]) -> Iterator[None]:
    """Replaces `owner.name` for the calling thread only, within the block.

    Blocks may be nested, and run in several threads at once. After the last one the attribute is as
    it was before; one that was inherited is inherited again.

    Args:
        owner: A class, a module, or an object with a `__dict__`.
        name: The attribute. That of a class may have any value; that of a module or an object must
            be a function or a dict, as no other value can depend on the thread that reads it.
        replace: Makes the replacement from the value that this thread found before the block: for a
            class `owner.name`, such as a function or a property; for a module or an object the
            function or dict. The replacement has to use this value, and not `owner.name`, which is
            the replacement itself within the block.

    Raises:
        TypeError: If the value cannot be replaced for one thread only.

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
    """An attribute that threads have replacements for.

    Args:
        owner: As in `patched`.
        name: The attribute.

    Attributes:
        users: The number of blocks that replace it at present.
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
        """Returns whether no other code has set the attribute since `install`."""
        return vars(self.owner).get(self.name) is self._stand_in

    def install(self) -> None:
        """Sets the attribute to the object that looks up which thread reads it."""
        self._put(self._stand_in)

    def remove(self) -> None:
        """Restores the original value, unless other code has set the attribute since."""
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
        elif is_missing:  # here and below without `__setattr__`, by which Keras tracks attributes
            del attributes[self.name]
        else:
            attributes[self.name] = value

    @contextlib.contextmanager
    def replaced(self, replace: Callable[[Thing], Thing]) -> Iterator[None]:
        """Adds a replacement for this thread, within the block."""
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
        """Returns the value that this thread finds, not bound to an instance.

        Args:
            kind: The class at which the lookup began, for an attribute that the owner inherits.
        """
        own = self._own.__dict__.get("replacements")
        found = own[-1] if own else self._original
        if found is _MISSING:
            order = kind.__mro__ if kind is not None else type(self.owner).__mro__
            after = order.index(self.owner) + 1 if isinstance(self.owner, type) else 0
            found = next(vars(k)[self.name] for k in order[after:] if self.name in vars(k))
        return found

    def value(self) -> Thing:
        """Returns the value that this thread finds at a module or an object."""
        own = self._own.__dict__.get("replacements")
        if own or self._original is not _MISSING:
            return self.raw(None)
        return _bound(self.raw(None), self.owner, type(self.owner))


def _is_data(thing: Thing) -> bool:
    """Returns whether a class's attribute takes precedence over an instance's of the same name."""
    return hasattr(type(thing), "__set__") or hasattr(type(thing), "__delete__")


def _bound(found: Thing, instance: Thing, kind: type) -> Thing:
    get = getattr(type(found), "__get__", None)
    return found if get is None else get(found, instance, kind)


class _Descriptor:
    """A descriptor that looks up the calling thread's value of a class's attribute."""

    def __init__(self, place: _Place):
        self.place = place

    def __get__(self, instance: Thing, kind: type) -> Thing:
        return _bound(self.place.raw(kind), instance, kind)


class _DataDescriptor(_Descriptor):
    """A descriptor that looks up the calling thread's property, to set and delete by it too."""

    def __set__(self, instance: Thing, value: Thing) -> None:
        found = self.place.raw(type(instance))
        type(found).__set__(found, instance, value)

    def __delete__(self, instance: Thing) -> None:
        found = self.place.raw(type(instance))
        type(found).__delete__(found, instance)


class _Table(MutableMapping[Thing, Thing], dict[Thing, Thing]):  # type: ignore[misc, metaclass]  # a dict is no subclass
    """A dict that each thread reads and writes as its own."""

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
