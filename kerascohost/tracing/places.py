"""Where Python code looks something up: what was there, what is there now, how to restore it."""

import collections
import random
import types
import zlib
from collections.abc import Hashable, MutableMapping
from typing import Any

import numpy as np

PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)

_MISSING = object()  # what is read where there is nothing


def is_same(a: Any, b: Any) -> bool:
    """Whether code that reads `a` would do the same with `b`: the same object, or equal values."""
    if a is b:
        return True
    return isinstance(a, PLAIN) and type(a) is type(b) and bool(a == b or (a != a and b != b))


def fingerprint(value: Any) -> Hashable:
    """A value to compare by: a plain value itself, the identity of anything else."""
    return (type(value).__name__, value) if isinstance(value, PLAIN) else id(value)


class Place:
    """Where something is looked up.

    Args:
        path: Where it is and who reads it, as a user would say it.
        key: Equal for two places that are one.

    Attributes:
        is_restorable: Whether what was there can be put back.
        attribute: The name of the attribute that it is, if it is one.
        old: What was there when the place was found.
        own: What the training that found it would find there now.
    """

    is_restorable = True
    attribute: str | None = None

    def __init__(self, path: str, key: Hashable):
        self.path = path
        self.key = key
        self.old = self.own = self.read()

    def read(self) -> Any:
        """Returns what is there now."""
        raise NotImplementedError

    def write(self, value: Any) -> None:
        """Puts something there."""
        raise NotImplementedError

    def differs(self) -> bool:
        """Whether something else is there now."""
        return not is_same(self.old, self.read())

    def token(self) -> Hashable:
        """Equal for equal old values."""
        return fingerprint(self.old)

    def difference(self, then: str = "the call") -> str:
        """Says what was there `then`, when the place was found, and what is there now."""
        return f"{_brief(self.old)} at {then}, {_brief(self.read())} now"


def _brief(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    if isinstance(value, PLAIN):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    if isinstance(value, types.FunctionType):
        return f"a function of line {value.__code__.co_firstlineno}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


class Entry(Place):
    """An entry of a dict of names: a global, or an attribute of a module or of an object."""

    def __init__(
        self, path: str, names: MutableMapping[str, Any], name: str, is_attribute: bool = False
    ):
        self._names, self.name = names, name
        self.attribute = name if is_attribute else None
        super().__init__(path, ("entry", id(names), name))

    def read(self) -> Any:
        return self._names.get(self.name, _MISSING)

    def write(self, value: Any) -> None:
        if value is _MISSING:
            self._names.pop(self.name, None)
        else:
            self._names[self.name] = value


class Attribute(Place):
    """An attribute of a class, of a function or of an object with slots."""

    def __init__(self, path: str, thing: Any, name: str):
        self._thing, self.name, self.attribute = thing, name, name
        super().__init__(path, ("attribute", id(thing), name))

    def read(self) -> Any:
        if isinstance(self._thing, type):  # not what a descriptor makes of it
            return vars(self._thing).get(self.name, _MISSING)
        return getattr(self._thing, self.name, _MISSING)

    def write(self, value: Any) -> None:
        if value is _MISSING:
            delattr(self._thing, self.name)
        else:
            setattr(self._thing, self.name, value)


class Cell(Place):
    """A variable of a function around a function."""

    def __init__(self, path: str, cell: types.CellType, name: str):
        self._cell, self.name = cell, name
        super().__init__(path, ("cell", id(cell)))

    def read(self) -> Any:
        try:
            return self._cell.cell_contents
        except ValueError:  # of a name that has no value yet
            return _MISSING

    def write(self, value: Any) -> None:
        if value is _MISSING:
            del self._cell.cell_contents
        else:
            self._cell.cell_contents = value


class Items(Place):
    """What is in a list, dict, set or deque."""

    def __init__(self, path: str, container: Any):
        self._container = container
        super().__init__(f"the items of {path}", ("items", id(container)))

    def read(self) -> Any:
        kind = dict if isinstance(self._container, dict) else list
        return kind(self._container)

    def write(self, value: Any) -> None:
        if isinstance(self._container, list):
            list.__setitem__(self._container, slice(None), value)
        elif isinstance(self._container, dict):
            dict.clear(self._container)
            dict.update(self._container, value)
        else:
            self._container.clear()
            add = "update" if isinstance(self._container, set) else "extend"
            getattr(self._container, add)(value)

    def differs(self) -> bool:
        old, new = self.old, self.read()
        if len(old) != len(new):
            return True
        if isinstance(old, dict):
            return list(old) != list(new) or not all(is_same(old[key], new[key]) for key in old)
        return not all(map(is_same, old, new))

    def token(self) -> Hashable:
        items = self.old.items() if isinstance(self.old, dict) else enumerate(self.old)
        return tuple((fingerprint(key), fingerprint(value)) for key, value in items)

    def difference(self, then: str = "the call") -> str:
        new = self.read()
        if len(self.old) != len(new):
            return f"{len(self.old)} at {then}, {len(new)} now"
        if isinstance(self.old, dict):
            both = [key for key in self.old if key in new]
            changed = [key for key in both if not is_same(self.old[key], new[key])]
            if changed:
                key = changed[0]
                return (
                    f"{_brief(self.old[key])} at {then}, {_brief(new[key])} now, at [{key!r:.30}]"
                )
            return f"others now than at {then}"
        i = next(i for i, (a, b) in enumerate(zip(self.old, new, strict=True)) if not is_same(a, b))
        return f"{_brief(self.old[i])} at {then}, {_brief(new[i])} now, at [{i}]"


class Fixed(Place):
    """What can be compared but not put back; `read` answers with a short summary."""

    is_restorable = False

    def __init__(self, path: str, thing: Any):
        self._thing = thing
        super().__init__(path, ("fixed", type(self).__name__, id(thing)))

    def differs(self) -> bool:
        return self.old != self.read()

    def difference(self, then: str = "the call") -> str:
        return f"changed in place since {then}"


class Bytes(Fixed):
    """The bytes of an array, by a checksum."""

    def read(self) -> Hashable:
        return checksum(self._thing)


class Frame(Fixed):
    """A DataFrame or a Series outside the arguments of `fit`, which pandas copies when written."""

    def read(self) -> Any:
        return self._thing.copy(deep=False)

    def differs(self) -> bool:
        return not self.old.equals(self._thing)


class RandomState(Fixed):
    """How far a random generator has come."""

    def read(self) -> str:
        if isinstance(self._thing, random.Random):
            return repr(self._thing.getstate())
        if isinstance(self._thing, np.random.Generator):
            return repr(self._thing.bit_generator.state)
        return repr(self._thing.get_state(legacy=False))

    def difference(self, then: str = "the call") -> str:
        return f"drawn from, or seeded, since {then}"


class GeneratorState(Fixed):
    """How far a generator has come, and the plain values of its variables."""

    def read(self) -> Any:
        frame = self._thing.gi_frame
        if frame is None:
            return None
        plain = {n: v for n, v in frame.f_locals.items() if isinstance(v, PLAIN)}
        return frame.f_lasti, plain

    def differs(self) -> bool:
        old, new = self.old, self.read()
        if old is None or new is None:
            return old is not new
        (at, before), (now_at, now) = old, new
        names_differ = at != now_at or before.keys() != now.keys()
        return names_differ or not all(is_same(before[name], now[name]) for name in before)

    def difference(self, then: str = "the call") -> str:
        old, new = self.old, self.read()
        if old is None or new is None or old[0] != new[0]:
            return f"advanced since {then}"
        name = next(name for name in old[1] if not is_same(old[1][name], new[1].get(name)))
        return f"`{name}` was {_brief(old[1][name])} at {then} and is {_brief(new[1][name])} now"


class Setting(Fixed):
    """A plain attribute of an object of Keras's own.

    It is put back only for a trace: Keras reads it at other times, too.
    """

    def __init__(self, path: str, thing: Any, name: str):
        self.name = name
        super().__init__(path, thing)
        self.key = ("setting", id(thing), name)

    def read(self) -> Any:
        value = getattr(self._thing, self.name, None)
        return value if isinstance(value, PLAIN) else type(value).__name__

    def write(self, value: Any) -> None:
        setattr(self._thing, self.name, value)

    def differs(self) -> bool:
        return not is_same(self.old, self.read())

    def difference(self, then: str = "the call") -> str:
        return Place.difference(self, then)


def checksum(array: np.ndarray) -> Hashable:
    """A checksum of an array's bytes, or the identities of its objects."""
    if array.dtype.hasobject:
        return tuple(map(id, array.ravel().tolist()))
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return zlib.crc32(data), array.shape, array.dtype.str


CONTAINERS = (list, dict, set, collections.deque)
