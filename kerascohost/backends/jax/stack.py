"""Stacks on JAX: the prototype's own, pure step under `jax.vmap`, in a loop."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from keras import tree

from kerascohost.backends import StepRange, has_own_step, stacking
from kerascohost.backends.base import Logs, ProgramMember, StepKind, Tree
from kerascohost.backends.stacking import Stack


class StackedState(stacking.StackedState):
    """See `stacking.StackedState`; the arrays are replaced as a whole, never changed."""

    def __init__(self, stack: Stack, models: Sequence[keras.Model]):
        super().__init__(stack, models)
        size = len(stack.names)
        self.values = [jnp.zeros((size, *v.shape), v.dtype) for v in stack.variables[0]]
        self._stacked = jax.jit(lambda columns: [jnp.stack(column) for column in columns])
        self._unstacked = jax.jit(lambda values: [jnp.unstack(value) for value in values])

    def load(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        own = self.stack.variables
        if self.is_often("load", rows):
            columns = self._stacked([[member[i].value for member in own] for i in positions])
        else:
            columns = [self._with(i, rows) for i in positions]
        for i, column in zip(positions, columns, strict=True):
            self.values[i] = column

    def _with(self, position: int, rows: Sequence[int]) -> jax.Array:
        column = np.array(self.values[position])
        for row in rows:
            column[row] = self.stack.variables[row][position].value
        return jax.device_put(column)

    def store(self, rows: Sequence[int], positions: Sequence[int]) -> None:
        """Writes rows home, all in one transfer.

        `_value`: `assign` converts and checks each value, which takes longer than all the rest.
        """
        if self.is_often("store", rows):
            columns = self._unstacked([self.values[i] for i in positions])
        else:
            views = [np.asarray(self.values[i]) for i in positions]
            parts = jax.device_put([[view[row] for row in rows] for view in views])
            columns = [dict(zip(rows, part, strict=True)) for part in parts]
        for row in rows:
            for i, column in zip(positions, columns, strict=True):
                self.stack.variables[row][i]._value = column[row]


class Program:
    """The steps of one kind of a stack, compiled for all members and for some numbers of them.

    Args:
        kind: `"train"` or `"test"`.
        members: The members, in the stack's order.
        stack: The stack.
        state: Its state.
    """

    is_protected = True  # as state is replaced only after a call

    def __init__(
        self, kind: StepKind, members: Sequence[ProgramMember], stack: Stack, state: StackedState
    ):
        self.kind = kind
        self._models = [member.model for member in members]
        self._prototype = members[0]
        self._stack = stack
        self._state = state
        self._groups = self._state_groups()
        self._floats = [np.asarray(values, keras.config.floatx()) for values in stack.values]
        self._run = jax.jit(self._loop, static_argnames="everyone")
        self._traced: set[Any] = set()
        self._data: Tree = None

    def _state_groups(self) -> list[list[int]]:
        """The positions of the variables that a step of this kind takes, group by group."""
        model = self._models[0]
        groups = [model.trainable_variables, model.non_trainable_variables]
        if self.kind == "train":
            groups.append(model.optimizer.variables)
        groups.append(model.metrics_variables)
        position = {id(variable): i for i, variable in enumerate(self._stack.variables[0])}
        return [[position[id(variable)] for variable in group] for group in groups]

    def __call__(self, ranges: Mapping[str, StepRange]) -> dict[str, Logs]:
        """Runs the steps asked for in `ranges`, equally many for each of its members.

        Returns:
            For each member of `ranges`, its logs as NumPy arrays.

        Raises:
            NotStackableError: If the step cannot be traced for all; nothing has been done then.
        """
        names = list(ranges)
        self._stack.check_trainable()
        everyone = names == self._stack.names
        self._state.sync_from_models(
            names, [name for name, step_range in ranges.items() if step_range.metrics_reset]
        )
        rows = self._state.rows(names)
        padded = rows if everyone else _padded(rows)
        chosen = [ranges[self._stack.names[row]] for row in padded]
        begin, data = self._on_device(chosen)
        bounds = np.array([begin, begin + chosen[0].stop - chosen[0].start], np.int32)
        given = (self._state.values, data, np.array(padded, np.int32), bounds)
        self._trace(given, everyone)
        values, logs = self._run(*given, everyone=everyone)
        jax.block_until_ready(values)  # a failure must show before anything is replaced
        self._state.values = values
        logs = jax.tree.map(lambda leaf: leaf[: len(rows)], jax.device_get(logs))
        return stacking.logs_by_member(names, rows, logs, self._models)

    def release_data(self) -> None:
        """Lets go of the data."""
        self._data = None

    def _trace(self, given: tuple, everyone: bool) -> None:
        """Finds out what cannot be traced; the trace is kept and used by the call."""
        key = (everyone, jax.tree.structure(given), *(np.shape(x) for x in jax.tree.leaves(given)))
        if key in self._traced:
            return
        with self._prototype.as_read(self.kind), self._stack.tracing(self._models[0]):
            self._run.trace(*given, everyone=everyone)
        self._traced.add(key)

    def _on_device(self, ranges: Sequence[StepRange]) -> tuple[int, Any]:
        """Where in the arrays the first batch is, and the arrays, `(steps, members, rows, ...)`.

        Chunks are kept whole, as another number of steps would be compiled anew, and until others
        come. Members that are at different steps of theirs are brought side by side.
        """
        begin = min(step_range.start for step_range in ranges)
        chunks = [(id(step_range.chunk), step_range.start - begin) for step_range in ranges]
        if self._data is None or self._data[0] != chunks:
            leaves = [tree.flatten(step_range.chunk.data) for step_range in ranges]
            most = max(len(x) for own in leaves for x in own if x is not None)
            stacked = [
                None
                if parts[0] is None
                else np.stack(
                    [_moved(part, by, most) for part, (_, by) in zip(parts, chunks, strict=True)],
                    axis=1,
                )
                for parts in zip(*leaves, strict=True)
            ]
            data = jax.device_put(tree.pack_sequence_as(ranges[0].chunk.data, stacked))
            self._data = (
                chunks,
                data,
                ranges,
            )  # the works, so that no id is given to another chunk
        return begin, self._data[1]

    def _loop(
        self,
        values: list,
        data: Tree,
        rows: Any,
        bounds: Any,
        everyone: bool,
    ) -> tuple[list, Any]:
        def chosen(stacked: Any) -> Any:
            return stacked if everyone else stacked[rows]

        state = tuple([chosen(values[i]) for i in group] for group in self._groups)
        step = jax.vmap(self._step())
        floats = [chosen(jnp.asarray(own)) for own in self._floats]
        own_logs = has_own_step(self._models[0], self.kind)

        def batches(i: Any) -> Any:
            return jax.tree.map(
                lambda leaf: lax.dynamic_index_in_dim(leaf, i, keepdims=False), data
            )

        def advance(i: Any, carry: tuple) -> tuple:
            state, logs = carry
            new_logs, new_state = step(state, floats, batches(i))
            return jax.tree.map(_as_before, new_state, state), new_logs if own_logs else logs

        logs: Logs = ()
        if own_logs:
            shapes, _ = jax.eval_shape(step, state, floats, batches(0))
            logs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        state, logs = lax.fori_loop(bounds[0], bounds[1], advance, (state, logs))
        if not own_logs:
            logs = jax.vmap(self._results)(state[-1])
        values = list(values)
        for group, new in zip(self._groups, state, strict=True):
            for i, value in zip(group, new, strict=True):
                values[i] = value if everyone else values[i].at[rows].set(value)
        return values, logs

    def _step(self) -> Callable:
        own_step = getattr(self._models[0], f"{self.kind}_step")

        def step(state: tuple, floats: list, batch: Tree) -> tuple:
            with stacking.traced_floats(self._stack, floats, lambda x, dtype: x.astype(dtype)):
                return own_step(state, batch)

        return step

    def _results(self, values: list) -> Any:
        mapping = list(zip(self._models[0].metrics_variables, values, strict=True))
        with keras.StatelessScope(mapping):
            return self._models[0].get_metrics_result()


def _padded(rows: list[int]) -> list[int]:
    """Some rows twice, so that few numbers of rows have to be compiled.

    The copies compute what the first row computes, and write the same into the same place.
    """
    return rows + [rows[0]] * (2 ** math.ceil(math.log2(len(rows))) - len(rows))


def _moved(part: Any, by: int, steps: int) -> np.ndarray:
    """A chunk from batch `by` on, with batches behind its end, which are never taken."""
    part = np.asarray(part)[by:]
    if len(part) == steps:
        return part
    return np.concatenate([part, np.zeros((steps - len(part), *part.shape[1:]), part.dtype)])


def _as_before(new: Any, old: jax.Array) -> jax.Array:
    """A loop wants its state back in the type it was given."""
    return lax.convert_element_type(new, old.dtype)
