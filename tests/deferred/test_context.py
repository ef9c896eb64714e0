"""Fits deferred by `with cohost():` end as without the block, and the patch goes away."""

import inspect
import threading
from types import FunctionType

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from numpy.testing import assert_allclose

import kerascohost as kc
from kerascohost import backends

BACKEND = keras.backend.backend()
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 4)).astype("float32")
Y = X[:, :1] * 2


def regressor(seed=0, units=5, **compile_args):
    keras.utils.set_random_seed(seed)
    net = keras.Sequential([keras.Input((4,)), layers.Dense(units, "tanh"), layers.Dense(1)])
    net.compile(**{"optimizer": keras.optimizers.Adam(0.01), "loss": "mse", **compile_args})
    return net


def pair():
    return regressor(1), regressor(2, units=7, metrics=["mae"])


def untouched():
    """The methods and properties of Keras's classes, as Keras put them there."""
    kinds = (
        keras.Model, keras.Sequential, keras.Variable, keras.optimizers.Optimizer,
        keras.losses.Loss, keras.metrics.Metric, keras.callbacks.Callback,
        keras.regularizers.Regularizer, keras.optimizers.schedules.LearningRateSchedule,
    )  # fmt: skip
    return {
        (base, name): value
        for kind in kinds
        for base in kind.__mro__
        for name, value in vars(base).items()
        if hasattr(type(value), "__get__")
    }


KERAS_OWN = untouched()

# What anybody finds at the attributes of Keras's classes that are functions or properties.
PLAIN = {
    (base, name): getattr(base, name)
    for base, name in KERAS_OWN
    if isinstance(getattr(base, name, None), (FunctionType, property))
}


@pytest.fixture(autouse=True)
def _no_patch_is_left():
    found = untouched()
    yield
    assert untouched() == found


def assert_same(models, others, histories, other_histories, tolerance=1e-6):
    for model, other in zip(models, others, strict=True):
        pairs = [*zip(model.get_weights(), other.get_weights(), strict=True)]
        pairs += [
            (keras.ops.convert_to_numpy(a.value), keras.ops.convert_to_numpy(b.value))
            for a, b in zip(model.optimizer.variables, other.optimizer.variables, strict=True)
        ]
        for one, two in pairs:
            assert_allclose(one, two, rtol=tolerance, atol=tolerance)
    for history, other in zip(histories, other_histories, strict=True):
        assert history.epoch == other.epoch
        assert list(history.history) == list(other.history)
        for key, values in history.history.items():
            assert_allclose(values, other.history[key], rtol=tolerance, atol=tolerance)


def test_held_fits_equal_separate_training():
    def program(a, b):
        keras.utils.set_random_seed(3)
        h1 = a.fit(X, Y, epochs=4, verbose=0)
        keras.utils.set_random_seed(4)
        h2 = b.fit(
            pd.DataFrame(X), Y, batch_size=8, epochs=9, validation_split=0.2, verbose=0,
            shuffle=BACKEND != "torch",  # there a validation draws from the shuffle's generator
            callbacks=[keras.callbacks.EarlyStopping(patience=2)],
        )  # fmt: skip
        return h1, h2

    apart = pair()
    expected = program(*apart)
    a, b = pair()
    with kc.cohost() as run:
        h1, h2 = program(a, b)
    assert_same(apart, (a, b), expected, (h1, h2))
    assert list(run.history) == ["a", "b"]
    assert run.history["a"] is h1 is a.history
    assert set(run.history.frame["member"]) == {"a", "b"}
    assert h1.model is a
    assert h1.params == expected[0].params


def generator(seed):
    while True:
        rows = np.random.randint(60, size=8)  # the program's own random numbers
        yield X[rows] + np.random.normal(size=(8, 4)) * 0.01, Y[rows]


def test_mixed_kinds_of_data_draw_their_own_random_numbers():
    def program(a, b, c):
        keras.utils.set_random_seed(5)
        one = a.fit(generator(0), steps_per_epoch=6, epochs=3, verbose=0, shuffle=False)
        keras.utils.set_random_seed(6)
        two = b.fit(generator(1), steps_per_epoch=5, epochs=2, verbose=0, shuffle=False)
        keras.utils.set_random_seed(7)
        three = c.fit(X, Y, epochs=2, batch_size=16, verbose=0)
        return one, two, three

    apart = *pair(), regressor(3)
    expected = program(*apart)
    together = *pair(), regressor(3)
    with kc.cohost():
        histories = program(*together)
    assert_same(apart, together, expected, histories)


def test_a_second_fit_of_a_model_continues_its_first():
    def program(a, b):
        keras.utils.set_random_seed(3)
        first = a.fit(X, Y, epochs=2, verbose=0)
        second = a.fit(X[:40], Y[:40], epochs=5, initial_epoch=2, batch_size=8, verbose=0)
        keras.utils.set_random_seed(3)
        return first, b.fit(X, Y, epochs=3, verbose=0), second

    apart = pair()
    expected = program(*apart)
    a, b = pair()
    with kc.cohost() as run:
        histories = program(a, b)
    assert_same(apart, (a, b), expected, histories)
    assert list(run.history) == ["a", "a (2)", "b"]
    assert run.history["a (2)"] is histories[2] is a.history


def test_models_that_share_layers_are_trained_one_after_the_other():
    def build():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4,))
        body = layers.Dense(5, "tanh")
        nets = [keras.Model(inputs, layers.Dense(1)(body(inputs))) for _ in range(2)]
        for net in nets:
            net.compile(keras.optimizers.SGD(0.05), "mse")
        return nets

    def program(one, two):
        histories = [one.fit(X, Y, shuffle=False, verbose=0, epochs=2)]
        return [*histories, two.fit(X, -Y, shuffle=False, verbose=0, epochs=2)]

    apart = build()
    expected = program(*apart)
    together = build()
    with kc.cohost():
        histories = program(*together)
    assert_same(apart, together, expected, histories)


def test_group_factor_and_replicas_are_those_of_a_cohort():
    a, b = pair()
    with kc.cohost(group_factor={"a": 2}, replicas={"b": 2}):
        a.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        b.fit(X[:56], Y[:56], batch_size=7, shuffle=False, verbose=0)
    alone, other = pair()
    alone.fit(X, Y, batch_size=16, shuffle=False, verbose=0)
    other.fit(X[:56], Y[:56], batch_size=14, shuffle=False, verbose=0)
    assert_same((alone, other), (a, b), (alone.history, other.history), (a.history, b.history))
    with pytest.raises(kc.CohortError, match=r"names of members: a. Received: 'c'"):  # noqa: SIM117
        with kc.cohost(group_factor={"c": 2}):
            a.fit(X, Y, verbose=0)
    with pytest.raises(kc.CohortError, match=r"layout='join'. Did you mean 'joined'"):
        kc.cohost(layout="join")


def test_a_history_that_is_read_is_trained_first():
    a, _ = pair()
    with kc.cohost() as run:
        history = a.fit(X, Y, verbose=0)
        assert not hasattr(history, "nonsense")
        assert repr(history) == "<History, deferred>"
        with pytest.raises(kc.CohortError, match="after the `with` block"):
            _ = run.history
        assert history.epoch == [0]
        assert repr(history) == "<History of 1 epochs>"
        assert history.model is a
        later = a.fit(X, Y, verbose=0)
        assert repr(later) == "<History, deferred>"
        assert len(getattr(later, "history", {})["loss"]) == 1
    assert list(run.history) == ["a", "a (2)"]
    assert list(run.history.values()) == [history, later]


def test_a_line_says_once_what_was_trained_early(capsys):
    a, b = pair()
    with kc.cohost() as run:
        a.fit(X, Y, verbose=2)
        a.evaluate(X, Y, verbose=0)
        b.fit(X, Y, verbose=2)
        b.get_weights()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cohost")]
    assert lines == [
        "cohost: the fits deferred so far were trained now, as evaluate of 'a' needs its weights."
    ]
    assert list(run.history) == ["a", "b"]
    with kc.cohost():
        a.fit(X, Y, verbose=0)
        a.evaluate(X, Y, verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("swallows", [False, True])
def test_a_training_that_fails_early_is_told_and_costs_the_others_nothing(swallows):
    def fail(epoch, logs):
        raise RuntimeError("mine")

    a, b, c = *pair(), regressor(3)
    bad = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    with pytest.raises(RuntimeError, match="mine") as caught:  # noqa: SIM117
        with kc.cohost() as run:
            first = a.fit(X, Y, epochs=3, verbose=0)
            line = inspect.currentframe().f_lineno + 1
            b.fit(X, Y, epochs=3, verbose=0, callbacks=[bad])
            again = b.fit(X, Y, verbose=0)
            last = c.fit(X, Y, epochs=5, verbose=0)
            try:
                a.evaluate(X, Y, verbose=0)
            except RuntimeError:
                if not swallows:
                    raise
            assert (first.epoch, last.epoch) == ([0, 1, 2], [0, 1, 2, 3, 4])
            with pytest.raises(kc.CohortError, match="was not run"):
                _ = again.history
            a.fit(X, Y, verbose=0)
    assert any("'b'" in note for note in caught.value.__notes__)
    assert f"Its `fit` was called in {__file__}, line {line}." in caught.value.__notes__
    assert list(run.history) == (["a", "b", "c", "a (2)"] if swallows else ["a", "b", "c"])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"y": Y[:3]}, "ata cardinality is ambiguous"),
        ({"epochs": "3"}, "Received: epochs='3'"),
        ({"validation_split": 2}, "Received: validation_split=2"),
    ],
)
def test_a_call_that_would_fail_does_so_and_the_program_may_go_on(wrong, error):
    a, b = pair()
    with kc.cohost() as run:
        a.fit(X, Y, verbose=0)
        with pytest.raises(ValueError, match=error) as caught:
            b.fit(**{"x": X, "y": Y, "verbose": 0} | wrong)
    assert "'b'" in " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert list(run.history) == ["a"]
    assert run.history["a"].epoch == [0]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's dataset")
def test_a_dataset_of_unknown_length():
    import tensorflow as tf

    (net,) = pair()[:1]
    rows = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).repeat()
    with kc.cohost():
        history = net.fit(rows, steps_per_epoch=3, shuffle=False, verbose=0)
    assert history.epoch == [0]


def test_a_member_is_not_named_self():
    class Lab:
        def __init__(self):
            self.net, self.others = regressor(1), [regressor(2)]

        def go(self):
            self.net.fit(X, Y, verbose=0)
            self.others[0].fit(X, Y, verbose=0)

    class Self(keras.Sequential):
        def go(self):
            self.fit(X, Y, verbose=0)

    own = Self([keras.Input((4,)), layers.Dense(1)], name="own")
    own.compile("sgd", "mse")
    lab = Lab()
    with kc.cohost() as run:
        lab.go()
        [one.go() for one in [own]]
    assert list(run.history) == ["net", lab.others[0].name, "own"]


def test_factors_of_members_that_the_block_is_yet_to_name():
    a, b = pair()
    with kc.cohost(group_factor={"b": 2}) as run:
        a.fit(X, Y, verbose=0)
        a.get_weights()
        b.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        b.get_weights()
    _, other = pair()
    other.fit(X, Y, batch_size=16, shuffle=False, verbose=0)
    assert_same((other,), (b,), (other.history,), (b.history,))
    assert list(run.history) == ["a", "b"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_exception_in_the_block_trains_nothing_and_says_so(error):
    a, b = pair()
    before = a.get_weights()
    with pytest.raises(type(error)) as caught:  # noqa: SIM117
        with kc.cohost():
            history = a.fit(X, Y, verbose=0)
            b.fit(X, Y, verbose=0)
            raise error
    assert caught.value.__notes__ == ["The fits deferred by `cohost()` were not run: a, b."]
    assert_allclose(a.get_weights()[0], before[0])
    with pytest.raises(kc.CohortError, match="its `fit` was not run"):
        _ = history.history


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_training_that_fails_keeps_what_it_has(error):
    def fail(epoch, logs):
        if epoch == 2:
            raise error

    a, b = pair()
    with pytest.raises(type(error)):  # noqa: SIM117
        with kc.cohost() as run:
            h1 = a.fit(X, Y, epochs=9, verbose=0)
            h2 = b.fit(X, Y, epochs=9, verbose=0, callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_end=fail)
            ])  # fmt: skip
    assert 2 <= len(h1.epoch) < 9
    assert h2.epoch in ([0, 1], [0, 1, 2])
    assert run.history["b"] is h2


def test_an_interrupt_tells_what_failed_before():
    def fails(epoch, logs):
        if epoch == 0:
            raise RuntimeError("boom")

    def interrupts(epoch, logs):
        if epoch == 2:
            raise KeyboardInterrupt

    a, b = pair()
    with pytest.raises(KeyboardInterrupt) as caught:  # noqa: SIM117
        with kc.cohost():
            for model, hook in ((a, fails), (b, interrupts)):
                hooks = [keras.callbacks.LambdaCallback(on_epoch_end=hook)]
                model.fit(X, Y, epochs=9, verbose=0, callbacks=hooks)
            a.get_weights()
    assert caught.value.__notes__ == ["The training of 'a' failed, too: RuntimeError('boom')."]


def test_bad_input_is_told_where_fit_is_called():
    uncompiled = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    with pytest.raises(kc.CohortError, match=r"'uncompiled': [yY]ou must call `compile"):  # noqa: SIM117
        with kc.cohost():
            uncompiled.fit(X, Y)
    a, b = pair()
    with pytest.raises(TypeError, match="epoch"):  # noqa: SIM117
        with kc.cohost():
            a.fit(X, Y, epoch=3)
    before = a.get_weights()
    with pytest.raises(ValueError, match=r"incompatible.*\n.*member 'b'"):  # noqa: SIM117
        with kc.cohost():
            a.fit(X, Y, verbose=0)
            b.fit(X[:, :3], Y, verbose=0)
    assert_allclose(a.get_weights()[0], before[0])


def test_nested_blocks_hold_their_own():
    a, b = pair()
    with kc.cohost() as outer:
        first = a.fit(X, Y, verbose=0)
        with kc.cohost() as inner:
            b.fit(X, Y, verbose=0)
            assert repr(first) == "<History, deferred>"
            second = a.fit(X, Y, verbose=0)  # goes on from the one that the outer block defers
            assert first.epoch == [0]
            assert repr(second) == "<History, deferred>"
        assert list(inner.history) == ["b", "a"]
        b.evaluate(X, Y, verbose=0)
    assert list(outer.history) == ["a"]


def test_only_the_thread_that_opened_the_block_is_held():
    a, b = pair()
    seen = []
    with kc.cohost() as run:
        a.fit(X, Y, verbose=0)
        thread = threading.Thread(target=lambda: seen.append(b.fit(X, Y, verbose=0).epoch))
        thread.start()
        thread.join()
    assert seen == [[0]]
    assert list(run.history) == ["a"]


def test_other_threads_look_at_what_is_held_as_if_there_were_no_block(tmp_path):
    a, b = pair()
    callback = keras.callbacks.EarlyStopping("loss")
    unbuilt = keras.Sequential([layers.Dense(1)])
    unbuilt.compile("sgd", "mse")
    b.fit(X, Y, verbose=0)
    before = a.get_weights()[0]
    seen = []

    def elsewhere():
        seen.extend(
            name for (base, name), value in PLAIN.items() if getattr(base, name) is not value
        )
        seen.append(np.array_equal(a.layers[0].kernel.numpy(), before))
        seen.append((callback.patience, unbuilt.built, hasattr(a, "history"), a.stop_training))
        b.optimizer.learning_rate = 0.5
        b.save(tmp_path / "b.keras")
        loaded = keras.saving.load_model(tmp_path / "b.keras")
        seen.append((loaded.compiled, len(loaded.fit(X, Y, verbose=0).epoch)))

    with kc.cohost() as run:
        history = a.fit(X, Y, verbose=0, callbacks=[callback])
        unbuilt.fit(X, Y, verbose=0)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert repr(history) == "<History, deferred>"
    assert seen == [True, (0, False, False, False), (True, 1)]
    assert list(run.history) == ["a", "unbuilt"]


def test_a_model_with_its_own_fit_keeps_it_and_says_so():
    class Own(keras.Sequential):
        def fit(self, *args, **kwargs):
            return super().fit(*args, **kwargs)

    own = Own([keras.Input((4,)), layers.Dense(1)], name="own")
    own.compile("sgd", "mse")
    a, _ = pair()
    with kc.cohost() as run:
        a.fit(X, Y, verbose=0)
        with pytest.warns(UserWarning, match="Own 'own' has its own `fit`, which runs now"):
            history = own.fit(X, Y, verbose=0)
        assert history.epoch == [0]
    assert list(run.history) == ["a"]


def test_models_without_a_variable_go_by_their_own_names():
    nets = [regressor(seed) for seed in range(2)]
    with kc.cohost() as run:
        for each in nets:
            each.fit(X, Y, verbose=0)
        del each
    assert list(run.history) == ["each", "each_1"]
    with kc.cohost() as run:
        [net.fit(X, Y, verbose=0) for net in nets]
    assert list(run.history) == ["net", "net_1"]


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="torch runs eagerly: runs once a torch program compiles its steps",
)
def test_held_fits_of_twins_are_stacked_if_asked(capsys):
    apart = [regressor(seed) for seed in range(2)]
    expected = [net.fit(X, Y, epochs=2, shuffle=False, verbose=0) for net in apart]
    one, two = (regressor(seed) for seed in range(2))
    options = {"epochs": 2, "shuffle": False, "verbose": 2}
    with kc.cohost(layout="stacked"):
        found = [one.fit(X, Y, **options), two.fit(X, Y, **options)]
    assert_same(apart, (one, two), expected, found, tolerance=1e-4)
    assert "stacked: 2 members in 1 stack" in capsys.readouterr().out


def test_the_variable_of_a_loop_names_no_model_that_has_a_name():
    nets = [regressor(seed) for seed in range(2)]
    for net, name in zip(nets, ("one", "two"), strict=True):
        net.name = name
    with kc.cohost() as run:
        for net in nets:
            net.fit(X, Y, verbose=0)
    assert list(run.history) == ["one", "two"]


def test_an_unknown_argument_is_told_at_once():
    net = regressor()
    with pytest.raises(TypeError, match=r"Received: epoch=2. Did you mean 'epochs'"), kc.cohost():
        net.fit(X, Y, epoch=2)


def test_a_block_without_fits_says_so():
    with pytest.warns(UserWarning, match="No `fit` was called"), kc.cohost() as run:
        pass
    assert dict(run.history) == {}


def test_the_random_state_goes_on_as_in_the_program():
    def program(a, b):
        keras.utils.set_random_seed(3)
        a.fit(X, Y, epochs=2, verbose=0)
        keras.utils.set_random_seed(4)
        b.fit(X, Y, epochs=2, verbose=0)

    program(*pair())
    expected = backends.random_state()
    a, b = pair()
    with kc.cohost():
        program(a, b)
    assert backends.random_state() == expected
