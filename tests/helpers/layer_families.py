"""Models of every layer family, as members."""

import keras
import numpy as np
from keras import layers

from tests.helpers.compare import Member

BATCH = 8
UNEVEN = {"rows": 44, "epochs": 5}  # 5 batches and a partial one: 30 steps
EVEN = {"rows": 48, "epochs": 5}
# JAX compiles every batch shape anew, so there only the first two cohorts have a partial batch.
USUAL = EVEN if keras.backend.backend() == "jax" else UNEVEN

VECTOR, TOKENS, SEQUENCE, IMAGE, VOLUME, FILM = (
    (6,), (5,), (5, 4), (6, 6, 2), (4, 4, 4, 2), (3, 4, 4, 2),
)  # fmt: skip


def data(shape, rows=44):
    rng = np.random.default_rng(3)
    if shape == TOKENS:
        x = rng.integers(0, 9, (rows, *shape))
    else:
        x = rng.normal(size=(rows, *shape)).astype("float32")
    if shape == SEQUENCE:
        x[::3, 3:] = 0.0  # what Masking leaves out
    return x, rng.normal(size=(rows, 2)).astype("float32")


def adapted_normalization():
    layer = layers.Normalization()
    layer.adapt(data(VECTOR)[0])
    return layer


def residual():
    x = keras.Input(VECTOR)
    h = layers.Dense(6, activation="tanh")(x)
    h = layers.Concatenate()([layers.Add()([x, h]), layers.Multiply()([x, h])])
    return keras.Model(x, layers.Average()([layers.Dense(4)(h), layers.Dense(4)(h)]))


def attention(layer):
    x = keras.Input(SEQUENCE)
    return keras.Model(x, layer(layers.Dense(4)(x), layers.Dense(4)(x)))


def attention_of_list(layer):
    x = keras.Input(SEQUENCE)
    return keras.Model(x, layer([layers.Dense(4)(x), layers.Dense(4)(x)]))


# On torch, Dropout without a seed draws from torch's global generator, whose state then depends on
# what else runs; on the others its seed is drawn when the layer is made.
UNSEEDED = {"unseeded Dropout": (VECTOR, lambda: [layers.Dense(8), layers.Dropout(0.5)])}
if keras.backend.backend() == "torch":
    UNSEEDED = {}

# Family -> input shape, and what makes its layers. An entry of the list is one cohort.
# A bias before a BatchNormalization, or of an attention's keys, has no effect: its gradient is what
# rounding leaves, of which many an optimizer makes a weight, another one in each program.
COHORTS = [
    {
        "Dense": (VECTOR, lambda: [layers.Dense(5, activation="relu")]),
        "BatchNormalization": (
            VECTOR,
            lambda: [layers.Dense(5, use_bias=False), layers.BatchNormalization()],
        ),
        "Normalization, Rescaling": (
            VECTOR,
            lambda: [adapted_normalization(), layers.Rescaling(0.5, offset=0.1)],
        ),
        "PReLU": (VECTOR, lambda: [layers.Dense(5), layers.PReLU()]),
        "UnitNormalization": (VECTOR, lambda: [layers.Dense(5), layers.UnitNormalization()]),
        "SpectralNormalization": (
            VECTOR,
            lambda: [layers.SpectralNormalization(layers.Dense(5))],
        ),
        "Add, Multiply, Average, Concatenate": (VECTOR, lambda: [residual()]),
    },
    {
        "Dropout": (VECTOR, lambda: [layers.Dense(8), layers.Dropout(0.5, seed=1)]),
        **UNSEEDED,
        "GaussianDropout, GaussianNoise": (
            VECTOR,
            lambda: [layers.GaussianDropout(0.3, seed=2), layers.GaussianNoise(0.3, seed=3)],
        ),
        "AlphaDropout": (VECTOR, lambda: [layers.AlphaDropout(0.3, seed=4)]),
        "SpatialDropout1D": (SEQUENCE, lambda: [layers.SpatialDropout1D(0.5, seed=5)]),
        "ActivityRegularization": (
            VECTOR,
            lambda: [layers.Dense(5), layers.ActivityRegularization(l2=0.1)],
        ),
    },
    {
        "Embedding": (
            TOKENS,
            lambda: [layers.Embedding(9, 4, mask_zero=True), layers.GlobalAveragePooling1D()],
        ),
        "Masking, SimpleRNN": (SEQUENCE, lambda: [layers.Masking(), layers.SimpleRNN(3)]),
        "LSTM": (SEQUENCE, lambda: [layers.LSTM(3, return_sequences=True)]),
        "GRU": (SEQUENCE, lambda: [layers.GRU(3, dropout=0.2, recurrent_dropout=0.2, seed=6)]),
        "Bidirectional": (SEQUENCE, lambda: [layers.Bidirectional(layers.SimpleRNN(2))]),
    },
    {
        "Conv1D": (SEQUENCE, lambda: [layers.Conv1D(3, 3)]),
        "SeparableConv1D": (SEQUENCE, lambda: [layers.SeparableConv1D(3, 3)]),
        "MaxPooling1D, GlobalMaxPooling1D": (
            SEQUENCE,
            lambda: [layers.Dense(4), layers.MaxPooling1D(2), layers.GlobalMaxPooling1D()],
        ),
        "TimeDistributed": (SEQUENCE, lambda: [layers.TimeDistributed(layers.Dense(3))]),
        "EinsumDense": (SEQUENCE, lambda: [layers.EinsumDense("abc,cd->abd", (5, 3))]),
        "Permute, Reshape": (
            SEQUENCE,
            lambda: [layers.Permute((2, 1)), layers.Reshape((2, 10)), layers.Dense(3)],
        ),
    },
    {
        "LayerNormalization": (SEQUENCE, lambda: [layers.LayerNormalization()]),
        "GroupNormalization": (SEQUENCE, lambda: [layers.GroupNormalization(2)]),
        "RMSNormalization": (SEQUENCE, lambda: [layers.RMSNormalization()]),
        "MultiHeadAttention": (
            SEQUENCE,
            lambda: [attention(layers.MultiHeadAttention(2, 3, use_bias=False))],
        ),
        "Attention": (SEQUENCE, lambda: [attention_of_list(layers.Attention(use_scale=True))]),
    },
    {
        "Conv2D": (IMAGE, lambda: [layers.Conv2D(3, 3, activation="relu")]),
        "DepthwiseConv2D": (IMAGE, lambda: [layers.DepthwiseConv2D(3)]),
        "SeparableConv2D": (IMAGE, lambda: [layers.SeparableConv2D(3, 3)]),
        "Conv2DTranspose": (IMAGE, lambda: [layers.Conv2DTranspose(2, 3, strides=2)]),
        "MaxPooling2D, AveragePooling2D": (
            IMAGE,
            lambda: [layers.Conv2D(3, 2), layers.MaxPooling2D(2), layers.AveragePooling2D(2)],
        ),
        "GlobalAveragePooling2D": (
            IMAGE,
            lambda: [layers.Conv2D(3, 3), layers.GlobalAveragePooling2D()],
        ),
    },
    {
        "UpSampling2D, ZeroPadding2D, Cropping2D": (
            IMAGE,
            lambda: [layers.UpSampling2D(2), layers.ZeroPadding2D(1), layers.Cropping2D(3)],
        ),
        "Resizing": (IMAGE, lambda: [layers.Resizing(4, 5)]),
        "SpatialDropout2D": (IMAGE, lambda: [layers.SpatialDropout2D(0.5, seed=7)]),
        "RandomFlip": (IMAGE, lambda: [layers.RandomFlip(seed=8)]),
        "Conv3D, MaxPooling3D": (VOLUME, lambda: [layers.Conv3D(2, 2), layers.MaxPooling3D(2)]),
        "ConvLSTM2D": (FILM, lambda: [layers.ConvLSTM2D(2, 2)]),
        "stateful SimpleRNN": (SEQUENCE, lambda: [layers.SimpleRNN(3, stateful=True)]),
    },
]
FAMILIES = {name: family for cohort in COHORTS for name, family in cohort.items()}
IN_DOUBLE_PRECISION = (
    "Dense",
    "BatchNormalization",
    "Dropout",
    "GRU",
    "Conv1D",
    "LayerNormalization",
    "MultiHeadAttention",
    "Conv2D",
)


def sgd():
    return keras.optimizers.SGD(0.02, momentum=0.9)


def member(name, optimizer=sgd, compiled=lambda model: None):
    """A member with these layers; `compiled(model)` is called once its model is."""
    shape, make_layers = FAMILIES[name]
    stateful = name.startswith("stateful")
    size = EVEN if stateful else UNEVEN if name in COHORTS[0] | COHORTS[1] else USUAL

    def build():
        model = keras.Sequential([keras.Input(shape, batch_size=BATCH if stateful else None)])
        for layer in make_layers():
            model.add(layer)
        if len(model.output_shape) > 2:
            model.add(layers.Flatten())
        model.add(layers.Dense(2))
        model.compile(optimizer(), loss="mse", metrics=["mae"])
        compiled(model)
        return model

    x, y = data(shape, size["rows"])
    return Member(build, x=x, y=y, batch_size=BATCH, epochs=size["epochs"], shuffle=False)
