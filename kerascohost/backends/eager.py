"""Programs for what is not compiled: members that run eagerly, and everything on torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from kerascohost.backends import Work, get_backend
from kerascohost.backends.replicas import applied_in_pieces


class Program:
    """The members' steps, one after another, in Python.

    Args:
        kind: `"train"`, `"test"` or `"predict"`.
        members: What has a `name`, a `model`, a `piece`, the rows per replica, or 0, and
            `traced(kind)`, the context in which its steps are traced.
    """

    def __init__(self, kind: str, members: Sequence[Any]):
        self.kind = kind
        self.is_protected = False  # steps are single anyway: a failure is its member's own
        self.members = list(members)

    def __call__(self, works: Mapping[str, Work]) -> dict[str, Any]:
        """Runs the steps asked for in `works`, by member.

        Returns:
            For each member of `works`, the logs of its last step, or the outputs of all steps,
            stacked, when predicting.
        """
        results: dict[str, list] = {name: [] for name in works}
        for i in range(max(work.stop - work.start for work in works.values())):
            for member in self.members:
                work = works.get(member.name)
                if work is None or work.start + i >= work.stop:
                    continue
                with member.traced(self.kind):
                    logs = self._step(member, _take(work.chunk.data, work.start + i))
                kept = results[member.name] if self.kind == "predict" else []
                results[member.name] = [*kept, logs]
        if self.kind == "predict":
            return {name: _stacked(outputs) for name, outputs in results.items()}
        return {name: logs[-1] for name, logs in results.items()}

    def let_go(self) -> None:
        """Nothing: data is not kept."""

    def _step(self, member: Any, batch: Any) -> Any:
        step = get_backend().eager_step
        if self.kind != "train" or not member.piece:
            return step(member.model, self.kind, batch)
        with applied_in_pieces(member.model, member.piece):
            return step(member.model, self.kind, batch)


def _take(data: Any, i: int) -> Any:
    return tree.map_structure(lambda a: None if a is None else a[i], data)


def _stacked(outputs: list[Any]) -> Any:
    to_numpy = keras.ops.convert_to_numpy
    return tree.map_structure(lambda *parts: np.stack([to_numpy(p) for p in parts]), *outputs)
