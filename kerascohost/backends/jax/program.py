"""Programs on JAX: a jitted loop over the members' own steps, which are pure functions."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never, TypeAlias

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from kerascohost.backends import (
    STACKED_WEIGHTS_LIMIT,
    Chunk,
    StepRange,
    has_own_step,
    seeding,
    symbolic_build,
)
from kerascohost.backends.base import Execution, Logs, ProgramMember, StepKind, Tree
from kerascohost.backends.jax import devices, stack
from kerascohost.backends.jax.stack import as_before, at_step, empty_logs, rows_of
from kerascohost.backends.keras_internals import CONVOLUTIONS, flat_layers
from kerascohost.backends.replicas import applied_in_pieces
from kerascohost.backends.row_order import RowOrder, shuffled_rows

COMPILED_FUNCTION = None  # they are given what they read
COMPILES_PER_SHAPE = True
SHUFFLES_BY_GLOBAL_STATE = True  # NumPy's
FINALIZES_AFTER_FAILURE = True
StackProgram, StackedState = stack.Program, stack.StackedState
check_devices = devices.check_devices
concatenated = np.concatenate  # of outputs: `predict` refuses other shapes, too

# The values of a model's variables, in groups as its step takes them.
State: TypeAlias = tuple[list[jax.Array], ...]

# A model's own step, and what a loop over steps carries from one to the next.
_Step: TypeAlias = Callable[[State, Tree], tuple[Logs, State]]
_Carry: TypeAlias = tuple[State, Logs]

# One step at a position of the data; several steps of all members, within bounds for each.
_StepAt: TypeAlias = Callable[[State, Tree, ArrayLike], tuple[Logs, State]]
_Run: TypeAlias = Callable[
    [list[State], list[Tree], np.ndarray], tuple[Sequence[Logs], list[State]]
]


class Program:
    """The steps of one kind of some members, traced once and run together.

    Members that always have equally many steps to do advance in one loop, which XLA runs fastest.
    Others have a loop each, which may be run zero times: one compilation serves every subset of the
    members. Steps that are slower in a loop are called one by one, see `execution`. Bounds are
    arguments, so a chunk can be divided among several calls; only another shape compiles anew.

    State is read from the variables before a call and written to them after it. It is not donated:
    a call that fails or is interrupted must leave every variable as it was.

    Args:
        kind: `"train"`, `"test"` or `"predict"`.
        members: The members.
    """

    def __init__(self, kind: StepKind, members: Sequence[ProgramMember]):
        self.kind = kind
        self.traces = 0
        self.is_protected = True  # as variables are written only after a call
        self.members = list(members)
        self._data: dict[str, Tree] = {}
        self._is_released = False
        self._alike: bool | None = None
        self._lockstep = jax.jit(self._one_loop)
        self._apart = jax.jit(self._a_loop_each)
        self._predict = jax.jit(self._predictions, static_argnames="size")
        self._steps: list[_StepAt] = []
        if execution(members[0].model) == "step":
            self._steps = [jax.jit(self._single_step(member)) for member in self.members]

    def __call__(self, ranges: Mapping[str, StepRange]) -> dict[str, Logs]:
        """Runs the steps asked for in `ranges`, by member; the first call must name all members.

        If it fails, every member is left as it was before the call.

        Returns:
            For each member of `ranges`, the logs of its last step as NumPy arrays (its metrics,
            where these are what its step returns), or the outputs of all steps when predicting.
        """
        owned = [_state_variables(member.model, self.kind) for member in self.members]
        states = [tuple([v.value for v in group] for group in groups) for groups in owned]
        self._data |= {name: _on_device(step_range.chunk) for name, step_range in ranges.items()}
        if self._is_released:
            # A call for some members runs no steps of the others, so any data serves for these.
            leaves = jax.tree.leaves(self._data)
            arrays = {_kind(a): a for a in leaves if not isinstance(a, jax.ShapeDtypeStruct)}
            self._data = jax.tree.map(lambda given: _any_like(given, arrays), self._data)
            self._is_released = False
        data = [self._data[member.name] for member in self.members]
        busy = [i for i, member in enumerate(self.members) if member.name in ranges]
        if self.kind == "predict":
            results, states = self._predicted(states, data, ranges)
            _write_back([owned[i] for i in busy], [states[i] for i in busy])
            return results
        run = self._step_by_step if self._steps else self._choose(ranges)
        logs, states = run(states, data, self._bounds(ranges))
        jax.block_until_ready(states)  # a failure must show before anything is written back
        _write_back([owned[i] for i in busy], [states[i] for i in busy])
        # Not by `np.array`: it drops an interrupt that comes while it requests the buffer of a JAX
        # array, as it takes any exception to mean that there is none (NumPy 2.4).
        return jax.device_get({self.members[i].name: logs[i] for i in busy})

    def release_data(self) -> None:
        """Releases the data of a run that has ended; its shapes are kept."""
        self._data = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self._data)
        self._is_released = True

    def _predicted(
        self, states: list[State], data: list[Tree], ranges: Mapping[str, StepRange]
    ) -> tuple[dict[str, Tree], list[State]]:
        """Returns the outputs by member, and the new states.

        Only as many batches are computed as the longest range has, rounded up to a power of two.
        """
        most = max(step_range.stop - step_range.start for step_range in ranges.values())
        length = min(jax.tree.leaves(_by_step(given))[0].shape[0] for given in data)
        size = min(length, 2 ** math.ceil(math.log2(most)))  # few sizes, as each is compiled
        firsts = np.array(
            [min(ranges[m.name].start, length - size) for m in self.members], np.int32
        )
        outputs, states = self._predict(states, data, firsts, self._bounds(ranges), size=size)
        jax.block_until_ready(states)  # a failure must show before anything is written back
        results = {
            m.name: jax.tree.map(
                lambda a, r=ranges[m.name], first=first: a[r.start - first : r.stop - first], output
            )
            for m, first, output in zip(self.members, firsts, outputs, strict=True)
        }
        return results, states

    def _choose(self, ranges: Mapping[str, StepRange]) -> _Run:
        if self._alike is None:
            self._alike = len({step_range.chunk.stop for step_range in ranges.values()}) == 1
        spans = {(step_range.start, step_range.stop) for step_range in ranges.values()}
        together = self._alike and len(spans) == 1 and len(ranges) == len(self.members)
        return self._lockstep if together else self._apart

    def _bounds(self, ranges: Mapping[str, StepRange]) -> np.ndarray:
        spans = [ranges.get(member.name) for member in self.members]
        return np.array([(r.start, r.stop) if r else (0, 0) for r in spans], np.int32)

    def _single_step(self, member: ProgramMember) -> _StepAt:
        step = _step(member, self.kind)

        def run(state: State, data: Tree, position: ArrayLike) -> tuple[Logs, State]:
            self.traces += 1  # this runs only while it is traced
            with member.traced(self.kind):
                return step(state, _take(data, position))

        return run

    def _step_by_step(
        self, states: list[State], data: list[Tree], bounds: np.ndarray
    ) -> tuple[list[Logs], list[State]]:
        logs: list[Logs] = [None] * len(self.members)
        for turn in range(max(stop - start for start, stop in bounds)):
            for i, (start, stop) in enumerate(bounds):
                if start + turn < stop:
                    logs[i], states[i] = self._steps[i](states[i], data[i], start + turn)
        return logs, states

    def _one_loop(
        self, states: list[State], data: list[Tree], bounds: jax.Array
    ) -> tuple[list[Logs], list[State]]:
        self.traces += 1  # this runs only while it is traced
        bodies = [self._body(i, data[i], states[i]) for i in range(len(self.members))]

        def body(step: jax.Array, carries: list[_Carry]) -> list[_Carry]:
            return [
                advance(step, carry) for (advance, _), carry in zip(bodies, carries, strict=True)
            ]

        carries = lax.fori_loop(bounds[0, 0], bounds[0, 1], body, [begin for _, begin in bodies])
        return self._results(carries)

    def _a_loop_each(
        self, states: list[State], data: list[Tree], bounds: jax.Array
    ) -> tuple[list[Logs], list[State]]:
        self.traces += 1  # this runs only while it is traced
        carries = []
        for i in range(len(self.members)):
            advance, begin = self._body(i, data[i], states[i])
            carries.append(lax.fori_loop(bounds[i, 0], bounds[i, 1], advance, begin))
        return self._results(carries)

    def _body(
        self, i: int, data: Tree, state: State
    ) -> tuple[Callable[[jax.Array, _Carry], _Carry], _Carry]:
        """Returns one member's step as the body of a loop, and what the loop begins with."""
        member = self.members[i]
        step = _step(member, self.kind)
        own_logs = has_own_step(member.model, self.kind)

        def advance(position: jax.Array, carry: _Carry) -> _Carry:
            state, logs = carry
            with member.traced(self.kind):
                step_logs, new_state = step(state, _take(data, position))
            new_logs = jax.tree.map(as_before, step_logs, logs) if own_logs else ()
            return jax.tree.map(as_before, new_state, state), new_logs

        with member.traced(self.kind):
            logs = empty_logs(step, state, _take(data, 0)) if own_logs else ()
        return advance, (state, logs)

    def _results(self, carries: list[_Carry]) -> tuple[list[Logs], list[State]]:
        return list(map(self._logs, self.members, carries)), [state for state, _ in carries]

    def _logs(self, member: ProgramMember, carry: _Carry) -> Logs:
        state, logs = carry
        with member.traced(self.kind):
            return logs if has_own_step(member.model, self.kind) else _metrics(member.model, state)

    def _predictions(
        self,
        states: list[State],
        data: list[Tree],
        firsts: jax.Array,
        bounds: jax.Array,
        size: int,
    ) -> tuple[list[Tree], list[State]]:
        self.traces += 1  # this runs only while it is traced
        outputs = []
        for i, (member, (trained, others)) in enumerate(zip(self.members, states, strict=True)):
            cut = functools.partial(
                lax.dynamic_slice_in_dim, start_index=firsts[i], slice_size=size
            )
            with member.traced(self.kind):
                step = functools.partial(_predict_one, member.model, trained, bounds[i])
                arrays, rows = data[i]
                given = jax.tree.map(cut, _by_step(data[i]))
                step = functools.partial(step, None if rows is None else arrays)
                others, output = lax.scan(step, others, (firsts[i] + jnp.arange(size), given))
            outputs.append(output)
            states[i] = (trained, others)
        return outputs, states


def _predict_one(
    model: keras.Model,
    trained: list[jax.Array],
    bounds: jax.Array,
    arrays: Tree,
    others: list[jax.Array],
    given: tuple[jax.Array, Tree],
) -> tuple[list[jax.Array], Tree]:
    """Predicts one batch, as the body of `lax.scan`.

    Args:
        model: The model.
        trained: The values of its trainable variables.
        bounds: The first batch to predict, and the one before which to stop.
        arrays: The arrays to take rows of; `None` where batches are given.
        others: The values of its other variables, which a call may change.
        given: The batch's position, and the batch or the numbers of its rows.

    Returns:
        The new values of the other variables, changed only by a batch within `bounds`; the outputs.
    """
    position, batch = given
    if arrays is not None:
        batch = jax.tree.map(functools.partial(rows_of, rows=batch), arrays)
    outputs, changed = model.predict_step((trained, others), batch)
    is_asked_for = (bounds[0] <= position) & (position < bounds[1])
    new_others = [
        old if new is old else jnp.where(is_asked_for, as_before(new, old), old)
        for new, old in zip(changed, others, strict=True)
    ]
    return new_others, outputs


def _step(member: ProgramMember, kind: StepKind) -> _Step:
    step = getattr(member.model, f"{kind}_step")
    if kind != "train" or not member.samples_per_replica:
        return step

    def step_by_replica(state: State, batch: Tree) -> tuple[Logs, State]:
        with applied_in_pieces(member.model, member.samples_per_replica):
            return step(state, batch)

    return step_by_replica


def _state_variables(model: keras.Model, kind: StepKind) -> list[list[keras.Variable]]:
    """Returns the variables whose values are the state of a step of this kind, in its order."""
    groups = [model.trainable_variables, model.non_trainable_variables]
    if kind == "train":
        groups.append(model.optimizer.variables)
    if kind != "predict":
        groups.append(model.metrics_variables)
    return groups


def _write_back(owned: list[list[list[keras.Variable]]], states: list[State]) -> None:
    """Sets every variable to its new value.

    `_value`: `assign` converts and checks each value, which for 16 small models took longer than
    their training step. An interrupt in the middle would leave old values beside new ones; it is
    raised when all are new.
    """
    pairs = [
        (variable, value)
        for groups, state in zip(owned, states, strict=True)
        for group, values in zip(groups, state, strict=True)
        for variable, value in zip(group, values, strict=True)
    ]
    try:
        for variable, value in pairs:
            variable._value = value
    except KeyboardInterrupt:
        for variable, value in pairs:
            variable._value = value
        raise


def _metrics(model: keras.Model, state: State) -> Logs:
    mapping = list(zip(model.metrics_variables, state[-1], strict=True))
    with keras.StatelessScope(state_mapping=mapping):
        return model.get_metrics_result()


def _take(data: Tree, i: ArrayLike) -> Tree:
    """Returns a batch of what `_on_device` returned."""
    arrays, rows = data
    if rows is None:
        return jax.tree.map(functools.partial(at_step, i=i), arrays)
    return jax.tree.map(functools.partial(rows_of, rows=at_step(rows, i)), arrays)


def _by_step(data: Tree) -> Tree:
    """Returns the arrays of a chunk that have an axis of steps: the batches, or their rows."""
    arrays, rows = data
    return arrays if rows is None else rows


def _kind(array: jax.Array | jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return array.shape, array.dtype


def _any_like(
    given: jax.Array | jax.ShapeDtypeStruct,
    arrays: dict[tuple[tuple[int, ...], np.dtype[Any]], jax.Array],
) -> jax.Array:
    """Returns an array of this shape and type: one of `arrays`, or else zeros, which are added."""
    if not isinstance(given, jax.ShapeDtypeStruct):
        return given
    if _kind(given) not in arrays:
        arrays[_kind(given)] = jnp.zeros(given.shape, given.dtype)
    return arrays[_kind(given)]


def _on_device(chunk: Chunk) -> Tree:
    """Returns the arrays of a chunk and the rows to take of them, or batches and `None`."""
    if chunk.on_device is None:
        if chunk.rows is None:
            chunk.on_device = (jax.device_put(chunk.data), None)
        else:
            arrays = keras.tree.map_structure(
                lambda array: None if array is None else array.on_device, chunk.data
            )
            chunk.on_device = (arrays, jax.device_put(chunk.rows))
    return chunk.on_device


def build(model: keras.Model, batch: Tree) -> bool:
    """Creates the variables that the model, its loss, metrics and optimizer still lack.

    Returns:
        Whether `fit` would have taken a batch for this before its first epoch.
    """
    return symbolic_build(model, batch)


def execution(model: keras.Model) -> Execution:
    """Returns how the model's steps run.

    Steps are not jitted with `run_eagerly=True`, or where a layer forbids it. Convolutions on a CPU
    are called step by step: inside a loop XLA runs them on one core, which made a small CNN three
    times slower (JAX 0.10.2, 2 cores).
    """
    if model.run_eagerly or not model.jit_compile:
        return "eager"
    convolves = any(isinstance(layer, CONVOLUTIONS) for layer in flat_layers(model))
    return "step" if convolves and jax.default_backend() == "cpu" else "loop"


def runs_functions_eagerly() -> bool:
    """Returns whether jitted functions are run as plain Python."""
    return bool(jax.config.values["jax_disable_jit"])


def run_functions_eagerly(value: bool) -> None:
    """Sets whether jitted functions are run as plain Python."""
    jax.config.update("jax_disable_jit", value)


def cannot_stack(model: keras.Model) -> str | None:
    """Returns `None`: every pure step can be vectorised, also a step of a model's own."""
    return None


def stacks_badly(model: keras.Model) -> str | None:
    """Returns why models like this one are expected to be slower stacked, or `None`."""
    if execution(model) == "step":
        return "convolutions run on one core inside a loop on a CPU"
    if jax.default_backend() == "cpu" and model.count_params() > STACKED_WEIGHTS_LIMIT:
        return "models of so many weights are as fast joined on a CPU"
    return None


def eager_step(model: keras.Model, kind: StepKind, batch: Tree) -> Logs:
    """Runs one step without compiling anything; returns the step's logs."""
    owned = _state_variables(model, kind)
    state = tuple([v.value for v in group] for group in owned)
    logs, changed = getattr(model, f"{kind}_step")(state, batch)
    _write_back([owned], [(state[0], changed) if kind == "predict" else changed])
    return logs


def set_to_zero(variables: Sequence[keras.Variable]) -> None:
    """Sets variables, each of which is one number, to zero.

    `_value`: as in `_write_back`. Each gets an array of its own, as `fit` gives their memory away.
    """
    zeros = jax.device_put([np.zeros((), variable.dtype) for variable in variables])
    for variable, zero in zip(variables, zeros, strict=True):
        variable._value = zero


def random_state() -> None:
    """Returns `None`: JAX has no global random state."""


def set_random_state(state: None) -> None:
    """Does nothing, see `random_state`."""


def row_order(
    num_rows: int, batch_size: int, shuffle: bool | str, owns_state: bool = False
) -> RowOrder:
    """Returns the rows of each coming epoch in the order in which `fit` would visit them.

    `fit` on JAX shuffles with NumPy's global random state.
    """
    if owns_state and shuffle != "batch":  # which `fit` draws batch by batch, here by the epoch
        return RowOrder(lambda: iter([np.random.permutation(num_rows)]))
    return _NumpyOrder(num_rows, batch_size, shuffle)


class _NumpyOrder(RowOrder):
    def __init__(self, num_rows: int, batch_size: int, shuffle: bool | str):
        self._begun = np.random.get_state()
        self._random = np.random.RandomState()
        self._random.set_state(self._begun)
        permutation = self._random.permutation
        self._at_epoch = self._begun
        super().__init__(lambda: shuffled_rows(permutation, num_rows, batch_size, shuffle))

    def __call__(self) -> np.ndarray:
        self._at_epoch = self._random.get_state()
        return super().__call__()

    def advance_global_rng(self, batches: int | None = None) -> None:
        if batches is not None:
            self._random.set_state(self._at_epoch)
            # On accelerators `fit` has the next batch transferred while one is trained.
            is_ahead = jax.default_backend() != "cpu"
            self.draw_again(batches + (is_ahead and batches > 0))
        if all(map(np.array_equal, self._begun, np.random.get_state())):
            with seeding.unrecorded():
                np.random.set_state(self._random.get_state())


def is_tracing() -> bool:
    """Returns whether this thread traces a function, for which others may wait meanwhile."""
    return is_recording()


def is_recording() -> bool:
    """Returns whether this thread traces a function."""
    return isinstance(jnp.add(0, 0), jax.core.Tracer)


def to_device(array: np.ndarray) -> jax.Array:
    """Returns the array on the device; on a CPU, aligned memory is shared."""
    return jax.device_put(array)


def to_host(tensor: jax.Array, rows: slice) -> np.ndarray:
    """Returns rows of an array; on a CPU the memory is shared.

    All are transferred: a slice would be compiled for each range.
    """
    return jax.device_get(tensor)[rows]


def free_device_bytes() -> int | None:
    """Returns the free memory of the first device in bytes; `None` where JAX does not say it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def device_bytes() -> tuple[int, int] | None:
    """Returns the memory in use on the first device and its peak since the start, in bytes.

    `None` where JAX does not count them.
    """
    stats = jax.local_devices()[0].memory_stats()
    return (stats["bytes_in_use"], stats["peak_bytes_in_use"]) if stats else None


def reset_device_peak() -> None:
    """Does nothing: JAX cannot reset the peak."""


def variables_read_by(function: Callable[..., Tree]) -> list[Never]:
    """Returns an empty list: functions on JAX are given what they read."""
    return []
