"""Models and what belongs to them, sent to another process as they are, and trained there.

What the other process changes in them comes back into the same objects here, so that whoever refers
to a model, an optimizer, a callback or a list in one of them finds it as if it had been trained
here.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence

import keras
import numpy as np

from kerascohost import backends
from kerascohost.arguments import Argument
from kerascohost.backends import pickling
from kerascohost.backends.base import Thing
from kerascohost.backends.stacking.state import finished
from kerascohost.errors import CohortError, about


class Shipment:
    """Objects of several members, as bytes for another process.

    Args:
        parts: For each member, by name, what is sent.
        models: The members' models.
        data: For each member, by name, the data in its part.
        array: Takes a large array, and whether it was met in `data`; returns its number among those
            that are sent apart, or `None` if it is to be part of the bytes.

    Attributes:
        data: The bytes, for `Received`.
        tracked: The objects in them that may be changed.
    """

    def __init__(
        self,
        parts: Mapping[str, Argument],
        models: Iterable[keras.Model],
        data: Mapping[str, Argument],
        array: Callable[[np.ndarray, bool], int | None],
    ):
        is_data = False
        variables = [variable for model in models for variable in backends.variables(model)]

        def dumped() -> tuple[bytes, list[Thing]]:
            nonlocal is_data
            file = io.BytesIO()
            pickler = pickling.Pickler(file, variables, array=lambda one: array(one, is_data))
            pickler.dump(list(parts))
            ends = []
            for name, part in parts.items():
                is_data = True
                pickler.dump(data.get(name))
                is_data = False
                pickler.dump(part)
                ends.append(len(pickler.tracked))
            pickler.dump(pickler.tracked)
            pickler.dump(ends)
            return file.getvalue(), pickler.tracked

        self.data, self.tracked = pickling.deeply(dumped)

    def loads(self, data: bytes, arrays: Sequence[np.ndarray]) -> tuple[Argument, list[Thing]]:
        """Returns what `Received.dumps` was given, and the objects in it that are new here."""

        def loaded() -> tuple[Argument, list[Thing]]:
            unpickler = pickling.Unpickler(io.BytesIO(data), self.tracked, arrays)
            return unpickler.load(), unpickler.load()

        return pickling.deeply(loaded)

    def merge(self, data: bytes, arrays: Sequence[np.ndarray]) -> list[Thing]:
        """Sets what another process has changed, in the objects themselves.

        Args:
            data: What `Received.changes` returned.
            arrays: The arrays that were sent apart.

        Returns:
            The objects that were changed.
        """
        changed: dict[int, pickling.Content]
        changed, new = self.loads(data, arrays)

        def write() -> None:
            for number, content in changed.items():
                pickling.fill(self.tracked[number], content)
            pickling.finish(self.tracked[number] for number in changed)

        finished(write)
        pickling.finish(new)
        return [self.tracked[number] for number in changed]


class Received:
    """The objects of a `Shipment`, in the process to which it was sent.

    Args:
        data: The bytes.
        arrays: The arrays that were sent apart.

    Attributes:
        parts: For each member, by name, what was sent.
    """

    def __init__(self, data: bytes, arrays: Sequence[np.ndarray]):
        def loaded() -> tuple[dict[str, Argument], list[Thing], list[int]]:
            unpickler = pickling.Unpickler(io.BytesIO(data), arrays=arrays)
            parts = {}
            for name in unpickler.load():
                unpickler.load()  # the data, to which the part refers
                parts[name] = unpickler.load()
            return parts, unpickler.load(), unpickler.load()

        self.parts, self._tracked, ends = pickling.deeply(loaded)
        pickling.finish(self._tracked)
        self._ranges = dict(zip(self.parts, map(range, [0, *ends[:-1]], ends), strict=True))
        self._known = {id(thing): number for number, thing in enumerate(self._tracked)}
        self._arrays = {id(array): number for number, array in enumerate(arrays)}
        self._record = pickling.Record(self._tracked)

    @classmethod
    def empty(cls) -> "Received":
        """Returns one in which nothing was sent."""
        return cls(Shipment({}, [], {}, lambda array, is_data: None).data, [])

    def changes(
        self, models: Mapping[str, keras.Model], names: Iterable[str]
    ) -> tuple[bytes, list[str]]:
        """Returns what has been changed since, for `Shipment.merge`.

        Args:
            models: The models of all members.
            names: The members whose changes are returned.

        Returns:
            The bytes; and the attributes that cannot be pickled, which stay behind.
        """
        variables = [v for model in models.values() for v in backends.variables(model)]
        keyed = {**self._record.variables, **pickling.keyed(variables)}
        own = {number for name in names for number in self._ranges[name]}
        changed = self._record.changed(keyed, own)
        try:
            return self.dumps(changed, variables), []
        except Exception:
            lost: list[str] = []
            kept = {n: self._what_travels(n, c, variables, lost) for n, c in changed.items()}
            return self.dumps(kept, variables), lost

    def dumps(self, thing: Argument, variables: Sequence[keras.Variable] = ()) -> bytes:
        """Returns an object as bytes for `Shipment.loads`, which finds there what it refers to."""

        def dumped() -> bytes:
            file = io.BytesIO()
            pickler = pickling.Pickler(
                file, variables, self._known, lambda array: self._arrays.get(id(array))
            )
            pickler.dump(thing)
            pickler.dump(pickler.tracked)
            return file.getvalue()

        return pickling.deeply(dumped)

    def _what_travels(
        self,
        number: int,
        content: pickling.Content,
        variables: Sequence[keras.Variable],
        lost: list[str],
    ) -> pickling.Content:
        """Returns a content without the attributes that cannot be pickled, which `lost` is told."""

        def travels(part: Argument) -> bool:
            try:
                self.dumps(part, variables)
            except Exception:
                return False
            return True

        kind = type(self._tracked[number]).__name__
        own = []
        for name, value in content.attributes:
            if travels(value):
                own.append((name, value))
            else:
                lost.append(f"{kind}.{name}")
        items = content.items
        if not travels(items):
            lost.append(f"items of a {kind}")
            items = tuple(item for item in items if travels(item))
        return content._replace(attributes=tuple(own), items=items)


def check(name: str, part: Argument, model: keras.Model) -> list[Thing]:
    """Raises an error if something of a member cannot be sent to another process.

    Args:
        name: The member's name.
        part: What is to be sent; a dict, whose keys are named in the error.
        model: The member's model.

    Returns:
        The objects in it that may be changed.

    Raises:
        CohortError: If it cannot; the message says what, and a way out.
    """
    variables = backends.variables(model)

    def met(thing: Argument) -> list[Thing]:
        pickler = pickling.Pickler(io.BytesIO(), variables, array=lambda _: 0)
        pickler.dump(thing)
        return pickler.tracked

    def fails(thing: Argument) -> Exception | None:
        try:
            pickling.deeply(lambda: met(thing))
        except Exception as error:
            return error
        return None

    try:
        return pickling.deeply(lambda: met(part))
    except Exception as failure:
        path, thing, error = _obstacle(part, "", fails) or ("", part, failure)
        with about(name):
            raise CohortError(
                f"Expected what can be sent to a worker. Received: {path or 'its arguments'}, a "
                f"{type(thing).__name__}, which cannot ({error}). {_way_out(thing)}"
            ) from error


def _obstacle(
    thing: Thing, path: str, fails: Callable[[Thing], Exception | None], depth: int = 12
) -> tuple[str, Thing, Exception] | None:
    """Returns the innermost object that cannot be pickled: its path, itself and the failure."""
    error = fails(thing)
    if error is None:
        return None
    parts: list[tuple[str, Thing]] = []
    if hasattr(thing, "element_spec"):
        return path, thing, error  # the parts of a dataset are not the user's
    if isinstance(thing, dict):
        parts = [(f"{path}[{key!r}]" if path else str(key), one) for key, one in thing.items()]
    elif isinstance(thing, (list, tuple)):
        parts = [(f"{path}[{i}]", one) for i, one in enumerate(thing)]
    elif hasattr(thing, "__dict__"):
        own = sorted(vars(thing).items(), key=lambda pair: pair[0].startswith("_"))  # public first
        parts = [(f"{path}.{name}", one) for name, one in own if not _is_of_keras(one)]
        closure = getattr(thing, "__closure__", None) or ()
        names = getattr(getattr(thing, "__code__", None), "co_freevars", ())
        cells = zip(names, closure, strict=False)
        parts += [(f"`{name}` of {path}", cell.cell_contents) for name, cell in cells]
    for where, one in parts if depth else ():
        found = _obstacle(one, where, fails, depth - 1)
        if found is not None:
            return found
    return path, thing, error


def _is_of_keras(thing: Thing) -> bool:
    """Returns whether an attribute is a method or a function that Keras has made for the object."""
    return (getattr(thing, "__module__", None) or "").partition(".")[0] == "keras" and callable(
        getattr(thing, "__func__", thing if hasattr(thing, "__code__") else None)
    )


def _way_out(thing: Thing) -> str:
    if hasattr(thing, "__next__"):
        return "Give arrays, a `kc.Subset` or a `keras.utils.PyDataset` instead of an iterator."
    if hasattr(thing, "element_spec"):
        return "Give arrays or a `keras.utils.PyDataset`, or train this model without `workers`."
    return (
        "Make it where it is used (a file in `on_train_begin`), leave it out in `__getstate__` of "
        "its class, or train this model without `workers`."
    )
