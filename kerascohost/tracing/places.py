"""Places where Python code looks up values, such as globals, attributes and items of containers.

A place stores the value that it had when it was found, and can restore it.
"""

import collections
import random
import sys
import types
import zlib
from collections.abc import Hashable, MutableMapping
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import numpy as np

from kerascohost.backends import snapshot

if TYPE_CHECKING:
    import pandas as pd

PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)

CONTAINERS = (list, dict, set, collections.deque)

# Any object of a user's program; its type is only known at run time.
UserObject: TypeAlias = Any

Container: TypeAlias = (
    list[UserObject]
    | dict[UserObject, UserObject]
    | set[UserObject]
    | collections.deque[UserObject]
)

AnyGenerator: TypeAlias = "types.GeneratorType[UserObject, UserObject, UserObject]"

_ThingT = TypeVar("_ThingT")

_MISSING = object()  # what is read where there is nothing


def is_same(a: UserObject, b: UserObject) -> bool:
    """Returns whether `a` and `b` are the same object or equal plain values.

    Code that reads one of them then does what it would do with the other.
    """
    if a is b:
        return True
    return isinstance(a, PLAIN) and type(a) is type(b) and bool(a == b or (a != a and b != b))


def fingerprint(value: UserObject) -> Hashable:
    """Returns a key to compare a value by: its type and a plain value, or else its identity."""
    return (type(value).__name__, value) if isinstance(value, PLAIN) else id(value)


class Place:
    """A place where code looks up a value.

    Args:
        path: Where the place is and what code reads it, in words for the user.
        key: Equal for two objects that stand for the same place.

    Attributes:
        is_restorable: Whether the old value can be restored.
        attribute: The name of the attribute, if the place is one.
        old: The value when the place was found.
        own: The value that the training which found the place would find there now.
    """

    is_restorable = True
    attribute: str | None = None

    def __init__(self, path: str, key: Hashable):
        self.path = path
        self.key = key
        self.old = self.own = self.read()

    def read(self) -> UserObject:
        """Returns the present value."""
        raise NotImplementedError

    def write(self, value: UserObject) -> None:
        """Sets the value."""
        raise NotImplementedError

    def differs(self) -> bool:
        """Returns whether the present value differs from the old one."""
        return not is_same(self.old, self.read())

    def token(self) -> Hashable:
        """Returns a key that is equal for equal old values."""
        return fingerprint(self.old)

    def difference(self, then: str = "the call") -> str:
        """Returns a text with the old value and the present one.

        Args:
            then: When the old value was read.
        """
        return f"{_brief(self.old)} at {then}, {_brief(self.read())} now"


def _brief(value: UserObject) -> str:
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
        self,
        path: str,
        names: MutableMapping[str, UserObject],
        name: str,
        is_attribute: bool = False,
    ):
        self._names, self.name = names, name
        self.attribute = name if is_attribute else None
        super().__init__(path, ("entry", id(names), name))

    def read(self) -> UserObject:
        """Returns the value of the entry."""
        return self._names.get(self.name, _MISSING)

    def write(self, value: UserObject) -> None:
        """Sets the entry, or removes it."""
        if value is _MISSING:
            self._names.pop(self.name, None)
        else:
            self._names[self.name] = value


class Attribute(Place):
    """An attribute of a class, of a function or of an object with slots."""

    def __init__(self, path: str, thing: UserObject, name: str):
        self._thing, self.name, self.attribute = thing, name, name
        super().__init__(path, ("attribute", id(thing), name))

    def read(self) -> UserObject:
        """Returns the value of the attribute."""
        if isinstance(self._thing, type):  # not what a descriptor makes of it
            return vars(self._thing).get(self.name, _MISSING)
        return getattr(self._thing, self.name, _MISSING)

    def write(self, value: UserObject) -> None:
        """Sets the attribute, or deletes it."""
        if value is _MISSING:
            delattr(self._thing, self.name)
        else:
            setattr(self._thing, self.name, value)


class Cell(Place):
    """A variable of an enclosing function."""

    def __init__(self, path: str, cell: types.CellType, name: str):
        self._cell, self.name = cell, name
        super().__init__(path, ("cell", id(cell)))

    def read(self) -> UserObject:
        """Returns the value of the variable."""
        try:
            return self._cell.cell_contents
        except ValueError:  # of a name that has no value yet
            return _MISSING

    def write(self, value: UserObject) -> None:
        """Sets the variable, or unbinds it."""
        if value is _MISSING:
            del self._cell.cell_contents
        else:
            self._cell.cell_contents = value


class Items(Place):
    """The items of a list, dict, set or deque."""

    def __init__(self, path: str, container: Container):
        self._container = container
        super().__init__(f"the items of {path}", ("items", id(container)))

    def read(self) -> dict[UserObject, UserObject] | list[UserObject]:
        """Returns the items as a new dict or list."""
        items = self._container
        return dict(items) if isinstance(items, dict) else list(items)

    def write(self, value: UserObject) -> None:
        """Replaces the items in place."""
        snapshot.set_items(self._container, value)

    def differs(self) -> bool:
        """Returns whether an item, the number of items or the order of keys differs."""
        old, new = self.old, self.read()
        if len(old) != len(new):
            return True
        if isinstance(old, dict):
            return list(old) != list(new) or not all(is_same(old[key], new[key]) for key in old)
        return not all(map(is_same, old, new))

    def token(self) -> Hashable:
        """Returns a key that is equal for equal items in the same order."""
        items = self.old.items() if isinstance(self.old, dict) else enumerate(self.old)
        return tuple((fingerprint(key), fingerprint(value)) for key, value in items)

    def difference(self, then: str = "the call") -> str:
        """Returns a text with the first item that differs, or with the numbers of items."""
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


class Fixed(Place, Generic[_ThingT]):
    """An object that can be compared but not restored; `read` returns a short summary of it."""

    is_restorable = False

    def __init__(self, path: str, thing: _ThingT):
        self._thing = thing
        super().__init__(path, ("fixed", type(self).__name__, id(thing)))

    def differs(self) -> bool:
        """Returns whether the summary differs from the old one."""
        return self.old != self.read()

    def difference(self, then: str = "the call") -> str:
        """Returns a text that says since when the object has changed."""
        return f"changed in place since {then}"


class Bytes(Fixed[np.ndarray]):
    """The bytes of an array, by a checksum."""

    def read(self) -> Hashable:
        """Returns the checksum of the array."""
        return checksum(self._thing)


class Frame(Fixed["pd.DataFrame | pd.Series"]):
    """A DataFrame or Series outside the arguments of `fit`, which pandas copies on a write."""

    def read(self) -> "pd.DataFrame | pd.Series":
        """Returns a copy, which later writes do not change."""
        return self._thing.copy(deep=not copies_on_write())

    def differs(self) -> bool:
        """Returns whether the values differ from the old ones."""
        return not self.old.equals(self._thing)


class RandomState(Fixed[random.Random | np.random.RandomState | np.random.Generator]):
    """The state of a random generator."""

    def read(self) -> str:
        """Returns the state of the generator as text."""
        if isinstance(self._thing, random.Random):
            return repr(self._thing.getstate())
        if isinstance(self._thing, np.random.Generator):
            return repr(self._thing.bit_generator.state)
        return repr(self._thing.get_state(legacy=False))

    def difference(self, then: str = "the call") -> str:
        """Returns a text that says since when the generator was used."""
        return f"drawn from, or seeded, since {then}"


class GeneratorState(Fixed[AnyGenerator]):
    """The position of a generator in its code, and the plain values of its variables."""

    def read(self) -> tuple[int, dict[str, UserObject]] | None:
        """Returns the position in the code and the plain variables; `None` at the end."""
        frame = self._thing.gi_frame
        if frame is None:
            return None
        plain = {n: v for n, v in frame.f_locals.items() if isinstance(v, PLAIN)}
        return frame.f_lasti, plain

    def differs(self) -> bool:
        """Returns whether the generator was advanced or a variable differs."""
        old, new = self.old, self.read()
        if old is None or new is None:
            return old is not new
        (at, before), (now_at, now) = old, new
        names_differ = at != now_at or before.keys() != now.keys()
        return names_differ or not all(is_same(before[name], now[name]) for name in before)

    def difference(self, then: str = "the call") -> str:
        """Returns a text that says which variable differs, or that it was advanced."""
        old, new = self.old, self.read()
        if old is None or new is None or old[0] != new[0]:
            return f"advanced since {then}"
        names = (n for n in old[1] if n not in new[1] or not is_same(old[1][n], new[1][n]))
        name = next(names, None)
        if name is None or name not in new[1]:  # a whole iteration of a loop, which set a name
            return f"advanced since {then}"
        return f"`{name}` was {_brief(old[1][name])} at {then} and is {_brief(new[1][name])} now"


class Setting(Fixed[UserObject]):
    """A plain attribute of an object of Keras's own.

    It is restored only for a trace: Keras reads it at other times, too.
    """

    def __init__(self, path: str, thing: UserObject, name: str):
        self.name = name
        super().__init__(path, thing)
        self.key = ("setting", id(thing), name)

    def read(self) -> UserObject:
        """Returns a plain value, or the name of the type of any other."""
        value = getattr(self._thing, self.name, None)
        return value if isinstance(value, PLAIN) else type(value).__name__

    def write(self, value: UserObject) -> None:
        """Sets the attribute."""
        setattr(self._thing, self.name, value)

    def differs(self) -> bool:
        """Returns whether the present value differs from the old one."""
        return not is_same(self.old, self.read())

    def difference(self, then: str = "the call") -> str:
        """Returns a text with the old value and the present one."""
        return Place.difference(self, then)


def copies_on_write() -> bool:
    """Returns whether pandas copies what shallow copies share before it is written to."""
    pandas = sys.modules["pandas"]
    if int(pandas.__version__.partition(".")[0]) >= 3:
        return True
    return pandas.options.mode.copy_on_write is True


def checksum(array: np.ndarray) -> Hashable:
    """Returns a checksum of an array's bytes; for an array of objects, their identities."""
    if array.dtype.hasobject:
        return tuple(map(id, array.ravel().tolist()))
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return zlib.crc32(data), array.shape, array.dtype.str
