"""The models and data of the benchmarks."""

import keras
import numpy as np
from keras import layers


def normal(rows, shape, outputs):
    """Random inputs and targets; what they are does not matter to speed."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, *shape)).astype("float32")
    return x, random.normal(size=(rows, outputs)).astype("float32")


def compiled(net, **kwargs):
    net.compile(**{"optimizer": "adam", "loss": "mse", **kwargs})
    return net


def mlp(seed, features=20, units=64, **kwargs):
    keras.utils.set_random_seed(seed)
    return compiled(
        keras.Sequential(
            [
                keras.Input((features,)),
                layers.Dense(units, activation="relu"),
                layers.Dense(units, activation="relu"),
                layers.Dense(1),
            ]
        ),
        **kwargs,
    )


def founding_pair(**kwargs):
    """The two models of the founding answer: one of images, one of two numbers."""
    keras.utils.set_random_seed(0)
    images = [
        keras.Input((20, 20, 3)),
        layers.Conv2D(10, 3, activation="tanh"),
        layers.Flatten(),
        layers.Dense(1, activation="sigmoid"),
    ]
    numbers = [keras.Input((2,)), layers.Dense(20), layers.Dense(3)]
    return {
        "cnn": compiled(keras.Sequential(images), **kwargs),
        "mlp": compiled(keras.Sequential(numbers), **kwargs),
    }


def cnn(seed, **kwargs):
    keras.utils.set_random_seed(seed)
    net = [
        keras.Input((28, 28, 1)),
        layers.Conv2D(16, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(10),
    ]
    return compiled(keras.Sequential(net), **kwargs)


def regularized(seed, **kwargs):
    """An MLP with state besides its weights: moving statistics and the seeds of its dropout."""
    keras.utils.set_random_seed(seed)
    hidden = [
        layer
        for i in range(2)
        for layer in (
            layers.Dense(64, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2, seed=10 * seed + i),
        )
    ]
    return compiled(keras.Sequential([keras.Input((20,)), *hidden, layers.Dense(1)]), **kwargs)


def conv1d(seed, **kwargs):
    keras.utils.set_random_seed(seed)
    net = [
        keras.Input((32, 4)),
        layers.Conv1D(16, 3, activation="relu"),
        layers.Conv1D(16, 3, activation="relu"),
        layers.GlobalAveragePooling1D(),
        layers.Dense(1),
    ]
    return compiled(keras.Sequential(net), **kwargs)


def attention(seed, **kwargs):
    keras.utils.set_random_seed(seed)
    given = keras.Input((16, 8))
    mixed = layers.MultiHeadAttention(num_heads=2, key_dim=8)(given, given)
    mixed = layers.LayerNormalization()(layers.add([given, mixed]))
    result = layers.Dense(1)(layers.GlobalAveragePooling1D()(mixed))
    return compiled(keras.Model(given, result), **kwargs)


def lstm(seed, **kwargs):
    keras.utils.set_random_seed(seed)
    net = [keras.Input((16, 8)), layers.LSTM(16), layers.Dense(1)]
    return compiled(keras.Sequential(net), **kwargs)


def named(make, count):
    """`count` models made by `make(seed, **compile_arguments)`, by name."""
    return lambda **kwargs: {f"m{i}": make(i, **kwargs) for i in range(count)}


PAIR_DATA = {"cnn": normal(3000, (20, 20, 3), 1), "mlp": normal(6000, (2,), 3)}
MLP_DATA = normal(2048, (20,), 1)
CNN_DATA = normal(1024, (28, 28, 1), 10)
SIGNAL_DATA = normal(1024, (32, 4), 1)
SEQUENCE_DATA = normal(1024, (16, 8), 1)
LARGE_DATA = normal(1024, (256,), 1)


def shared(data, count):
    return {f"m{i}": data for i in range(count)}
