"""Snapshots of the Python state of a program that a deferred training reads.

A `Snapshot` is taken when `fit` is called. It copies the arguments and walks through everything
that the code of the model, of its loss, of callbacks and of data may look up: closures, globals,
attributes of the user's modules and objects, items of containers, arrays. Code of installed
packages is not followed. Of the user's objects and modules only those attributes are followed that
the walked code names. Before a training, `check` compares all this with the present values. What
can be restored is restored while the member's steps are traced and its hooks run; otherwise a
`CohortError` says what changed.

There are two walks, because there are two kinds of readers: "steps" read while they are traced;
"hooks", which are the code of callbacks and of data, run during the whole training and may also
write.
"""

import argparse
import contextlib
import dis
import functools
import operator
import os
import random
import sys
import sysconfig
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from kerascohost import backends, errors
from kerascohost.arguments import Callbacks, FitArguments
from kerascohost.backends import StepKind, reached
from kerascohost.backends.process_state import Configuration
from kerascohost.tracing.copies import copied
from kerascohost.tracing.places import (
    CONTAINERS,
    PLAIN,
    AnyGenerator,
    Attribute,
    Bytes,
    Cell,
    Container,
    Entry,
    Frame,
    GeneratorState,
    Items,
    Place,
    RandomState,
    Setting,
    UserObject,
)

if TYPE_CHECKING:
    import tensorflow as tf

_INSTALLED = (
    *{f"{path}{os.sep}" for name, path in sysconfig.get_paths().items() if "lib" in name},
    f"{Path(keras.__file__).parent}{os.sep}",
)
# Code that uses one of these names may look up any attribute.
_BY_NAME = frozenset({"getattr", "vars", "__dict__", "__getattribute__"})
# Functions that these call run after tracing, in threads of the backend.
_RUNS_LATER = frozenset(
    {"py_function", "numpy_function", "pure_callback", "io_callback", "debug_callback"}
)
_CHANGING_METHODS = frozenset(
    {
        "add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "heappop",
        "heappush", "insert", "insort", "next", "pop", "popitem", "popleft", "remove", "reverse",
        "rotate", "setattr", "setdefault", "shuffle", "sort", "update",
    }
)  # fmt: skip
_TRAINING_METHODS = frozenset(
    {"apply", "assign", "assign_add", "fit", "load_weights", "set_weights", "train_on_batch"}
)
# Objects that write to a file, a table or a server have one of these methods.
_WRITERS = ("add_scalar", "execute", "log", "log_metric", "log_metrics", "write", "writerow")
# Attributes that these methods set are set before any step or hook reads them.
_BEGINNINGS = frozenset({"__init__", "__post_init__", "build"})
# Methods that are called without their names in the code.
_CALLED_UNNAMED = frozenset({"__call__", "__getitem__", "__iter__", "__len__", "__next__"})
# Functions that draw random numbers without being given a generator are recognized by the object
# whose methods they are, or by the module that defines them.
_GLOBAL_GENERATORS = tuple(map(operator.attrgetter("__self__"), (random.random, np.random.rand)))
_RANDOM_OF_KERAS = keras.random.normal.__module__
_RANDOM_OF_TENSORFLOW = "tensorflow.python.ops.random_ops"
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)


class _Code:
    """The names that a code object, or one inside it, looks up and writes.

    Attributes:
        globals: The names of globals.
        attributes: The names of attributes.
        written: The names of variables of other scopes that it binds.
        set: The names of attributes that it sets.
        counted: Those of them that it sets to their value and something more (`self.n += 1`).
        changes_items: Whether it may change the items of a container.
        gives_seed: Whether it calls something with an argument named `seed`.
        lookups: The dotted names that it looks up, and their prefixes.
        imported: The dotted name of each import, by the local name that it gets.
    """

    def __init__(self, code: types.CodeType):
        self.globals: set[str] = set()
        self.attributes: set[str] = set()
        self.written: set[str] = set()
        self.set: set[str] = set()
        self.counted: set[str] = set()
        self.changes_items = False
        self.gives_seed = any(isinstance(c, tuple) and "seed" in c for c in code.co_consts)
        self.lookups: set[tuple[str, ...]] = set()
        self.imported: dict[str, tuple[str, ...]] = {}
        lookup: tuple[str, ...] = ()
        is_in_place = False
        for step in dis.get_instructions(code):
            if is_in_place and step.opname == "STORE_ATTR":
                self.counted.add(step.argval)
            # `self.n += 1`: the operator, a swap, and the store.
            is_in_place = (
                step.argrepr.endswith("=")
                if step.opname == "BINARY_OP"
                else (is_in_place and step.opname == "SWAP")
            )
            self._note(step.opname, step.argval, code)
            lookup = self._look_up(step.opname, step.argval, lookup)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._merge(names_of(constant), code)
        self.changes_items |= not _CHANGING_METHODS.isdisjoint(self.attributes | self.globals)

    def _note(self, operation: str, name: str, code: types.CodeType) -> None:
        if operation in ("LOAD_GLOBAL", "LOAD_NAME"):
            self.globals.add(name)
        elif operation in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "IMPORT_FROM"):
            self.attributes.add(name)
        elif operation in ("STORE_ATTR", "DELETE_ATTR"):
            self.attributes.add(name)
            self.set.add(name)
        elif operation in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"):
            if name not in code.co_cellvars:
                self.written.add(name)
        elif operation in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"):
            self.changes_items = True

    def _look_up(self, operation: str, name: str, before: tuple[str, ...]) -> tuple[str, ...]:
        """Notes dotted names, such as `np.random.rand`.

        Args:
            operation: The bytecode operation.
            name: The name that the operation uses.
            before: The dotted name that the previous operation ended with.

        Returns:
            The dotted name that this operation ends with.
        """
        if operation in ("STORE_FAST", "STORE_DEREF") and before[:1] == ("import",):
            self.imported[name] = before[1:]
            return ()
        if operation == "IMPORT_NAME":
            return ("import", name)
        if operation in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF"):
            before = (name,)
        elif before and operation in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            before = (*before, name)
        else:
            return ()
        if before[0] != "import":
            self.lookups.add(before)
        return before

    def found_by(self, scope: Mapping[str, UserObject]) -> Iterator[UserObject]:
        """Yields the objects of the dotted names that begin with a global or with an import."""
        for name, *rest in self.lookups:
            if name in self.imported:
                module, *first = self.imported[name]
                thing, rest = sys.modules.get(module), [*first, *rest]
            elif name in self.globals:
                thing = scope.get(name)
            else:
                continue
            for attribute in rest:
                # Not `getattr`, as a module may define `__getattr__`, which may warn or import.
                thing = vars(thing).get(attribute) if _is_module(thing) else None
            yield thing

    def _merge(self, inner: "_Code", code: types.CodeType) -> None:
        self.globals |= inner.globals
        self.attributes |= inner.attributes
        self.written |= inner.written - set(code.co_cellvars)
        self.set |= inner.set
        self.counted |= inner.counted
        self.changes_items |= inner.changes_items
        self.gives_seed |= inner.gives_seed
        self.lookups |= inner.lookups
        self.imported |= inner.imported


def _is_module(thing: UserObject) -> bool:
    return isinstance(thing, types.ModuleType)


@functools.lru_cache(maxsize=4096)
def names_of(code: types.CodeType) -> _Code:
    """Returns the names that `code` looks up and writes."""
    return _Code(code)


@functools.lru_cache(maxsize=4096)
def _is_installed(module: str) -> bool:
    """Returns whether a module belongs to Python, to an installed package or to kerascohost."""
    if module.partition(".")[0] == __name__.partition(".")[0]:
        return True
    if module in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return False
    # A user's own site-packages, or those of a distribution, are not among Python's paths.
    is_in_packages = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    return is_in_packages or file.startswith(_INSTALLED) or _holds_packages(_root(module, file))


def _root(module: str, file: str) -> Path:
    """Returns the folder that the module's topmost package is imported from."""
    path = Path(file)
    depth = module.count(".") + (path.stem == "__init__")
    return path.parents[min(depth, len(path.parents) - 1)]


@functools.lru_cache(maxsize=256)
def _holds_packages(folder: Path) -> bool:
    """Returns whether packages were installed into a folder, as `pip install --target` does."""
    return next(folder.glob("*.dist-info"), None) is not None


def is_of_package(thing: UserObject) -> bool:
    """Returns whether a class, function or module is from Python or an installed package."""
    module = None if _is_module(thing) else getattr(thing, "__module__", None)
    module = module or getattr(thing, "__name__", "")
    return isinstance(module, str) and _is_installed(module)


def _draws_numbers(thing: UserObject) -> bool:
    """Returns whether `thing` is a function that draws from a global random state, or sets one.

    Global random states are those of Python, of NumPy and of TensorFlow.
    """
    owner = getattr(thing, "__self__", None)
    if any(owner is generator for generator in _GLOBAL_GENERATORS):
        return thing.__name__ not in ("getstate", "get_state")
    return getattr(thing, "__module__", None) == _RANDOM_OF_TENSORFLOW


def _title(function: types.FunctionType, path: str) -> str:
    name = function.__qualname__.rpartition("<locals>.")[2]
    return path if "<lambda>" in name else f"`{name}`"


class _Named:
    """An object, class or module whose attributes are read by name."""

    def __init__(self, thing: UserObject, path: str):
        self.thing = thing
        self.path = path
        self.kind = thing if isinstance(thing, type) else type(thing)
        self.own = {} if isinstance(thing, type) else getattr(thing, "__dict__", {})
        bases = [] if isinstance(thing, types.ModuleType) else self.kind.__mro__
        self.bases = [base for base in bases if not is_of_package(base)]
        self.done: set[str] = set()

    def names(self, mentioned: set[str]) -> set[str]:
        """Returns the names to look up that have not been looked up before.

        Args:
            mentioned: All attribute names that the walked code mentions.
        """
        known = set(self.own).union(*map(vars, self.bases))
        found = known & (mentioned | _CALLED_UNNAMED)
        if not _BY_NAME.isdisjoint(mentioned) and not isinstance(self.thing, types.ModuleType):
            found = known
        if isinstance(self.thing, type):
            found |= known & {"__init__", "__post_init__"}
        fresh = {name for name in found if isinstance(name, str)} - self.done
        self.done |= fresh
        return fresh


class _Walk:
    """Walks through all objects that one kind of reader may look up.

    Args:
        may_write: Whether the readers are hooks, which may also write.

    Attributes:
        places: The places that they may look up.
        models: The layers and models that were found; the walk does not enter them.
        containers: The identities of the containers that were found.
        objects: The user's objects that were found, by identity.
        shared: The identities of objects that two fits may have in common.
        written: The keys of the places that the readers bind.
        set: The names of the attributes that they set.
        counted: Those of them that they set to their value and something more.
        mentioned: All attribute names that they mention.
        changes_items: Whether they may change the items of containers.
        draws_numbers: Whether they may draw from a random state of the whole process.
        draws_seeds: Whether they may draw with `keras.random` without giving it a seed.
        references: The objects that were met; otherwise one could be freed, and a new one get its
            identity.
    """

    def __init__(self, may_write: bool):
        self.may_write = may_write
        self.places: list[Place] = []
        self.models: list[keras.Layer] = []
        self.containers: set[int] = set()
        self.objects: dict[int, UserObject] = {}
        self.shared: set[Hashable] = set()
        self.written: set[Hashable] = set()
        self.set: set[str] = set()
        self.counted: set[str] = set()
        self.mentioned: set[str] = set()
        self.changes_items = False
        self.draws_numbers = False
        self.draws_seeds = False
        self._named: list[_Named] = []
        self._seen: set[Hashable] = set()
        self.references: list[UserObject] = []

    def look_up_names(self) -> None:
        """Follows the attributes of the user's objects that code names, until none are new."""
        while True:
            found = [(named, named.names(self.mentioned)) for named in self._named]
            if not any(names for _, names in found):
                return
            for named, names in found:
                for name in sorted(names):
                    self._look_up(named, name)

    def _look_up(self, named: _Named, name: str) -> None:
        if name in named.own:
            if not reached.is_bookkeeping(named.thing, name):
                self._entry(named.own, name, f"`{name}` of {named.path}")
            return
        for base in named.bases:
            if name in vars(base):
                self._class_attribute(named, base, name)
                return

    def is_first(self, key: Hashable, thing: UserObject = None) -> bool:
        """Notes `key`; returns whether it had not been noted before.

        Args:
            key: What identifies a thing or a place.
            thing: An object whose identity is in `key`, if any.
        """
        if key in self._seen:
            return False
        self._seen.add(key)
        self.references.append(thing)
        return True

    def add(self, place: Place) -> None:
        """Notes a place, unless it is known."""
        if self.is_first(place.key):
            self.places.append(place)

    def changes(self, thing: UserObject) -> bool:
        """Returns whether a thing that was met is changed by whoever reads it."""
        state = thing.state if isinstance(thing, keras.random.SeedGenerator) else thing
        return thing is not None and id(state) in self.shared

    def walk(self, thing: UserObject, path: str) -> None:
        """Notes the places in `thing`, which was found at `path`."""
        if isinstance(thing, PLAIN) or not self.is_first(("thing", id(thing)), thing):
            return
        if not (
            self._callable(thing, path)
            or self._collection(thing, path)
            or self._namespace(thing)
            or self._state(thing, path)
        ):
            self._object(thing, path)

    def _callable(self, thing: UserObject, path: str) -> bool:
        """Walks a function, method or partial; returns whether `thing` is one."""
        if isinstance(thing, types.FunctionType):
            self._function(thing, path)
        elif isinstance(thing, types.MethodType):
            self.walk(thing.__func__, path)
            self.walk(thing.__self__, f"the object of {path}")
        elif isinstance(thing, functools.partial):
            for part in (thing.func, thing.args, thing.keywords):
                self.walk(part, path)
        else:
            return False
        return True

    def _collection(self, thing: UserObject, path: str) -> bool:
        """Walks a container, tuple, frozenset or generator; returns whether `thing` is one."""
        if isinstance(thing, CONTAINERS):
            self._container(thing, path)
        elif isinstance(thing, (tuple, frozenset)):
            for i, item in enumerate(thing):
                self.walk(item, f"{path}[{i}]")
        elif isinstance(thing, types.GeneratorType):
            self._generator(thing, path)
        else:
            return False
        return True

    def _namespace(self, thing: UserObject) -> bool:
        """Notes a class or module of the user's; returns whether `thing` is a class or module."""
        if not isinstance(thing, (type, types.ModuleType)):
            return False
        if not is_of_package(thing):
            self._named.append(_Named(thing, f"`{thing.__name__}`"))
        return True

    def _state(self, thing: UserObject, path: str) -> bool:
        """Notes an object that is compared as a whole; returns whether `thing` is one."""
        if isinstance(thing, np.ndarray):
            self.add(Bytes(path, thing))
        elif isinstance(thing, (random.Random, np.random.RandomState, np.random.Generator)):
            self.add(RandomState(path, thing))
            self.shared.add(id(thing))
        elif type(thing).__module__.partition(".")[0] == "pandas":
            if hasattr(thing, "equals"):
                self.add(Frame(path, thing))
        elif isinstance(thing, keras.random.SeedGenerator):
            self.shared.add(id(thing.state))
        elif isinstance(thing, keras.Layer):
            self.models.append(thing)
        elif reached.is_dataset(thing):
            self._dataset(thing, path)
        else:
            return isinstance(thing, (keras.Variable, keras.KerasTensor, PurePath)) or bool(
                keras.ops.is_tensor(thing)
            )
        return True

    def _container(self, thing: Container, path: str) -> None:
        self.add(Items(path, thing))
        self.containers.add(id(thing))
        for key, item in list(thing.items() if isinstance(thing, dict) else enumerate(thing)):
            if not isinstance(item, PLAIN):
                self.walk(item, f"{path}[{key!r:.30}]")

    def _function(self, function: types.FunctionType, path: str) -> None:
        self.walk(getattr(function, "__wrapped__", None), path)
        title = _title(function, path)
        code = function.__code__
        written = set() if is_of_package(function) else names_of(code).written
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            place = Cell(f"variable `{name}`, read by {title}", cell, name)
            if name in written:
                self._binds(place)
            self.add(place)
            self.walk(place.old, f"`{name}`")
        if is_of_package(function):
            return
        for name in ("__defaults__", "__kwdefaults__"):
            if getattr(function, name):
                self.add(Attribute(f"{name} of {title}", function, name))
                self.walk(getattr(function, name), f"the defaults of {title}")
        self._code(code, function.__globals__, title)

    def _binds(self, place: Place) -> None:
        self.written.add(place.key)
        if self.may_write:
            self.shared.add(place.key)

    def _code(self, code: types.CodeType, scope: dict[str, UserObject], title: str) -> None:
        names = names_of(code)
        if code.co_name not in _BEGINNINGS:
            self.set |= names.set
            self.counted |= names.counted
        self.changes_items |= names.changes_items
        found = list(names.found_by(scope))
        self.draws_numbers |= any(map(_draws_numbers, found))
        self.draws_seeds |= not names.gives_seed and any(
            getattr(thing, "__module__", None) == _RANDOM_OF_KERAS for thing in found
        )
        self.mentioned |= names.attributes | (names.globals & (_BY_NAME | _RUNS_LATER))
        for name in sorted((names.globals | names.written) & scope.keys()):
            place = Entry(f"global `{name}`, read by {title}", scope, name)
            if name in names.written:
                self._binds(place)
            self.add(place)
            self.walk(place.old, f"global `{name}`")

    def _generator(self, generator: AnyGenerator, path: str) -> None:
        self.add(GeneratorState(path, generator))
        self.shared.add(id(generator))
        frame = generator.gi_frame
        if frame is None:
            return
        self._code(frame.f_code, frame.f_globals, f"`{generator.__name__}`")
        for name, value in list(frame.f_locals.items()):
            self.walk(value, f"`{name}` of `{generator.__name__}`")

    def _object(self, thing: UserObject, path: str) -> None:
        for name in ("__wrapped__", "python_function"):  # of `jax.jit`, `tf.function`, `lru_cache`
            self.walk(vars(thing).get(name) if hasattr(thing, "__dict__") else None, path)
            # Not of its instance: a `Mock` has any attribute, and makes a new one for each.
            if callable(thing) and is_of_package(type(thing)) and hasattr(type(thing), name):
                self.walk(getattr(thing, name, None), path)
        if isinstance(thing, (keras.callbacks.History, keras.callbacks.CallbackList)):
            return
        of_keras = isinstance(thing, reached.KERAS)
        if is_of_package(type(thing)) and not of_keras and not isinstance(thing, _NAMESPACES):
            if any(hasattr(type(thing), name) for name in _WRITERS):
                self.shared.add(id(thing))
            return
        self.objects[id(thing)] = thing
        if of_keras:
            self.of_keras(thing, path)
        self._named.append(_Named(thing, f"the {type(thing).__name__} at {path}"))

    def of_keras(self, thing: UserObject, path: str) -> None:
        """Notes what Keras itself reads of an object whose class is Keras's or derived from it."""
        where = f"the {type(thing).__name__} at {path}"
        is_own = is_of_package(type(thing))
        for name, value in list(vars(thing).items()):
            if reached.is_bookkeeping(thing, name):
                continue
            if not is_own:
                self._entry(thing.__dict__, name, f"`{name}` of {where}")
            elif isinstance(value, PLAIN) and not name.startswith("_"):
                self.add(Setting(f"`{name}` of {where}", thing, name))
            else:
                self.walk(value, f"`{name}` of {where}")
        named = _Named(thing, where)
        known = {n for base in type(thing).__mro__ if is_of_package(base) for n in vars(base)}
        for base in named.bases:
            for name in sorted(known & vars(base).keys() - {"__init__"}):
                self._class_attribute(named, base, name)
        self._named.append(named)

    def _entry(self, names: dict[str, UserObject], name: str, path: str) -> None:
        value = names[name]
        if isinstance(value, (keras.Variable, keras.KerasTensor)):
            return
        self.add(Entry(path, names, name, is_attribute=True))
        self.walk(value, path)

    def _class_attribute(self, named: _Named, base: type, name: str) -> None:
        value = vars(base)[name]
        if isinstance(value, types.MemberDescriptorType):  # of a class with slots
            if not isinstance(named.thing, type):
                self.add(Attribute(f"`{name}` of {named.path}", named.thing, name))
                self.walk(getattr(named.thing, name, None), f"`{name}` of {named.path}")
            return
        path = f"`{base.__name__}.{name}`"
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.cached_property):
            value = value.func
        elif not name.startswith("__"):
            self.add(Attribute(path, base, name))
        self.walk(value, path)

    def _dataset(self, dataset: "tf.data.Dataset", path: str) -> None:
        """Notes the objects of a pipeline that two fits may have in common."""
        for source in reached.pipeline(dataset):
            if reached.is_shuffle(source):
                self.shared.add(id(source))
                self.references.append(source)
            file = reached.cache_file(source)
            if file:
                self.shared.add(str(Path(file).absolute()))
            self.shared |= set(map(id, reached.captured(source)))
            for function in reached.mapped(source):
                code = getattr(function, "__code__", None)
                # What other functions read was read when the pipeline was made.
                if code and not _RUNS_LATER.isdisjoint(
                    names_of(code).attributes | names_of(code).globals
                ):
                    self.walk(function, path)
            for generator in reached.generators(source):
                self.walk(generator, path)


class StepReads:
    """A record of what the steps of a model read while they are traced.

    Keras traces the steps of a compiled model once. The values that they read then stay in them
    until the model is compiled again. `remember` stores a record of these values for as long,
    for steps that a cohort traces anew.

    Args:
        model: The model; the record has the values of the moment when it is made.

    Attributes:
        stamp: Equal as long as the model is not compiled again.
        forms: The forms of the batches that were traced with these values.
    """

    _then = "the first trace"
    _is_for_traces = True

    def __init__(self, model: keras.Model):
        self._model = model
        self._configuration = Configuration()
        self.stamp = backends.compile_stamp(model)
        self._steps = _Walk(may_write=False)
        self._walk_model(model)
        self._places = [place for place in self._steps.places if not self._may_change(place)]
        self._restored: list[Place] = []
        self.forms: set[Hashable] = set()

    def _walk_model(self, model: keras.Model) -> None:
        steps = self._steps
        given = backends.compile_arguments(model)
        for name in ("loss", "metrics", "weighted_metrics", "loss_weights"):
            steps.walk(given.get(name), f"`{name}`")
        self._walk_layers(model)
        optimizer = getattr(model, "optimizer", None)
        if optimizer is not None:
            steps.walk(optimizer, "`optimizer`")
            steps.walk(reached.schedule(optimizer), "the learning rate of `optimizer`")
            steps.add(_LearningRate("`learning_rate` of the optimizer", optimizer))
        steps.look_up_names()
        done = {id(model)}
        while others := [one for one in steps.models if id(one) not in done]:
            done |= {id(one) for one in others}
            for other in others:
                self._walk_layers(other)
            steps.look_up_names()

    def _walk_layers(self, model: keras.Layer) -> None:
        for layer in backends.flat_layers(model):
            if self._steps.is_first(("layer", id(layer)), layer):
                self._steps.add(_Trainable(f"`trainable` of {layer.name!r}", layer, "trainable"))
                self._steps.of_keras(layer, f"{layer.name!r}")

    def _may_change(self, place: Place) -> bool:
        """Returns whether a training may change a place without an effect on traced steps."""
        walk = self._steps
        return (
            isinstance(place, (_LearningRate, RandomState, GeneratorState))
            or (isinstance(place, Items) and walk.changes_items)
            or place.key in walk.written
            or place.attribute in walk.set
        )

    @property
    def draws_seeds(self) -> bool:
        """Returns whether steps take seeds from Keras's global generator, judging by their code."""
        return self._steps.draws_seeds

    @property
    def differs(self) -> bool:
        """Returns whether something is restored."""
        return bool(self._restored)

    def check(self, member: str, form: Hashable = None) -> None:
        """Compares the present values with the recorded ones.

        Args:
            member: The member's name.
            form: The form of the batches to come. For a new form `fit` traces anew, with the
                present values: then nothing may differ.

        Raises:
            CohortError: If something differs that cannot be restored.
        """
        self._restored = []
        for place in self._places:
            if not place.differs():
                continue
            why = self._obstacle(place)
            if why is None and self._is_for_traces and form not in self.forms:
                why = "and the batches are of another form"
            if why is not None:
                told = f"{place.path}: {place.difference(self._then)}{why and f', {why}'}"
                self._refuse(member, told, _way_out(place))
            self._restored.append(place)
        if any(isinstance(place, _Trainable) for place in self._restored):
            # Setting it on a layer sets it on all layers inside, so all of them are restored.
            self._restored = [
                *(place for place in self._places if isinstance(place, _Trainable)),
                *(place for place in self._restored if not isinstance(place, _Trainable)),
            ]
        for place in self._restored:
            place.own = place.old
        self.forms.add(form)

    def _refuse(self, member: str, what: str, way_out: str) -> None:
        with errors.about(member):
            raise errors.CohortError(
                "Expected what the steps of a model read to be as it was when they were first "
                "traced, until it is compiled again. "
                f"Received: {what}. To train with it as it is now, `compile` the model again."
            )

    def _obstacle(self, place: Place) -> str | None:
        """Returns why a place that differs cannot be restored, or `None` if it can."""
        is_setting = isinstance(place, Setting) and isinstance(place.old, PLAIN)
        if not place.is_restorable and not (self._is_for_traces and is_setting):
            return ""
        if not _RUNS_LATER.isdisjoint(self._steps.mentioned):
            return "where code reads it that runs outside of the member's turn"
        if place.key in self._steps.written:
            return "and the training sets it too"
        return None

    def restored(self) -> tuple[Hashable, ...]:
        """Returns a key for the values that are restored for the member's steps.

        It is equal for members whose steps read the same restored values.
        """
        steps = {id(place) for place in self._steps.places}
        places = [place for place in self._restored if id(place) in steps]
        return self._configuration.traced, *((place.path, place.token()) for place in places)

    @contextlib.contextmanager
    def as_read(self) -> Iterator[None]:
        """Restores, within the block, the places that changed and Keras's configuration.

        Values that the block itself sets are in effect again in the next such block.
        """
        outside = [place.read() for place in self._restored]
        for place in self._restored:
            place.write(place.own)
        try:
            with self._configuration.entered():
                yield
        finally:
            for place in self._restored:
                place.own = place.read()
            for place, value in zip(self._restored, outside, strict=True):
                place.write(value)


def remembered(model: keras.Model, kind: str) -> StepReads | None:
    """Returns the record of the first trace of steps of this kind since the model was compiled."""
    known: StepReads | None = vars(model).get(reached.TRACED_WITH, {}).get(kind)
    return known if known is not None and known.stamp == backends.compile_stamp(model) else None


def remember(model: keras.Model, kind: StepKind, form: Hashable) -> StepReads:
    """Records, with the present values, what steps read that have just been traced.

    Args:
        model: The model, which keeps the record.
        kind: `"train"`, `"test"` or `"predict"`.
        form: The form of the batches that they were traced for.

    Returns:
        The record.
    """
    known = vars(model).setdefault(reached.TRACED_WITH, {})[kind] = StepReads(model)
    known.forms.add(form)
    return known


class Snapshot(StepReads):
    """A record of what the training of a model reads, with the values at the call of `fit`.

    Args:
        model: The model.
        arguments: All arguments of its `fit`, by name.
        is_deferred: Whether the program continues before the training. If not, nothing is copied or
            compared.

    Attributes:
        arguments: The arguments, copied where the program could change them.
        reads: The identities of parts of other models that the training may read.
        others: Those models, and layers of theirs.
        stamp: Equal as long as the model is not compiled again.
        writes: The identities of objects outside of the model that the training may change; of
            files and folders, their paths.
        surroundings: Makes a context in which the program is as the model is traced. By default it
            changes nothing.
        key: Equal for calls whose surroundings are alike to the steps.
    """

    surroundings: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    key: Hashable = ()
    _then = "the call"
    _is_for_traces = False

    def __init__(self, model: keras.Model, arguments: FitArguments, is_deferred: bool = True):
        unchanged: list[Place] = []
        self.arguments = arguments
        if is_deferred:
            taken: Any = {  # a TypedDict, which mypy does not take a comprehension for
                name: copied(name, value, unchanged.append) for name, value in arguments.items()
            }
            self.arguments = taken
        self._hooks = _Walk(may_write=True)
        hooked = _hooked(arguments)
        for name, value in hooked.items():
            self._hooks.walk(value, f"`{name}`")
        self._hooks.look_up_names()
        super().__init__(model)
        self.writes = self._find_shared() | _files(arguments["callbacks"])
        self.reads: set[Hashable] = set()
        self._find_models()
        self._places = [*unchanged, *self._steps.places, *self._hooks.places] if is_deferred else []

    def _find_shared(self) -> set[Hashable]:
        hooks = self._hooks
        shared = self._steps.shared | hooks.shared
        if hooks.changes_items:
            shared |= hooks.containers
        for identity, thing in hooks.objects.items():
            own = getattr(thing, "__dict__", {})
            if hooks.set and not isinstance(thing, keras.callbacks.Callback):
                shared |= {identity} if not hooks.set.isdisjoint(own) else set()
        return shared

    def _find_models(self) -> None:
        hooks_write = not _TRAINING_METHODS.isdisjoint(self._hooks.mentioned)
        own = {id(layer) for layer in backends.flat_layers(self._model)}
        met = [layer for walk in (self._steps, self._hooks) for layer in walk.models]
        self.others = [layer for layer in met if id(layer) not in own]
        for walk in (self._steps, self._hooks):
            for layer in walk.models:
                if id(layer) in own:
                    continue
                found = reached.trained_with(layer)
                found += reached.handles(layer.variables)
                target = self.writes if walk is self._hooks and hooks_write else self.reads
                target |= {id(thing) for thing in found}

    @property
    def draws_globally(self) -> bool:
        """Returns whether steps, callbacks or data draw from a global random state.

        This is judged by their code. The order in which `fit` shuffles arrays is not counted.
        """
        walks = (self._steps, self._hooks)
        return any(walk.draws_numbers or walk.draws_seeds for walk in walks)

    @contextlib.contextmanager
    def as_read(self) -> Iterator[None]:
        """Restores the surroundings, and what changed as `StepReads.as_read`, within the block."""
        with self.surroundings(), super().as_read():
            yield

    def restored(self) -> tuple[Hashable, ...]:
        """Returns a key as `StepReads.restored`, which tells surroundings apart, too."""
        return *super().restored(), self.key

    def check(self, member: str, form: Hashable = None) -> None:
        """Compares the present values with the recorded ones, as `StepReads.check` does.

        Raises:
            CohortError: Also if the model was compiled again.
        """
        if self._places and self.stamp != backends.compile_stamp(self._model):
            self._refuse(member, "the model was compiled again", "Compile it before its `fit`")
        super().check(member, form)

    def _refuse(self, member: str, what: str, way_out: str) -> None:
        with errors.about(member):
            raise errors.CohortError(
                "Expected what `fit` reads to be, when it is trained, as it was at its call. "
                f"Received: {what}. {way_out}, or move the change below the block."
            )

    def _obstacle(self, place: Place) -> str | None:
        if all(place is not other for other in self._hooks.places):
            return super()._obstacle(place)
        walk = self._hooks
        if not place.is_restorable:
            return ""
        if not _RUNS_LATER.isdisjoint(walk.mentioned):
            return "where code reads it that runs outside of the member's turn"
        if _uses_threads(self.arguments):
            return "where threads of the data read it"
        if isinstance(place, Items) and walk.changes_items:
            return "and callbacks or data may change it too"
        if place.key in walk.written or place.attribute in walk.set:
            return "and the training sets it too"
        return None


class _Trainable(Setting):
    """The `trainable` attribute of a layer."""


class _LearningRate(Setting):
    """The learning rate of an optimizer, which it keeps in a variable."""

    def __init__(self, path: str, optimizer: keras.optimizers.Optimizer):
        super().__init__(path, optimizer, "learning_rate")

    def read(self) -> float | None:
        """Returns the learning rate; `None` with a schedule."""
        return reached.learning_rate(self._thing)


def _hooked(arguments: FitArguments) -> dict[str, UserObject]:
    """Returns the arguments that run code of the user's, without the arrays in them."""
    names = ("callbacks", "x", "y", "sample_weight", "validation_data")
    return {name: _without_data(arguments.get(name)) for name in names}


def _without_data(value: UserObject) -> UserObject:
    """Returns everything in an argument that is not copied at the call."""
    if isinstance(value, keras.callbacks.CallbackList):
        return tuple(value.callbacks)
    if isinstance(value, dict):
        return tuple(map(_without_data, value.values()))
    if isinstance(value, (list, tuple)):
        if len(value) > 100 and all(isinstance(item, PLAIN) for item in value):
            return None
        return tuple(map(_without_data, value))
    is_data = isinstance(value, np.ndarray) or type(value).__module__.startswith("pandas")
    return None if is_data else value


_PATH_WORDS = ("path", "file", "dir", "folder")


# Packages whose callbacks draw from no global random state.
_DRAW_NOTHING = ("keras", "kerascohost")


def may_draw(model: keras.Model, callbacks: Iterable[keras.callbacks.Callback]) -> bool:
    """Returns whether callbacks, or metrics as they are reset, may draw from a global random state.

    Keras's own don't. The user's are judged by their code; an installed package's, which is not
    looked into, may.

    Args:
        model: The model that is trained.
        callbacks: The callbacks, without Keras's `History`.
    """
    walk = _Walk(may_write=True)
    for callback in callbacks:
        kind = type(callback)
        if is_of_package(kind) and kind.__module__.partition(".")[0] not in _DRAW_NOTHING:
            return True
        walk.walk(callback, "`callbacks`")
    if backends.runs_code_between_steps(model):
        for part in (model, *backends.with_parts(model.metrics)):
            walk.of_keras(part, "the model")
    walk.look_up_names()
    return walk.draws_numbers


def _files(callbacks: Callbacks) -> set[Hashable]:
    """Returns the paths that callbacks name, and `"the profiler"` if one of them uses it."""
    found: set[Hashable] = set()
    for callback in backends.callbacks_in(callbacks):
        found |= {str(path.absolute()) for path in paths_of(callback).values()}
        if reached.profiles(callback):
            found.add("the profiler")
    return found


def changed_by_reading(data: UserObject) -> list[UserObject]:
    """Returns what a dataset's own code changes whenever it is read, judging by what it refers to.

    These are random generators, generators, the seeds of layers and objects that count something in
    an attribute; not shuffles of `tf.data`.
    """
    walk = _Walk(may_write=True)
    walk.walk(data, "the data")
    walk.look_up_names()
    # A model in a dataset predicts, and draws nothing.
    layers = [layer for layer in walk.models if not isinstance(layer, keras.Model)]
    seeds = [seed for layer in layers for seed in reached.seeds(layer)]
    met = [each for each in walk.references if not reached.is_dataset(each)]
    own = [o for o in walk.objects.values() if walk.counted & getattr(o, "__dict__", {}).keys()]
    return [*filter(walk.changes, met), *seeds, *own]


def paths_of(callback: keras.callbacks.Callback) -> dict[str, Path]:
    """Returns the files and folders that a callback names, by attribute."""
    found = {}
    for name, value in getattr(callback, "__dict__", {}).items():
        is_path = isinstance(value, PurePath) or (
            isinstance(value, str) and any(word in name.lower() for word in _PATH_WORDS)
        )
        if is_path and str(value) and not name.endswith(("flags", "format", "mode")):
            found[name] = Path(value).expanduser()
    return found


def _uses_threads(arguments: FitArguments) -> bool:
    data = arguments.get("x")
    return isinstance(data, keras.utils.PyDataset) and data.workers > 1


def _way_out(place: Place) -> str:
    if isinstance(place, (Cell, Entry)) and isinstance(place.old, PLAIN):
        return f"Bind it where the function is made (`lambda ..., {place.name}={place.name}:`)"
    if isinstance(place, Bytes):
        return "Give each fit an array of its own (`.copy()`)"
    if isinstance(place, (RandomState, GeneratorState, Items)):
        return "Give each fit one of its own"
    return "Change it before its `fit`"
