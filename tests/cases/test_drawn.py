"""What the fuzzer of programs found, each as small as it can be."""

import keras
import numpy as np
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
