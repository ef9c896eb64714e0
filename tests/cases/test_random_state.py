"""Cases A4, C3, F4: a deferred fit finds the process as its call left it, random states too."""

import contextlib
import os
import random
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


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_draws_after_a_fit_that_stopped_inside_an_epoch(shuffle, steps):
    """Rows that are shuffled inside each batch are drawn batch by batch."""

    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = self.params["epochs"] == 3 and batch == 1

    def program(fit):
        models, seen = [net(), net()], []
        given = dict(batch_size=4, shuffle=shuffle, steps_per_epoch=steps, verbose=0)
        for model, epochs in zip(models, (3, 2), strict=True):
            fit(model, X, Y, epochs=epochs, callbacks=[Stops()], **given)
            seen += [np.random.rand(), float(keras.random.uniform(()))]
            if keras.backend.backend() == "torch":
                seen.append(float(keras.random.uniform((), seed=keras.random.SeedGenerator())))
        return [*seen, *(weight for model in models for weight in model.get_weights())]

    keras.utils.set_random_seed(3)
    expected = program(keras.Model.fit)
    keras.utils.set_random_seed(3)
    actual = program(lambda model, *data, **given: kc.Cohort([model]).fit(*data, **given))
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)


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
        drawn = np.random.rand()
    assert drawn == np.random.RandomState(0).rand()


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


class Noise(keras.layers.Layer):
    """Adds noise whose seeds come from Keras's global generator."""

    def call(self, x, training=False):
        return x + keras.random.normal(keras.ops.shape(x)) if training else x


def noisy():
    ones = {"kernel_initializer": "ones"}
    model = keras.Sequential([keras.Input((4,)), Noise(), keras.layers.Dense(1, **ones)])
    model.compile("sgd", "mse")
    return model


needs_global_seeds = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="Keras refuses unseeded draws in steps on JAX"
)


@needs_global_seeds
@pytest.mark.parametrize("layout", ["joined", "stacked"])
@pytest.mark.parametrize("drawn_before", [True, False])
def test_members_draw_from_the_global_generator_as_if_alone(layout, drawn_before):
    given = {"batch_size": 10, "shuffle": False, "verbose": 0}
    epochs = {"a": 2, "b": 3}

    def begin():
        keras.utils.set_random_seed(3)
        if drawn_before:
            keras.random.normal((2,))

    alone, models = [], {name: noisy() for name in epochs}
    for each in epochs.values():
        model = noisy()
        begin()
        model.fit(X, Y, epochs=each, **given)
        alone.append(model.get_weights()[0])
    begin()
    kc.Cohort(models, layout=layout).fit(X, Y, epochs=epochs, **given)
    assert not np.allclose(*(weights[:1] for weights in alone))
    for model, weights in zip(models.values(), alone, strict=True):
        np.testing.assert_allclose(model.get_weights()[0], weights, rtol=1e-5)


@needs_global_seeds
def test_the_global_generator_goes_on_from_fit_to_fit():
    ends = []
    for together in (False, True):
        model = noisy()
        fit = kc.Cohort({"m": model}).fit if together else model.fit
        keras.utils.set_random_seed(3)
        for _ in range(2):
            fit(X, Y, epochs=2, batch_size=10, shuffle=False, verbose=0)
        drawn = keras.ops.convert_to_numpy(keras.random.normal((2,)))
        ends.append((model.get_weights()[0], drawn))
    for mine, its in zip(*reversed(ends), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5)


@needs_global_seeds
def test_draws_from_the_global_generator_in_a_block_are_as_written():
    def program():
        models, drawn = [noisy(), noisy()], []
        for model in models:
            model.fit(X, Y, epochs=2, batch_size=10, shuffle=False, verbose=0)
            drawn.append(keras.ops.convert_to_numpy(keras.random.normal((2,))))
        return [model.get_weights()[0] for model in models], drawn

    ends = []
    for hold in (contextlib.nullcontext, kc.cohost):
        keras.utils.set_random_seed(3)
        with hold():
            ends.append(program())
    np.testing.assert_allclose(ends[1][0], ends[0][0], rtol=1e-5)
    np.testing.assert_allclose(ends[1][1], ends[0][1], rtol=1e-5)


class Bootstrap(keras.utils.PyDataset):
    """Batches of rows drawn from NumPy's global random state."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = np.random.randint(0, len(X), 8)
        return X[rows], Y[rows]


class RandomRate(keras.callbacks.Callback):
    """A learning rate drawn from Python's global random state."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = random.uniform(0.01, 0.1)


@pytest.mark.parametrize("drawing", ["data", "callback"])
def test_what_fits_draw_from_global_states_the_program_does_not_draw_again(drawing):
    def program(hold):
        models, seen = [], []
        with hold():
            for _ in range(2):
                models.append(net())
                if drawing == "data":
                    models[-1].fit(Bootstrap(), epochs=2, shuffle=False, verbose=0)
                else:
                    models[-1].fit(X, Y, epochs=2, callbacks=[RandomRate()], verbose=0)
                seen.append((np.random.rand(), random.random()))
        return models, seen

    check(program)


def test_a_fit_whose_data_have_a_generator_of_their_own_is_deferred(capsys):
    class Own(keras.utils.PyDataset):
        def __init__(self):
            super().__init__()
            self.random = np.random.default_rng(0)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            rows = self.random.integers(0, len(X), 8)
            return X[rows], Y[rows]

    with kc.cohost() as block:
        for _ in range(2):
            net().fit(Own(), epochs=2, verbose=2)
    assert "were trained now" not in capsys.readouterr().out
    assert len(block.history) == 2


def test_a_fit_without_its_input_raises_in_a_block_what_it_raises_alone():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(1)(x))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="not optional"), kc.cohost():
        model.fit([None], Y, verbose=0)
