"""Pickles of objects with Keras models in them, as they are, and the way of their changes back.

Keras pickles a model by saving it, which loses classes and functions of a notebook, the states of
metrics, exclusions from weight decay and all attributes that no config has. Here models, layers,
optimizers, losses and metrics are pickled by their attributes, and variables by their values.

While it pickles, a `Pickler` lists all objects that may be changed. The list is pickled, too, so
that an object has the same number in both processes. By these numbers the other process refers to
the objects when it sends back their new contents, which are then set in the objects themselves.
"""

import collections
import hashlib
import importlib
import pickle
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, NamedTuple, TypeAlias, TypeVar

import keras
import numpy as np

# The classes by which Keras notices what is assigned to attributes of layers and optimizers.
from keras.src.utils import tracking

# What a layer's operations go through where the backend may change.
from keras.src.utils.backend_utils import DynamicBackend

from kerascohost.backends import reached, threads
from kerascohost.backends.base import Thing
from kerascohost.backends.snapshot import KerasSaveable, items_of, set_items
from kerascohost.environment import extra

with extra("ray"):
    import cloudpickle

T = TypeVar("T")

# A reference to an object that the other process has, see `Pickler.persistent_id`.
Reference: TypeAlias = tuple[str, int]

# Larger arrays in data are not part of a pickle, but travel once for all pickles that have them.
ARRAY_BYTES = 2**16

_ATOMS = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset, slice, range)

# Functions and modules have attributes, too, but are not what training changes.
_NOT_CHANGED = (
    type,
    types.ModuleType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.CodeType,
    weakref.ref,
    np.dtype,
    np.generic,
)
# For models whose layers are a longer chain than Python's limit of recursion allows for.
_DEEP_STACK_BYTES = 2**28
_DEEP_LIMIT = 100_000

_CONTAINERS = (list, dict, set, collections.deque)
_LOCKS = (type(threading.Lock()), type(threading.RLock()))

# Compiled functions and what JAX knows of the state in them, with their values in a new process.
_FRESH = {
    "train_function": None,
    "test_function": None,
    "predict_function": None,
    "_jax_state": None,
    "_jax_state_synced": True,
}

# Each process has these of its own, and makes what is missing.
_OF_PROCESS = {*_FRESH, "_exclude_from_weight_decay_cache", "stored_ids", reached.TRACED_WITH}

# Attributes of optimizers whose keys are numbers of variables, which each process gives anew.
_BY_VARIABLE = (
    "_trainable_variables_indices",
    "_exclude_from_weight_decay",
    "_var_to_optimizer_idx",
)


class _ByVariable(NamedTuple):
    """The value of an attribute in `_BY_VARIABLE`, with variables in place of their numbers."""

    pairs: tuple[tuple[keras.Variable, int | None], ...]
    is_set: bool


class Content(NamedTuple):
    """The content of an object: what training may change in it.

    Attributes:
        attributes: Its attributes by name, in pairs.
        items: Its items, if it is a container.
        value: Its value, if it is a variable, an array or a random generator.
        gone: The names of attributes that it has no more.
    """

    attributes: tuple[tuple[str, Thing], ...] = ()
    items: tuple[Thing, ...] = ()
    value: Thing = None
    gone: tuple[str, ...] = ()


def is_tracked(thing: Thing) -> bool:
    """Returns whether an object has an identity that a program may notice: it can be changed."""
    kind = type(thing)
    if kind in _ATOMS or isinstance(thing, _NOT_CHANGED):
        return False
    known = (np.ndarray, bytearray, types.FunctionType, np.random.Generator, np.random.RandomState)
    return isinstance(thing, (*_CONTAINERS, *known)) or hasattr(thing, "__dict__")


def _to_numpy(tensor: Thing) -> np.ndarray:
    """Returns a copy of a tensor's values; TensorFlow's variables warn in NumPy's own functions."""
    return np.array(tensor.numpy() if hasattr(tensor, "numpy") else tensor)


def _is_of_keras(thing: Thing) -> bool:
    """Returns whether Keras pickles an object by saving it, or without its state."""
    kinds = (KerasSaveable, keras.losses.Loss, tracking.Tracker)
    return isinstance(thing, kinds)


def _is_tracking_container(thing: Thing) -> bool:
    kinds = (tracking.TrackedList, tracking.TrackedDict, tracking.TrackedSet)
    return isinstance(thing, (*kinds, tracking.TrackedOrderedDict))


def _attributes(thing: Thing, variables: Mapping[Thing, keras.Variable]) -> dict[str, Thing]:
    """Returns the attributes of an object that training may change.

    `_self_`: TensorFlow's record for checkpoints, whose ids are of this process, and its switch.
    """
    own = {
        name: value
        for name, value in vars(thing).items()
        if name not in _OF_PROCESS and not name.startswith("_self_")
    }
    if isinstance(thing, keras.Variable):
        own.pop("_value", None)
    elif isinstance(thing, keras.optimizers.Optimizer):
        for name in _BY_VARIABLE:
            if own.get(name) is not None:
                own[name] = _by_variable(own[name], variables)
    return own


def _by_variable(numbers: Thing, variables: Mapping[Thing, keras.Variable]) -> _ByVariable:
    pairs = numbers.items() if isinstance(numbers, dict) else ((key, None) for key in numbers)
    known = tuple((variables[key], value) for key, value in pairs if key in variables)
    return _ByVariable(known, isinstance(numbers, set))


def keyed(variables: Iterable[keras.Variable]) -> dict[Thing, keras.Variable]:
    """Returns variables by the numbers that optimizers give them.

    `_var_key`: the numbers differ by backend, and no public method returns them.
    """
    numbering = keras.optimizers.SGD()._var_key
    return {numbering(v): v for v in variables if getattr(v, "_value", None) is not None}


def content(thing: Thing, variables: Mapping[Thing, keras.Variable]) -> Content:
    """Returns the content of an object.

    Args:
        thing: The object.
        variables: Variables by the numbers that optimizers give them.
    """
    value: Thing = None
    items: tuple[Thing, ...] = ()
    if isinstance(thing, types.FunctionType) or (
        type(thing) is dict and "__builtins__" in thing
    ):  # the names of a module, which belong to each process
        return Content()
    if isinstance(thing, keras.Variable):
        # `_value`: `value` of a variable that waits for its layer to be built draws a new one.
        value = None if thing._value is None else _to_numpy(thing._value)
    elif isinstance(thing, (np.ndarray, bytearray)):
        value = thing.copy()  # the object itself would be sent as a reference
    elif isinstance(thing, np.random.Generator):
        value = thing.bit_generator.state
    elif isinstance(thing, (np.random.RandomState, random.Random)):
        get = thing.get_state if isinstance(thing, np.random.RandomState) else thing.getstate
        value = get()
    elif isinstance(thing, _CONTAINERS):
        found = items_of(thing)
        items = tuple(found.items()) if isinstance(found, dict) else tuple(found)
    attributes = _attributes(thing, variables) if hasattr(thing, "__dict__") else {}
    return Content(tuple(attributes.items()), items, value)


def fill(thing: Thing, new: Content) -> None:
    """Sets the content of an object, without calling methods that its class overrides."""
    if hasattr(thing, "__dict__"):
        thing.__dict__.update(new.attributes)
        for name in new.gone:
            thing.__dict__.pop(name, None)
    if isinstance(thing, keras.Variable):
        _set_value(thing, new.value)
    elif isinstance(thing, bytearray):
        thing[:] = new.value
    elif isinstance(thing, np.ndarray):
        thing[...] = new.value
    elif isinstance(thing, np.random.Generator):
        thing.bit_generator.state = new.value
    elif isinstance(thing, np.random.RandomState):
        thing.set_state(new.value)
    elif isinstance(thing, random.Random):
        thing.setstate(new.value)
    elif isinstance(thing, _CONTAINERS):
        set_items(thing, dict(new.items) if isinstance(thing, dict) else list(new.items))


def _set_value(variable: keras.Variable, value: np.ndarray | None) -> None:
    """Sets the value of a variable, or makes its first one.

    `_initialize`, `_value`, `_shape`: a variable that has no value yet cannot be assigned one.
    """
    if value is None:
        variable.__dict__.setdefault("_value", None)
    elif vars(variable).get("_value") is None:
        shape = variable._shape
        variable._initialize(keras.ops.convert_to_tensor(value, dtype=variable._dtype))
        variable._shape = shape
    else:
        variable.assign(value)


def finish(things: Iterable[Thing]) -> None:
    """Completes objects that have been filled: what each process numbers in its own way.

    `_var_key`: see `keyed`.
    """
    for thing in things:
        if isinstance(thing, tracking.Tracker):
            stores = thing.config.items()
            thing.stored_ids = {name: {id(v) for v in store} for name, (_, store) in stores}
        elif isinstance(thing, keras.optimizers.Optimizer):
            for name in _BY_VARIABLE:
                known = vars(thing).get(name)
                if isinstance(known, _ByVariable):
                    pairs = {thing._var_key(v): value for v, value in known.pairs}
                    thing.__dict__[name] = set(pairs) if known.is_set else pairs


def _blank(kind: type) -> Thing:
    """Returns an object of a class of Keras's, or of a subclass, to be filled."""
    base = next((one for one in (list, dict, set) if issubclass(kind, one)), object)
    return base.__new__(kind)


def _fill_blank(thing: Thing, state: tuple[Content, tuple[tuple[str, Thing], ...]]) -> None:
    new, others = state
    thing.__dict__.update(others)
    fill(thing, new)


def _no_object() -> None:
    """Stands for an object that is gone, as a weak reference to it returns."""


def _weak_reference(thing: Thing) -> Callable[[], Thing]:
    return _no_object if thing is None else weakref.ref(thing)


class Pickler(cloudpickle.Pickler):
    """A pickler of objects with Keras models in them.

    Args:
        file: The binary file to write to.
        variables: The variables of the models, to which their optimizers refer by numbers.
        known: The numbers of objects that the other process has, by `id`.
        array: Takes an array, and returns its number among those that travel apart; `None` if it
            is to be part of the pickle.

    Attributes:
        tracked: The objects that may be changed, in the order in which they were met.
    """

    def __init__(
        self,
        file: IO[bytes],
        variables: Iterable[keras.Variable] = (),
        known: Mapping[int, int] | None = None,
        array: Callable[[np.ndarray], int | None] | None = None,
    ):
        super().__init__(file, protocol=5)
        self.tracked: list[Thing] = []
        self._numbers: set[int] = {id(self.tracked)}
        self._variables = keyed(variables)
        self._known = known or {}
        self._array = array
        self._temporary: list[Thing] = []  # keeps their `id`s from being used again

    def persistent_id(self, thing: Thing) -> Reference | None:
        """Returns a reference to an object that the other process has; `None` for others."""
        kind = type(thing)
        if kind in _ATOMS:
            return None
        if id(thing) in self._known:
            return "known", self._known[id(thing)]
        if self._array is not None and kind is np.ndarray and thing.nbytes >= ARRAY_BYTES:
            number = self._array(thing)
            if number is not None:
                return "array", number
        if id(thing) not in self._numbers and is_tracked(thing):
            self._numbers.add(id(thing))
            self.tracked.append(thing)
            if hasattr(thing, "__dict__"):
                self._hide(vars(thing))
        return None

    def _hide(self, thing: Thing) -> Thing:
        """Marks an object that is made, or met, only as a part of pickling another one."""
        self._temporary.append(thing)
        self._numbers.add(id(thing))
        return thing

    def reducer_override(self, thing: Thing) -> Thing:
        """Returns how to pickle an object, where that is not as usual."""
        if isinstance(thing, keras.Variable):
            return self._by_content(thing)
        if _is_of_keras(thing) or _is_tracking_container(thing):
            return self._by_content(thing)
        if isinstance(thing, DynamicBackend):
            return DynamicBackend, (thing._backend,)  # the one argument of its class
        if type(thing).__name__ == "_DefaultDistributionStrategy":  # TensorFlow's, one in a process
            import tensorflow as tf

            return tf.distribute.get_strategy, ()
        if _is_closure_of_keras(thing):
            values = [cell.cell_contents for cell in thing.__closure__ or ()]
            own = [(name, getattr(thing, name)) for name in _PARTS_OF_FUNCTIONS]
            state = (self._hide(values), (*own, *vars(thing).items()))
            made = (thing.__module__, thing.__code__, thing.__name__)
            return _bare_function, made, state, None, None, _fill_function
        if isinstance(thing, weakref.ref):
            return _weak_reference, (thing(),)
        if isinstance(thing, _LOCKS):  # the class of one of them has no importable name
            return (threading.Lock if isinstance(thing, _LOCKS[0]) else threading.RLock), ()
        if _is_tensor(thing):
            return keras.ops.convert_to_tensor, (self._hide(_to_numpy(thing)),)
        return super().reducer_override(thing)

    def _by_content(self, thing: Thing) -> tuple[Thing, ...]:
        own = content(thing, self._variables)
        self._hide(own.value)
        others = [(name, value) for name, value in _FRESH.items() if name in vars(thing)]
        others += [(n, v) for n, v in vars(thing).items() if n == "_self_setattr_tracking"]
        state = (own, tuple(others))
        return _blank, (type(thing),), state, None, None, _fill_blank


def _bare_function(module: str, code: types.CodeType, name: str) -> types.FunctionType:
    """Returns a function of a module with empty cells, to be filled."""
    cells = tuple(types.CellType() for _ in code.co_freevars)
    return types.FunctionType(code, vars(importlib.import_module(module)), name, None, cells)


def _fill_function(
    function: types.FunctionType, state: tuple[list[Thing], tuple[tuple[str, Thing], ...]]
) -> None:
    for cell, value in zip(function.__closure__ or (), state[0], strict=True):
        cell.cell_contents = value
    for name, value in state[1]:
        setattr(function, name, value)


_PARTS_OF_FUNCTIONS = ("__defaults__", "__kwdefaults__", "__qualname__", "__doc__")


def _is_closure_of_keras(thing: Thing) -> bool:
    """Returns whether an object is a function that a function of Keras has made.

    Layers have many of them. As any function that cannot be imported, the library would pickle them
    with the names that they use, for which it searches all modules each time.
    """
    return (
        isinstance(thing, types.FunctionType)
        and thing.__module__.partition(".")[0] == "keras"
        and "<locals>" in thing.__qualname__
    )


def _is_tensor(thing: Thing) -> bool:
    """Returns whether an object is a tensor of the backend, with values."""
    library = type(thing).__module__.partition(".")[0]
    is_symbolic = isinstance(thing, keras.KerasTensor)
    return (
        library in ("tensorflow", "jaxlib", "jax", "torch")
        and not is_symbolic
        and (keras.ops.is_tensor(thing) and hasattr(thing, "__array__"))
    )


class Unpickler(pickle.Unpickler):
    """An unpickler of what `Pickler` has written.

    Args:
        file: The binary file to read from.
        known: The objects to which references are, by their numbers.
        arrays: The arrays that travelled apart.
    """

    def __init__(
        self, file: IO[bytes], known: Sequence[Thing] = (), arrays: Sequence[np.ndarray] = ()
    ):
        super().__init__(file)
        self._found = {"known": known, "array": arrays}

    def persistent_load(self, reference: Reference) -> Thing:
        """Returns the object to which a reference is."""
        kind, number = reference
        return self._found[kind][number]


class Record:
    """The contents of objects at one time, to tell later which of them have changed.

    Contents are compared by the identities of what they consist of, as all that can be changed has
    a record of its own.

    Args:
        things: The objects.
    """

    def __init__(self, things: Sequence[Thing]):
        self._things = things
        known = self.variables
        self._before = [_fingerprint(content(thing, known)) for thing in things]
        self._told: dict[int, set[str]] = {}  # the attributes that were once among the changes

    @property
    def variables(self) -> dict[Thing, keras.Variable]:
        """The variables among the objects, by the numbers that optimizers give them."""
        return keyed(thing for thing in self._things if isinstance(thing, keras.Variable))

    def changed(
        self, variables: Mapping[Thing, keras.Variable], numbers: Iterable[int]
    ) -> dict[int, Content]:
        """Returns what has changed in the objects, by their numbers, also what has changed back.

        Attributes that have not changed are left out: where the object was pickled without them, or
        under other names (`__getstate__`), those of the other process are not the object's own.

        Args:
            variables: Variables by the numbers that optimizers give them, also new ones.
            numbers: The numbers of the objects to look at.
        """
        changed = {}
        for number in numbers:
            now, before = content(self._things[number], variables), self._before[number]
            if number not in self._told and _same(_fingerprint(now), before):
                continue
            old, own = dict(before[0]), dict(now.attributes)
            told = self._told.setdefault(number, set())
            told |= {n for n in own if n not in old or not _same(own[n], old[n])}
            told |= old.keys() - own.keys()
            attributes = tuple((name, own[name]) for name in own if name in told)
            gone = tuple(name for name in told if name not in own)
            changed[number] = now._replace(attributes=attributes, gone=gone)
        return changed


def deeply(function: Callable[[], T]) -> T:
    """Calls a function that follows references, which may be deeper than Python's limit.

    A model is a chain of layers, and pickling goes from each to the next.
    """
    try:
        return function()
    except RecursionError:
        pass
    except pickle.PicklingError as error:
        if not isinstance(error.__cause__, RecursionError):
            raise
    results: list[T] = []
    errors: list[BaseException] = []
    theirs = threads.thread_state()

    def call() -> None:
        try:
            with threads.as_in_thread(theirs):
                results.append(function())
        except BaseException as error:
            errors.append(error)

    limit, size = sys.getrecursionlimit(), threading.stack_size(_DEEP_STACK_BYTES)
    sys.setrecursionlimit(_DEEP_LIMIT)
    try:
        thread = threading.Thread(target=call)
        thread.start()
    finally:
        threading.stack_size(size)
    thread.join()
    sys.setrecursionlimit(limit)
    if errors:
        raise errors[0]
    return results[0]


def _fingerprint(of: Content) -> tuple[Thing, ...]:
    value = of.value
    if isinstance(value, (np.ndarray, bytearray)):
        array = np.asarray(value)
        if array.dtype != object:
            value = hashlib.blake2b(array.tobytes()).digest()
    return (of.attributes, of.items, value)


def _same(one: Thing, other: Thing) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):  # the state of a random generator
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return type(one) in _ATOMS and bool(one == other)
