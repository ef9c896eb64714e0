"""Stacks on JAX: the first member's step, which is a pure function, under `jax.vmap` in a loop."""

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from keras import tree

from kerascohost.backends import StepRange, has_own_step, resident, stacking
from kerascohost.backends.base import Logs, StepKind, Tensor, Tree
from kerascohost.backends.jax.devices import Placement
from kerascohost.backends.stacking import CompiledStack, NotStackableError, Stack

# The values of the variables of some members, in groups as a step takes them.
_State: TypeAlias = tuple[list[jax.Array], ...]

# Values and floats of all members, data, rows and the bounds or the first of the steps: the
# arguments of a stack's program that are arrays.
_Given: TypeAlias = tuple[
    list[jax.Array], list[np.ndarray], Tree, np.ndarray, np.ndarray | np.int32
]


class _Loaded(NamedTuple):
    """The data on the device.

    Attributes:
        chunks: For each member its chunk, by `id`, and the shift against the first batch.
        arrays: The batches, each array `(steps, members, rows, ...)`, and `None` twice; or arrays
            to take rows of, for each of them the first row of each member, and the rows to take of
            these, `(steps, members, rows)`.
        ranges: The ranges: while they refer to the chunks, no `id` is given to another one.
    """

    chunks: list[tuple[int, int]]
    arrays: Tree
    ranges: Sequence[StepRange]


class StackedState(stacking.StackedState):
    """The state of a stack, see `stacking`; its arrays are replaced as a whole, never changed."""

    def __init__(self, stack: Stack, models: Sequence[keras.Model]):
        super().__init__(stack, models)
        self.placement = Placement(stack.devices, len(stack.names))
        self.values = [
            self.placement.by_member(jnp.zeros((self.placement.rows, *v.shape), v.dtype))
            for v in stack.variables[0]
        ]
        self.floats: list[np.ndarray] = []
        self._stacked = jax.jit(lambda columns: [jnp.stack(column) for column in columns])
        self._unstacked = jax.jit(lambda values: [jnp.unstack(value) for value in values])

    def adopt(self, stack: Stack) -> None:
        """Makes it the state of another stack of the same signature; no row is loaded yet."""
        super().adopt(stack)
        every = self.placement.with_copies(range(len(stack.names)))
        self.floats = [np.asarray(own, keras.config.floatx())[every] for own in stack.values]

    def load(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Copies the variables at `positions` of these members into their rows."""
        own = self.stack.variables
        if not self.placement.is_spread and self.is_often("load", rows):
            columns = self._stacked([[member[i].value for member in own] for i in positions])
        else:
            columns = [self._with(i, rows) for i in positions]
        for i, column in zip(positions, columns, strict=True):
            self.values[i] = column

    def _with(self, position: int, rows: Sequence[int]) -> jax.Array:
        column = np.array(self.values[position])
        for row in rows:
            column[row] = self.stack.variables[row][position].value
        column[len(self.stack.names) :] = column[0]
        return self.placement.by_member(jax.device_put(column))

    def set_to_zero(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Sets the variables at `positions` to zero in these rows."""
        for i in positions:
            column = np.array(self.values[i])
            column[rows] = 0
            column[len(self.stack.names) :] = column[0]
            self.values[i] = self.placement.by_member(jax.device_put(column))

    def store(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Copies these rows into the members' variables at `positions`, all in one transfer.

        `_value`: `assign` converts and checks each value, which takes longer than all the rest.
        """
        if not self.placement.is_spread and self.is_often("store", rows):
            columns = self._unstacked([self.values[i] for i in positions])
        else:
            views = [np.asarray(self.values[i]) for i in positions]
            parts = jax.device_put([[view[row] for row in rows] for view in views])
            columns = [dict(zip(rows, part, strict=True)) for part in parts]
        for row in rows:
            for i, column in zip(positions, columns, strict=True):
                self.stack.variables[row][i]._value = column[row]


class Program:
    """The steps of one kind of a stack, compiled for all members and for some smaller numbers.

    Args:
        kind: `"train"`, `"test"` or `"predict"`.
        compiled: The compiled stack that it is of.
        state: Its state.
    """

    is_protected = True  # as state is replaced only after a call

    def __init__(self, kind: StepKind, compiled: CompiledStack, state: StackedState):
        self.kind = kind
        self._compiled = compiled
        self._state = state
        self._groups = self._state_groups()
        self._placement = state.placement
        if kind == "predict":
            self._run = jax.jit(self._predictions, static_argnames=("everyone", "size"))
        else:
            self._run = jax.jit(self._loop, static_argnames="everyone")
        self._traced: set[tuple[Hashable, ...]] = set()
        self._data: _Loaded | None = None

    @property
    def traces(self) -> int:
        """Returns how many times steps have been traced."""
        return len(self._traced)

    @property
    def _stack(self) -> Stack:
        return self._compiled.stack

    @property
    def _prototype(self) -> keras.Model:
        return self._compiled.members[0].model

    def _state_groups(self) -> list[list[int]]:
        """Returns the positions of the variables that a step of this kind takes, by group."""
        model = self._prototype
        groups = [model.trainable_variables, model.non_trainable_variables]
        if self.kind == "train":
            groups.append(model.optimizer.variables)
        if self.kind != "predict":
            groups.append(model.metrics_variables)
        position = {id(variable): i for i, variable in enumerate(self._stack.variables[0])}
        return [[position[id(variable)] for variable in group] for group in groups]

    def __call__(self, ranges: Mapping[str, StepRange]) -> dict[str, Logs]:
        """Runs the steps asked for in `ranges`, equally many for each of its members.

        Returns:
            For each member of `ranges`, its logs as NumPy arrays, or the outputs of all steps when
            predicting.

        Raises:
            NotStackableError: If the step cannot be traced for all; nothing has been done then.
        """
        names = self._state.in_order(ranges)  # so that all of them are everyone in any order
        self._stack.check_trainable()
        everyone = names == self._stack.names
        if self.kind == "predict":
            self._state.read_from_models(names, [i for group in self._groups for i in group])
        else:
            self._state.sync_from_models(ranges)
        rows = self._state.rows(names)
        padded = self._placement.with_copies(rows) if everyone else _padded(rows)
        chosen = [ranges[self._stack.names[row]] for row in padded]
        begin, data = self._on_device(chosen, everyone)
        steps = chosen[0].stop - chosen[0].start
        taken = np.array(padded, np.int32)
        values = self._state.values
        if not everyone:
            values = [self._placement.on_one(value) for value in values]
        if self.kind == "predict":
            outputs = self._predicted(values, data, taken, everyone, begin, steps)
            return stacking.outputs_by_member(names, outputs)
        bounds = np.array([begin, begin + steps], np.int32)
        given = (values, self._state.floats, data, taken, bounds)
        self._trace(given, everyone=everyone)
        values, logs = self._run(*given, everyone=everyone)
        jax.block_until_ready(values)  # a failure must show before anything is replaced
        self._state.values = [self._placement.by_member(value) for value in values]
        logs = jax.tree.map(lambda leaf: leaf[: len(rows)], jax.device_get(logs))
        return stacking.logs_by_member(names, rows, logs, self._compiled.log_keys)

    def _predicted(
        self,
        values: list[jax.Array],
        data: Tree,
        rows: np.ndarray,
        everyone: bool,
        begin: int,
        steps: int,
    ) -> Tree:
        """Returns the outputs of steps: NumPy arrays `(steps, members, rows, ...)`.

        A few more steps may be computed, so that few numbers of them have to be compiled.
        """
        length = len(jax.tree.leaves(_by_step(data))[0])
        size = min(length, resident.padded_length(steps))
        first = min(begin, length - size)
        given = (values, self._state.floats, data, rows, np.int32(first))
        self._trace(given, everyone=everyone, size=size)
        outputs = jax.device_get(self._run(*given, everyone=everyone, size=size))
        asked = slice(begin - first, begin - first + steps)
        return jax.tree.map(lambda leaf: leaf[asked], outputs)

    def release_data(self) -> None:
        """Releases the data of a run that has ended."""
        self._data = None
        self._placement.release()

    def _trace(self, given: _Given, **static: int) -> None:
        """Traces the step, once for each shape; the call that follows uses the trace.

        Raises:
            NotStackableError: If it cannot be traced for all members.
        """
        shapes = (np.shape(leaf) for leaf in jax.tree.leaves(given))
        key = (*static.values(), jax.tree.structure(given), *shapes)
        if key in self._traced:
            return
        prototype = self._compiled.members[0]
        with prototype.as_read(self.kind), self._stack.tracing(prototype.model):
            self._run.trace(*given, **static)
        self._traced.add(key)

    def _on_device(self, ranges: Sequence[StepRange], everyone: bool) -> tuple[int, Tree]:
        """Returns the position of the first batch in the stacked chunks, and their arrays.

        Whole chunks are transferred, as another number of steps would be compiled anew, and stay
        until others come. Chunks of members that are at different steps are shifted, so that the
        batches of one step are at one position.

        Returns:
            The position; the arrays, see `_Loaded`.
        """
        begin = min(step_range.start for step_range in ranges)
        chunks = [(id(step_range.chunk), step_range.start - begin) for step_range in ranges]
        if self._data is None or self._data.chunks != chunks:
            shifts = [by for _, by in chunks]
            loaded = _stacked(ranges, shifts)
            if everyone:
                loaded = self._spread(loaded)
            self._data = _Loaded(chunks, loaded, ranges)
        return begin, self._data.arrays

    def _spread(self, loaded: Tree) -> Tree:
        """Returns what `_stacked` returned of all members, on the devices of the stack."""
        place = self._placement
        arrays, firsts, rows = loaded
        if rows is None:
            return jax.tree.map(lambda array: place.by_member(array, 1), arrays), None, None
        firsts = jax.tree.map(place.by_member, firsts)
        return jax.tree.map(place.everywhere, arrays), firsts, place.by_member(rows, 1)

    def _loop(
        self,
        values: list[jax.Array],
        floats: list[jax.Array],
        data: Tree,
        rows: jax.Array,
        bounds: jax.Array,
        everyone: bool,
    ) -> tuple[list[jax.Array], Logs]:
        state, floats = self._given(values, floats, rows, everyone)
        step = jax.vmap(self._step())
        batches = functools.partial(_batches, data)
        own_logs = has_own_step(self._prototype, self.kind)

        def advance(i: jax.Array, carry: tuple[_State, Logs]) -> tuple[_State, Logs]:
            state, logs = carry
            new_logs, new_state = step(state, floats, batches(i))
            return jax.tree.map(as_before, new_state, state), new_logs if own_logs else logs

        logs: Logs = ()
        if own_logs:
            logs = empty_logs(step, state, floats, batches(0))
        state, logs = lax.fori_loop(bounds[0], bounds[1], advance, (state, logs))
        if not own_logs:
            logs = jax.vmap(self._results)(state[-1])
        values = list(values)
        for group, new in zip(self._groups, state, strict=True):
            for i, value in zip(group, new, strict=True):
                values[i] = value if everyone else values[i].at[rows].set(value)
        return values, logs

    def _predictions(
        self,
        values: list[jax.Array],
        floats: list[jax.Array],
        data: Tree,
        rows: jax.Array,
        first: jax.Array,
        everyone: bool,
        size: int,
    ) -> Tree:
        """Returns the outputs of `size` steps, each array `(steps, members, rows, ...)`."""
        state, floats = self._given(values, floats, rows, everyone)
        step = jax.vmap(self._predict_step())
        return lax.map(lambda i: step(state, floats, _batches(data, i)), first + jnp.arange(size))

    def _given(
        self,
        values: list[jax.Array],
        floats: list[jax.Array],
        rows: jax.Array,
        everyone: bool,
    ) -> tuple[_State, list[jax.Array]]:
        """Returns the state and the traced floats of the members with these rows."""

        def chosen(stacked: jax.Array) -> jax.Array:
            return stacked if everyone else stacked[rows]

        state = tuple([chosen(values[i]) for i in group] for group in self._groups)
        return state, [chosen(own) for own in floats]

    def _predict_step(self) -> Callable[[_State, list[jax.Array], Tree], Tree]:
        def step(state: _State, floats: list[jax.Array], batch: Tree) -> Tree:
            with stacking.traced_floats(self._stack, floats, lambda x, dtype: x.astype(dtype)):
                outputs, changed = self._prototype.predict_step(state, batch)
            if any(new is not old for new, old in zip(changed, state[1], strict=True)):
                raise NotStackableError("changes variables when it predicts")
            return outputs

        return step

    def _step(self) -> Callable[[_State, list[jax.Array], Tree], tuple[Logs, _State]]:
        own_step = getattr(self._prototype, f"{self.kind}_step")

        def step(state: _State, floats: list[jax.Array], batch: Tree) -> tuple[Logs, _State]:
            with stacking.traced_floats(self._stack, floats, lambda x, dtype: x.astype(dtype)):
                return own_step(state, batch)

        return step

    def _results(self, values: list[jax.Array]) -> Logs:
        mapping = list(zip(self._prototype.metrics_variables, values, strict=True))
        with keras.StatelessScope(mapping):
            return self._prototype.get_metrics_result()


def _by_step(data: Tree) -> Tree:
    """Returns the arrays that have an axis of steps, see `_Loaded`: the batches, or their rows."""
    arrays, _, rows = data
    return arrays if rows is None else rows


def _batches(data: Tree, i: ArrayLike) -> Tree:
    """Returns the batches of step `i` of all members."""
    arrays, firsts, rows = data
    if rows is None:
        return jax.tree.map(functools.partial(at_step, i=i), arrays)
    now = at_step(rows, i)
    return jax.tree.map(lambda array, first: rows_of(array, now + first[:, None]), arrays, firsts)


def _padded(rows: list[int]) -> list[int]:
    """Returns the rows, the first one repeated so that their number is a power of two.

    So few numbers of rows have to be compiled. The copies compute what the first row computes, and
    write the same values to the same place.
    """
    return rows + [rows[0]] * (2 ** math.ceil(math.log2(len(rows))) - len(rows))


def _moved(part: Tensor, by: int, steps: int) -> np.ndarray:
    """Returns a chunk from batch `by` on, padded to `steps` batches with ones that are not used."""
    part = np.asarray(part)[by:]
    if len(part) == steps:
        return part
    return np.concatenate([part, np.zeros((steps - len(part), *part.shape[1:]), part.dtype)])


def _stacked(ranges: Sequence[StepRange], shifts: Sequence[int]) -> Tree:
    """Returns the chunks of several members on the device, see `_Loaded`."""
    chunks = [step_range.chunk for step_range in ranges]

    def stack(parts: Sequence[Tensor]) -> jax.Array | None:
        if parts[0] is None:
            return None
        most = max(map(len, parts))
        return jax.device_put(np.stack([*map(_moved, parts, shifts, [most] * len(parts))], axis=1))

    def unflattened(leaves: Iterable[Tensor]) -> Tree:
        return tree.pack_sequence_as(chunks[0].data, list(leaves))

    by_leaf = list(zip(*(tree.flatten(chunk.data) for chunk in chunks), strict=True))
    if chunks[0].rows is None:
        return unflattened(map(stack, by_leaf)), None, None
    pairs = [(None, None) if own[0] is None else resident.together(own) for own in by_leaf]
    arrays, firsts = (unflattened(leaves) for leaves in zip(*pairs, strict=True))
    return arrays, jax.device_put(firsts), stack([chunk.rows for chunk in chunks])


def at_step(array: jax.Array, i: ArrayLike) -> jax.Array:
    """Returns the part of an array that belongs to step `i`."""
    return lax.dynamic_index_in_dim(array, i, keepdims=False)


def rows_of(array: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns rows of an array; all exist, so that nothing has to check them."""
    return array.at[rows].get(mode="promise_in_bounds")


def as_before(new: ArrayLike, old: jax.Array) -> jax.Array:
    """Returns `new` in the type of `old`, as a loop must not change the types of its state."""
    return lax.convert_element_type(new, old.dtype)


def empty_logs(step: Callable[..., tuple[Logs, Tree]], *given: Tree) -> Logs:
    """Returns zeros in the shapes of the logs of a step, for a loop to begin with."""
    logs, _ = jax.eval_shape(step, *given)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), logs)
