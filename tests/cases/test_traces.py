"""Case F7: steps stay as they were first traced until the model is compiled again."""

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc

X = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="`fit` goes on elsewhere")
on_tensorflow = pytest.mark.skipif(keras.backend.backend() == "jax", reason="`fit` fails there")
GIVEN = {"epochs": 2, "batch_size": 16, "shuffle": False, "verbose": 0}


class Weighted(keras.Model):
    """A model whose loss is multiplied with a Python number, an attribute of the model."""

    def __init__(self, beta):
        super().__init__()
        self.beta = beta
        self.hidden = layers.Dense(4, activation="tanh", kernel_initializer="ones")
        self.out = layers.Dense(1, kernel_initializer="ones")

    def call(self, x):
        return self.out(self.hidden(x)) * self.beta

    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) * self.beta


def weighted(beta=1.0):
    model = Weighted(beta)
    model.compile("sgd", "mse")
    return model


def net(**compiled):
    ones = {"kernel_initializer": "ones"}
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(3, "tanh", **ones), layers.Dense(1, **ones)]
    )
    model.compile(keras.optimizers.Adam(0.1), "mse", **compiled)
    return model


def nested():
    """A model in a model, of which a layer is frozen from the beginning."""
    ones = {"kernel_initializer": "ones"}
    base = keras.Sequential(
        [keras.Input((5,)), layers.Dense(3, "tanh", **ones), layers.Dense(3, "tanh", **ones)]
    )
    base.layers[0].trainable = False
    model = keras.Sequential([keras.Input((5,)), base, layers.Dense(1, **ones)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def in_block(model, **given):
    with kc.cohost():
        history = model.fit(X, Y, **GIVEN, **given)
    return history.history["loss"]


def in_cohort(model, **given):
    return kc.Cohort({"m": model}).fit(X, Y, **GIVEN, **given)["m"].history["loss"]


def alone(model, **given):
    return model.fit(X, Y, **GIVEN, **given).history["loss"]


@pytest.mark.parametrize("fit", [in_block, in_cohort])
def test_an_attribute_changed_without_compile_changes_nothing_as_in_fit(fit):
    losses = []
    for one in (alone, fit):
        model = weighted()
        first = one(model)
        model.beta = 3.0
        losses.append((first, one(model), model.get_weights()))
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=1e-6)
    np.testing.assert_allclose(losses[1][1], losses[0][1], rtol=1e-6)
    for mine, its in zip(losses[1][2], losses[0][2], strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-6)
    assert model.beta == 3.0


@pytest.mark.parametrize("fit", [in_block, in_cohort])
def test_an_attribute_changed_before_compile_counts(fit):
    losses = []
    for one in (alone, fit):
        model = weighted()
        one(model)
        model.beta = 3.0
        model.compile("sgd", "mse")
        losses.append(one(model))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@pytest.mark.parametrize("layout", ["joined", "stacked"])
def test_a_cohort_goes_on_with_what_it_traced_first_also_with_other_shapes(layout):
    """Another number of rows is another shape for a cohort, but not for `fit`."""
    ends = []
    for together in (False, True):
        a, b = weighted(), weighted()
        cohort = kc.Cohort({"a": a, "b": b}, layout=layout)
        for rows in (64, 32):
            x, y = X[:rows], Y[:rows]
            if together:
                cohort.fit(x, y, **GIVEN)
            else:
                a.fit(x, y, **GIVEN)
                b.fit(x, y, **GIVEN)
            a.beta = 3.0
        ends.append([*a.get_weights(), *b.get_weights()])
    for mine, its in zip(*ends, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5)


OTHER_FORMS = {"batch size": {"batch_size": 8}, "weights": {"class_weight": {0: 1.0, 1: 2.0}}}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_change_without_compile_is_refused_where_fit_would_trace_anew(form):
    model, given = weighted(), GIVEN | OTHER_FORMS[form]
    labels = (Y > 0).astype("float32")
    with kc.cohost():
        model.fit(X, labels, **GIVEN)
    with kc.cohost():
        model.fit(X, labels, **given)  # nothing has changed: another form is fine
    model.beta = 3.0
    before = model.get_weights()
    with pytest.raises(kc.CohortError, match=r"`beta`.*1\.0 at the first trace, 3\.0 now.*form"):
        kc.Cohort({"m": model}).fit(X[:60], labels[:60], **given)
    for mine, its in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("layout", ["joined", "stacked"])
@pytest.mark.parametrize("same_cohort", [True, False])
@on_tensorflow
def test_a_layer_frozen_without_compile_is_trained_on_as_in_fit(layout, same_cohort):
    ends = []
    for together in (False, True):
        models = {"a": nested(), "b": nested()}
        cohort = kc.Cohort(models, layout=layout)
        for _ in range(2):
            if together:
                cohort.fit(X, Y, **GIVEN)
            else:
                for model in models.values():
                    model.fit(X, Y, **GIVEN)
            models["a"].layers[0].trainable = False
            if not same_cohort:
                cohort = kc.Cohort(models, layout=layout)
        assert [layer.trainable for layer in models["a"].layers[0].layers] == [False, False]
        ends.append([w for model in models.values() for w in model.get_weights()])
    for mine, its in zip(*ends, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5)


@pytest.mark.parametrize("layout", ["joined", "stacked"])
@on_jax
def test_a_layer_frozen_without_compile_is_refused_where_fit_fails(layout):
    models = {"a": net(), "b": net()}
    cohort = kc.Cohort(models, layout=layout)
    cohort.fit(X, Y, **GIVEN)
    before = models["a"].get_weights()
    models["a"].layers[0].trainable = False
    for each in (cohort, kc.Cohort(models, layout=layout)):
        with pytest.raises(kc.CohortError, match=r"'a'.*`compile` the model again"):
            each.fit(X, Y, **GIVEN)
    for mine, its in zip(models["a"].get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, its)
    for model in models.values():
        model.compile(keras.optimizers.Adam(0.1), "mse")
    cohort.fit(X, Y, **GIVEN)
    np.testing.assert_array_equal(models["a"].get_weights()[0], before[0])


@pytest.mark.parametrize("fit", [in_block, in_cohort])
def test_a_setting_of_a_layer_changed_without_compile_changes_nothing_as_in_fit(fit):
    losses = []
    for one in (alone, fit):
        model = keras.Sequential(
            [
                keras.Input((5,)),
                layers.LeakyReLU(0.5),
                layers.Dense(1, kernel_initializer="ones"),
            ]
        )
        model.compile("sgd", "mse")
        one(model)
        model.layers[0].negative_slope = 0.1
        losses.append(one(model))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    assert model.layers[0].negative_slope == 0.1


def test_an_array_changed_in_place_without_compile_is_refused():
    weights = np.ones(1, "float32")
    model = net()
    model.compile("sgd", lambda y, p: keras.ops.mean((y - p) ** 2) * weights)
    in_cohort(model)
    weights[0] = 2.0
    with pytest.raises(kc.CohortError, match=r"`weights`: changed.*`compile` the model again"):
        in_cohort(model)


def test_the_learning_rate_may_change():
    losses = []
    for one in (alone, in_cohort):
        model = net()
        one(model)
        model.optimizer.learning_rate = 0.01
        losses.append(one(model))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["evaluate", "predict"])
def test_evaluate_and_predict_go_on_with_their_first_trace(kind):
    found = []
    for together in (False, True):
        model = weighted()
        data = {"x": X} if kind == "predict" else {"x": X, "y": Y}
        results = []
        for beta in (1.0, 3.0):
            model.beta = beta
            if together:
                results.append(getattr(kc.Cohort({"m": model}), kind)(**data, verbose=0)["m"])
            else:
                results.append(getattr(model, kind)(**data, verbose=0))
        found.append(results)
    for mine, its in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-6)
