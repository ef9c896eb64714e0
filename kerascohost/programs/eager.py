"""Programs for what is not compiled: members that run eagerly, and everything on torch."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from kerascohost import errors
from kerascohost.programs import Chunk, backend_module
from kerascohost.programs.replicas import applied_in_pieces


class Program:
    """The members' steps, one after another, in Python.

    Args:
        kind: `"train"`, `"test"` or `"predict"`.
        members: What has a `name`, a `model` and a `piece`, the rows per replica (0: not replicated).
    """

    def __init__(self, kind: str, members: Sequence[Any]):
        self.kind = kind
        self.members = list(members)

    def __call__(self, chunks: Sequence[Chunk], starts: Sequence[int], steps: int) -> list[Any]:
        """Runs `steps` steps of every member, each from its own `starts` in its own chunk.

        Returns:
            One structure per member: the logs of its last step, or the outputs of all steps,
            stacked, when predicting.
        """
        results: list[list] = [[] for _ in self.members]
        for i in range(steps):
            for k, member in enumerate(self.members):
                with errors.about(member.name):
                    logs = self._step(member, _take(chunks[k].data, starts[k] + i))
                results[k] = [*results[k], logs] if self.kind == "predict" else [logs]
        return [_stacked(logs) if self.kind == "predict" else logs[0] for logs in results]

    def _step(self, member: Any, batch: Any) -> Any:
        step = backend_module().eager_step
        if self.kind != "train" or not member.piece:
            return step(member.model, self.kind, batch)
        with applied_in_pieces(member.model, member.piece):
            return step(member.model, self.kind, batch)


def _take(data: Any, i: int) -> Any:
    return tree.map_structure(lambda a: None if a is None else a[i], data)


def _stacked(outputs: list[Any]) -> Any:
    to_numpy = keras.ops.convert_to_numpy
    return tree.map_structure(lambda *parts: np.stack([to_numpy(p) for p in parts]), *outputs)
