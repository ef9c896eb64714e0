"""Programs on JAX: one jitted loop over the members' own, pure `train_step`s."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from keras import tree

from kerascohost import errors
from kerascohost.programs import Chunk, has_own_step, symbolic_build
from kerascohost.programs.data import RowOrder, shuffled_rows
from kerascohost.programs.replicas import applied_in_pieces

State = tuple[list[jax.Array], ...]


class Program:
    """The steps of one kind of some members, traced once and run together.

    All members advance in one loop. Its bounds are arguments, so a chunk can be worked through in
    several calls without compiling again; only another shape of a batch or a chunk compiles anew.
    State is read from the variables before a call and written back after it. It is not donated: a
    call that fails or is interrupted must leave every variable as it was.

    Args:
        kind: `"train"`, `"test"` or `"predict"`.
        members: What has a `name`, a `model` and a `piece`, the rows per replica (0: not replicated).
    """

    def __init__(self, kind: str, members: Sequence[Any]):
        self.kind = kind
        self.members = list(members)
        self._run = jax.jit(self._predict if kind == "predict" else self._loop)

    def __call__(self, chunks: Sequence[Chunk], starts: Sequence[int], steps: int) -> list[Any]:
        """Runs `steps` steps of every member, each from its own `starts` in its own chunk.

        If it fails, every member is left where it was before the call.

        Returns:
            One structure per member: the logs of its last step as arrays (its metrics, where these
            are what its step returns), or the outputs of the whole chunk when predicting.
        """
        owned = [_state_variables(member.model, self.kind) for member in self.members]
        states = [tuple([v.value for v in group] for group in groups) for groups in owned]
        data = [_on_device(chunk) for chunk in chunks]
        logs, states = self._run(states, data, np.asarray(starts, np.int32), np.int32(steps))
        jax.block_until_ready(states)  # a failure must show before anything is written back
        _write_back(owned, states)
        return logs

    def _loop(self, states: list[State], data: list[Any], starts: Any, steps: Any) -> tuple:
        advance = [_step(member, self.kind) for member in self.members]
        own_logs = [has_own_step(member.model, self.kind) for member in self.members]

        def body(i: Any, carry: tuple) -> tuple:
            states, logs = list(carry[0]), list(carry[1])
            for k, member in enumerate(self.members):
                with errors.about(member.name):
                    step_logs, state = advance[k](states[k], _take(data[k], starts[k] + i))
                states[k] = jax.tree.map(_as_before, state, states[k])
                logs[k] = jax.tree.map(_as_before, step_logs, logs[k]) if own_logs[k] else ()
            return states, logs

        empty = [
            _empty_logs(advance[k], states[k], _take(data[k], 0)) if own_logs[k] else ()
            for k in range(len(self.members))
        ]
        states, logs = lax.fori_loop(0, steps, body, (states, empty))
        return [
            logs[k] if own_logs[k] else _metrics(member.model, states[k])
            for k, member in enumerate(self.members)
        ], states

    def _predict(self, states: list[State], data: list[Any], starts: Any, steps: Any) -> tuple:
        del starts, steps  # predictions are made for a whole chunk at once
        outputs = []
        for k, member in enumerate(self.members):
            step = functools.partial(member.model.predict_step, states[k])
            with errors.about(member.name):
                outputs.append(lax.map(lambda batch, step=step: step(batch)[0], data[k]))
        return outputs, states


def _step(member: Any, kind: str) -> Callable:
    step = getattr(member.model, f"{kind}_step")
    if kind != "train" or not member.piece:
        return step

    def in_pieces(state: State, batch: Any) -> tuple:
        with applied_in_pieces(member.model, member.piece):
            return step(state, batch)

    return in_pieces


def _state_variables(model: keras.Model, kind: str) -> list[list[keras.Variable]]:
    """The variables whose values are the state that a step of this kind takes, in its order."""
    groups = [model.trainable_variables, model.non_trainable_variables]
    if kind == "train":
        groups.append(model.optimizer.variables)
    if kind != "predict":
        groups.append(model.metrics_variables)
    return groups


def _write_back(owned: list[list[list[keras.Variable]]], states: list[State]) -> None:
    """Gives every variable its new value.

    `_value`: `assign` converts and checks each value, which for 16 small models took longer than
    their training step. An interrupt in the middle would leave old values beside new ones; it is
    held back until all are new.
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


def _metrics(model: keras.Model, state: State) -> Any:
    mapping = list(zip(model.metrics_variables, state[-1], strict=True))
    with keras.StatelessScope(state_mapping=mapping):
        return model.get_metrics_result()


def _take(data: Any, i: Any) -> Any:
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), data)


def _as_before(new: Any, old: jax.Array) -> jax.Array:
    """A loop wants its state back in the type it was given."""
    return lax.convert_element_type(new, old.dtype)


def _empty_logs(step: Callable, state: State, batch: Any) -> Any:
    logs, _ = jax.eval_shape(step, state, batch)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), logs)


def _on_device(chunk: Chunk) -> Any:
    if chunk.on_device is None:
        chunk.on_device = jax.device_put(chunk.data)
    return chunk.on_device


def build(model: keras.Model, batch: Any) -> bool:
    """Creates the variables that the model, its loss, metrics and optimizer still lack.

    Returns:
        Whether `fit` would have taken a batch for this before its first epoch.
    """
    return symbolic_build(model, batch)


def is_eager(model: keras.Model) -> bool:
    """Whether the model's steps are not jitted: `run_eagerly=True`, or layers that forbid it."""
    return bool(model.run_eagerly) or not model.jit_compile


def eager_step(model: keras.Model, kind: str, batch: Any) -> Any:
    """One step without compiling anything; returns the step's logs."""
    owned = _state_variables(model, kind)
    state = tuple([v.value for v in group] for group in owned)
    logs, state = getattr(model, f"{kind}_step")(state, batch)
    if kind == "predict":
        return logs
    _write_back([owned], [state])
    return logs


def row_order(num_rows: int, batch_size: int, shuffle: bool | str) -> RowOrder:
    """The rows of each coming epoch in the order in which `fit` would visit them.

    `fit` on JAX shuffles with NumPy's global random state.
    """
    return _NumpyOrder(num_rows, batch_size, shuffle)


class _NumpyOrder(RowOrder):
    def __init__(self, num_rows: int, batch_size: int, shuffle: bool | str):
        self._begun = np.random.get_state()
        self._random = np.random.RandomState()
        self._random.set_state(self._begun)
        permutation = self._random.permutation
        super().__init__(lambda: shuffled_rows(permutation, num_rows, batch_size, shuffle))

    def settle(self) -> None:
        if all(map(np.array_equal, self._begun, np.random.get_state())):
            np.random.set_state(self._random.get_state())
