"""Members with every Keras optimizer, and its options, end as their own `fit` would end."""

import functools
import inspect

import keras
import numpy as np
import pytest
from keras import layers, optimizers

from tests.parity import compare
from tests.parity.compare import Member

BASES = {"Optimizer", "LossScaleOptimizer"}
CLASSES = sorted(
    name
    for name, value in vars(optimizers).items()
    if inspect.isclass(value) and issubclass(value, optimizers.Optimizer) and name not in BASES
)
SCHEDULES = optimizers.schedules
OPTIONS = {
    "clipnorm": lambda: optimizers.Adam(0.01, clipnorm=0.05),
    "clipvalue": lambda: optimizers.SGD(0.1, momentum=0.9, clipvalue=0.02),
    "global_clipnorm": lambda: optimizers.SGD(
        0.1, nesterov=True, momentum=0.5, global_clipnorm=0.1
    ),
    "weight_decay": lambda: optimizers.AdamW(0.01, weight_decay=0.05),
    "use_ema": lambda: optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9),
    "ema_overwrite_frequency": lambda: optimizers.Adam(
        0.01, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=4
    ),
    "gradient_accumulation_steps": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=4),
    "amsgrad": lambda: optimizers.Adam(0.01, amsgrad=True),
}
LEARNING_RATES = {
    "ExponentialDecay": lambda: SCHEDULES.ExponentialDecay(0.1, 5, 0.5, staircase=True),
    "PiecewiseConstantDecay": lambda: SCHEDULES.PiecewiseConstantDecay([6, 20], [0.1, 0.05, 0.01]),
    "PolynomialDecay": lambda: SCHEDULES.PolynomialDecay(0.1, 20),
    "InverseTimeDecay": lambda: SCHEDULES.InverseTimeDecay(0.1, 5, 0.5),
    "CosineDecay": lambda: SCHEDULES.CosineDecay(0.1, 25, warmup_target=0.2, warmup_steps=4),
    "CosineDecayRestarts": lambda: SCHEDULES.CosineDecayRestarts(0.1, 10),
}


def member(make_optimizer):
    def build():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(1)])
        model.compile(make_optimizer(), loss="mse", metrics=["mae"])
        if type(model.optimizer).__name__ == "ScheduleFreeAdamW":
            # Built while `fit` is traced on TensorFlow (Keras 3.15), its momentum is set back to
            # the weights by every step; a cohort builds optimizers before, as JAX and torch do.
            model.optimizer.build(model.trainable_variables)
        return model

    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(44, 4)).astype("float32"), rng.normal(size=(44, 1)).astype("float32")
    return Member(build, x=x, y=y, batch_size=8, epochs=5, shuffle=False)


def of_class(name):
    def make():
        if name == "MultiOptimizer":
            kernels = {".*kernel": optimizers.Adam(0.02)}
            return optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(0.02), kernels))
        return getattr(optimizers, name)(learning_rate=0.02)

    return make


def scheduled(name):
    return lambda: optimizers.SGD(LEARNING_RATES[name]())


MAKERS = {name: of_class(name) for name in CLASSES}
MAKERS |= OPTIONS | {name: scheduled(name) for name in LEARNING_RATES}


@functools.cache
def trained(names):
    members = {name: member(MAKERS[name]) for name in names}
    return compare.train_apart(members), compare.train_together(members)


def assert_optimizer(name, names):
    apart, together = ({name: arm[name]} for arm in trained(tuple(names)))
    print(f"{name}: largest difference {compare.assert_same(apart, together):.1e}")


def test_every_optimizer_of_keras_is_found():
    assert {"SGD", "Adam", "AdamW", "RMSprop", "Lion", "Ftrl", "Adafactor"} < set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_an_optimizer_class_ends_as_by_its_own_fit(name):
    assert_optimizer(name, CLASSES)


@pytest.mark.parametrize("name", [*OPTIONS, *LEARNING_RATES])
def test_an_option_of_optimizers_ends_as_by_its_own_fit(name):
    assert_optimizer(name, [*OPTIONS, *LEARNING_RATES])


@pytest.mark.parametrize("name", ["Adam", "use_ema", "CosineDecay"])
def test_an_optimizer_agrees_to_1e_12_in_float64(name, float64):
    assert_optimizer(name, ["Adam", "use_ema", "CosineDecay"])


def test_mixed_float16_scales_the_loss_as_by_its_own_fit():
    def build():
        x = keras.Input((4,))
        h = layers.Dense(3, "tanh", dtype="mixed_float16")(x)
        model = keras.Model(x, layers.Dense(1, dtype="mixed_float16")(h))
        scaled = optimizers.LossScaleOptimizer(
            optimizers.Adam(0.01), initial_scale=2.0**20, dynamic_growth_steps=6
        )
        model.compile(scaled, loss="mse")
        return model

    one = member(lambda: optimizers.Adam(0.01))
    members = {"half": Member(build, **one.fit), "full": one}
    apart = compare.train_apart(members)
    scale = apart["half"].model.optimizer.dynamic_scale
    assert float(keras.ops.convert_to_numpy(scale)) < 2.0**20  # some steps did overflow
    compare.assert_same(apart, compare.train_together(members))
