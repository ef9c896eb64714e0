"""What the fuzzer of programs found, each as small as it can be."""

import contextlib
import random

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc

X = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def test_a_fit_of_no_epochs_builds_what_fit_builds():
    """On TensorFlow nothing: an optimizer that is built later may find other weights to train."""

    def left(fit):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([layers.Dense(3), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1, momentum=0.5), "mse")
        fit(model, x=X, y=Y, epochs=1, initial_epoch=1, verbose=0)
        return model.built, len(model.weights), len(model.optimizer.variables)

    assert left(lambda model, **given: kc.Cohort({"m": model}).fit(**given)) == left(
        keras.Model.fit
    )


class Rows(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, i):
        return X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]


def in_a_loop(hold, **fit):
    """Models whose initial weights are drawn after the fits before them."""
    keras.utils.set_random_seed(0)
    models = []
    with hold():
        for _ in range(3):
            models.append(keras.Sequential([keras.Input((5,)), layers.Dense(1)]))
            models[-1].compile("sgd", "mse")
            models[-1].fit(Rows(), verbose=0, **fit)
    return [w for model in models for w in model.get_weights()], random.random()


@pytest.mark.parametrize("fit", [{"epochs": 2}, {"epochs": 2, "steps_per_epoch": 2}])
def test_draws_after_a_shuffled_dataset_are_those_of_the_program(fit):
    """`fit` shuffles its batches by Python's random state, from which new layers take seeds."""
    expected, found = in_a_loop(contextlib.nullcontext, **fit), in_a_loop(kc.cohost, **fit)
    for mine, its in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)
    assert found[1] == expected[1]


def test_draws_after_a_shuffled_dataset_of_which_a_fit_stops_early_are_told():
    def stopping():
        return keras.callbacks.EarlyStopping("loss", patience=0, min_delta=9.0)

    with pytest.warns(UserWarning, match="drew random numbers, as new layers do"):
        in_a_loop(kc.cohost, epochs=5, callbacks=[stopping()])


@pytest.mark.parametrize("data", [(X, Y), (Rows(),)])
def test_draws_after_two_fits_of_a_new_model_are_those_of_the_program(data):
    """On JAX `fit` draws an order for the batch that builds the model: only the first one does."""

    def left(hold):
        keras.utils.set_random_seed(0)
        models = []
        with hold():
            for _ in range(2):
                models.append(keras.Sequential([layers.Dense(1)]))
                models[-1].compile("sgd", "mse")
                for _ in range(2):
                    models[-1].fit(*data, verbose=0)
        weights = [w for model in models for w in model.get_weights()]
        return weights, random.random(), np.random.random()

    expected, found = left(contextlib.nullcontext), left(kc.cohost)
    for mine, its in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("layout", ["joined", "stacked"])
def test_late_batches_of_another_shape_are_trained_with_what_the_call_saw(layout):
    """On JAX another shape is another trace, after the fit's first one has been kept."""

    def left(hold):
        keras.utils.set_random_seed(0)
        models = []
        with hold():
            for q in (0.5, 3.0):
                models.append(keras.Sequential([keras.Input((5,)), layers.Dense(1)]))
                models[-1].compile("sgd", lambda t, p: q * keras.ops.mean((t - p) ** 2))  # noqa: B023
                models[-1].fit(X, Y, batch_size=16, epochs=2, verbose=0, shuffle=False)
        return [w for model in models for w in model.get_weights()]

    expected, found = left(contextlib.nullcontext), left(lambda: kc.cohost(layout=layout))
    for mine, its in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)
