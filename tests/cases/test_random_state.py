"""Cases A4 and F4: a deferred fit finds the process as its call left it, random states included."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def net(*parts, lr=0.1):
    model = keras.Sequential([keras.Input((4,)), *parts, layers.Dense(1)])
    model.compile(keras.optimizers.SGD(lr), "mse")
    return model


def both(program):
    """What `program(hold)` returns, run plain and in a block."""

    def run(hold):
        keras.utils.set_random_seed(1)
        models, seen = program(hold)
        return models, seen, np.random.rand()

    class Plain:
        def __enter__(self): ...
        def __exit__(self, *_): ...

    return run(Plain), run(kc.cohost)


def check(program):
    (plain, expected, after), (models, seen, found) = both(program)
    for one, other in zip(plain, models, strict=True):
        for mine, its in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)
    assert seen == expected
    assert found == after


def test_the_same_seed_set_anew_before_fits_that_wait_for_each_other():
    def program(hold):
        frozen = layers.Dense(3)
        frozen.build((None, 4))
        models = []
        with hold():
            for _ in range(2):
                keras.utils.set_random_seed(3)
                models.append(net(frozen))
                models[-1].fit(X, Y, epochs=2, verbose=0)
        return models, []

    check(program)


def test_one_seed_at_the_top_and_draws_between_fits():
    def program(hold):
        models, seen = [], []
        with hold():
            for _ in range(3):
                rows = np.random.permutation(40)
                seen.append(rows.tolist())
                models.append(net())
                models[-1].fit(X[rows[:30]], Y[rows[:30]], epochs=2, batch_size=8, verbose=0)
        return models, seen

    check(program)


@pytest.mark.parametrize(
    "options",
    [
        {"validation_split": 0.25},
        {"steps_per_epoch": 1},
        {"steps_per_epoch": 1, "epochs": 4, "steps_per_execution": 2},
        {"shuffle": "batch"},
        {"initial_epoch": 2},
    ],
    ids=str,
)
def test_draws_after_any_fit_of_arrays(options):
    def program(hold):
        models = [keras.Sequential([layers.Dense(1)]), net()]  # the first is built by its fit
        seen, own = [], dict(options)
        per_execution = own.pop("steps_per_execution", 1)
        for model in models:
            model.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=per_execution)
        with hold():
            for model in models:
                model.fit(X, Y, **{"epochs": 3, "batch_size": 8, "verbose": 0} | own)
                seen.append(np.random.rand())
        return models, seen

    check(program)


def test_a_fit_waits_for_one_that_may_stop_early_and_shuffles_by_the_same_state():
    def program(hold):
        models, lengths = [net(), net()], []
        with hold():
            histories = [
                model.fit(
                    X, Y, epochs=9, verbose=0, callbacks=[keras.callbacks.EarlyStopping("loss", 99)]
                )
                for model in models
            ]
        return models, [len(h.epoch) for h in histories] + lengths

    check(program)


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="only there `fit` shuffles by NumPy's state"
)
def test_draws_after_a_fit_that_stopped_early_are_told():
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)
    with pytest.warns(UserWarning, match=r"as if it had run all .* after 2 of 9"), kc.cohost():
        net().fit(X, Y, epochs=9, verbose=0, callbacks=[stop])
        np.random.rand()


def test_a_seed_set_after_a_fit_that_stopped_early_is_not_a_draw():
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)
    with kc.cohost():
        net().fit(X, Y, epochs=9, verbose=0, callbacks=[stop])
        np.random.seed(0)
        np.random.rand()


def test_a_fit_finds_the_settings_of_its_call(tmp_path):
    """Case F4: the working directory, `epsilon` and Keras's default dtype, set anew for each."""

    class Late(layers.Layer):
        def build(self, shape):
            self.inner = layers.Dense(2)
            self.inner.build(shape)

        def call(self, x):
            return keras.ops.cast(self.inner(x), "float32")

    def program(hold):
        models, seen = [], []
        home, epsilon = Path.cwd(), keras.config.epsilon()
        folder = tmp_path / hold.__name__
        try:
            with hold():
                for i, value in enumerate((1e-7, 0.5)):
                    (folder / str(i)).mkdir(parents=True)
                    os.chdir(folder / str(i))
                    keras.config.set_epsilon(value)
                    keras.config.set_dtype_policy(["float32", "bfloat16"][i])
                    keras.utils.set_random_seed(i)  # `Late` draws its weights in its `fit`
                    late = Late(dtype="float32")
                    model = keras.Sequential([late, layers.Dense(1, dtype="float32")])
                    model.compile(keras.optimizers.SGD(0.01), "mape")
                    logger = keras.callbacks.CSVLogger("log.csv")
                    model.fit(X, Y, epochs=2, verbose=0, shuffle=False, callbacks=[logger])
                    models.append(model)
        finally:
            os.chdir(home)
            keras.config.set_epsilon(epsilon)
            keras.config.set_dtype_policy("float32")
        seen = [model.layers[0].inner.kernel.dtype for model in models]
        return models, seen + sorted(str(p.relative_to(folder)) for p in folder.rglob("*.csv"))

    check(program)
