"""The comparison sees what it is there to see: the core is broken on purpose, and it must fail."""

import keras
import numpy as np
import pytest
from keras import layers

from kerascohost import backends
from kerascohost.training import batches, scheduler
from tests.helpers import compare
from tests.helpers.compare import Member


def member(features):
    def build():
        model = keras.Sequential(
            [keras.Input((features,)), layers.Dense(3, "tanh"), layers.Dense(1)]
        )
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss="mse", metrics=["mae"])
        return model

    random = np.random.default_rng(features)
    x = random.normal(size=(44, features)).astype("float32")
    return Member(build, x=x, y=x[:, :1] * 2, batch_size=8, epochs=2, shuffle=False)


def twins():
    """Two members that could be taken for each other."""
    return {"one": member(4), "two": Member(member(4).build, **{**member(4).fit, "epochs": 3})}


def change_ranges(monkeypatch, change):
    """Lets `change(name, step_range)` alter what a program is asked to do."""
    original = scheduler._Program.__call__

    def changed(self, ranges):
        return original(
            self, {name: change(name, step_range) for name, step_range in ranges.items()}
        )

    monkeypatch.setattr(scheduler._Program, "__call__", changed)


def test_the_unbroken_core_passes():
    assert compare.assert_parity(twins()) <= 1e-6


def test_a_skipped_step_is_seen(monkeypatch):
    def skip_one(name, step_range):
        long = name == "two" and step_range.stop - step_range.start > 2
        return (
            backends.StepRange(step_range.chunk, step_range.start, step_range.stop - 1)
            if long
            else step_range
        )

    change_ranges(monkeypatch, skip_one)
    with pytest.raises(AssertionError, match="two"):
        compare.assert_parity(twins())


def test_a_batch_trained_twice_is_seen(monkeypatch):
    def repeat_one(name, step_range):
        late = name == "two" and step_range.start > 0
        return (
            backends.StepRange(step_range.chunk, step_range.start - 1, step_range.stop)
            if late
            else step_range
        )

    change_ranges(monkeypatch, repeat_one)
    with pytest.raises(AssertionError, match="two"):
        compare.assert_parity(twins())


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="members that are not compiled have a program each, so that none can be swapped in one",
)
def test_swapped_members_are_seen(monkeypatch):
    original = scheduler._Program.__call__

    def swapped(self, ranges):
        if len(ranges) < 2:
            return original(self, ranges)
        (one, first), (two, second) = ranges.items()
        logs = original(self, {one: second, two: first})
        return {one: logs[two], two: logs[one]}

    monkeypatch.setattr(scheduler._Program, "__call__", swapped)
    members = twins()
    members["two"].fit["x"] = -members["two"].fit["x"]
    with pytest.raises(AssertionError):
        compare.assert_parity(members)


def test_a_dropped_partial_batch_is_seen(monkeypatch):
    original = batches.ArrayBatches.epoch

    def without_the_rest(self, *args):
        return (chunk for chunk in original(self, *args) if chunk.is_first_shape)

    monkeypatch.setattr(batches.ArrayBatches, "epoch", without_the_rest)
    with pytest.raises(AssertionError, match="one"):
        compare.assert_parity(twins())


def test_shuffled_instead_of_ordered_batches_are_seen(monkeypatch):
    original = batches._Column.take

    def reversed_rows(self, rows, steps):
        return (
            original(self, rows, steps)[:, ::-1]
            if steps == 1
            else original(self, rows, steps)[::-1]
        )

    monkeypatch.setattr(batches._Column, "take", reversed_rows)
    if keras.backend.backend() == "torch":  # its tensors cannot share memory read backwards
        monkeypatch.setattr(
            batches._Column,
            "take",
            lambda self, rows, steps: np.ascontiguousarray(reversed_rows(self, rows, steps)),
        )
    with pytest.raises(AssertionError):
        compare.assert_parity(twins())


def test_a_stale_optimizer_state_is_seen(monkeypatch):
    original = scheduler._Program.__call__

    def forgetting(self, ranges):
        logs = original(self, ranges)
        if self.kind == "train":
            slot = self._run.members[0].model.optimizer.variables[-1]
            slot.assign(keras.ops.zeros_like(slot.value))
        return logs

    monkeypatch.setattr(scheduler._Program, "__call__", forgetting)
    with pytest.raises(AssertionError, match="one"):
        compare.assert_parity(twins())


def test_metrics_that_are_not_reset_are_seen(monkeypatch):
    monkeypatch.setattr(keras.Sequential, "reset_metrics", lambda self: None)
    trained = compare.train_together(twins())
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="one"):
        compare.assert_same(compare.train_apart(twins()), trained)


def test_a_member_that_trains_an_epoch_too_many_is_seen(monkeypatch):
    from kerascohost.training import member as member_module

    monkeypatch.setattr(member_module, "_capped", lambda epochs: epochs + 1)
    with pytest.raises(AssertionError, match="one"):
        compare.assert_parity(twins())
