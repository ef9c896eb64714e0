"""Detection of reads and changes of objects that deferred fits will train.

A `Watch` calls a function when the program reads or changes the models, or the callbacks, of
deferred fits, or of the fits in which other functions in turn wait. Hooks on Keras's classes detect
this. They are installed only while something is watched, and act in the threads that watch it only:
every other thread finds the usual attributes. Uses that read no values are not reported: summaries,
configs, clones, symbolic calls, shapes and names.
"""

import contextlib
import contextvars
import dataclasses
import fnmatch
import functools
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any, TypeAlias

import keras
from keras.src.backend.common import global_state  # the state of calls in progress

# They tell symbolic reads, and reads of values in a scope, from reads of a variable's own value.
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.saving import saving_lib  # all functions that load a file end there

from kerascohost import backends
from kerascohost.backends import threads
from kerascohost.backends.base import Thing

# The value of a class's attribute: a function, a property or another descriptor.
Attribute: TypeAlias = Any

# Called before a program reads or changes a thing, with a text in which `{}` stands for its name,
# and whether it changes it.
Look = Callable[[Thing, str, bool], None]

# Methods that read what a model's layers hold, and those that may change it.
_READERS = (
    "evaluate",
    "export",
    "predict",
    "predict_on_batch",
    "save",
    "save_weights",
    "test_on_batch",
)
_WRITERS = ("load_weights", "quantize", "train_on_batch")
# Attributes that Keras sets on a layer or model that a program only uses.
_SET_BY_KERAS = frozenset(
    {"built", "history", "predict_function", "test_function", "train_function"}
)
# Attributes of a model or layer that are the same before and after it is built.
_KNOWN_UNBUILT = frozenset({"compiled", "fit", "layers", "loss", "name", "optimizer", "trainable"})
# The state that Keras keeps per thread during a call or a save: a training that begins meanwhile
# must not find it.
_IN_PROGRESS = (
    "autocast_scope",
    "current_call_ctx",
    "in_tf_graph_scope",
    "name_scope_stack",
    "remat_scope_stack",
    "shared_objects/id_to_config_map",
    "shared_objects/id_to_obj_map",
    "stateless_scope",
    "symbolic_scope",
)
_MISSING = object()


@dataclasses.dataclass(slots=True)
class _Watched:
    """An object that is watched.

    Attributes:
        thing: The object. While it is referenced here, no other object gets its `id`.
        watch: The `Watch` to call.
        changes: Whether the training may change it, so that reads of it are reported, too.
        is_unbuilt: Whether it is a layer that the training will build.
        is_model: Whether it is the model of a fit.
    """

    thing: Thing
    watch: "Watch"
    changes: bool = True
    is_unbuilt: bool = False
    is_model: bool = False


class _Thread(threading.local):
    """The objects that this thread watches, by `id`, and the paths that trainings may write to.

    Attributes:
        things: The objects, by `id`.
        paths: Patterns of the paths.
        elsewhere: Those of `things` that watches of other threads have added.
    """

    def __init__(self) -> None:
        self.things: dict[int, _Watched] = {}
        self.paths: list[tuple[str, Watch]] = []
        self.elsewhere: dict[int, _Watched] = {}


_thread = _Thread()


class Watch:
    """Reports when a thread reads or changes what deferred fits will train.

    Args:
        look: Called with the thing and a text such as "evaluate of {} needs its weights", before
            the thing is read or changed, and whether it is changed. It has to call `clear`.
        is_elsewhere: Whether it reports of the threads that `watch_for` names it to, and not of
            that which calls `add`.
    """

    def __init__(self, look: Look, is_elsewhere: bool = False):
        self.look = look
        self._is_elsewhere = is_elsewhere
        self._things: dict[int, _Watched] = {}
        self._paths: list[str] = []
        self._hooks: list[Hooks] = []

    def add(
        self,
        model: keras.Model | None,
        callbacks: Iterable[Thing] = (),
        others: Iterable[keras.Layer] = (),
    ) -> None:
        """Watches what a fit depends on.

        Args:
            model: The model, of which all parts are watched; `None` if nothing is trained.
            callbacks: The callbacks.
            others: Layers and models that the training reads, and does not change.
        """
        callbacks = list(callbacks)
        parts = [
            part for other in others for part in (*other.variables, *backends.flat_layers(other))
        ]
        found = {id(part): _Watched(part, self, changes=False) for part in parts}
        found |= {id(callback): _Watched(callback, self) for callback in callbacks}
        if model is not None:
            found |= {id(w.thing): w for w in self._parts(model, bool(callbacks))}
            found[id(model)] = _Watched(model, self, is_unbuilt=not model.built, is_model=True)
        for key, watched in found.items():
            known = self._things.get(key)
            if known is not None:
                watched.changes |= known.changes
                watched.is_model |= known.is_model
        paths = [path for callback in callbacks for path in _paths(callback)]
        self._things |= found
        self._paths += paths
        if not self._is_elsewhere:
            _thread.things |= found
            _thread.paths += [(path, self) for path in paths]
        self._use(_hooks)
        if callbacks:
            self._use(_callback_hooks)
        if any(watched.is_unbuilt for watched in found.values()):
            self._use(_unbuilt_hooks)

    def covers(self, model: keras.Model) -> bool:
        """Returns whether `model` shares objects with the watched fits that these may change."""
        with paused():
            return _sharing(self._things, [model, *backends.parts(model)]) is not None

    def clear(self) -> None:
        """Stops watching everything that was added."""
        if not self._is_elsewhere:
            for key in self._things:
                _thread.things.pop(key, None)
                if key in _thread.elsewhere:
                    _thread.things[key] = _thread.elsewhere[key]
            _thread.paths = [(path, watch) for path, watch in _thread.paths if watch is not self]
        self._things, self._paths = {}, []
        while self._hooks:
            self._hooks.pop().release()

    def has(self, thing: Thing) -> bool:
        """Returns whether it watches an object, parts of a model, or a file at this path."""
        if isinstance(thing, str):
            return any(_is_of(path, thing) for path in self._paths)
        is_model = isinstance(thing, keras.Model)
        return id(thing) in self._things or (is_model and self.covers(thing))

    def _use(self, hooks: "Hooks") -> None:
        if hooks not in self._hooks:
            hooks.acquire()
            self._hooks.append(hooks)

    def _parts(self, model: keras.Model, has_callbacks: bool) -> Iterator[_Watched]:
        """Yields the parts of a model that its training changes or reads.

        `_value`: the backend's variable, which functions compiled by TensorFlow read directly.
        `_learning_rate`: the variable of the learning rate, which is read to make a config or a
        clone of an optimizer. Only callbacks, and a `train_step` of the user's, change it.
        """
        rate = None
        if not has_callbacks and not backends.has_own_step(model, "train"):
            rate = getattr(model.optimizer, "_learning_rate", None)
        found = [*backends.variables(model), *backends.unbuilt_metrics_variables(model)]
        for variable in found:
            yield _Watched(variable, self, changes=variable is not rate)
            if variable is not rate and backends.get_backend().COMPILED_FUNCTION is not None:
                yield _Watched(variable._value, self)
        layers = backends.flat_layers(model)
        for layer in layers:
            lasts = layer.built and not layer.variables
            yield _Watched(layer, self, changes=not lasts, is_unbuilt=not layer.built)
        metrics = backends.with_parts([*model.metrics, *backends.unbuilt_metrics(model)])
        optimizers = [model.optimizer, getattr(model.optimizer, "inner_optimizer", None)]
        parts = [part for part in (*optimizers, *metrics) if hasattr(part, "__dict__")]
        losses = [loss for loss in keras.tree.flatten(model.loss) if hasattr(loss, "__dict__")]
        settings = [
            value
            for owner in (*layers, *parts)
            for value in vars(owner).values()
            if isinstance(value, _SETTINGS)
        ]
        for part in (*parts, *losses, *settings):
            yield _Watched(part, self, changes=False)


# Objects that layers and optimizers hold and use in every step.
_SETTINGS = (
    keras.constraints.Constraint,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.regularizers.Regularizer,
)


def watch_for(watches: Iterable[Watch]) -> None:
    """Has this thread report to watches of other threads, and no more to those of the last call."""
    outdated = _thread.elsewhere
    things = {k: w for k, w in _thread.things.items() if outdated.get(k) is not w}
    watches = list(watches)
    _thread.elsewhere = {key: w for watch in watches for key, w in watch._things.items()}
    _thread.things = _thread.elsewhere | things
    _thread.paths = [(path, watch) for path, watch in _thread.paths if not watch._is_elsewhere]
    _thread.paths += [(path, watch) for watch in watches for path in watch._paths]


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Turns the watching off for this thread, within the block."""
    outside, _thread.things = _thread.things, {}
    try:
        yield
    finally:
        _thread.things = outside | _thread.things


def name_of(thing: Thing) -> str:
    """Returns a name of a thing for messages: its path, its name or its type."""
    if isinstance(thing, str):
        return thing
    with paused():
        own = getattr(thing, "path", None) or getattr(thing, "name", None)
    return str(own or type(thing).__name__)


def looked_at(models: Iterable[keras.Model], doing: str, writes: bool = False) -> None:
    """Reports that the program reads, or changes, the values of models.

    Args:
        models: The models.
        doing: As in `Look`.
        writes: Whether it changes them.
    """
    if not _thread.things:
        return
    for model in models:
        things = _thread.things
        with paused():
            parts = backends.variables(model) if writes else backends.parts(model)
            shared = _sharing(things, [model, *parts], writes)
        if shared is not None:
            shared.watch.look(model, doing, writes)


def apart(work: Callable[[], None]) -> None:
    """Calls `work` so that it computes as if nothing were in progress in this thread.

    A value may be read during the call of a layer or while a file is written: what Keras stores for
    these is removed while `work` runs. If this thread traces a function or records operations,
    `work` runs in another thread, and this one waits for it.
    """
    state = vars(global_state.GLOBAL_STATE_TRACKER)
    outside = {name: state.pop(name) for name in _IN_PROGRESS if name in state}
    try:
        if backends.get_backend().is_recording():
            own, context = threads.thread_state(), contextvars.copy_context()
            with ThreadPoolExecutor(1) as executor:
                executor.submit(context.run, _in_thread, own, work).result()
        else:
            work()
    finally:
        for name in _IN_PROGRESS:
            state.pop(name, None)
        state.update(outside)


def _in_thread(state: threads.State, work: Callable[[], None]) -> None:
    with threads.as_in_thread(state):
        work()


def _sharing(
    things: dict[int, _Watched], parts: Iterable[Thing], any_use: bool = False
) -> _Watched | None:
    """Returns the first part that a training may change or, with `any_use`, only read."""
    found = (things.get(id(part)) for part in parts)
    return next((one for one in found if one is not None and (any_use or one.changes)), None)


def _paths(callback: Thing) -> Iterator[str]:
    """Yields patterns of the files that a callback may write."""
    for value in list(vars(callback).values()):
        if isinstance(value, (str, PurePath)):
            text = str(value)
            if os.sep in text or PurePath(text).suffix:
                yield _absolute(re.sub(r"\{[^}]*\}", "*", text))


def _is_of(pattern: str, file: str) -> bool:
    """Returns whether a file is one of the pattern, or in a folder of this path."""
    return fnmatch.fnmatch(file, pattern) or file.startswith(pattern + os.sep)


def _absolute(path: str | PurePath) -> str:
    """Returns a path, or a pattern of paths, as an absolute one; links are not resolved."""
    return os.path.normpath(os.path.join(os.getcwd(), path))  # noqa: PTH109, PTH118


# Hooks


def _watches() -> bool:
    return bool(_thread.things)


class _Hook:
    """A descriptor at an attribute of a class; where it does not act, the usual attribute is found.

    Args:
        owner: The class.
        name: The attribute.
        replace: Makes the replacement from the usual attribute.
        acts: Returns whether the hook acts in the calling thread.
    """

    def __init__(
        self,
        owner: type,
        name: str,
        replace: Callable[[Attribute], Attribute],
        acts: Callable[[], bool] = _watches,
    ):
        self.owner, self.name = owner, name
        self._acts = acts
        self._is_removed = False
        self._usual = usual = vars(owner).get(name, _MISSING)
        if usual is _MISSING:
            usual = self._inherited
        elif type(usual) is _Hook:  # of other code of ours, which may be removed before this one
            usual = usual.as_function()
        self._replacement = replace(usual)

    def as_function(self) -> Attribute:
        """Returns a function that does what the attribute does while this hook is installed."""

        @functools.wraps(self._replacement)
        def call(this: Thing, *args: Thing, **kwargs: Thing) -> Thing:
            return self.__get__(this, type(this))(*args, **kwargs)

        return call

    def _inherited(self, this: Thing, *args: Thing) -> Thing:
        return getattr(super(self.owner, this), self.name)(*args)

    def __get__(self, instance: Thing, kind: type | None = None) -> Thing:
        if self._acts():
            return self._replacement.__get__(instance, kind)
        if self._usual is _MISSING:
            return getattr(super(self.owner, kind if instance is None else instance), self.name)
        return self._usual.__get__(instance, kind)

    # Libraries that wrap methods compare the entry of the class's `__dict__` with the attribute.
    def __eq__(self, other: object) -> bool:
        return other is self or other is self.__get__(None, self.owner)

    def __hash__(self) -> int:
        return hash(self.__get__(None, self.owner))

    def install(self) -> None:
        """Sets the hook as the attribute of the class."""
        setattr(self.owner, self.name, self)

    def remove(self) -> None:
        """Restores the usual attribute, unless other code has set another one since."""
        self._is_removed = True
        if vars(self.owner).get(self.name) is not self:
            return
        usual = self._usual
        while isinstance(usual, _Hook) and usual._is_removed:
            usual = usual._usual
        if usual is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, usual)


class _PropertyHook(_Hook):
    """A hook at a property."""

    def __set__(self, instance: Thing, value: Thing) -> None:
        (self._replacement if self._acts() else self._usual).__set__(instance, value)

    def __delete__(self, instance: Thing) -> None:
        self._usual.__delete__(instance)


class _ValueHook(_Hook):
    """A hook at an attribute that instances have, and the class does not."""

    def __init__(self, owner: type, name: str):
        super().__init__(owner, name, lambda usual: usual)

    def __get__(self, instance: Thing, kind: type | None = None) -> Thing:
        if instance is not None:
            watched = _thread.things.get(id(instance))
            if watched is not None and watched.is_model:
                watched.watch.look(instance, f"`{self.name}` of {{}} is read", False)
            if self.name in vars(instance):
                return vars(instance)[self.name]
        kind = self.owner if kind is None else kind
        raise AttributeError(f"{kind.__name__!r} object has no attribute {self.name!r}")

    def __set__(self, instance: Thing, value: Thing) -> None:
        attributes: Thing = vars(instance)
        attributes[self.name] = value

    def __delete__(self, instance: Thing) -> None:
        attributes: Thing = vars(instance)
        del attributes[self.name]


class _FunctionHook(_Hook):
    """A hook at a function of a module; its replacement looks up which thread calls."""

    def install(self) -> None:
        self._found = vars(self.owner)[self.name]
        setattr(self.owner, self.name, self._replacement)

    def remove(self) -> None:
        if vars(self.owner)[self.name] is self._replacement:
            setattr(self.owner, self.name, self._found)


class Hooks:
    """Hooks that are installed while at least one thread needs them.

    Args:
        make: Makes the hooks. It is called for each installation, as libraries may have replaced
            the usual attributes since the last one.
    """

    def __init__(self, make: Callable[[], Iterable[_Hook]]):
        self._make = make
        self._lock = threading.Lock()
        self._count = 0
        self._installed: list[_Hook] = []

    def acquire(self) -> None:
        """Installs the hooks, if they are not installed yet."""
        with self._lock:
            if not self._count:
                self._install()
            self._count += 1

    def _install(self) -> None:
        try:
            for hook in list(self._make()):
                hook.install()
                self._installed.append(hook)
        except BaseException:  # also for an interrupt: no hook may remain installed
            self._remove()
            raise

    def release(self) -> None:
        """Removes the hooks, unless another thread needs them."""
        with self._lock:
            self._count -= 1
            if self._count == 0:
                self._remove()

    def _remove(self) -> None:
        for hook in reversed(self._installed):
            hook.remove()
        self._installed = []


def is_hook(value: Attribute) -> bool:
    """Returns whether the entry of a class is a hook, which is installed and removed elsewhere."""
    return isinstance(value, _Hook)


def owner_of(kind: type, name: str) -> type:
    """Returns the class that defines an attribute of `kind`: subclasses inherit a hook there."""
    return next((base for base in kind.__mro__ if name in vars(base)), kind)


def hook(
    kind: type,
    name: str,
    replace: Callable[[Attribute], Attribute],
    acts: Callable[[], bool] = _watches,
) -> "_Hook":
    """Makes a hook, to be installed by `Hooks`.

    Args:
        kind: The class whose attribute it is, perhaps by inheritance.
        name: The attribute.
        replace: Makes the replacement from the usual attribute.
        acts: Returns whether the hook acts in the calling thread; by default, if that thread
            watches something.
    """
    owner = owner_of(kind, name)
    make = _PropertyHook if isinstance(vars(owner).get(name), property) else _Hook
    return make(owner if owner is not object else kind, name, replace, acts)


def _all_hooks() -> Iterator[_Hook]:  # noqa: C901  # a list
    """Yields the hooks that are needed for every watched model."""
    variable, optimizer = keras.Variable, keras.optimizers.Optimizer
    yield hook(variable, "value", _value)
    for name in ("__repr__", "__reduce_ex__"):
        yield hook(variable, name, _shown)
    yield hook(variable, "assign", _assign)
    for name in ("trainable", "regularizer", "constraint", "overwrite_with_gradient"):
        if hasattr(variable, name):  # the oldest supported Keras has fewer
            yield hook(variable, name, functools.partial(_property_set, name))
    kinds = (keras.Layer, keras.losses.Loss, keras.metrics.Metric, optimizer, *_SETTINGS)
    for kind in kinds:
        yield hook(kind, "__setattr__", _set)
    for name in (*_READERS, *_WRITERS):
        if hasattr(keras.Model, name):  # the oldest supported Keras has no `quantize`
            yield hook(keras.Model, name, functools.partial(_method, name))
    for kind, names in (
        (keras.Model, ("compile",)),
        (keras.Sequential, ("add", "pop")),
        (optimizer, ("exclude_from_weight_decay",)),
    ):
        for name in names:
            yield hook(kind, name, functools.partial(_own_method, name))
    yield hook(keras.Model, "metrics", functools.partial(_listed, lambda watched: True))
    unbuilt = functools.partial(_listed, lambda watched: not watched.thing.built)
    yield hook(optimizer, "variables", unbuilt)
    # Attributes of instances, set by `compile` and `fit`: hooks at the class that has `compile`.
    trainer = owner_of(keras.Model, "compile")
    for name in ("history", "stop_training"):
        yield _ValueHook(trainer, name)
    for name in ("load_model", "load_weights_only"):
        if hasattr(saving_lib, name):
            yield _FunctionHook(saving_lib, name, _loading)
    compiled = backends.get_backend().COMPILED_FUNCTION
    if compiled is not None:
        yield hook(compiled, "__call__", _compiled)


def _make_callback_hooks() -> Iterator[_Hook]:
    for name, replace in (("__getattribute__", _callback_get), ("__setattr__", _callback_set)):
        yield hook(keras.callbacks.Callback, name, replace)


def _make_unbuilt_hooks() -> Iterator[_Hook]:
    yield hook(keras.Layer, "__getattribute__", _unbuilt_get)


_hooks = Hooks(_all_hooks)
_callback_hooks = Hooks(_make_callback_hooks)
_unbuilt_hooks = Hooks(_make_unbuilt_hooks)


def _value(usual: property) -> property:
    read = usual.fget

    def value(this: keras.Variable) -> Thing:
        watched = _thread.things.get(id(this))
        if watched is not None and watched.changes and _is_read(this):
            watched.watch.look(this, "the value of {} is read", False)
        return read(this)  # type: ignore[misc]  # it has one

    return property(value, usual.fset, usual.fdel, usual.__doc__)


def _is_read(variable: keras.Variable) -> bool:
    """Returns whether a read of the variable reads its own value, and not one of a scope."""
    scope = get_stateless_scope()
    is_carried = scope is not None and scope.get_current_value(variable) is not None
    return not is_carried and not in_symbolic_scope()


def _shown(usual: Attribute) -> Attribute:
    @functools.wraps(usual)
    def shown(this: keras.Variable, *args: Thing) -> Thing:
        watched = _thread.things.get(id(this))
        if watched is not None and watched.changes:
            watched.watch.look(this, "the value of {} is read", False)
        return usual(this, *args)

    return shown


def _assign(usual: Attribute) -> Attribute:
    @functools.wraps(usual)
    def assign(this: keras.Variable, *args: Thing, **kwargs: Thing) -> Thing:
        watched = _thread.things.get(id(this))
        if watched is not None and get_stateless_scope() is None and not in_symbolic_scope():
            watched.watch.look(this, "{} is assigned to", True)
        return usual(this, *args, **kwargs)

    return assign


def _property_set(name: str, usual: property) -> property:
    def change(this: Thing, value: Thing) -> None:
        watched = _thread.things.get(id(this))
        if watched is not None:
            watched.watch.look(this, f"`{name}` of {{}} is set", True)
        usual.__set__(this, value)

    return property(usual.fget, change, usual.fdel, usual.__doc__)


def _set(usual: Attribute) -> Attribute:
    def __setattr__(this: Thing, name: str, value: Thing) -> None:  # noqa: N807  # as it is shown
        watched = _thread.things.get(id(this))
        if watched is not None and name[:1] != "_" and name not in _SET_BY_KERAS:
            watched.watch.look(this, f"`{name}` of {{}} is set", True)
        usual(this, name, value)

    return __setattr__


def _method(name: str, usual: Attribute) -> Attribute:
    writes = name in _WRITERS
    doing = f"{name} of {{}} {'changes' if writes else 'needs'} its weights"

    @functools.wraps(usual)
    def method(this: keras.Model, *args: Thing, **kwargs: Thing) -> Thing:
        looked_at([this], doing, writes)
        return usual(this, *args, **kwargs)

    return method


def _own_method(name: str, usual: Attribute) -> Attribute:
    @functools.wraps(usual)
    def method(this: Thing, *args: Thing, **kwargs: Thing) -> Thing:
        watched = _thread.things.get(id(this))
        if watched is not None:
            watched.watch.look(this, f"{name} changes {{}}", True)
        return usual(this, *args, **kwargs)

    return method


def _listed(is_incomplete: Callable[[_Watched], bool], usual: property) -> property:
    read = usual.fget

    def listed(this: Thing) -> Thing:
        watched = _thread.things.get(id(this))
        if watched is not None and is_incomplete(watched):
            watched.watch.look(this, "what the training of {} makes is read", False)
        return read(this)  # type: ignore[misc]  # it has one

    return property(listed, usual.fset, usual.fdel, usual.__doc__)


def _loading(usual: Attribute) -> Attribute:
    @functools.wraps(usual)
    def load(*args: Thing, **kwargs: Thing) -> Thing:
        given = [value for value in [*args, *kwargs.values()] if isinstance(value, (str, PurePath))]
        for path, watch in list(_thread.paths):
            for file in map(_absolute, given):
                if _is_of(path, file):
                    watch.look(file, "{} is read, which a training may write", False)
                    return usual(*args, **kwargs)
        return usual(*args, **kwargs)

    return load


def _compiled(usual: Attribute) -> Attribute:
    """Returns a hook for TensorFlow's compiled functions, which read variables by no other hook."""
    read_by = backends.get_backend().variables_read_by

    @functools.wraps(usual)
    def call(this: Thing, *args: Thing, **kwargs: Thing) -> Thing:
        if _thread.things:
            watched = _sharing(_thread.things, read_by(this))
            if watched is not None:
                watched.watch.look(watched.thing, "a compiled function reads {}", False)
        return usual(this, *args, **kwargs)

    return call


def _callback_get(usual: Attribute) -> Attribute:
    def __getattribute__(this: Thing, name: str) -> Thing:  # noqa: N807  # as it is shown
        watched = _thread.things.get(id(this))
        # `vars` and copying read these two names with underscores.
        if watched is not None and (name[:2] != "__" or name in ("__dict__", "__getstate__")):
            watched.watch.look(this, f"`{name}` of {{}} is read", False)
        return usual(this, name)

    return __getattribute__


def _callback_set(usual: Attribute) -> Attribute:
    def __setattr__(this: Thing, name: str, value: Thing) -> None:  # noqa: N807  # as it is shown
        watched = _thread.things.get(id(this))
        if watched is not None:
            watched.watch.look(this, f"`{name}` of {{}} is set", True)
        usual(this, name, value)

    return __setattr__


def _unbuilt_get(usual: Attribute) -> Attribute:
    def __getattribute__(this: Thing, name: str) -> Thing:  # noqa: N807  # as it is shown
        if name[:1] != "_":
            watched = _thread.things.get(id(this))
            if watched is not None and watched.is_unbuilt and name not in _KNOWN_UNBUILT:
                watched.watch.look(this, f"`{name}` of {{}} is read", False)
        return usual(this, name)

    return __getattribute__
