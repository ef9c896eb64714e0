"""Compiled stacks serve the next models of their signature; the results are each model's own."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc
from kerascohost.backends.stacking import compiled
from tests.helpers import compare
from tests.helpers.compare import Member

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="torch runs eagerly: runs once a torch program compiles its steps",
)

X = np.random.default_rng(0).normal(size=(70, 6)).astype("float32")
Y = X[:, :2] * 2


@pytest.fixture(autouse=True)
def nothing_stored(monkeypatch):
    monkeypatch.setattr(compiled.compiled_stacks, "_stored", [])


def mlp(rate=0.1, decay=0.3, loss="mse", width=8):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(width, "relu", kernel_regularizer=keras.regularizers.L2(decay)),
            layers.BatchNormalization(),
            layers.Dropout(0.2, seed=3),
            layers.Dense(2),
        ]
    )
    model.compile(keras.optimizers.Adam(rate), loss=loss, metrics=["mae"])
    return model


def generation(*rates, **given):
    """Members with learning rates and regularisers of their own."""
    return {
        f"m{rate}": Member(
            lambda rate=rate: mlp(rate, decay=rate * 2, **given),
            x=X, y=Y, epochs=2, validation_split=0.2, shuffle=False,
        )
        for rate in rates
    }  # fmt: skip


@pytest.fixture
def traced(monkeypatch):
    """Counts the calls of `Dense`, which are made while something is traced or built."""
    calls = []
    call = layers.Dense.call

    def counted(self, inputs, training=None):
        calls.append(self)
        return call(self, inputs, training=training)

    monkeypatch.setattr(layers.Dense, "call", counted)
    return calls


def trained_together(members, traced):
    """Trains a cohort and predicts; returns it with the number of calls that were traced."""
    cohort = kc.Cohort({n: compare.built(m) for n, m in members.items()}, layout="stacked")
    arguments = compare.by_argument(members)
    cohort.build(arguments["x"], arguments["y"])
    keras.utils.set_random_seed(7)
    before = len(traced)
    history = cohort.fit(verbose=0, **arguments)
    cohort.predict(X, verbose=0)
    assert (cohort.plan.frame["layout"] == "stacked").all()
    trained = {n: compare.Trained(model, history[n]) for n, model in cohort.members.items()}
    return cohort, trained, len(traced) - before


def test_the_next_models_are_trained_without_a_trace(traced):
    first, _, calls = trained_together(generation(0.01, 0.02, 0.03), traced)
    assert calls > 0
    members = generation(0.04, 0.05, 0.001)
    apart = compare.train_apart(members)
    second, trained, calls = trained_together(members, traced)
    assert calls == 0
    compare.assert_same(apart, trained, 1e-4)
    own = {name: model.predict(X, verbose=0) for name, model in second.members.items()}
    for name, found in second.predict(X, verbose=0).items():
        np.testing.assert_allclose(found, own[name], atol=1e-5)
    # The first cohort goes on, perhaps with what the second one has used.
    before = len(traced)
    first.fit(X, Y, epochs=2, validation_split=0.2, shuffle=False, verbose=0)
    assert len(traced) == before


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"width": 7}, marks=pytest.mark.nightly),
        pytest.param({"loss": "mae"}, marks=pytest.mark.nightly),
        {"loss": lambda y, p: keras.ops.mean(keras.ops.square(y - p), axis=-1)},
    ],
    ids=["a layer", "a loss", "code of the user's"],
)
def test_other_models_are_traced(traced, other):
    trained_together(generation(0.01, 0.02), traced)
    members = generation(0.01, 0.02, **other)
    apart = compare.train_apart(members)
    _, trained, calls = trained_together(members, traced)
    assert calls > 0
    compare.assert_same(apart, trained, 1e-4)


SCALE = 1.0


def scaled(y, p):
    return SCALE * keras.ops.mean(keras.ops.square(y - p), axis=-1)


@pytest.mark.nightly
def test_code_of_the_users_is_traced_anew(traced, monkeypatch):
    trained_together(generation(0.01, 0.02, loss=scaled), traced)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    members = generation(0.01, 0.02, loss=scaled)
    apart = compare.train_apart(members)
    _, trained, calls = trained_together(members, traced)
    assert calls > 0
    compare.assert_same(apart, trained, 1e-4)


@pytest.mark.nightly
def test_another_configuration_is_traced_anew(traced):
    members = generation(0.01, 0.02, loss="mape")
    trained_together(members, traced)
    epsilon = keras.config.epsilon()
    try:
        keras.config.set_epsilon(0.5)
        apart = compare.train_apart(members)
        _, trained, calls = trained_together(members, traced)
    finally:
        keras.config.set_epsilon(epsilon)
    assert calls > 0
    compare.assert_same(apart, trained, 1e-4)


def test_metrics_of_other_names_have_logs_of_their_own(traced):
    def named(name):
        def build():
            model = keras.Sequential([keras.Input((6,)), layers.Dense(2)])
            model.compile("adam", "mse", metrics=[keras.metrics.MeanAbsoluteError(name=name)])
            return model

        return {f"m{i}": Member(build, x=X, y=Y, shuffle=False) for i in range(2)}

    for name in ("one", "two"):
        members = named(name)
        apart = compare.train_apart(members)
        _, trained, _ = trained_together(members, traced)
        compare.assert_same(apart, trained, 1e-4)
        assert set(trained["m0"].history.history) == {"loss", name}


@pytest.mark.nightly
def test_shared_floats_are_compared(traced):
    """Floats that all members have in common are part of the trace."""
    members = {f"m{i}": Member(lambda: mlp(decay=0.1), x=X, y=Y, shuffle=False) for i in range(2)}
    trained_together(members, traced)
    members = {f"m{i}": Member(lambda: mlp(decay=0.9), x=X, y=Y, shuffle=False) for i in range(2)}
    apart = compare.train_apart(members)
    _, trained, _ = trained_together(members, traced)
    compare.assert_same(apart, trained, 1e-4)


@pytest.mark.nightly
def test_a_stack_in_use_is_not_lent(traced):
    """A callback trains another cohort of the same signature."""
    members = generation(0.01, 0.02)
    apart = compare.train_apart(members)
    inner = generation(0.03, 0.04)
    inner_apart = compare.train_apart(inner)
    found = {}

    class Inner(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if not found:
                found.update(trained_together(inner, traced)[1])

    cohort = kc.Cohort({n: compare.built(m) for n, m in members.items()}, layout="stacked")
    arguments = compare.by_argument(members)
    history = cohort.fit(verbose=0, callbacks={"m0.01": [Inner()]}, **arguments)
    trained = {n: compare.Trained(model, history[n]) for n, model in cohort.members.items()}
    compare.assert_same(apart, trained, 1e-4)
    compare.assert_same(inner_apart, found, 1e-4)


@pytest.mark.nightly
def test_models_are_released(traced):
    cohort, trained, _ = trained_together(generation(0.01, 0.02), traced)
    models = [weakref.ref(model) for model in cohort.members.values()]
    traced.clear()
    del cohort, trained
    gc.collect()
    assert [model() for model in models] == [None, None]
    assert len(compiled.compiled_stacks._stored) == 1


@pytest.mark.nightly
def test_few_are_stored(traced, monkeypatch):
    monkeypatch.setattr(compiled, "_MOST_STORED", 2)
    for width in (3, 4, 5):
        trained_together(generation(0.01, 0.02, width=width), traced)
    stored = compiled.compiled_stacks._stored
    assert len(stored) == 2
    monkeypatch.setattr(compiled, "_MOST_BYTES", stored[-1].state.num_bytes)
    cohort, _, _ = trained_together(generation(0.01, 0.02, width=5), traced)
    assert len(compiled.compiled_stacks._stored) == 1
    monkeypatch.setattr(compiled.compiled_stacks, "_stored", [])
    before = len(traced)
    fit = {"epochs": 2, "validation_split": 0.2, "shuffle": False}
    cohort.fit(X, Y, **fit, verbose=0)  # a cohort keeps what it has compiled
    assert len(traced) == before
