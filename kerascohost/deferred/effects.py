"""Objects that several iterations of a loop may use, and what statements do to them."""

import argparse
import collections
import contextlib
import dataclasses
import gc
import types
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import keras
import numpy as np

from kerascohost.deferred.library import TRUSTED, package
from kerascohost.tracing.places import PLAIN, UserObject

# An object of the program, by its identity; or one that has none yet, by a name.
Key: TypeAlias = int | str

# CODE stands for all functions, classes and modules of the program, whose attributes may be set.
FILES, ITEM, ARGUMENT, CODE = "files", "item", "argument", "code"


_MOST_REACHED = 200_000


class UnprovenError(Exception):
    """An error for code whose effects are not known.

    Args:
        why: A clause that says why.
        line: The line, or 0.

    Attributes:
        rest: What the loop is to go over as written, if that is not what it went over.
    """

    def __init__(self, why: str, line: int = 0):
        super().__init__(why)
        self.why = why
        self.line = line
        self.rest: Iterable[UserObject] | None = None


class Value(NamedTuple):
    """The objects of the program that a value may lead to.

    Attributes:
        be: Those that it may be, or be a part or a view of.
        holds: Those that it may refer to.
        code: The functions made in the body that it is, if it is known to be one of these.
    """

    be: frozenset[Key] = frozenset()
    holds: frozenset[Key] = frozenset()
    code: frozenset[int] = frozenset()

    @property
    def keys(self) -> frozenset[Key]:
        """All of them."""
        return self.be | self.holds

    @property
    def part(self) -> "Value":
        """The value of an attribute or an item."""
        return Value(self.keys, self.keys)

    @property
    def container(self) -> "Value":
        """The value of a new container of it."""
        return Value(frozenset(), self.keys)


NOTHING = Value()


def union(values: Iterable[Value]) -> Value:
    """Returns a value that may be each of `values`."""
    values = list(values)
    be = frozenset[Key]().union(*(value.be for value in values))
    holds = frozenset[Key]().union(*(value.holds for value in values))
    known = bool(values) and all(value.code for value in values)
    code = frozenset[int]().union(*(value.code for value in values)) if known else frozenset[int]()
    return Value(be, holds, code)


@dataclasses.dataclass
class Effects:
    """The effects of a statement, or of a part of it.

    Attributes:
        reads: The objects of the program that it reads.
        writes: Those that it changes.
        unassigned: The iteration's own names that it may read before they are set.
        deletes: Whether it deletes a name.
        draws: Whether it may draw from a global random state.
        seeds: Whether it sets the global random states.
        trains: Whether a model may be trained in it.
        after: Whether a model may have been trained before it.
        line: The line of the code.
    """

    reads: set[Key] = dataclasses.field(default_factory=set)
    writes: set[Key] = dataclasses.field(default_factory=set)
    unassigned: set[str] = dataclasses.field(default_factory=set)
    deletes: bool = False
    draws: bool = False
    seeds: bool = False
    trains: bool = False
    after: bool = False
    line: int = 0

    def add(self, other: "Effects") -> None:
        """Adds the effects of a part."""
        self.reads |= other.reads
        self.writes |= other.writes
        self.unassigned |= other.unassigned
        self.deletes |= other.deletes
        self.draws |= other.draws
        self.seeds |= other.seeds
        self.trains |= other.trains


# Stand for a new layer, and for a new object of scikit-learn's, as code.
LAYER, ESTIMATOR = 0, -1


def code_of(kind: UserObject) -> frozenset[int]:
    """Returns the `code` of a new object of a class: a layer can be called."""
    if not isinstance(kind, type):
        return frozenset()
    if issubclass(kind, keras.Layer):
        return frozenset({LAYER})
    return frozenset({ESTIMATOR}) if package(kind) == "sklearn" else frozenset()


def is_plain(thing: UserObject, depth: int = 4) -> bool:
    """Returns whether an object is data: numbers, texts, arrays, frames, or containers of these."""
    if is_atom(thing):
        return True
    kind = type(thing)
    package = kind.__module__.partition(".")[0]
    if isinstance(thing, np.ndarray):
        return kind is np.ndarray and thing.dtype != object
    if package == "pandas" and kind.__name__ in ("DataFrame", "Series", "Index", "RangeIndex"):
        return True
    if package in ("tensorflow", "jaxlib") and kind.__name__ in ("EagerTensor", "ArrayImpl"):
        return True
    if kind in (types.SimpleNamespace, argparse.Namespace) or dataclasses.is_dataclass(kind):
        return depth > 0 and all(is_plain(each, depth - 1) for each in _attributes(thing))
    if kind in (list, tuple, set, frozenset) and depth and len(thing) <= _MOST_REACHED:
        return all(is_plain(each, depth - 1) for each in thing)
    if kind is dict and depth and len(thing) <= _MOST_REACHED:
        return all(is_plain(e, depth - 1) for pair in thing.items() for e in pair)
    return False


def is_atom(thing: UserObject) -> bool:
    """Returns whether an object is a number, a text or another value that nothing changes."""
    if type(thing) in (tuple, frozenset):
        return len(thing) < 1000 and all(map(is_atom, thing))
    return type(thing) in (*PLAIN[:-1], range, slice) or isinstance(thing, np.generic)


def reached(things: Iterable[UserObject]) -> list[UserObject]:
    """Returns all objects that objects lead to, but for modules, classes and functions' modules.

    Those of a backend, which lead to its state, are not followed.
    """
    found: dict[int, UserObject] = {}
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        if id(thing) in found or is_atom(thing) or isinstance(thing, (types.ModuleType, type)):
            continue
        found[id(thing)] = thing
        if len(found) > _MOST_REACHED:
            raise UnprovenError("too many objects are reached")
        if isinstance(thing, types.FunctionType):
            cells = thing.__closure__ or ()
            waiting += [c.cell_contents for c in cells if c != types.CellType()]
            waiting += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        elif isinstance(thing, np.ndarray):
            waiting += [] if thing.base is None else [thing.base]
            waiting += thing.ravel().tolist() if thing.dtype == object else []
        elif package(type(thing)) in _COMPILERS and callable(thing):
            parts = ("python_function", "__wrapped__")  # what is compiled
            waiting += [getattr(thing, part) for part in parts if hasattr(thing, part)]
        elif package(type(thing)) not in _NOT_FOLLOWED:
            waiting += gc.get_referents(thing)
            if type(thing).__module__.startswith("pandas") and hasattr(thing, "to_numpy"):
                waiting += _blocks(thing)
    return list(found.values())


def changes_when_read(thing: UserObject) -> bool:
    """Returns whether an object is, or leads to, one that reading changes, such as an iterator."""
    waiting, seen = [thing], set[int]()
    while waiting and len(seen) < _MOST_REACHED:
        each = waiting.pop()
        kind = type(each)
        if id(each) in seen or is_atom(each) or isinstance(each, (type, types.ModuleType)):
            continue
        seen.add(id(each))
        if hasattr(kind, "__next__") or issubclass(kind, collections.defaultdict):
            return True
        if isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, (list, tuple, set, frozenset)):
            waiting += each
        elif package(kind) not in TRUSTED:
            waiting += _attributes(each)
    return False


def _attributes(thing: UserObject) -> list[UserObject]:
    """Returns the values of an object's attributes, also of those that are slots of its class."""
    slots = [
        slot
        for kind in type(thing).__mro__
        for slot in vars(kind).values()
        if isinstance(slot, types.MemberDescriptorType)
    ]
    values = list(getattr(thing, "__dict__", {}).values())
    for slot in slots:
        with contextlib.suppress(AttributeError):  # one that has no value
            values.append(slot.__get__(thing))
    return values


_NOT_FOLLOWED = frozenset(
    {"tensorflow", "jax", "jaxlib", "torch", "inspect", "_thread", "weakref", "threading"}
    | {"kerascohost"}
)
_COMPILERS = frozenset({"tensorflow", "jax", "jaxlib", "torch"})
# What programs do not change, or what all objects share.
_NEVER_CHANGED = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.CodeType,
    tuple,
    keras.DTypePolicy,
)


def _blocks(frame: UserObject) -> list[UserObject]:
    """Returns the arrays of a frame, which its own arrays may be views of."""
    parts = [frame[column] for column in frame.columns] if hasattr(frame, "columns") else [frame]
    return [part.to_numpy() for part in parts if hasattr(part, "to_numpy")]


def mutable(things: Iterable[UserObject]) -> set[int]:
    """Returns the identities of the objects that things lead to and that can be changed."""
    return {
        id(each)
        for each in reached(things)
        if not isinstance(each, _NEVER_CHANGED)
        and (package(type(each)) not in _NOT_FOLLOWED or _is_variable(each))
    }


def _is_variable(thing: UserObject) -> bool:
    """Returns whether an object of a backend is one that can be changed."""
    return hasattr(thing, "assign") or hasattr(thing, "element_spec") or hasattr(thing, "data_ptr")
