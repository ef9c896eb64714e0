"""Models whose memory is measured in a process of its own."""

import keras
from keras import layers


def compiled(*parts, optimizer="adam"):
    model = keras.Sequential(parts)
    model.compile(optimizer, "mse")
    return model


MODELS = {
    "small": lambda: compiled(keras.Input((8,)), layers.Dense(1)),
    "wide": lambda: compiled(
        keras.Input((1024,)), layers.Dense(4096, "relu"), layers.Dense(2048), layers.Dense(1)
    ),
    "images": lambda: compiled(
        keras.Input((64, 64, 3)),
        layers.Conv2D(32, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(1),
        optimizer="sgd",
    ),
    "sequence": lambda: compiled(keras.Input((256, 32)), layers.LSTM(128), layers.Dense(1)),
}
