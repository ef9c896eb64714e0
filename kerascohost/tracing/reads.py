"""What a deferred training reads of the program's Python state: kept at the call, restored later.

A `Snapshot` is taken when `fit` is called. It copies the arguments, and walks through what the code
of the model, of its loss, of callbacks and of data may look up: closures, globals, attributes of
the user's modules and objects, items of containers, arrays. Code of installed packages is not
followed; of the user's objects and modules only attributes that some code walked names. Before
anything is trained, `check` compares all that with what is there then. What can be restored is put
back while the member's steps are traced and its hooks run; else a `CohortError` says what changed.

The walk has two parts, as places may have two kinds of readers: "steps", which read while they are
traced, and "hooks", the code of callbacks and of data, which runs all through the training and may
also write.
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
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import keras
import numpy as np

from kerascohost import backends, errors
from kerascohost.arguments import FitArguments
from kerascohost.backends import reached
from kerascohost.backends.process_state import Configuration
from kerascohost.tracing.copies import copied
from kerascohost.tracing.places import (
    CONTAINERS,
    PLAIN,
    Attribute,
    Bytes,
    Cell,
    Entry,
    Frame,
    GeneratorState,
    Items,
    Place,
    RandomState,
    Setting,
)

_INSTALLED = (
    *{f"{path}{os.sep}" for name, path in sysconfig.get_paths().items() if "lib" in name},
    f"{Path(keras.__file__).parent}{os.sep}",
)
# Code with one of these may look up any attribute.
_BY_NAME = frozenset({"getattr", "vars", "__dict__", "__getattribute__"})
# What these call runs after tracing, in threads of the backend.
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
# What writes to a file, a table or a server has one of these.
_WRITERS = ("add_scalar", "execute", "log", "log_metric", "log_metrics", "write", "writerow")
# What these set is set before any step or hook reads it.
_BEGINNINGS = frozenset({"__init__", "__post_init__", "build"})
_CALLED_UNNAMED = frozenset({"__call__", "__getitem__", "__iter__", "__len__", "__next__"})
# What functions draw from that are given no generator: by the object that has them as its methods,
# and by the module that defines them.
_GLOBAL_GENERATORS = tuple(map(operator.attrgetter("__self__"), (random.random, np.random.rand)))
_RANDOM_OF_KERAS = keras.random.normal.__module__
_RANDOM_OF_TENSORFLOW = "tensorflow.python.ops.random_ops"
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)


class _Code:
    """The names that a code object, or one inside it, looks up and writes.

    Attributes:
        globals: Names of globals.
        attributes: Names of attributes.
        written: Names of variables of other scopes that it binds.
        set: Names of attributes that it sets.
        changes_items: Whether it may change the items of a container.
        gives_seed: Whether it calls something with an argument named `seed`.
        lookups: The dotted names that it looks up, and the beginnings of these.
        imported: By the name that it binds in itself, what it imports.
    """

    def __init__(self, code: types.CodeType):
        self.globals: set[str] = set()
        self.attributes: set[str] = set()
        self.written: set[str] = set()
        self.set: set[str] = set()
        self.changes_items = False
        self.gives_seed = any(isinstance(c, tuple) and "seed" in c for c in code.co_consts)
        self.lookups: set[tuple[str, ...]] = set()
        self.imported: dict[str, tuple[str, ...]] = {}
        lookup: tuple[str, ...] = ()
        for step in dis.get_instructions(code):
            self._note(step.opname, step.argval, code)
            lookup = self._look_up(step.opname, step.argval, lookup)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._merge(names_of(constant), code)
        self.changes_items |= not _CHANGING_METHODS.isdisjoint(self.attributes | self.globals)

    def _note(self, operation: str, name: Any, code: types.CodeType) -> None:
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

    def _look_up(self, operation: str, name: Any, before: tuple[str, ...]) -> tuple[str, ...]:
        """Notes dotted names, such as `np.random.rand`; returns the one that an operation is in."""
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

    def found_by(self, scope: Mapping[str, Any]) -> Iterator[Any]:
        """Yields what the dotted names stand for that begin with a global or with an import."""
        for name, *rest in self.lookups:
            if name in self.imported:
                module, *first = self.imported[name]
                thing, rest = sys.modules.get(module), [*first, *rest]
            elif name in self.globals:
                thing = scope.get(name)
            else:
                continue
            for attribute in rest:
                thing = getattr(thing, attribute, None) if _is_module(thing) else None
            yield thing

    def _merge(self, inner: "_Code", code: types.CodeType) -> None:
        self.globals |= inner.globals
        self.attributes |= inner.attributes
        self.written |= inner.written - set(code.co_cellvars)
        self.set |= inner.set
        self.changes_items |= inner.changes_items
        self.gives_seed |= inner.gives_seed
        self.lookups |= inner.lookups
        self.imported |= inner.imported


def _is_module(thing: Any) -> bool:
    return isinstance(thing, types.ModuleType)


@functools.lru_cache(maxsize=4096)
def names_of(code: types.CodeType) -> _Code:
    """The names that `code` looks up and writes."""
    return _Code(code)


@functools.lru_cache(maxsize=4096)
def _is_installed(module: str) -> bool:
    """Whether a module belongs to Python, to an installed package or to kerascohost."""
    if module.partition(".")[0] == __name__.partition(".")[0]:
        return True
    if module in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return False
    # A user's own site-packages, or those of a distribution, are not among Python's paths.
    is_in_packages = not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
    return is_in_packages or file.startswith(_INSTALLED)


def _is_of_package(thing: Any) -> bool:
    """Whether a class, a function or a module is not the user's."""
    module = getattr(thing, "__module__", None) or getattr(thing, "__name__", "")
    return isinstance(module, str) and _is_installed(module)


def _draws_numbers(thing: Any) -> bool:
    """Whether this is a function that draws from a random state of the whole process, or sets it.

    That of Python, of NumPy or of TensorFlow.
    """
    owner = getattr(thing, "__self__", None)
    if any(owner is generator for generator in _GLOBAL_GENERATORS):
        return thing.__name__ not in ("getstate", "get_state")
    return getattr(thing, "__module__", None) == _RANDOM_OF_TENSORFLOW


def _title(function: types.FunctionType, path: str) -> str:
    name = function.__qualname__.rpartition("<locals>.")[2]
    return path if "<lambda>" in name else f"`{name}`"


class _Named:
    """Something whose attributes are read by name: an object, a class or a module."""

    def __init__(self, thing: Any, path: str):
        self.thing = thing
        self.path = path
        self.kind = thing if isinstance(thing, type) else type(thing)
        self.own = {} if isinstance(thing, type) else getattr(thing, "__dict__", {})
        bases = [] if isinstance(thing, types.ModuleType) else self.kind.__mro__
        self.bases = [base for base in bases if not _is_of_package(base)]
        self.done: set[str] = set()

    def names(self, mentioned: set[str]) -> set[str]:
        """The names to look up that have not been looked up before."""
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
    """Goes through all that one kind of reader may look up.

    Args:
        may_write: Whether the readers are hooks, which may also write.

    Attributes:
        places: What they may look up.
        models: Layers and models that were met; they are not gone through.
        shared: By identity, the objects in which two fits can meet.
        written: Keys of the places that the readers bind.
        set: Names of the attributes that they set.
        mentioned: All attribute names that they mention.
        changes_items: Whether they may change the items of containers.
        draws_numbers: Whether they may draw from a random state of the whole process.
        draws_seeds: Whether they may draw with `keras.random` without giving it a seed.
    """

    def __init__(self, may_write: bool):
        self.may_write = may_write
        self.places: list[Place] = []
        self.models: list[keras.Layer] = []
        self.containers: set[int] = set()
        self.objects: dict[int, Any] = {}
        self.shared: set[Hashable] = set()
        self.written: set[Hashable] = set()
        self.set: set[str] = set()
        self.mentioned: set[str] = set()
        self.changes_items = False
        self.draws_numbers = False
        self.draws_seeds = False
        self._named: list[_Named] = []
        self._seen: set[Hashable] = set()
        self._kept: list[Any] = []  # an object that is gone could leave its identity to another

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

    def _first(self, key: Hashable, thing: Any = None) -> bool:
        if key in self._seen:
            return False
        self._seen.add(key)
        self._kept.append(thing)
        return True

    def add(self, place: Place) -> None:
        """Notes a place, once."""
        if self._first(place.key):
            self.places.append(place)

    def walk(self, thing: Any, path: str) -> None:
        """Notes the places in `thing`, which was found at `path`."""
        if isinstance(thing, PLAIN) or not self._first(("thing", id(thing)), thing):
            return
        if isinstance(thing, types.FunctionType):
            self._function(thing, path)
        elif isinstance(thing, types.MethodType):
            self.walk(thing.__func__, path)
            self.walk(thing.__self__, f"the object of {path}")
        elif isinstance(thing, functools.partial):
            for part in (thing.func, thing.args, thing.keywords):
                self.walk(part, path)
        elif isinstance(thing, CONTAINERS):
            self._container(thing, path)
        elif isinstance(thing, (tuple, frozenset)):
            for i, item in enumerate(thing):
                self.walk(item, f"{path}[{i}]")
        elif isinstance(thing, types.GeneratorType):
            self._generator(thing, path)
        elif isinstance(thing, (type, types.ModuleType)):
            if not _is_of_package(thing):
                self._named.append(_Named(thing, f"`{thing.__name__}`"))
        elif not self._state(thing, path):
            self._object(thing, path)

    def _state(self, thing: Any, path: str) -> bool:
        """Notes what is compared as a whole; returns whether `thing` is such."""
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

    def _container(self, thing: Any, path: str) -> None:
        self.add(Items(path, thing))
        self.containers.add(id(thing))
        for key, item in list(thing.items() if isinstance(thing, dict) else enumerate(thing)):
            if not isinstance(item, PLAIN):
                self.walk(item, f"{path}[{key!r:.30}]")

    def _function(self, function: types.FunctionType, path: str) -> None:
        self.walk(getattr(function, "__wrapped__", None), path)
        title = _title(function, path)
        code = function.__code__
        written = set() if _is_of_package(function) else names_of(code).written
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            place = Cell(f"variable `{name}`, read by {title}", cell, name)
            if name in written:
                self._binds(place)
            self.add(place)
            self.walk(place.old, f"`{name}`")
        if _is_of_package(function):
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

    def _code(self, code: types.CodeType, scope: dict[str, Any], title: str) -> None:
        names = names_of(code)
        if code.co_name not in _BEGINNINGS:
            self.set |= names.set
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

    def _generator(self, generator: types.GeneratorType, path: str) -> None:
        self.add(GeneratorState(path, generator))
        self.shared.add(id(generator))
        frame = generator.gi_frame
        if frame is None:
            return
        self._code(frame.f_code, frame.f_globals, f"`{generator.__name__}`")
        for name, value in list(frame.f_locals.items()):
            self.walk(value, f"`{name}` of `{generator.__name__}`")

    def _object(self, thing: Any, path: str) -> None:
        for name in ("__wrapped__", "python_function"):  # of `jax.jit`, `tf.function`, `lru_cache`
            self.walk(vars(thing).get(name) if hasattr(thing, "__dict__") else None, path)
            if callable(thing) and _is_of_package(type(thing)):
                self.walk(getattr(thing, name, None), path)
        if isinstance(thing, (keras.callbacks.History, keras.callbacks.CallbackList)):
            return
        of_keras = isinstance(thing, reached.KERAS)
        if _is_of_package(type(thing)) and not of_keras and not isinstance(thing, _NAMESPACES):
            if any(hasattr(type(thing), name) for name in _WRITERS):
                self.shared.add(id(thing))
            return
        self.objects[id(thing)] = thing
        if of_keras:
            self.of_keras(thing, path)
        self._named.append(_Named(thing, f"the {type(thing).__name__} at {path}"))

    def of_keras(self, thing: Any, path: str) -> None:
        """Notes what Keras itself reads of an object of its classes, or of one made from them."""
        where = f"the {type(thing).__name__} at {path}"
        is_own = _is_of_package(type(thing))
        for name, value in list(vars(thing).items()):
            if reached.is_bookkeeping(thing, name):
                continue
            if not is_own:
                self._entry(vars(thing), name, f"`{name}` of {where}")
            elif isinstance(value, PLAIN) and not name.startswith("_"):
                self.add(Setting(f"`{name}` of {where}", thing, name))
            else:
                self.walk(value, f"`{name}` of {where}")
        named = _Named(thing, where)
        known = {n for base in type(thing).__mro__ if _is_of_package(base) for n in vars(base)}
        for base in named.bases:
            for name in sorted(known & vars(base).keys() - {"__init__"}):
                self._class_attribute(named, base, name)
        self._named.append(named)

    def _entry(self, names: dict[str, Any], name: str, path: str) -> None:
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

    def _dataset(self, dataset: Any, path: str) -> None:
        """Notes what two fits may have in common of their pipelines."""
        for source in reached.pipeline(dataset):
            if reached.is_shuffle(source):
                self.shared.add(id(source))
                self._kept.append(source)
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


class StepReads:
    """What the steps of a model read while they are traced, as it is when this is made.

    Keras traces the steps of a compiled model once: what they find then stays in them until the
    model is compiled again. So does what is kept of it here, by `remember`, for steps that a
    cohort traces anew.

    Args:
        model: The model.

    Attributes:
        stamp: How the model was compiled.
        forms: The forms of the batches that were traced with what was read.
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
            if self._steps._first(("layer", id(layer)), layer):
                self._steps.add(_Trainable(f"`trainable` of {layer.name!r}", layer, "trainable"))
                self._steps.of_keras(layer, f"{layer.name!r}")

    def _may_change(self, place: Place) -> bool:
        """Whether a training may change a place in a way that its steps do not depend on."""
        walk = self._steps
        return (
            isinstance(place, (_LearningRate, RandomState, GeneratorState))
            or (isinstance(place, Items) and walk.changes_items)
            or place.key in walk.written
            or place.attribute in walk.set
        )

    @property
    def draws_seeds(self) -> bool:
        """Whether steps take seeds from Keras's global generator, as far as can be told."""
        return self._steps.draws_seeds

    @property
    def differs(self) -> bool:
        """Whether something is restored."""
        return bool(self._restored)

    def check(self, member: str, form: Hashable = None) -> None:
        """Compares what is there now with what was there then.

        Args:
            member: The member's name.
            form: The form of the batches that are to come. For a new one `fit` traces anew, with
                what is there now: then nothing may differ.

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
            # To set one is to set those of all layers inside.
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
        """Why a place that differs cannot be restored, or `None`."""
        is_setting = isinstance(place, Setting) and isinstance(place.old, PLAIN)
        if not place.is_restorable and not (self._is_for_traces and is_setting):
            return ""
        if not _RUNS_LATER.isdisjoint(self._steps.mentioned):
            return "where code reads it that runs outside of the member's turn"
        if place.key in self._steps.written:
            return "and the training sets it too"
        return None

    def restored(self) -> tuple[Hashable, ...]:
        """What is restored for the member's steps: equal for members that find the same values."""
        steps = {id(place) for place in self._steps.places}
        places = [place for place in self._restored if id(place) in steps]
        return self._configuration.traced, *((place.path, place.token()) for place in places)

    @contextlib.contextmanager
    def as_read(self) -> Iterator[None]:
        """Lets the block find the places that changed as they were, and as it left them itself.

        Keras's configuration and other settings of the process likewise.
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
    """What the steps of this kind were first traced with, since the model was compiled."""
    known: StepReads | None = vars(model).get(reached.TRACED_WITH, {}).get(kind)
    return known if known is not None and known.stamp == backends.compile_stamp(model) else None


def remember(model: keras.Model, kind: str, form: Hashable) -> StepReads:
    """Keeps what steps of this kind, which have been traced, read: it is there now.

    Args:
        model: The model.
        kind: `"train"`, `"test"` or `"predict"`.
        form: The form of the batches that they were traced for.
    """
    known = vars(model).setdefault(reached.TRACED_WITH, {})[kind] = StepReads(model)
    known.forms.add(form)
    return known


class Snapshot(StepReads):
    """What the training of a model reads, as it was when its `fit` was called.

    Args:
        model: The model.
        arguments: All arguments of its `fit`, by name.
        is_deferred: Whether the program goes on before the training. If not, nothing is copied or
            compared.

    Attributes:
        arguments: The arguments, copied where the program could change them.
        reads: By identity, what the training may read of other models.
        others: Those models, and layers of theirs.
        stamp: How the model was compiled.
        writes: By identity, objects outside of the model that the training may change.
    """

    _then = "the call"
    _is_for_traces = False

    def __init__(self, model: keras.Model, arguments: FitArguments, is_deferred: bool = True):
        unchanged: list[Place] = []
        self.arguments = arguments
        if is_deferred:
            taken: Any = {
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
        """Whether steps, callbacks or data draw what the program would draw else.

        As far as their code tells; the order in which `fit` shuffles arrays is not among it.
        """
        walks = (self._steps, self._hooks)
        return any(walk.draws_numbers or walk.draws_seeds for walk in walks)

    def check(self, member: str, form: Hashable = None) -> None:
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
    """Whether a layer is trained."""


class _LearningRate(Setting):
    """The learning rate of an optimizer, which it keeps in a variable."""

    def __init__(self, path: str, optimizer: Any):
        super().__init__(path, optimizer, "learning_rate")

    def read(self) -> Any:
        return reached.learning_rate(self._thing)


def _hooked(arguments: FitArguments) -> dict[str, Any]:
    """Those arguments that run code of the user's, without the arrays in them."""
    names = ("callbacks", "x", "y", "sample_weight", "validation_data")
    return {name: _without_data(arguments.get(name)) for name in names}


def _without_data(value: Any) -> Any:
    """Everything in an argument that is not copied at the call."""
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


def _files(callbacks: Any) -> set[Hashable]:
    """The files and folders that callbacks name, and the profiler, if one of them uses it."""
    found: set[Hashable] = set()
    for callback in backends.callbacks_in(callbacks):
        found |= {str(path.absolute()) for path in paths_of(callback).values()}
        if reached.profiles(callback):
            found.add("the profiler")
    return found


def paths_of(callback: Any) -> dict[str, Path]:
    """The files and folders that a callback names, by attribute."""
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
