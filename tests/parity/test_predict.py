"""Stacks predict what each model's own `predict` returns, by one step that is traced once."""

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc
from kerascohost.backends import get_backend

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="torch runs eagerly: runs once a torch program compiles its steps",
)

X = np.random.default_rng(0).normal(size=(70, 6)).astype("float32")


def mlp(seed, rate=0.1):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(rate),
            layers.Dense(3),
        ]
    )
    model.compile("adam", "mse")
    return model


def two_ended(seed):
    """A model with a dict of inputs and a list of outputs."""
    keras.utils.set_random_seed(seed)
    left, right = keras.Input((6,), name="left"), keras.Input((2,), name="right")
    both = layers.Concatenate()([left, right])
    outputs = [layers.Dense(2, name="sum")(both), layers.Identity(name="same")(left)]
    model = keras.Model({"left": left, "right": right}, outputs)
    model.compile("adam", "mse")
    return model


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.Model):
    def __init__(self, seed):
        super().__init__()
        self.dense = layers.Dense(2, kernel_initializer=keras.initializers.RandomNormal(seed=seed))

    def call(self, x):
        return self.dense(x)

    def predict_step(self, *given):
        data = given[-1]
        if keras.backend.backend() == "jax":
            outputs, changed = super().predict_step(*given)
            return outputs * 10, changed
        return super().predict_step(data) * 10


class Calls(layers.Layer):
    """Counts its calls in a variable, also those of `predict`, and adds their number."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x + self.calls


def counting(seed):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2), Calls()])
    model.compile("adam", "mse")
    return model


@pytest.fixture
def vectorized(monkeypatch):
    """Counts the calls of stacks that predict, each with its number of members."""
    calls = []
    call = get_backend().StackProgram.__call__

    def counted(self, ranges):
        outcome = call(self, ranges)
        calls.append((self.kind, len(ranges)))
        return outcome

    monkeypatch.setattr(get_backend().StackProgram, "__call__", counted)
    return calls


def is_stacked(cohort):
    return (cohort.plan.frame["layout"] == "stacked").all()


def assert_predicts(make, x, layout="stacked"):
    """Compares with each model's own `predict`; returns the cohort.

    Args:
        make: Makes the model of a seed.
        x: Their inputs: one value for all, or a dict by member.
        layout: The layout.
    """
    names = ["m0", "m1", "m2"]
    by_member = x if isinstance(x, dict) and set(x) == set(names) else dict.fromkeys(names, x)
    apart = {n: make(i).predict(by_member[n], verbose=0) for i, n in enumerate(names)}
    cohort = kc.Cohort({n: make(i) for i, n in enumerate(names)}, layout=layout)
    found = cohort.predict(x, verbose=0)
    for name, own in apart.items():
        pairs = zip(keras.tree.flatten(found[name]), keras.tree.flatten(own), strict=True)
        for one, other in pairs:
            assert isinstance(one, np.ndarray)
            np.testing.assert_allclose(one, other, atol=1e-5)
    return cohort


def test_outputs_are_each_models_own(vectorized):
    cohort = assert_predicts(mlp, X)
    assert vectorized == [("predict", 3)] * 2  # the full batches, and what is left over
    assert is_stacked(cohort)


def test_each_member_may_have_its_own_data(vectorized):
    subset = kc.Subset(X, [3, 60, 3, *range(40)])
    assert_predicts(mlp, {"m0": X, "m1": X[:40], "m2": subset})
    assert ("predict", 3) in vectorized


def test_several_inputs_and_outputs(vectorized):
    assert_predicts(two_ended, {"left": X, "right": X[:, :2]})
    assert set(vectorized) == {("predict", 3)}


def test_a_predict_step_of_ones_own(vectorized):
    def make(seed):
        model = Scaled(seed)
        model.compile("adam", "mse")
        return model

    cohort = assert_predicts(make, X)
    assert set(vectorized) == ({("predict", 3)} if is_stacked(cohort) else set())


def test_a_layer_that_changes_a_variable_is_predicted_alone(vectorized):
    cohort = assert_predicts(counting, X)
    assert vectorized == []
    first = cohort.members["m0"]
    again = counting(0)
    for _ in range(2):
        own = again.predict(X, verbose=0)
    np.testing.assert_allclose(cohort.predict(X, verbose=0)["m0"], own, atol=1e-5)
    assert float(first.layers[-1].calls.value) == float(again.layers[-1].calls.value)


class Noise(layers.Layer):
    """Draws from Keras's global generator, also in `predict`."""

    def call(self, x):
        return x + keras.random.uniform(keras.ops.shape(x))


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="Keras on JAX refuses steps that draw without a seed"
)
def test_random_numbers_are_each_models_own():
    def noisy(seed):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((6,)), layers.Dense(2), Noise()])
        model.compile("adam", "mse")
        keras.utils.set_random_seed(5)
        return model

    apart = [noisy(seed).predict(X, verbose=0) for seed in range(2)]
    models = {f"m{seed}": noisy(seed) for seed in range(2)}
    for layout in ("joined", "stacked"):
        keras.utils.set_random_seed(5)
        found = kc.Cohort(models, layout=layout).predict(X, verbose=0)
        for one, other in zip(found.values(), apart, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_predictions_are_those_of_the_present_weights(vectorized):
    y = X[:, :3]
    cohort = kc.Cohort({f"m{seed}": mlp(seed) for seed in range(3)}, layout="stacked")
    alone = {name: mlp(seed) for seed, name in enumerate(cohort.members)}
    for _ in range(2):
        cohort.fit(X, y, shuffle=False, epochs=2, verbose=0)
        found = cohort.predict(X, verbose=0)
        for name, model in alone.items():
            keras.utils.set_random_seed(0)
            model.set_weights(cohort.members[name].get_weights())
            np.testing.assert_allclose(found[name], model.predict(X, verbose=0), atol=1e-5)
    assert vectorized.count(("predict", 3)) == 4


def test_callbacks_see_the_outputs_of_their_batches(vectorized):
    def seen_by(predict):
        seen = []
        watch = keras.callbacks.LambdaCallback()
        watch.on_predict_batch_end = lambda batch, logs: seen.append(
            (batch, logs["outputs"].copy())
        )
        predict(watch)
        return seen

    cohort = kc.Cohort({f"m{seed}": mlp(seed) for seed in range(2)}, layout="stacked")
    watched = {"m1": []}

    def together(watch):
        watched["m1"] = [watch]
        cohort.predict(X, callbacks=watched, verbose=0)

    found = seen_by(together)
    expected = seen_by(lambda watch: mlp(1).predict(X, callbacks=[watch], verbose=0))
    assert [batch for batch, _ in found] == [batch for batch, _ in expected] == [0, 1, 2]
    for (_, one), (_, other) in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_fails_is_named_and_the_others_are_not_to_blame():
    cohort = kc.Cohort({f"m{seed}": mlp(seed) for seed in range(2)}, layout="stacked")
    with pytest.raises(ValueError) as caught:
        cohort.predict({"m0": X, "m1": X[:, :4]}, verbose=0)
    assert "m1" in str(caught.value.__notes__)


def test_steps_are_traced_once(monkeypatch):
    traced = []
    call = layers.Dense.call

    def counted(self, inputs, training=None):
        traced.append(self)
        return call(self, inputs, training=training)

    cohort = kc.Cohort({f"m{seed}": mlp(seed) for seed in range(4)}, layout="stacked")
    monkeypatch.setattr(layers.Dense, "call", counted)
    cohort.predict(X[:64], verbose=0)
    first = len(traced)
    assert 0 < first <= 4  # two layers; a backend may trace twice
    cohort.predict(X[3:67], verbose=0)
    assert len(traced) == first
