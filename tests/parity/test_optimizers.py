"""Members with every Keras optimizer, and its options, end as their own `fit` would end."""

import keras
import pytest
from keras import layers, optimizers

from tests.helpers import compare, optimizer_options
from tests.helpers.compare import Member


def test_every_optimizer_of_keras_is_found():
    assert {"SGD", "Adam", "AdamW", "RMSprop", "Lion", "Ftrl", "Adafactor"} < set(
        optimizer_options.CLASSES
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", compare.in_one_process(optimizer_options.CLASSES, "optimizers"))
def test_an_optimizer_class_ends_as_by_its_own_fit(name):
    compare.assert_member(name, optimizer_options.CLASSES, optimizer_options.member)


@pytest.mark.parametrize("name", compare.in_one_process(optimizer_options.OPTIONS, "options"))
def test_an_option_of_optimizers_ends_as_by_its_own_fit(name):
    compare.assert_member(name, optimizer_options.OPTIONS, optimizer_options.member)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name", compare.in_one_process(optimizer_options.IN_DOUBLE_PRECISION, "optimizers in float64")
)
def test_an_optimizer_agrees_to_1e_12_in_float64(name, float64):
    compare.assert_member(name, optimizer_options.IN_DOUBLE_PRECISION, optimizer_options.member)


def test_mixed_float16_scales_the_loss_as_by_its_own_fit():
    def build():
        model = keras.Sequential(
            [keras.Input((4,)), layers.Dense(3, "tanh", dtype="mixed_float16")]
        )
        scaled = optimizers.LossScaleOptimizer(
            optimizers.Adam(0.01), initial_scale=2.0**20, dynamic_growth_steps=6
        )
        model.compile(scaled, loss="mse")
        return model

    members = {
        "half": Member(build, **optimizer_options.FIT),
        "full": optimizer_options.member("Adam"),
    }
    apart = compare.train_apart(members)
    scale = apart["half"].model.optimizer.dynamic_scale
    assert float(keras.ops.convert_to_numpy(scale)) < 2.0**20  # some steps did overflow
    compare.assert_same(apart, compare.train_together(members))
