"""Programs for what is not compiled: members that run eagerly, and everything on torch."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import tree

from kerascohost.backends import StepRange, get_backend
from kerascohost.backends.base import Logs, ProgramMember, StepKind, Tree
from kerascohost.backends.replicas import applied_in_pieces


class Program:
    """The steps of the members, run one after another in Python.

    Args:
        kind: `"train"`, `"test"` or `"predict"`.
        members: The members.
    """

    def __init__(self, kind: StepKind, members: Sequence[ProgramMember]):
        self.kind = kind
        self.traces = 0
        self.is_protected = False  # a step belongs to one member, and so does its failure
        self.members = list(members)

    def __call__(self, ranges: Mapping[str, StepRange]) -> dict[str, Logs]:
        """Runs the steps asked for in `ranges`, by member.

        Returns:
            For each member of `ranges`, the logs of its last step, or the outputs of all steps,
            stacked, when predicting.
        """
        results: dict[str, list[Logs]] = {name: [] for name in ranges}
        for i in range(max(step_range.stop - step_range.start for step_range in ranges.values())):
            for member in self.members:
                step_range = ranges.get(member.name)
                if step_range is None or step_range.start + i >= step_range.stop:
                    continue
                with member.traced(self.kind):
                    logs = self._step(member, step_range.chunk.batch(step_range.start + i))
                earlier = results[member.name] if self.kind == "predict" else []
                results[member.name] = [*earlier, logs]
        if self.kind == "predict":
            return {name: _stacked(outputs) for name, outputs in results.items()}
        return {name: logs[-1] for name, logs in results.items()}

    def release_data(self) -> None:
        """Does nothing: no data is stored."""

    def _step(self, member: ProgramMember, batch: Tree) -> Logs:
        step = get_backend().eager_step
        if self.kind != "train" or not member.samples_per_replica:
            return step(member.model, self.kind, batch)
        with applied_in_pieces(member.model, member.samples_per_replica):
            return step(member.model, self.kind, batch)


def _stacked(outputs: list[Tree]) -> Tree:
    to_numpy = keras.ops.convert_to_numpy
    return tree.map_structure(lambda *parts: np.stack([to_numpy(p) for p in parts]), *outputs)
