"""`at_once`: members that train in waves end as if all trained together."""

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc
from kerascohost.training import cohort as training
from tests.helpers import compare
from tests.helpers.compare import Member

X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
LAYOUT = "joined" if keras.backend.backend() == "torch" else "stacked"


def members(count=5, broken=None):
    def build():
        model = keras.Sequential([keras.Input((6,)), layers.Dense(4, "relu"), layers.Dense(2)])
        model.compile("adam", "mse", metrics=["mae"])
        return model

    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("broken")

    return {
        f"m{i}": Member(
            build, x=X, y=X[:, :2] * i, epochs=1 + i % 2,
            callbacks=lambda i=i: [Fails()] if i == broken else [],
        )
        for i in range(count)
    }  # fmt: skip


@pytest.fixture
def runs(monkeypatch):
    """The names of the members of each run of the scheduler."""
    found = []
    run = training.Scheduler.run

    def recorded(self, tasks):
        found.append([task.member.name for task in tasks])
        return run(self, tasks)

    monkeypatch.setattr(training.Scheduler, "run", recorded)
    return found


@pytest.mark.parametrize("layout", [pytest.param("joined", marks=pytest.mark.nightly), LAYOUT])
def test_waves_end_as_separate_fits(runs, layout):
    trained = compare.train_together(members(), layout=layout, at_once=2)
    assert runs == [["m0", "m1"], ["m2", "m3"], ["m4"]]
    tolerance = None if layout == "joined" else 1e-4
    compare.assert_same(compare.train_apart(members()), trained, tolerance)


def test_a_stack_is_of_one_wave():
    if LAYOUT == "joined":
        pytest.skip("torch runs eagerly: runs once a torch program compiles its steps")
    cohort = kc.Cohort({n: m.build() for n, m in members().items()}, layout="stacked", at_once=2)
    cohort.fit(X, X[:, :2], verbose=0)
    assert cohort.plan.summary.startswith("4 members in 2 stacks, 1 joined (m4")
    assert list(cohort.predict(X, verbose=0)) == list(cohort.members)


@pytest.mark.nightly
def test_auto_takes_what_is_expected_to_fit(runs, monkeypatch):
    models = {n: m.build() for n, m in members().items()}
    kc.Cohort(models, at_once="auto").fit(X, X[:, :2], verbose=0)
    needed = kc.Cohort(models)._step_bytes("m0", X)
    monkeypatch.setattr(training, "free_bytes", lambda: 6 * needed)
    kc.Cohort(models, at_once="auto").fit(X, X[:, :2], verbose=0)
    monkeypatch.setattr(training, "free_bytes", lambda: 0)
    kc.Cohort(models, at_once="auto").evaluate(X, X[:, :2], verbose=0)
    assert [len(names) for names in runs] == [5, 3, 2, 1, 1, 1, 1, 1]


def test_a_failure_ends_the_waves_to_come(runs):
    cohort = kc.Cohort({n: m.build() for n, m in members().items()}, at_once=np.int64(2))
    given = compare.by_argument(members(broken=2))
    with pytest.raises(RuntimeError, match="broken"):
        cohort.fit(verbose=0, **given)
    assert [len(cohort.history[f"m{i}"].epoch) for i in (0, 1, 4)] == [1, 2, 0]
    assert len(runs) == 2
    cohort.fit(verbose=0, **compare.by_argument(members()))
    assert len(cohort.history["m4"].epoch) == 1


def test_a_stop_before_the_first_step_ends_after_it(monkeypatch):
    cohort = kc.Cohort({n: m.build() for n, m in members().items()}, at_once=2)
    plan = cohort._scheduler.stacks.print_plan
    stopping = lambda *args: (plan(*args), cohort.stop())  # noqa: E731
    monkeypatch.setattr(cohort._scheduler.stacks, "print_plan", stopping)
    history = cohort.fit(X, X[:, :2], epochs=3, verbose=0)
    ran = {name: len(history[name].epoch) for name in cohort.members}
    assert list(ran.values()) == [1, 1, 0, 0, 0]
    done = [int(model.optimizer.iterations.value) for model in cohort.members.values()]
    assert done == [1, 1, 0, 0, 0]


def test_stop_ends_the_waves_to_come(runs):
    cohort = kc.Cohort({n: m.build() for n, m in members().items()}, at_once=2)
    stopping = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: cohort.stop())
    before = cohort.members["m2"].get_weights()
    cohort.fit(X, X[:, :2], epochs=3, callbacks={"m1": [stopping]}, verbose=0)
    assert {n: len(cohort.history[n].epoch) for n in ("m1", "m2", "m4")} == {
        "m1": 1,
        "m2": 0,
        "m4": 0,
    }
    for one, other in zip(before, cohort.members["m2"].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(cohort.evaluate(X, X[:, :2], verbose=0)) == 5
    cohort.fit(X, X[:, :2], verbose=0)
    assert [len(cohort.history[name].epoch) for name in cohort.members] == [1] * 5
    assert [len(names) for names in runs] == [2] + [2, 2, 1] * 2


@pytest.mark.parametrize("at_once", [0, True, "all", 2.0])
def test_what_cannot_be_is_refused(at_once):
    with pytest.raises(
        kc.CohortError, match=r"`at_once` to be a positive integer.*Received: at_once"
    ):
        kc.Cohort({"m": members()["m0"].build()}, at_once=at_once)


@pytest.mark.nightly
def test_waves_of_stacks_that_change_with_the_free_memory(monkeypatch):
    apart, together = ({n: m.build() for n, m in members(3).items()} for _ in range(2))
    for name, model in together.items():
        model.set_weights(apart[name].get_weights())
    cohort = kc.Cohort(together, layout=LAYOUT, at_once="auto")
    summaries, usual = [], training.FREE_SHARE
    for share in (usual, 1e-12, usual):
        monkeypatch.setattr(training, "FREE_SHARE", share)
        cohort.fit(X, X[:, :2], shuffle=False, verbose=0)
        summaries.append(cohort.plan.summary)
    for name, model in apart.items():
        for _ in summaries:
            model.fit(X, X[:, :2], shuffle=False, verbose=0)
        for one, other in zip(model.get_weights(), together[name].get_weights(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert LAYOUT == "joined" or summaries[0] == summaries[2] == "3 members in 1 stack"
    assert "in 1 stack" not in summaries[1]
    assert "at_once='auto'" in repr(cohort)


def test_a_member_whose_input_is_not_known_is_in_a_wave_too():
    model = keras.Sequential([layers.Dense(2)])
    model.compile("sgd", "mse")
    known = next(iter(members(1).values())).build()
    cohort = kc.Cohort({"unbuilt": model, "known": known}, at_once="auto")
    assert list(cohort.fit(X, X[:, :2], verbose=0)) == ["unbuilt", "known"]
