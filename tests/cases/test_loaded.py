"""Models that were loaded stack with those that were not (found by Keras's own tests)."""

import keras
import numpy as np
import pytest

import kerascohost as kc

X, Y = np.linspace(-1, 1, 96).reshape(32, 3), np.linspace(1, 0, 64).reshape(32, 2)


def sequential():
    return keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)]
    )


def functional():
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, activation="relu")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2)(hidden))


@pytest.mark.parametrize("make", [sequential, functional])
def test_a_loaded_model_stacks_with_the_one_that_was_saved(make, tmp_path):
    made, alone = make(), make()
    alone.set_weights(made.get_weights())
    made.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for model in (made, loaded, alone):
        model.compile("sgd", "mse")
    cohort = kc.Cohort({"made": made, "loaded": loaded}, layout="stacked")
    cohort.fit(X, Y, shuffle=False, verbose=0)
    alone.fit(X, Y, shuffle=False, verbose=0)
    assert cohort.plan.summary == "2 members in 1 stack"
    for model in (made, loaded):
        for value, expected in zip(model.get_weights(), alone.get_weights(), strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_model_loaded_from_hdf5_predicts_and_evaluates(tmp_path):
    """Keras builds its optimizer for no variables, which only a training needs."""
    made = functional()
    made.compile("adam", keras.losses.MeanSquaredError())
    made.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(tmp_path / "model.h5")
    cohort = kc.Cohort({"loaded": loaded})
    np.testing.assert_allclose(
        cohort.predict(X, verbose=0)["loaded"], made.predict(X, verbose=0), atol=1e-6
    )
    loss = cohort.evaluate(X, Y, verbose=0)["loaded"]
    assert loss == pytest.approx(made.evaluate(X, Y, verbose=0), abs=1e-6)
