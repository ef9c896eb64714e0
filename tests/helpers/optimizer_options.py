"""Members with every Keras optimizer, and with its options."""

import inspect

import keras
import numpy as np
from keras import layers, optimizers

from tests.helpers.compare import Member

BASES = {"Optimizer", "LossScaleOptimizer"}
CLASSES = sorted(
    name
    for name, value in vars(optimizers).items()
    if inspect.isclass(value) and issubclass(value, optimizers.Optimizer) and name not in BASES
)
SCHEDULES = optimizers.schedules
OPTIONS = {
    "clipnorm": lambda: optimizers.Adam(0.01, clipnorm=0.05),
    "clipvalue, ExponentialDecay": lambda: optimizers.SGD(
        SCHEDULES.ExponentialDecay(0.1, 5, 0.5, staircase=True), momentum=0.9, clipvalue=0.02
    ),
    "global_clipnorm, PiecewiseConstantDecay": lambda: optimizers.SGD(
        SCHEDULES.PiecewiseConstantDecay([6, 20], [0.1, 0.05, 0.01]), global_clipnorm=0.1
    ),
    "weight_decay, PolynomialDecay": lambda: optimizers.AdamW(
        SCHEDULES.PolynomialDecay(0.1, 20), weight_decay=0.05
    ),
    "use_ema, InverseTimeDecay": lambda: optimizers.SGD(
        SCHEDULES.InverseTimeDecay(0.1, 5, 0.5), use_ema=True, ema_momentum=0.9
    ),
    "ema_overwrite_frequency": lambda: optimizers.Adam(
        0.01, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=4
    ),
    "gradient_accumulation_steps": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=4),
    "amsgrad, CosineDecay": lambda: optimizers.Adam(
        SCHEDULES.CosineDecay(0.05, 25, warmup_target=0.1, warmup_steps=4), amsgrad=True
    ),
    "nesterov, CosineDecayRestarts": lambda: optimizers.SGD(
        SCHEDULES.CosineDecayRestarts(0.03, 10), momentum=0.5, nesterov=True
    ),
}
IN_DOUBLE_PRECISION = ("Adam", "clipnorm", "use_ema, InverseTimeDecay", "Lamb")


# 30 steps; on JAX, which compiles every batch shape anew, without a partial batch.
ROWS = 48 if keras.backend.backend() == "jax" else 44
RANDOM = np.random.default_rng(5)
FIT = {
    "x": RANDOM.normal(size=(ROWS, 4)).astype("float32"),
    "y": RANDOM.normal(size=(ROWS, 3)).astype("float32"),
    "batch_size": 8,
    "epochs": 5,
    "shuffle": False,
}


def made(name):
    if name in OPTIONS:
        return OPTIONS[name]()
    if name == "MultiOptimizer":
        kernels = {".*kernel": optimizers.Adam(0.02)}
        return optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(0.02), kernels))
    return getattr(optimizers, name)(learning_rate=0.02)


def build_outside_of_fit(model):
    """Inside TensorFlow's traced step this optimizer would lose the weights (Keras 3.15.1)."""
    if isinstance(model.optimizer, optimizers.ScheduleFreeAdamW):
        model.optimizer.build(model.trainable_variables)


def member(name):
    def build():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh")])
        model.compile(made(name), loss="mse")
        build_outside_of_fit(model)
        return model

    return Member(build, **FIT)
