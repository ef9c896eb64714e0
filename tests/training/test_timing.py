"""`layout="auto"` measures a stack against its members joined, and goes on with the faster one."""

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc
from kerascohost.training import scheduler
from kerascohost.training.timing import StepTiming
from tests.helpers import compare
from tests.helpers.compare import Member

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="torch runs eagerly: runs once a torch program compiles its steps",
)

X = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
Y = X[:, :2] * 2


def members(**given):
    def build(seed):
        model = keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(4 if not given else given["width"], activation="relu"),
                layers.BatchNormalization(),
                layers.Dropout(0.2, seed=seed),
                layers.Dense(2),
            ]
        )
        model.compile("adam", "mse", metrics=["mae"])
        return model

    return {
        f"m{i}": Member(lambda i=i: build(i), x=X, y=Y, batch_size=4, epochs=3) for i in range(3)
    }


@pytest.fixture
def measured(monkeypatch):
    """Has steps measured however little training is left, with the timing that is set here."""
    told = {"stacked": 1.0, "joined": 2.0}

    def timing(*seconds):
        return StepTiming(told["stacked"], told["joined"], 0.0)

    monkeypatch.setattr(scheduler, "StepTiming", timing)
    monkeypatch.setattr(scheduler, "WORTH_SECONDS", 0.0)
    first = scheduler._Program.__call__

    def without_trace(self, ranges):
        outcomes = first(self, ranges)
        self.first_seconds = 0.0
        return outcomes

    monkeypatch.setattr(scheduler._Program, "__call__", without_trace)
    return told


def trained(members, layout="auto"):
    cohort = kc.Cohort({n: compare.built(m) for n, m in members.items()}, layout=layout)
    keras.utils.set_random_seed(7)
    history = cohort.fit(verbose=0, **compare.by_argument(members))
    return cohort, {n: compare.Trained(model, history[n]) for n, model in cohort.members.items()}


@pytest.mark.parametrize("faster", [pytest.param("stacked", marks=pytest.mark.nightly), "joined"])
def test_the_faster_layout_goes_on_and_nothing_is_lost(measured, faster):
    measured[faster] = 0.5
    apart = compare.train_apart(members())
    cohort, together = trained(members())
    compare.assert_same(apart, together, 1e-4)
    frame = cohort.plan.frame
    assert set(frame["layout"]) == {faster}
    told = frame["measured" if faster == "stacked" else "reason"]
    assert told.str.startswith("measured: a step takes ").all()
    before = cohort.plan.summary
    cohort.fit(X, Y, batch_size=4, verbose=0)
    assert cohort.plan.summary == before


def test_measuring_changes_no_bit(measured, monkeypatch):
    _, together = trained(members())
    monkeypatch.setattr(scheduler.Scheduler, "_time", lambda *args: None)
    _, unmeasured = trained(members())
    compare.assert_same(unmeasured, together, 0.0)


@pytest.mark.nightly
def test_a_measurement_that_is_not_undone_is_seen(measured, monkeypatch):
    monkeypatch.setattr(scheduler.VariableSnapshot, "restore", lambda self: None)
    with pytest.raises(AssertionError, match="m2"):
        compare.assert_same(compare.train_apart(members()), trained(members())[1], 1e-4)


@pytest.mark.nightly
def test_short_fits_are_not_measured():
    cohort, _ = trained(members())
    assert (cohort.plan.frame["measured"] == "").all()
    assert set(cohort.plan.frame["layout"]) == {"stacked"}


@pytest.mark.nightly
def test_a_plan_is_a_layout():
    cohort, _ = trained(members(), "stacked")
    plan = cohort.plan
    again, _ = trained(members(), plan)
    assert again.plan.summary == plan.summary == "3 members in 1 stack"
    assert repr(again) == "Cohort(m0, m1, m2, layout=a plan)"
    plan.frame.loc[0, ["layout", "stack"]] = ["joined", None]
    other, together = trained(members(), plan)
    compare.assert_same(compare.train_apart(members()), together, 1e-4)
    assert other.plan.summary == (
        "2 members in 1 stack, 1 joined (m0: is joined in the plan that was given)"
    )
    with pytest.raises(kc.CohortError, match=r"the same members, 'm0', 'x'. Received: a plan of"):
        kc.Cohort({"m0": other.members["m0"], "x": other.members["m1"]}, layout=plan)


@pytest.mark.nightly
def test_members_that_have_ended_are_not_measured(measured):
    """Functions in turn end while others go on, and names are used again."""

    def train(epochs):
        model = members()["m0"].build()
        model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0)
        return len(model.history.epoch)

    assert kc.map(train, [1, 3, 1, 2], layout="auto", at_once=2) == [1, 3, 1, 2]


@pytest.mark.nightly
def test_calls_that_trace_are_not_timed(monkeypatch):
    """The first batches of another shape are traced in a later call than the first one."""
    calls = []
    usual = scheduler._Program.__call__

    def recorded(self, ranges):
        before = self._run.traces, self.seconds_per_step
        outcomes = usual(self, ranges)
        after = self._run.traces, self.seconds_per_step
        calls.append((before[0] != after[0], before[1] != after[1]))
        return outcomes

    monkeypatch.setattr(scheduler._Program, "__call__", recorded)
    if keras.backend.backend() == "tensorflow":
        # Otherwise the trace for all members computes some of them, too.
        monkeypatch.setattr("kerascohost.backends.tensorflow.stack._MOST_IN_VAIN", 0)
    unlike = {
        name: Member(member.build, x=X[: 200 - i], y=Y[: 200 - i], epochs=3)
        for i, (name, member) in enumerate(members().items())
    }
    cohort, _ = trained(unlike)
    assert set(cohort.plan.frame["layout"]) == {"stacked"}
    traces = [is_timed for is_traced, is_timed in calls if is_traced]
    assert len(traces) > 1 and not any(traces)
    assert all(is_timed for is_traced, is_timed in calls if not is_traced)
