"""Programs on TensorFlow: one `tf.function` that loops over each member's own `train_step`."""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from keras.src.backend.tensorflow.trainer import potentially_ragged_concat
from tensorflow.python.eager import (
    context,  # holds the global seed, which nothing public reads
    record,  # for `could_possibly_record`
)

from kerascohost.backends import (
    FUSED_STATE_LIMIT,
    Chunk,
    StepRange,
    has_own_step,
    is_built,
    state_bytes,
    symbolic_build,
    variables,
)
from kerascohost.backends.base import Execution, Logs, ProgramMember, StepKind, Thing, Tree
from kerascohost.backends.replicas import applied_in_pieces
from kerascohost.backends.row_order import RowOrder, shuffled_rows
from kerascohost.backends.tensorflow import stack

COMPILED_FUNCTION = type(tf.function(lambda: None))
COMPILES_PER_SHAPE = False  # dimensions may be unknown
SHUFFLES_BY_GLOBAL_STATE = False  # by a seed: each epoch alike
FINALIZES_AFTER_FAILURE = False
StackProgram, StackedState = stack.Program, stack.StackedState
cannot_stack, stacks_badly = stack.cannot_stack, stack.stacks_badly

_UNSET_SEED = 87654321  # what `get_seed` returns where no global seed was set

# A member's step: from a batch to its logs or outputs.
_Step: TypeAlias = Callable[[Tree], Logs]

# From the number of a step to its batch.
_Take: TypeAlias = Callable[[tf.Tensor], Tree]

# The global seed, and the state of the generator of operation seeds (`random.Random.getstate`).
_RandomState: TypeAlias = tuple[int | None, tuple[int, tuple[int, ...], float | None] | None]


class Program:
    """The steps of one kind of some members, traced once and run together.

    Each member has a loop of its own inside the one `tf.function`. The loops use different
    variables, so TensorFlow runs them in parallel, and a member without steps in a call takes no
    time: one trace serves every subset of the members. (One loop around all members was a third
    slower: every iteration waits for its last operation.)

    Args:
        kind: `"train"`, `"test"` or `"predict"`.
        members: The members.
    """

    def __init__(self, kind: StepKind, members: Sequence[ProgramMember]):
        self.kind = kind
        self.traces = 0
        self.members = list(members)
        self._structures: list[Tree] = []
        self._take_rows: list[bool] = []
        self._specs: list[list[tf.TensorSpec]] = []
        self._function: tf.types.experimental.ConcreteFunction | None = None

    def __call__(self, ranges: Mapping[str, StepRange]) -> dict[str, Logs]:
        """Runs the steps asked for in `ranges`, by member; the first call must name all members.

        If it fails, every member is restored to its state before the call (see `is_protected`).

        Returns:
            For each member of `ranges`, the logs of its last step as NumPy arrays (its metrics,
            where these are what its step returns), or the outputs of all steps when predicting.
        """
        batches = self._batches(ranges)
        bounds = [
            (ranges[m.name].start, ranges[m.name].stop) if m.name in ranges else (0, 0)
            for m in self.members
        ]
        assert self._function is not None  # `_batches` has traced
        with self._all_or_nothing(ranges):
            logs = self._function(batches, tf.constant(bounds, dtype=tf.int32))
        own = {m.name: logs[i] for i, m in enumerate(self.members) if m.name in ranges}
        return own if self.kind == "predict" else {name: _on_host(own[name]) for name in own}

    def release_data(self) -> None:
        """Does nothing, as no data is stored."""

    def _batches(self, ranges: Mapping[str, StepRange]) -> list[list[tf.Tensor]]:
        """Returns every member's tensors, empty ones for members without steps.

        Traces the function if it does not accept tensors of these shapes yet.
        """
        given = [
            _on_device(ranges[m.name].chunk) if m.name in ranges else None for m in self.members
        ]
        specs = [
            self._specs[i]
            if tensors is None
            else _specs(
                tensors,
                bool(m.samples_per_replica) or ranges[m.name].chunk.is_fixed,
                ranges[m.name].chunk.rows is not None,
            )
            for i, (m, tensors) in enumerate(zip(self.members, given, strict=True))
        ]
        if self._function is None or not _accepts(self._specs, specs):
            if not self._structures:
                chunks = [ranges[m.name].chunk for m in self.members]
                self._structures = [tree.map_structure(_is_present, c.data) for c in chunks]
                self._take_rows = [c.rows is not None for c in chunks]
            self._trace(specs)
        return [
            [_nothing(spec) for spec in known] if tensors is None else tensors
            for tensors, known in zip(given, self._specs, strict=True)
        ]

    def _trace(self, specs: list[list[tf.TensorSpec]]) -> None:
        if self._specs:
            triples = zip(self.members, self._specs, specs, strict=True)
            specs = [
                new if m.samples_per_replica else list(map(_common, old, new))
                for m, old, new in triples
            ]
        bounds = tf.TensorSpec((len(self.members), 2), tf.int32)
        self.traces += 1
        function = tf.function(self._run, autograph=False)
        self._function = function.get_concrete_function(specs, bounds)
        self._specs = specs

    def _run(self, batches: list[list[tf.Tensor]], bounds: tf.Tensor) -> list[Logs]:
        logs = []
        for i, member in enumerate(self.members):
            with member.traced(self.kind):
                take = functools.partial(_take, self._structures[i], batches[i], self._take_rows[i])
                logs.append(_loop(member, self.kind, take, bounds[i, 0], bounds[i, 1]))
        return logs

    @contextlib.contextmanager
    def _all_or_nothing(self, ranges: Mapping[str, StepRange]) -> Iterator[None]:
        """Restores all members' variables if the block fails, as steps may be incomplete then."""
        if not self.is_protected:
            yield
            return
        # The tensors share the variables' memory until these change. (One `tf.function` that reads
        # all variables is faster from the hundredth call on; tracing it costs more than that.)
        state = [
            (variable, tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype))
            for member in self.members
            if member.name in ranges
            for variable in self._variables[member.name]
        ]
        try:
            yield
        except tf.errors.OpError:
            for variable, value in state:
                variable.assign(value)
            raise

    @functools.cached_property
    def is_protected(self) -> bool:
        """Returns whether a failure leaves every member as it was before the call.

        Not so for models that are too large to be copied: what the failing step wrote remains.
        """
        return sum(state_bytes(m.model) for m in self.members) <= FUSED_STATE_LIMIT

    @functools.cached_property
    def _variables(self) -> dict[str, list[tf.Variable]]:
        return {m.name: [v.value for v in variables(m.model)] for m in self.members}


def _loop(
    member: ProgramMember, kind: StepKind, take: _Take, start: tf.Tensor, stop: tf.Tensor
) -> Logs:
    """Runs the member's step from `start` to `stop`; returns what `Program.__call__` promises."""
    step = _step(member, kind)
    if kind == "predict":
        return _map_steps(step, take, start, stop)
    if has_own_step(member.model, kind):
        return _carry_logs(step, take, start, stop)

    def body(i: tf.Tensor) -> tf.Tensor:
        step(take(i))
        return i + 1

    tf.while_loop(lambda i: i < stop, body, [start])
    return member.model.get_metrics_result()


def _step(member: ProgramMember, kind: StepKind) -> _Step:
    """Returns the model's own step, compiled by XLA where the model's `fit` does so."""
    step = getattr(member.model, f"{kind}_step")
    if kind == "train" and member.samples_per_replica:
        whole = step

        def step(data: Tree) -> Logs:
            with applied_in_pieces(member.model, member.samples_per_replica):
                return whole(data)

    if member.model.jit_compile:
        return tf.function(step, jit_compile=True, autograph=False, reduce_retracing=True)
    return step


def _carry_logs(step: _Step, take: _Take, start: tf.Tensor, stop: tf.Tensor) -> Logs:
    """Runs steps that return logs of their own; returns those of the last step.

    In an `Optional`, as in `fit`: one tensor holds any logs, also of shapes that are not known
    before, and Python numbers, lists and the like are converted, or refused, as in `fit`.
    """
    inner = tf.function(step, autograph=False)

    def optional_logs(data: Tree) -> tf.experimental.Optional:
        return tf.experimental.Optional.from_value(inner(data))

    traced = tf.function(optional_logs, autograph=False)
    spec = traced.get_concrete_function(take(start)).structured_outputs.element_spec
    _, logs = tf.while_loop(
        lambda i, _: i < stop,
        lambda i, _: (i + 1, traced(take(i))),
        [start, tf.experimental.Optional.empty(spec)],
    )
    return logs


def _on_host(logs: Logs) -> Logs:
    """Returns a program's logs with NumPy arrays in place of tensors.

    Not by `np.array`: it requests a tensor's buffer and, if an interrupt comes at that moment,
    takes it for a refusal and drops it (NumPy 2.4).
    """
    if isinstance(logs, tf.experimental.Optional):
        logs = logs.get_value()
    return tree.map_structure(lambda t: t.numpy() if isinstance(t, tf.Tensor) else t, logs)


def _map_steps(step: _Step, take: _Take, start: tf.Tensor, stop: tf.Tensor) -> Tree:
    traced = tf.function(step, autograph=False)
    outputs = traced.get_concrete_function(take(start)).structured_outputs
    spec = tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), outputs)
    return tf.map_fn(lambda i: traced(take(i)), tf.range(start, stop), fn_output_signature=spec)


def _take(structure: Tree, tensors: list[tf.Tensor], takes_rows: bool, i: tf.Tensor) -> Tree:
    """Returns batch `i` of what `_on_device` returned."""
    if takes_rows:
        *tensors, rows = tensors
        leaves = iter([tf.gather(tensor, rows[i]) for tensor in tensors])
    else:
        leaves = iter([tensor[i] for tensor in tensors])
    return tree.map_structure(lambda there: next(leaves) if there else None, structure)


def _is_present(leaf: Tree) -> bool:
    return leaf is not None


def _on_device(chunk: Chunk) -> list[tf.Tensor]:
    """Returns the batches of a chunk; or the arrays to take rows of, and then these rows."""
    if chunk.on_device is None:
        leaves = [leaf for leaf in tree.flatten(chunk.data) if leaf is not None]
        if chunk.rows is None:
            chunk.on_device = [tf.convert_to_tensor(leaf) for leaf in leaves]
        else:
            arrays = [leaf.on_device for leaf in leaves]
            chunk.on_device = [*arrays, tf.convert_to_tensor(chunk.rows)]
    return chunk.on_device


def _specs(tensors: list[tf.Tensor], fixed_batch: bool, take_rows: bool) -> list[tf.TensorSpec]:
    """Returns specs of any number of steps and rows, and of any batch size unless it is fixed."""
    if take_rows:
        *arrays, rows = tensors
        taken = [tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in arrays]
        return [*taken, *_specs([rows], fixed_batch, take_rows=False)]
    return [
        tf.TensorSpec((None, t.shape[1] if fixed_batch else None, *t.shape[2:]), t.dtype)
        for t in tensors
    ]


def _accepts(specs: list[list[tf.TensorSpec]], others: list[list[tf.TensorSpec]]) -> bool:
    return all(
        other.is_subtype_of(spec)
        for pair in zip(specs, others, strict=True)
        for spec, other in zip(*pair, strict=True)
    )


def _nothing(spec: tf.TensorSpec) -> tf.Tensor:
    return tf.zeros([size or 0 for size in spec.shape], spec.dtype)


def _common(spec: tf.TensorSpec, other: tf.TensorSpec) -> tf.TensorSpec:
    return spec.most_specific_common_supertype([other]) or other


def build(model: keras.Model, batch: Tree) -> bool:
    """Creates the variables that the model, its loss, metrics and optimizer still lack.

    A model with a `train_step` of its own may not be callable as a whole: if it is not built, that
    step is traced, as `fit` does, which builds it. So it is if building with symbols fails: then
    `fit` works all the same, or fails with an exception of its own.

    Returns:
        Whether `fit` would have taken a batch for this before its first epoch: it never does.
    """
    # NumPy's strings are objects, for which Keras has no dtype.
    tensors = tree.map_structure(lambda a: None if a is None else tf.convert_to_tensor(a), batch)
    is_traced = has_own_step(model, "train") and not is_built(model)
    if not is_traced:
        try:
            symbolic_build(model, tensors)
        except Exception:
            is_traced = True
    if is_traced and batch is not None:
        tf.function(model.train_step, autograph=False).get_concrete_function(tensors)
    return False


def execution(model: keras.Model) -> Execution:
    """Returns `"eager"` for a model compiled with `run_eagerly=True`, else `"loop"`."""
    return "eager" if model.run_eagerly or runs_functions_eagerly() else "loop"


def runs_functions_eagerly() -> bool:
    """Returns whether a `tf.function` is run as plain Python."""
    return bool(tf.config.functions_run_eagerly())


def run_functions_eagerly(value: bool) -> None:
    """Sets whether every `tf.function` is run as plain Python."""
    tf.config.run_functions_eagerly(value)


def eager_step(model: keras.Model, kind: StepKind, batch: Tree) -> Logs:
    """Runs one step without compiling anything; returns the step's logs."""
    batch = tree.map_structure(lambda a: None if a is None else tf.convert_to_tensor(a), batch)
    logs = getattr(model, f"{kind}_step")(batch)
    if kind == "predict":
        return logs
    return tf.experimental.Optional.from_value(logs).get_value()  # as `fit`: see `_carry_logs`


def concatenated(parts: Sequence[np.ndarray]) -> np.ndarray | tf.RaggedTensor:
    """Returns the outputs of successive batches as `predict` does: ragged where shapes differ.

    `potentially_ragged_concat`: it determines which axes are ragged then.
    """
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    return potentially_ragged_concat([tf.convert_to_tensor(part) for part in parts])


def check_devices(devices: Sequence[Thing]) -> str | None:
    """Returns why the members of a stack cannot be spread over these devices: they never can."""
    return (
        f"Expected `devices` on JAX only, as TensorFlow runs a stack's step on one device. "
        f"Received: {len(devices)} devices."
    )


def set_to_zero(variables: Sequence[keras.Variable]) -> None:
    """Sets variables, each of which is one number, to zero."""
    for variable in variables:
        own = variable.value
        tf.raw_ops.AssignVariableOp(resource=own.handle, value=_zero(own.dtype))


@functools.cache
def _zero(dtype: tf.DType) -> tf.Tensor:
    return tf.zeros((), dtype)


def random_state() -> _RandomState:
    """Returns the global seed, and the position in its sequence of operation seeds.

    `_seed`, `_rng`: there is a public way to set the seed, none to read it or to continue from it.
    """
    eager = context.context()
    return eager._seed, None if eager._seed is None else eager._rng.getstate()


def set_random_state(state: _RandomState) -> None:
    """Restores the state that `random_state` returned.

    `_seed`, `_rng`: `tf.random.set_seed` also drops all kernels, so that every function would be
    made anew at each call. (So an eager `tf.random` operation that two programs call under one
    global seed continues, for the second, the first one's numbers. Keras uses stateless ones.)
    """
    eager = context.context()
    eager._seed, sequence = state
    if sequence is not None:
        eager._rng = random.Random()
        eager._rng.setstate(sequence)


def row_order(
    num_rows: int, batch_size: int, shuffle: bool | str, owns_state: bool = False
) -> RowOrder:
    """Returns the order in which `fit` would visit the rows in each coming epoch.

    With a global seed (`keras.utils.set_random_seed`), `fit` on TensorFlow shuffles every epoch
    alike, in an order that only depends on the seed; without one it draws from the operating
    system's randomness.
    """
    seed, _ = tf.compat.v1.get_seed(0)
    if seed != _UNSET_SEED:
        order = _seeded_order(num_rows, batch_size, shuffle == "batch", seed)
        return RowOrder(lambda: iter([order]))
    permutation = np.random.default_rng().permutation
    return RowOrder(lambda: shuffled_rows(permutation, num_rows, batch_size, shuffle))


@functools.lru_cache(maxsize=8)
def _seeded_order(num_rows: int, batch_size: int, by_batch: bool, seed: int) -> np.ndarray:
    """Returns the order that Keras's own `tf.data` pipeline gives, by the same operation.

    `tf.random.shuffle` inside a dataset depends on the global seed (set here, part of the key) and
    on being the first random operation of its function, which it is in a function of its own, too;
    that takes a third of the time.
    """
    if by_batch:  # one state for all batches, as the operation keeps it while a dataset is read
        rows = tf.data.Dataset.range(num_rows).batch(batch_size).map(tf.random.shuffle)
        order = np.concatenate(list(rows.as_numpy_iterator()))
    else:
        shuffle = tf.function(tf.random.shuffle, autograph=False)
        with tf.device("CPU"):
            # Traced here: a concrete function is one also where functions are run eagerly.
            concrete = shuffle.get_concrete_function(tf.TensorSpec([None], tf.int64))
            order = concrete(tf.range(num_rows, dtype=tf.int64)).numpy()
    order.flags.writeable = False
    return order


def is_tracing() -> bool:
    """Returns whether this thread traces a function, whose lock it holds meanwhile."""
    return not tf.executing_eagerly()


def is_recording() -> bool:
    """Returns whether this thread traces a function, or records operations on a tape.

    `record.could_possibly_record`: no public function returns whether there is a tape.
    """
    return not tf.executing_eagerly() or record.could_possibly_record()


def variables_read_by(function: tf.types.experimental.PolymorphicFunction) -> list[tf.Variable]:
    """Returns the variables that a `tf.function` reads, in all of its traces.

    `_list_all_concrete_functions`: no public function returns what has been traced.
    """
    traced = function._list_all_concrete_functions()
    return [variable for concrete in traced for variable in concrete.variables]


def to_device(array: np.ndarray) -> tf.Tensor:
    """Returns the array on the device; on a CPU, aligned memory is shared."""
    if tf.config.list_logical_devices("GPU"):
        return tf.convert_to_tensor(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def to_host(tensor: tf.Tensor, rows: slice) -> np.ndarray:
    """Returns rows of a tensor."""
    return tensor[rows].numpy()


def free_device_bytes() -> None:
    """Returns `None`: TensorFlow does not say how much memory its GPU has."""


def device_bytes() -> tuple[int, int] | None:
    """Returns the memory in use on the first GPU and its peak, in bytes; `None` without a GPU."""
    if not tf.config.list_logical_devices("GPU"):
        return None
    info = tf.config.experimental.get_memory_info("GPU:0")
    return info["current"], info["peak"]


def reset_device_peak() -> None:
    """Makes the memory in use now the peak."""
    if tf.config.list_logical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
