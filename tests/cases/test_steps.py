"""Cases C1, C4, C6 and E2: logs as `fit` takes them, building, and state `predict` changes."""

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc
from tests.helpers.sampled import one_in

X = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def own_logs(make):
    """A model whose `train_step` returns `make(loss, per_sample, logs)`."""

    class Own(keras.Sequential):
        def train_step(self, *given):
            logs, *state = self._both(super().train_step(*given))
            loss = logs["loss"]
            out = make(loss, keras.ops.ones((8,)) * loss, logs)
            return (out, *state) if state else out

        @staticmethod
        def _both(result):
            return result if isinstance(result, tuple) else (result,)

    model = Own([keras.Input((5,)), layers.Dense(1, kernel_initializer="ones")])
    model.compile("sgd", "mse")
    return model


LOGS = {
    "nothing": lambda loss, samples, logs: {"loss": loss, "extra": None},
    "of each sample": lambda loss, samples, logs: {"loss": loss, "samples": samples},
    "nested": lambda loss, samples, logs: {"loss": loss, "parts": {"a": loss, "b": loss * 2}},
    "a Python number": lambda loss, samples, logs: {"loss": loss, "one": 1.0},
    "missing": lambda loss, samples, logs: {},
}


def trained(model, fit):
    seen = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.append(sorted(logs)))
    try:
        history = fit(model, x=X, y=Y, epochs=2, batch_size=8, verbose=0, callbacks=[note])
    except Exception as error:
        return type(error), model.get_weights(), None, seen
    return None, model.get_weights(), history.history, seen


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="a step there returns its state, too")
def test_logs_of_any_form_are_those_of_fit(name):
    def alone(model, **given):
        return model.fit(shuffle=False, **given)

    def together(model, **given):
        return kc.Cohort({"own": model}).fit(shuffle=False, **given)["own"]

    expected, found = (trained(own_logs(LOGS[name]), fit) for fit in (alone, together))
    assert found[0] is expected[0]
    np.testing.assert_allclose(found[1][0], expected[1][0], rtol=1e-6)
    if expected[2] is not None:
        assert sorted(found[2]) == sorted(expected[2])
        for key, values in expected[2].items():
            for mine, its in zip(found[2][key], values, strict=True):
                assert (mine is None) == (its is None)
                if its is not None and not isinstance(its, dict):
                    np.testing.assert_allclose(mine, its, rtol=1e-6)
    assert found[3] == expected[3]


def counting():
    class Counts(layers.Layer):
        def build(self, shape):
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.calls.assign_add(1.0)
            return x + self.calls

    class Always(layers.Layer):
        def __init__(self):
            super().__init__()
            self.drop = layers.Dropout(0.5, seed=1)

        def call(self, x):
            return self.drop(x, training=True)

    return keras.Sequential([keras.Input((5,)), Counts(), Always(), layers.Dense(1, "tanh")])


def test_predict_keeps_the_state_that_it_changes():
    keras.utils.set_random_seed(0)
    apart, together = counting(), counting()
    together.set_weights(apart.get_weights())
    cohort = kc.Cohort({"m": together})
    for rows in (40, 20, 33):
        expected = apart.predict(X[:rows], batch_size=10, verbose=0)
        found = cohort.predict(X[:rows], batch_size=10, verbose=0)["m"]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for mine, its in zip(together.weights, apart.weights, strict=True):
        np.testing.assert_allclose(np.array(mine), np.array(its))
    assert float(together.layers[0].calls) > 0


def on_a_shared(part, seed):
    head = layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(seed))
    model = keras.Sequential([keras.Input((5,)), part, head])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def adapted():
    normalization = layers.Normalization()
    normalization.adapt(X)
    return normalization


def frozen():
    init = keras.initializers.GlorotUniform(3)
    backbone = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, kernel_initializer=init), layers.BatchNormalization()]
    )
    backbone.trainable = False
    return backbone


@pytest.mark.parametrize("layout", one_in(2, ["stacked", "joined"]))
@pytest.mark.parametrize("make", [adapted, frozen])
def test_parts_that_no_training_changes_may_be_shared(make, layout):
    part = make()
    apart = [on_a_shared(part, seed) for seed in range(2)]
    together = [on_a_shared(part, seed) for seed in range(2)]
    options = {"epochs": 2, "shuffle": False, "verbose": 0}
    for model in apart:
        model.fit(X, Y, **options)
    kc.Cohort(dict(zip("ab", together, strict=True)), layout=layout).fit(X, Y, **options)
    for one, other in zip(apart, together, strict=True):
        for mine, its in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (lambda: layers.Dense(4, name="encoder"), "of the layer 'encoder'"),
        (lambda: layers.BatchNormalization(name="bn"), "of the layer 'bn'"),
    ],
)
def test_parts_that_a_training_changes_are_named(part, named):
    shared = part()
    models = {name: on_a_shared(shared, seed) for seed, name in enumerate("ab")}
    with pytest.raises(kc.CohortError, match=rf"'a' and 'b' .* {named}\. Give each a layer of its"):
        kc.Cohort(models).fit(X, Y, verbose=0)


def test_metrics_of_several_members_are_named():
    metrics = [keras.metrics.MeanAbsoluteError(name="mae_"), "mse"]
    models = {name: on_a_shared(layers.Dense(2), seed) for seed, name in enumerate("ab")}
    for model in models.values():
        model.compile("sgd", "mse", metrics=metrics)
    message = r"'a' and 'b' with the same metric \(mae_\)\. Compile each model with metrics of its"
    with pytest.raises(kc.CohortError, match=message):
        kc.Cohort(models).fit(X, Y, verbose=0)


class Autoencoder(keras.Model):
    """A model that is no function: its step calls unbuilt parts of it."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([layers.Dense(3, kernel_initializer="ones")])
        self.decoder = keras.Sequential([layers.Dense(5, kernel_initializer="ones")])

    def train_step(self, data):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self.decoder(self.encoder(data)) - data) ** 2)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="`fit` there needs a `call`")
def test_a_model_whose_step_builds_it_is_built_without_a_warning():
    weights = []
    for together in (False, True):
        model = Autoencoder()
        model.compile("sgd")
        fit = kc.Cohort({"m": model}).fit if together else model.fit
        fit(X, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for mine, its in zip(weights[1], weights[0], strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-6)


TARGETS = {
    "another name": {"kind": np.zeros((40, 2)), "size": np.zeros((40, 1))},
    "one missing": {"kinds": np.zeros((40, 2))},
}


@pytest.mark.parametrize("metrics", [None, {"kinds": "mae", "size": "mae"}, ["mae"]])
@pytest.mark.parametrize("targets", TARGETS)
def test_targets_of_other_names_raise_what_fit_raises(targets, metrics):
    errors = []
    for together in (False, True):
        inputs = keras.Input((5,))
        outputs = {n: layers.Dense(u, name=n)(inputs) for n, u in {"kinds": 2, "size": 1}.items()}
        model = keras.Model(inputs, outputs)
        model.compile("sgd", {"kinds": "mse", "size": "mse"}, metrics)
        fit = kc.Cohort({"m": model}).fit if together else model.fit
        with pytest.raises((KeyError, TypeError, ValueError)) as caught:
            fit(X, TARGETS[targets], verbose=0)
        errors.append((caught.type, str(caught.value)))
    assert errors[1] == errors[0]
