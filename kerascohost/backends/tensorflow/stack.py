"""Stacks on TensorFlow: the prototype's step over tensors, by `tf.vectorized_map`, in a loop."""

import collections
import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

import keras
import tensorflow as tf
from keras import tree
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.optimizers.base_optimizer import BaseOptimizer

from kerascohost.backends import (
    STACKED_WEIGHTS_LIMIT,
    StepRange,
    flat_layers,
    has_own_step,
    is_of_keras,
    stacking,
)
from kerascohost.backends.base import Logs, StepKind, Tree
from kerascohost.backends.keras_internals import IMAGE_CONVOLUTIONS, counts_rows_by_type
from kerascohost.backends.stacking import CompiledStack, NotStackableError, Stack
from kerascohost.backends.tensorflow import vectorized
from kerascohost.patching import patched

T = TypeVar("T")

# Tensors in the order of something: of a stack's variables, of its traced floats, of a batch's
# leaves. Inside a step they are of one member.
Tensors: TypeAlias = list[tf.Tensor]

# The arrays of batches, `(steps, members, rows, ...)`, and two empty lists; or arrays to take rows
# of, a tensor of these rows, and for each array the first row of each member.
_Data: TypeAlias = tuple[Tensors, Tensors, Tensors]

_Specs: TypeAlias = tuple[list[tf.TensorSpec], ...]  # of such data

# How many steps of single members a program computes in vain before it is traced for fewer members
# than all. Tracing takes as long as more than these.
_MOST_IN_VAIN = 500

# A step of one member: from its values, floats and batch.
_Step: TypeAlias = Callable[[Tensors, Tensors, Tensors], T]


class StackedState(stacking.StackedState):
    """The state of a stack, see `stacking.StackedState`; its arrays are `tf.Variable`s.

    Attributes:
        in_vain: By the kind of steps, those of single members that were computed in vain.
    """

    in_vain: collections.Counter[StepKind]

    def __init__(self, stack: Stack, models: Sequence[keras.Model]):
        super().__init__(stack, models)
        size = len(stack.names)
        self.values = [
            tf.Variable(tf.zeros((size, *v.shape), v.dtype), trainable=False)
            for v in stack.variables[0]
        ]
        self.floats = [tf.Variable(own, trainable=False, dtype="float64") for own in stack.values]
        self._compiled: dict[str, Callable[[], None]] = {}

    def adopt(self, stack: Stack) -> None:
        """Makes it the state of another stack of the same signature; no row is loaded yet."""
        super().adopt(stack)
        self.in_vain = collections.Counter()
        for variable, own in zip(self.floats, stack.values, strict=True):
            variable.assign(own)

    def forget(self) -> None:
        """Releases the stack."""
        self._compiled.clear()
        super().forget()

    def load(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Copies the variables at `positions` of these members into their rows."""
        load = functools.partial(self._load, rows, positions)
        self._run(f"load {len(positions)}", rows, load)

    def _run(self, what: str, rows: Sequence[int], transfer: Callable[[], None]) -> None:
        if self.is_often(what, rows):
            if what not in self._compiled:
                self._compiled[what] = tf.function(transfer, autograph=False)
            transfer = self._compiled[what]
        transfer()

    def _load(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        rows = sorted(rows)  # members come in any order, but all rows are assigned as they are
        for i in positions:
            own = [_read(self.stack.variables[row][i]) for row in rows]
            own = tf.raw_ops.Pack(values=own, axis=0)
            if len(rows) == len(self.stack.names):
                self.values[i].assign(own)
            else:
                self.values[i].scatter_update(tf.IndexedSlices(own, tf.constant(rows)))

    def set_to_zero(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Sets the variables at `positions` to zero in these rows."""
        for i in positions:
            values = self.values[i]
            if len(rows) == len(self.stack.names):
                values.assign(tf.zeros_like(values))
            else:
                zeros = tf.zeros((len(rows), *values.shape[1:]), values.dtype)
                values.scatter_update(tf.IndexedSlices(zeros, tf.constant(rows)))

    def store(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Copies these rows into the members' variables at `positions`."""
        store = functools.partial(self._store, rows, positions)
        self._run(f"store {len(positions)}", rows, store)

    def _store(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        for i in positions:
            size = len(self.stack.names)
            values = tf.raw_ops.Unpack(value=self.values[i], num=size, axis=0)
            for row in rows:
                variable = self.stack.variables[row][i].value
                tf.raw_ops.AssignVariableOp(resource=variable.handle, value=values[row])


def _filled(names: list[str], size: int) -> list[str]:
    """Returns at least `size` names, the first of which is repeated.

    Its copies compute the same as that member, and their results are dropped.
    """
    return [*names, *names[:1] * (size - len(names))]


def _read(variable: keras.Variable) -> tf.Tensor:
    """Returns the variable's value.

    `raw_ops`: a stack has hundreds of variables, and this takes half the time.
    """
    return tf.raw_ops.ReadVariableOp(resource=variable.value.handle, dtype=variable.value.dtype)


class Program:
    """The steps of one kind of a stack, traced for as many members as it has.

    Some of them are computed by that trace, too, as in the last batches of an epoch if members have
    other numbers of rows. Where that would be often so, as after a member has stopped early, there
    is a second trace, for any number of members.

    Args:
        kind: `"train"`, `"test"` or `"predict"`.
        compiled: The compiled stack that it is of.
        state: Its state.
    """

    is_protected = True  # as rows are only written after all steps

    def __init__(self, kind: StepKind, compiled: CompiledStack, state: StackedState):
        self.kind = kind
        self.traces = 0
        self._compiled = compiled
        self._state = state
        self._functions: dict[
            tuple[Hashable, ...], tuple[_Specs, tf.types.experimental.ConcreteFunction]
        ] = {}
        own, prototype = self._stack.variables[0], compiled.models[0]
        metrics = {id(v) for v in prototype.metrics_variables}
        changing = metrics | {id(v) for v in prototype.non_trainable_variables}
        self._counts_rows_by_type = counts_rows_by_type(prototype)
        self._metrics = [i for i, v in enumerate(own) if id(v) in metrics]
        self._changing = [i for i, v in enumerate(own) if kind == "train" or id(v) in changing]
        self._read = [i for i, v in enumerate(own) if id(v) in _of_calls(prototype)]

    @property
    def _stack(self) -> Stack:
        return self._compiled.stack

    @property
    def _prototype(self) -> keras.Model:
        return self._compiled.members[0].model

    def __call__(self, ranges: Mapping[str, StepRange]) -> dict[str, Logs]:
        """Runs the steps asked for in `ranges`, equally many for each of its members.

        Returns:
            For each member of `ranges`, its metrics as NumPy arrays, or the outputs of all steps
            when predicting.

        Raises:
            NotStackableError: If the step cannot be vectorised; no row has changed then.
        """
        names = list(ranges)
        steps = ranges[names[0]].stop - ranges[names[0]].start
        for_all = self._is_for_all(len(names), steps)
        # Never one: operations may treat an axis of size 1 as if there were none.
        chosen = _filled(names, len(self._stack.names) if for_all else 2)
        batches = stacking.stacked_batches([ranges[name] for name in chosen])
        taken = [] if batches.rows is None else [batches.rows]
        data = tree.map_structure(tf.convert_to_tensor, (batches.arrays, taken, batches.firsts))
        if self.kind == "predict":
            self._state.read_from_models(names, self._read)
        else:
            self._state.sync_from_models(ranges)
        is_fixed = all(ranges[name].chunk.is_fixed for name in names)
        function = self._function_for(for_all, batches.structure, data, is_fixed)
        rows = self._state.rows(names)
        chosen_rows = tf.constant(self._state.rows(chosen))
        if self.kind == "predict":
            outputs = function(data, chosen_rows, tf.constant(steps))
            outputs = tree.map_structure(lambda t: t.numpy(), outputs)
            return stacking.outputs_by_member(names, outputs)
        logs, changed = function(data, chosen_rows, tf.constant(steps))
        self._take_up(names, rows, self._checked(changed, len(chosen)))
        logs = tree.map_structure(lambda t: t.numpy(), logs)
        return stacking.logs_by_member(names, rows, logs, self._compiled.log_keys)

    def _is_for_all(self, number: int, steps: int) -> bool:
        """Returns whether the trace for all members computes these steps of so many of them."""
        missing = len(self._stack.names) - number
        self._state.in_vain[self.kind] += missing * steps
        return not missing or self._state.in_vain[self.kind] <= _MOST_IN_VAIN

    def _checked(self, changed: Tensors, size: int) -> Tensors:
        """Returns the new rows; raises if they have other shapes, as TensorFlow may abort then."""
        for i, value in zip(self._changing, changed, strict=True):
            if tuple(value.shape) != (size, *self._stack.variables[0][i].shape):
                raise NotStackableError("would give a variable a value of another shape")
        return changed

    def release_data(self) -> None:
        """Does nothing, as no data is stored."""

    def _take_up(self, names: list[str], rows: list[int], changed: Tensors) -> None:
        """Writes the new rows to the state.

        Not part of the compiled function: if that failed, some rows would have been written.
        """

        def write() -> None:
            for i, value in zip(self._changing, changed, strict=True):
                if names == self._stack.names:
                    self._state.values[i].assign(value)
                else:
                    own = tf.IndexedSlices(value[: len(rows)], tf.constant(rows))
                    self._state.values[i].scatter_update(own)

        stacking.finished(write)

    def _function_for(
        self, for_all: bool, structure: Tree, data: _Data, is_fixed: bool
    ) -> tf.types.experimental.ConcreteFunction:
        """Returns the trace for these shapes, generalised if earlier calls had others."""
        size = len(self._stack.names) if for_all else None
        arrays, rows, firsts = data
        batch = (rows or arrays)[0].shape[2] if is_fixed else None

        def by_step(t: tf.Tensor) -> tf.TensorSpec:
            return tf.TensorSpec((None, size, batch, *t.shape[3:]), t.dtype)

        def any_length(t: tf.Tensor) -> tf.TensorSpec:
            return tf.TensorSpec((None, *t.shape[1:]), t.dtype)

        specs = (
            [any_length(t) if rows else by_step(t) for t in arrays],
            [by_step(t) for t in rows],
            [tf.TensorSpec((size, 1), t.dtype) for t in firsts],
        )
        key = (
            for_all,
            batch if self._counts_rows_by_type else None,
            repr(structure),
            bool(rows),
            tuple((t.dtype, len(t.shape)) for t in arrays),
        )
        known, function = self._functions.get(key, (specs, None))
        pairs = list(zip(tree.flatten(known), tree.flatten(specs), strict=True))
        if function is None or not all(new.is_subtype_of(old) for old, new in pairs):
            common = [old.most_specific_common_supertype([new]) for old, new in pairs]
            specs = tree.pack_sequence_as(specs, common)
            function = self._trace(for_all, structure, specs)
            self._functions[key] = (specs, function)
        return function

    def _trace(
        self, for_all: bool, structure: Tree, specs: _Specs
    ) -> tf.types.experimental.ConcreteFunction:
        self.traces += 1
        run = self._predictions if self.kind == "predict" else self._run
        traced = tf.function(functools.partial(run, structure), autograph=False)
        rows = tf.TensorSpec((len(self._stack.names) if for_all else None,), tf.int32)
        with (
            self._compiled.members[0].as_read(self.kind),
            self._stack.tracing(self._prototype),
            vectorized.rules(len(self._stack.names)),
        ):
            function = traced.get_concrete_function(specs, rows, tf.TensorSpec((), tf.int32))
            vectorized.check_effects(function.graph)
        return function

    def _run(
        self, structure: Tree, data: _Data, rows: tf.Tensor, steps: tf.Tensor
    ) -> tuple[Logs, Tensors]:
        values, floats = self._given(rows)
        step = self._vectorized(self._step(structure))

        def body(i: tf.Tensor, *changing: tf.Tensor) -> Tensors:
            now = _replaced(values, self._changing, changing)
            new = step(now, floats, _batches(data, i))
            return [i + 1, *map(_shaped_like, new, changing)]

        with _stateless(self._prototype):
            _, *changing = tf.while_loop(
                lambda i, *_: i < steps, body, [0, *(values[i] for i in self._changing)]
            )
        values = _replaced(values, self._changing, changing)
        logs = _map(self._results, [values[i] for i in self._metrics], [], [], fallback=True)
        return logs, changing

    def _predictions(self, structure: Tree, data: _Data, rows: tf.Tensor, steps: tf.Tensor) -> Tree:
        """Returns the outputs of all steps, each array `(steps, members, rows, ...)`."""
        values, floats = self._given(rows)
        step = self._vectorized(self._predict_step(structure))

        def outputs(i: tf.Tensor) -> Tree:
            return step(values, floats, _batches(data, i))

        traced = tf.function(outputs, autograph=False)
        one = traced.get_concrete_function(tf.TensorSpec((), tf.int32)).structured_outputs
        spec = tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), one)
        return tf.map_fn(traced, tf.range(steps), fn_output_signature=spec)

    def _given(self, rows: tf.Tensor) -> tuple[Tensors, Tensors]:
        """Returns the values and the traced floats of the members with these rows."""
        stacked = [
            [*map(tf.convert_to_tensor, own)] for own in (self._state.values, self._state.floats)
        ]
        size = len(self._stack.names)

        def taken() -> list[Tensors]:
            return [[tf.gather(tensor, rows) for tensor in own] for own in stacked]

        if rows.shape[0] != size:
            values, floats = taken()
        else:  # as they are, without a copy, if it is each of the members
            values, floats = tf.cond(tf.reduce_all(rows == tf.range(size)), lambda: stacked, taken)
        return values, floats

    def _vectorized(self, step: _Step[T]) -> _Step[T]:
        """Returns the step of all members, by XLA where the model's own would be compiled so."""
        vectorized_step = functools.partial(_map, step)
        if self._prototype.jit_compile:
            return tf.function(vectorized_step, jit_compile=True, autograph=False)
        return vectorized_step

    def _predict_step(self, structure: Tree) -> _Step[Tree]:
        """Returns `step(values, floats, batch)` of one member, which returns its outputs."""
        model, variables = self._prototype, self._stack.variables[0]

        def step(values: Tensors, floats: Tensors, batch: Tensors) -> Tree:
            mapping = list(zip(variables, values, strict=True))
            with (
                stacking.traced_floats(self._stack, floats, tf.cast),
                _Scope(mapping) as scope,
            ):
                outputs = model.predict_step(stacking.unflattened(structure, batch))
            _refuse_strangers(scope, variables)
            if any(scope.get_current_value(variable) is not value for variable, value in mapping):
                raise NotStackableError("changes variables when it predicts")
            return outputs

        return step

    def _step(self, structure: Tree) -> _Step[Tensors]:
        """Returns `step(values, floats, batch)` of one member, which returns the changing values.

        Args:
            structure: The structure of a batch, see `stacking.unflattened`.
        """
        model, variables = self._prototype, self._stack.variables[0]
        own_step = _train_step if self.kind == "train" else _test_step

        def step(values: Tensors, floats: Tensors, batch: Tensors) -> Tensors:
            data = stacking.unflattened(structure, batch)
            mapping = list(zip(variables, values, strict=True))
            with (
                stacking.traced_floats(self._stack, floats, tf.cast),
                _Scope(mapping) as scope,
            ):
                own_step(model, scope, data)
            _refuse_strangers(scope, variables)
            return [scope.get_current_value(variables[i]) for i in self._changing]

        return step

    def _results(self, values: Tensors, *_: Tensors) -> Logs:
        own = self._stack.variables[0]
        mapping = [(own[i], value) for i, value in zip(self._metrics, values, strict=True)]
        with keras.StatelessScope(mapping):
            return self._prototype.get_metrics_result()


def _refuse_strangers(scope: keras.StatelessScope, variables: list[keras.Variable]) -> None:
    if set(scope.state_mapping) - {id(v) for v in variables}:
        raise NotStackableError("changes a variable which the model does not track")


def _of_calls(model: keras.Model) -> set[int]:
    """Returns the identities of the variables that a call of the model may read."""
    return {id(v) for v in [*model.trainable_variables, *model.non_trainable_variables]}


def cannot_stack(model: keras.Model) -> str | None:
    """Returns why this model can be in no stack, or `None`.

    On TensorFlow `variable.value` is the variable itself, and not a copy of its value. An optimizer
    that reads it, writes the variable and then uses what it read, as `ScheduleFreeAdamW` does
    (Keras 3.15), gets the new value there, and would get the old one from a tensor. No other
    optimizer of Keras does so; users' own may.
    """
    if any(has_own_step(model, kind) for kind in ("train", "test")):
        return "has a `train_step`, `test_step` or metrics of its own"
    kind = type(model.optimizer)
    if not is_of_keras(kind) or kind is keras.optimizers.ScheduleFreeAdamW:
        return f"{kind.__name__} may read variables that it has already changed"
    return None


def stacks_badly(model: keras.Model) -> str | None:
    """Returns why models like this one are expected to be slower stacked than joined, or `None`.

    On a CPU, a convolution over images with weights of each member costs a product of large
    matrices and the copies to make them (8 small CNNs on 2 cores: a third of the speed of joined).
    """
    if tf.config.list_logical_devices("GPU"):
        return None
    if any(isinstance(layer, IMAGE_CONVOLUTIONS) for layer in flat_layers(model)):
        return "convolutions over images are faster joined on a CPU"
    if model.count_params() > STACKED_WEIGHTS_LIMIT:
        return "models of so many weights are as fast joined on a CPU"
    return None


def _batches(data: _Data, i: tf.Tensor) -> Tensors:
    """Returns the members' batches of step `i`.

    Rows are taken here, for all members at once: inside the vectorised step it would be slower.
    """
    arrays, rows, firsts = data
    if not rows:
        return [array[i] for array in arrays]
    return [
        tf.gather(array, rows[0][i] + first) for array, first in zip(arrays, firsts, strict=True)
    ]


def _map(
    step: _Step[T], values: Tensors, floats: Tensors, batch: Tensors, fallback: bool = False
) -> T:
    """Returns the results of `step` for all members: all tensors have an axis of members first."""
    return tf.vectorized_map(
        lambda given: step(*given), (values, floats, batch), fallback_to_while_loop=fallback
    )


def _shaped_like(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """Returns `new` with the static shape of `old`, which a loop requires of its state."""
    if not new.shape.is_compatible_with(old.shape):
        raise NotStackableError("would give a variable a value of another shape")
    known = new.shape.rank is not None and new.shape[1:] == old.shape[1:]
    return new if known else tf.ensure_shape(new, old.shape)


def _replaced(values: Tensors, positions: Sequence[int], others: Sequence[tf.Tensor]) -> Tensors:
    values = list(values)
    for i, other in zip(positions, others, strict=True):
        values[i] = other
    return values


def _train_step(model: keras.Model, scope: keras.StatelessScope, data: Tree) -> None:
    """Does the same as `keras.Model.train_step` on TensorFlow, in a stateless scope.

    `_call_has_training_arg`, `_compute_loss`, `_loss_tracker`: Keras's own step uses them. It takes
    gradients by the variables themselves, which are tensors in the scope.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    weights = model.trainable_variables
    tensors = [scope.get_current_value(variable) for variable in weights]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        y_pred = model(x, training=True) if model._call_has_training_arg else model(x)
        loss = model._compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
        )
        model._loss_tracker.update_state(loss, sample_weight=_samples(x))
        loss = model.optimizer.scale_loss(loss)
    gradients = tape.gradient(loss, tensors)
    model.optimizer.apply_gradients(zip(gradients, weights, strict=True))
    model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def _test_step(model: keras.Model, scope: keras.StatelessScope, data: Tree) -> None:
    """Does the same as `keras.Model.test_step` on TensorFlow; see `_train_step`."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    y_pred = model(x, training=False) if model._call_has_training_arg else model(x)
    loss = model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=False)
    model._loss_tracker.update_state(loss, sample_weight=_samples(x))
    model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def _samples(x: Tree) -> tf.Tensor:
    return tf.shape(next(leaf for leaf in tree.flatten(x) if leaf is not None))[0]


# The methods that `TFOptimizer` overrides, but for `_clip_by_norm`, which does not use variables.
_OVERRIDDEN = [
    name
    for name, method in vars(TFOptimizer).items()
    if callable(method) and hasattr(BaseOptimizer, name) and not name.startswith("__")
    if name not in ("_clip_by_norm", "_var_key")
]


@contextlib.contextmanager
def _stateless(model: keras.Model) -> Iterator[None]:
    """Makes optimizers compute with tensors within the block, as they do on other backends.

    Keras's `TFOptimizer` overrides methods of every optimizer by operations on `tf.Variable`s, and
    identifies variables by a key that it reads from them; see its `stateless_apply`. The class is
    changed, for this thread, because optimizers call these methods by `super()` too.
    """
    optimizer = model.optimizer
    keys = {id(v): TFOptimizer._var_key(optimizer, v) for v in model.trainable_variables}
    methods = {name: getattr(BaseOptimizer, name) for name in _OVERRIDDEN}
    methods |= {name: _assigning_parts(name) for name in ("assign", "assign_add", "assign_sub")}
    methods["_var_key"] = lambda self, variable: keys[id(variable)]
    with contextlib.ExitStack() as entered:
        for name, method in methods.items():
            entered.enter_context(patched(TFOptimizer, name, _instead(method)))
        yield


def _instead(method: Callable[..., T]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    return lambda usual: method


def _assigning_parts(name: str) -> Callable[..., None]:
    """Returns an optimizer's `assign` or its like, which takes sparse values too.

    The gradient of an Embedding reaches an optimizer as a list of rows (`tf.IndexedSlices`), in
    which a row may occur twice: Keras squares, or clips, each of them before they are added up.
    """
    method = getattr(BaseOptimizer, name)

    def assign(
        self: BaseOptimizer, variable: keras.Variable, value: tf.Tensor | tf.IndexedSlices
    ) -> None:
        if isinstance(value, tf.IndexedSlices):
            if name == "assign":
                raise NotStackableError("assigns rows of an Embedding one by one")
            value = tf.convert_to_tensor(value)
        method(self, variable, value)

    return assign


class _Scope(keras.StatelessScope):
    """A stateless scope that refuses values which are computed only in a branch or a loop."""

    def __init__(self, mapping: list[tuple[keras.Variable, tf.Tensor]]):
        super().__init__(mapping, collect_losses=True)
        self._graph = tf.compat.v1.get_default_graph()

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        if tf.compat.v1.get_default_graph() is not self._graph:
            raise NotStackableError("changes a variable inside a branch or a loop of its own")
        super().add_update(update)
