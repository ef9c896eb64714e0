"""The test of which models may stack: those that compute the same from other numbers.

A stack trains its members by one vectorised step, traced from the first of them, its prototype.
Models are stacked if everything that their steps reference is equal except the values of variables
(weights, optimizer state, metrics, seeds, learning rates) and Python floats: where members have
different floats, the prototype's are replaced by traced values while its step is traced.
"""

import contextlib
import functools
import hashlib
import itertools
import math
import re
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeAlias

import keras
import numpy as np

from kerascohost import backends
from kerascohost.backends.base import Tensor, Thing
from kerascohost.backends.process_state import Configuration
from kerascohost.backends.reached import TRACED_WITH

if TYPE_CHECKING:
    from kerascohost.backends.stacking.traced_float import TracedFloat

# An object that holds values: the `__dict__` of an object, a dict or a list.
Holder: TypeAlias = MutableMapping[Thing, Thing] | list[Thing]

# Attributes of Keras's objects that do not determine what a step computes. Private ones are Keras's
# (and, from `_self_` on, TensorFlow's) own bookkeeping: names, what was saved or compiled before,
# the calls that a layer has been part of, and keys that hold the identity of an object.
_IRRELEVANT = frozenset(
    {
        "name", "_name", "_path", "_parent_path", "history", "build", "quantize", "stop_training",
        "stop_evaluating", "stop_predicting", "train_function", "test_function",
        "predict_function", "call_signature_parameters", "_tracker", "_tracked", "_lock",
        "_auto_config", "_compile_config", "_build_shapes_dict", "_call_signature", "_called",
        "_compiled_trainable_state", "_nodes", "_inbound_nodes", "_outbound_nodes", "_loss_ids",
        "_losses", "_losses_override", "_initial_epoch", "_eval_epoch_iterator",
        "_epoch_iterator", "_jax_state", "_jax_state_synced", "_saved_model_arg_spec",
        "_saved_model_inputs_spec", "_trainable_variables_indices", "_exclude_from_weight_decay",
        "_exclude_from_weight_decay_cache", "_exclude_from_weight_decay_pattern",
        "_distribution_strategy", "_distribute_strategy", "_y_pred_build_structure",
        "_y_true_build_structure", "_self_name_based_restores", "_self_saveable_object_factories",
        "_self_setattr_tracking", "_self_update_uid",
        "_self_unconditional_checkpoint_dependencies",
        "_self_unconditional_deferred_dependencies", "_self_unconditional_dependency_names",
        TRACED_WITH,
    }
)  # fmt: skip
# Attributes that only set initial values: their effect is in the variables of a built model.
_INITIAL = frozenset({"seed", "_initial_seed"})
_PRIMITIVE = (bool, int, complex, str, bytes, type(None), type(Ellipsis), range)
# Packages whose code computes the same at any time, if Keras's configuration is the same.
_PACKAGES = ("keras", "numpy", "builtins")
_IDENTICAL = (type, types.ModuleType, types.BuiltinFunctionType, np.dtype, np.ufunc)


class NotStackableError(Exception):
    """An error for models that cannot be trained by one vectorised step.

    Args:
        why: The reason, as a phrase about the model.
        is_final: Whether the reason remains if no floats are traced.
    """

    def __init__(self, why: str, is_final: bool = False):
        super().__init__(why)
        self.is_final = is_final


class FloatRef:
    """A place that holds a Python float: an attribute, or an item of a list or dict.

    Args:
        path: The place, as a user would write it.
        holder: The dict or list.
        key: The key or index.

    Attributes:
        refused: Whether the value there has to be a Python number. (Stored
            here, as Keras may replace the exception that says so by one of its own.)
    """

    def __init__(self, path: str, holder: Holder, key: Thing):
        self.path = path
        self.holder = holder
        self.key = key
        self.refused = False

    @property
    def name(self) -> str:
        """The name of the hyperparameter."""
        return self.path.rpartition(".")[2]

    @property
    def value(self) -> float:
        """The value that is there now."""
        return self.holder[self.key]

    @contextlib.contextmanager
    def holding(self, value: "float | TracedFloat") -> Iterator[None]:
        """Replaces the value by another one within the block."""
        own = self.holder[self.key]
        self.holder[self.key] = value
        try:
            yield
        finally:
            self.holder[self.key] = own


class FieldRef(FloatRef):
    """A field of a named tuple that stands in a list.

    Args:
        path: As in `FloatRef`.
        holder: The list.
        key: The index of the tuple.
        field: The name of the field.
    """

    def __init__(self, path: str, holder: list[Thing], key: int, field: str):
        super().__init__(path, holder, key)
        self._field = field

    @property
    def value(self) -> float:
        """The value that is there now."""
        return getattr(self.holder[self.key], self._field)

    @contextlib.contextmanager
    def holding(self, value: "float | TracedFloat") -> Iterator[None]:
        """Replaces the field by another value within the block."""
        own = self.holder[self.key]
        self.holder[self.key] = own._replace(**{self._field: value})
        try:
            yield
        finally:
            self.holder[self.key] = own


class StepSignature:
    """The properties of a model that determine what its steps compute.

    Two models may stack if their `entries` are equal.

    Args:
        model: A compiled and built model.
        restored: The values that its steps are traced with instead of those that are there now.

    Attributes:
        entries: `(path, description)` for everything but floats and the values of variables.
        float_refs: The places of the floats.
        variables: The model's variables, in an order that models of one signature share.
        is_of_keras: Whether all code that a step runs is that of `_PACKAGES`.
        metric_names: The names of the model's metrics, which are the keys of its logs.

    Raises:
        NotStackableError: If the model holds something that cannot be compared.
    """

    def __init__(self, model: keras.Model, restored: Sequence[Hashable] = ()):
        self.entries: list[tuple[str, Hashable]] = [("what its fit read", tuple(restored))]
        self.float_refs: list[FloatRef] = []
        self.variables = backends.variables(model)
        self._seen: dict[int, int] = {}
        self._visited: list[Thing] = []  # alive, as the id of a deleted object may be used again
        coming = backends.unbuilt_metrics_variables(model)
        self._own = {id(variable) for variable in [*self.variables, *coming]}
        self._of_keras = True  # whether an object of Keras's holds what is visited
        self.is_of_keras = True
        self.metric_names = tuple(metric.name for metric in backends.with_parts(model.metrics))
        self._visit("model", model)
        self.entries.append(("optimizer.exclude_from_weight_decay", backends.decayed(model)))
        for i, variable in enumerate(self.variables):  # as references to those already seen
            self._visit(f"variables[{i}]", variable)

    @property
    def fingerprint(self) -> Hashable:
        """The `entries` as a key: equal for models that may stack, and only for them."""
        return tuple(self.entries)

    @property
    def state(self) -> list[tuple[str, Hashable]]:
        """The entries and floats: equal until anything but the values of variables changes."""
        return self.entries[1:] + [(ref.path, ref.value) for ref in self.float_refs]

    def _visit(self, path: str, thing: Thing) -> None:
        if isinstance(thing, _PRIMITIVE):
            self._add(path, (type(thing).__name__, thing))
        elif isinstance(thing, slice):  # which has no hash before Python 3.12
            for part in ("start", "stop", "step"):
                self._visit(f"{path}.{part}", getattr(thing, part))
        elif isinstance(thing, float):
            self._add(path, ("float", thing))  # not in a place where it can be replaced
        elif isinstance(thing, _IDENTICAL) or _is_module_function(thing):
            self.is_of_keras &= _package(thing) in _PACKAGES
            self._add(path, ("object", thing))
        elif isinstance(thing, keras.dtype_policies.DTypePolicy) and not hasattr(thing, "items"):
            self._open_object(path, thing)  # a value: equal ones do as well as a shared one
        elif id(thing) in self._seen:
            self._add(path, ("seen", self._seen[id(thing)]))
        else:
            self._seen[id(thing)] = len(self._seen)
            self._visited.append(thing)
            self._open(path, thing)

    def _add(self, path: str, entry: Hashable) -> None:
        self.entries.append((path, entry))

    def _open(self, path: str, thing: Thing) -> None:
        """Adds what kind of object this is, and visits its parts."""
        if isinstance(thing, keras.Variable):
            self._open_variable(path, thing)
        elif isinstance(thing, keras.initializers.Initializer) and self._of_keras:
            self._add(path, "initializer")  # not used again: the model has been built
        elif isinstance(thing, (list, tuple, set, frozenset)):
            self._open_sequence(path, thing)
        elif isinstance(thing, Mapping) or (hasattr(thing, "items") and hasattr(thing, "keys")):
            self._open_mapping(path, thing)
        elif isinstance(thing, (types.FunctionType, types.MethodType, functools.partial)):
            self._open_callable(path, thing)
        elif keras.ops.is_tensor(thing) and hasattr(thing, "assign"):  # the backend's own
            raise NotStackableError(f"holds a variable at `{path}` which the model does not track")
        elif isinstance(thing, (np.ndarray, np.generic)) or keras.ops.is_tensor(thing):
            self._open_array(path, thing)
        elif hasattr(thing, "__dict__"):
            self._open_object(path, thing)
        else:
            raise NotStackableError(
                f"holds a {type(thing).__name__} at `{path}`, which is not compared"
            )

    def _open_callable(
        self, path: str, function: types.FunctionType | types.MethodType | functools.partial[Thing]
    ) -> None:
        self.is_of_keras = False
        if isinstance(function, types.FunctionType):
            self._open_function(path, function)
        elif isinstance(function, types.MethodType):
            self._add(path, "method")
            self._visit(path, function.__func__)
            self._visit(path, function.__self__)
        else:
            self._add(path, "partial")
            with self._held_by(function):
                self._visit(path, [function.func, function.args, function.keywords])

    def _open_variable(self, path: str, variable: keras.Variable) -> None:
        if id(variable) not in self._own:
            raise NotStackableError(f"holds a variable at `{path}` which the model does not track")
        shape = tuple(variable.shape)
        kind = (shape, variable.dtype, variable.trainable, variable.overwrite_with_gradient)
        self._add(path, ("variable", kind))
        self._visit(f"{path}.regularizer", variable.regularizer)
        self._visit(f"{path}.constraint", variable.constraint)

    def _open_sequence(
        self,
        path: str,
        things: list[Thing] | tuple[Thing, ...] | set[Thing] | frozenset[Thing],
    ) -> None:
        if isinstance(things, (set, frozenset)):
            if not all(isinstance(thing, _PRIMITIVE) for thing in things):
                raise NotStackableError(
                    f"holds a set of objects at `{path}`, which is not compared"
                )
            self._add(path, ("set", frozenset(things)))
            return
        self._add(path, ("tuple" if isinstance(things, tuple) else "list", len(things)))
        for i, thing in enumerate(things):
            self._visit_item(f"{path}[{i}]", things, i, thing)

    def _open_mapping(self, path: str, things: MutableMapping[Thing, Thing]) -> None:
        self._add(path, ("dict", len(things)))
        for i, (key, thing) in enumerate(things.items()):
            is_plain = isinstance(key, _PRIMITIVE)
            if is_plain:
                self._add(path, ("key", key))
            else:
                self._visit(f"{path} (key {i})", key)
            self._visit_item(
                f"{path}[{key!r}]" if is_plain else f"{path} ({i})", things, key, thing
            )

    def _open_object(self, path: str, thing: Thing) -> None:
        self._add(path, ("a", type(thing)))
        self.is_of_keras &= _package(type(thing)) in _PACKAGES
        attributes: dict[str, Thing] = thing.__dict__
        with self._held_by(thing):
            for name in sorted(attributes):
                value = attributes[name]
                if not self._decides(thing, name, value):
                    continue
                inner = f"{path}.{name.lstrip('_')}"
                if name == "_flat_losses" and self._of_keras and value:
                    self._visit_losses(inner, value)
                elif name == "_keras_history" and isinstance(thing, keras.KerasTensor):
                    # Not `node_index`: how often the layer was called before, by any model.
                    self._visit(inner, [value.operation, value.tensor_index])
                else:
                    self._visit_item(inner, attributes, name, value)

    def _visit_losses(self, path: str, losses: list[Thing]) -> None:
        """Visits the named tuples that `CompileLoss` makes, one for each output.

        The name of the output makes no difference where there is only one, see `_decides`.
        """
        self._add(path, len(losses))
        for i, one in enumerate(losses):
            for field, value in zip(one._fields, one, strict=True):
                if field == "name" and len(losses) == 1:
                    continue
                if isinstance(value, float):
                    self._add(f"{path}[{i}].{field}", "a float")
                    self.float_refs.append(FieldRef(f"{path}[{i}].{field}", losses, i, field))
                else:
                    self._visit(f"{path}[{i}].{field}", value)

    @contextlib.contextmanager
    def _held_by(self, thing: Thing) -> Iterator[None]:
        before, self._of_keras = self._of_keras, backends.is_of_keras(type(thing))
        try:
            yield
        finally:
            self._of_keras = before

    def _decides(self, thing: Thing, name: str, value: Thing) -> bool:
        """Returns whether the value of an attribute can make a difference."""
        if name == "history":
            return not isinstance(value, keras.callbacks.History)
        if name == "_nodes":
            return not isinstance(thing, keras.Model)
        if name in _IRRELEVANT:
            return not isinstance(thing, _KERAS) and not self._of_keras
        if name in ("is_awq_calibrated", "is_gptq_calibrated") and self._of_keras:
            return bool(value)  # `False` in a layer that was loaded, else not set
        if name == "output_names" and (self._of_keras or backends.is_graph(thing)):
            return len(value or ()) != 1  # a history has the names of several outputs
        if isinstance(value, keras.initializers.Initializer) and isinstance(thing, keras.Layer):
            return _mentioned_in_steps(type(thing), name)
        if isinstance(thing, keras.initializers.Initializer):
            return True  # one that a step calls
        return not (self._of_keras and name in _INITIAL)

    def _visit_item(
        self, path: str, holder: Holder | tuple[Thing, ...], key: Thing, thing: Thing
    ) -> None:
        """Visits the value of a place. A float may be traced if only Keras reads it.

        User code may do anything with a float, such as asking for its type.
        """
        if isinstance(thing, float) and self._of_keras and not isinstance(holder, tuple):
            self._add(path, "a float")
            self.float_refs.append(FloatRef(path, holder, key))
        else:
            self._visit(path, thing)

    def _open_function(self, path: str, function: types.FunctionType) -> None:
        self._add(path, ("function", function.__code__, id(function.__globals__)))
        self._visit(f"{path}.__defaults__", function.__defaults__)
        self._visit(f"{path}.__kwdefaults__", function.__kwdefaults__)
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            self._visit(f"{path} ({name})", _content(cell))

    def _open_array(self, path: str, array: Tensor) -> None:
        try:
            values = np.asarray(keras.ops.convert_to_numpy(array))
        except Exception as error:  # a symbol of a graph, a resource handle, deleted, …
            raise NotStackableError(f"holds a tensor without a value at `{path}`") from error
        if values.dtype == object:
            raise NotStackableError(f"holds an array of objects at `{path}`, which is not compared")
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        self._add(path, ("array", values.shape, values.dtype.str, digest))


_KERAS = (
    keras.Layer,
    keras.optimizers.Optimizer,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.optimizers.schedules.LearningRateSchedule,
)


_BEFORE_STEPS = ("__init__", "build", "get_config", "from_config", "compute_output_shape")


def _mentioned_in_steps(kind: type, name: str) -> bool:
    """Returns whether user code, in a class of layers, uses an attribute after building."""
    return any(
        name in _names(thing.__code__)
        for owner in kind.__mro__
        if not backends.is_of_keras(owner)
        for method, thing in vars(owner).items()
        if isinstance(thing, types.FunctionType) and method not in _BEFORE_STEPS
    )


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(const) for const in code.co_consts if isinstance(const, types.CodeType)]
    strings = {const for const in code.co_consts if isinstance(const, str)}
    return strings.union(code.co_names, *inner)


def _is_module_function(thing: Thing) -> bool:
    """Returns whether this is a function of a module, which is identified by its `id`."""
    return (
        isinstance(thing, types.FunctionType)
        and thing.__closure__ is None
        and ("<locals>" not in thing.__qualname__ and "<lambda>" not in thing.__qualname__)
    )


def _package(thing: Thing) -> str:
    """Returns the package that a class, a function or a module is of."""
    is_module = isinstance(thing, types.ModuleType)
    module = thing.__name__ if is_module else getattr(thing, "__module__", None)
    return str(module or "builtins").partition(".")[0]


def _content(cell: types.CellType) -> Thing:
    try:
        return cell.cell_contents
    except ValueError:  # the cell of a name that has no value yet
        return None


class Stack:
    """Models of one step signature, which are trained by one vectorised step.

    Args:
        names: The names of the members.
        signatures: Their signatures.
        traced: The positions, among the `float_refs`, of the floats in which members differ.

    Attributes:
        names: The members, in the order of their rows.
        variables: For each member its variables, in an order that is the same for all.
        float_refs: The prototype's places of the traced floats.
        values: For each of `float_refs`, the members' values.
        key: Equal for stacks whose programs compute the same from other values, also at another
            time; `None` where steps run code of the user's, as what it reads may have changed.
        devices: The devices over which its members are spread; none: the backend's own choice.
    """

    devices: Sequence[Thing] = ()

    def __init__(
        self, names: Sequence[str], signatures: Sequence[StepSignature], traced: Sequence[int]
    ):
        self.names = list(names)
        self.variables = [signature.variables for signature in signatures]
        self.float_refs = [signatures[0].float_refs[i] for i in traced]
        self.values = [[signature.float_refs[i].value for signature in signatures] for i in traced]
        self.key = _reuse_key(names, signatures, traced)
        self._entries = signatures[0].state
        self._trainable = self._flags()

    @contextlib.contextmanager
    def tracing(self, prototype: keras.Model) -> Iterator[None]:
        """Checks that the prototype is unchanged before and after the block, which traces its step.

        The trace serves all members. So the prototype must be as it was when the members were
        compared, and tracing must not change it: in separate training each of the members would
        have been traced, and changed.

        Raises:
            NotStackableError: If the prototype has changed, or the block raises an exception.
        """
        self._compare(StepSignature(prototype), "was changed after the members were compared")
        try:
            yield
        except Exception as error:
            is_final = isinstance(error, NotStackableError) and error.is_final
            raise NotStackableError(reason(error), is_final) from error
        self._compare(StepSignature(prototype), "is changed by Python code of a step")

    def _compare(self, signature: "StepSignature", why: str) -> None:
        if signature.state == self._entries:
            return
        pairs = itertools.zip_longest(signature.state, self._entries)
        path = next((new or old)[0] for new, old in pairs if new != old)
        raise NotStackableError(f"`{path}` {why}", is_final=True)

    def check_trainable(self) -> None:
        """Raises `NotStackableError` if `trainable` of a variable has changed since."""
        if self._flags() != self._trainable:
            raise NotStackableError("`trainable` was changed after `compile`", is_final=True)

    def _flags(self) -> list[bool]:
        return [variable.trainable for own in self.variables for variable in own]


def _reuse_key(
    names: Sequence[str], signatures: Sequence[StepSignature], traced: Sequence[int]
) -> Hashable | None:
    prototype = signatures[0]
    if not prototype.is_of_keras:
        return None
    refs = enumerate(prototype.float_refs)
    shared = tuple((ref.path, ref.value) for i, ref in refs if i not in traced)
    devices = frozenset(str(getattr(v.value, "device", "")) for v in prototype.variables)
    entries = tuple(prototype.entries[1:])
    configuration, told = Configuration().traced, prototype.metric_names
    return len(names), tuple(traced), shared, devices, configuration, told, entries


class ReadSnapshot(Protocol):
    """The values that a deferred fit read at its call, which its model is traced with."""

    def restored(self) -> tuple[Hashable, ...]:
        """Returns a key for the values that are restored for the model's steps."""

    def as_read(self) -> AbstractContextManager[None]:
        """Restores the values within the block."""


def alike(
    models: Mapping[str, keras.Model],
    is_static: Callable[[str], bool] = lambda path: False,
    snapshots: Mapping[str, ReadSnapshot | None] | None = None,
) -> tuple[list[Stack], dict[str, str]]:
    """Sorts models into stacks.

    Args:
        models: Compiled and built models by name.
        is_static: Takes the path of a float; returns whether it cannot be a traced value.
        snapshots: The snapshots of deferred fits, by name: models are compared as they are traced.

    Returns:
        The stacks of two and more models, and the reason why each other model is in no stack.
    """
    signatures: dict[str, StepSignature] = {}
    reasons: dict[str, str] = {}
    for name, model in models.items():
        snapshot = (snapshots or {}).get(name)
        try:
            if snapshot is None:
                signatures[name] = StepSignature(model)
                continue
            with snapshot.as_read():
                signatures[name] = StepSignature(model, snapshot.restored())
        except NotStackableError as error:
            reasons[name] = str(error)
    groups: dict[Hashable, list[str]] = {}
    for name, signature in signatures.items():
        fixed = tuple(ref.value for ref in signature.float_refs if is_static(ref.path))
        groups.setdefault((signature.fingerprint, fixed), []).append(name)
    stacks = []
    for names in groups.values():
        if len(names) == 1:
            reasons[names[0]] = _difference(names[0], signatures, is_static)
        else:
            members = [signatures[name] for name in names]
            stacks.append(Stack(names, members, _differing(members)))
    return stacks, reasons


def _differing(signatures: Sequence[StepSignature]) -> list[int]:
    """Returns the positions of the floats in which the models differ."""
    columns = zip(*([ref.value for ref in a.float_refs] for a in signatures), strict=True)
    return [i for i, values in enumerate(columns) if len(set(values)) > 1]


def _difference(
    name: str, signatures: Mapping[str, StepSignature], is_static: Callable[[str], bool]
) -> str:
    """Returns how this model differs from the one that is most like it, as a phrase."""
    own = signatures[name]
    nearest: tuple[float, str] = (-1.0, "the only model that could be stacked")
    for other, signature in signatures.items():
        if other == name:
            continue
        pairs = zip(own.entries, signature.entries, strict=False)
        at = next((i for i, (mine, its) in enumerate(pairs) if mine != its), None)
        if at is not None:
            found: tuple[float, str] = (at, f"differs from {other!r} at `{own.entries[at][0]}`")
        else:
            floats = zip(own.float_refs, signature.float_refs, strict=False)
            path = next(
                (a.path for a, b in floats if a.value != b.value and is_static(a.path)), "model"
            )
            found = (
                math.inf,
                f"differs from {other!r} at `{path}`, which cannot be a traced value",
            )
        nearest = max(nearest, found)
    return nearest[1]


def reason(error: Exception) -> str:
    """Returns the line of an error's text that says what failed.

    Keras names the layer before it, TensorFlow appends the whole graph, and AutoGraph begins with
    the place in the code.
    """
    text = str(error).strip()
    within_keras = re.search(r"\x1b\[1m(.+?)\x1b\[0m", text, re.DOTALL)
    by_autograph = re.search(r"^ +\w+: (.+)$", text, re.MULTILINE)
    found = within_keras or (by_autograph if text.startswith("in user code:") else None)
    lines = (found[1] if found else text).strip().splitlines()
    return lines[0] if lines else type(error).__name__
