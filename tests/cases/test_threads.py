"""What other threads do while a cohort works is what they would do anyway (cases D1, E8)."""

import contextlib
import copy
import functools
import pickle
import threading

import keras
import numpy as np
import pytest

import kerascohost as kc
from kerascohost.backends.replicas import applied_in_pieces
from tests.conftest import BACKEND
from tests.helpers.sampled import one_in

X = np.random.default_rng(0).normal(size=(96, 5)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def net(units=8, rate=0.0, name=None):
    layers = [keras.Input((5,)), keras.layers.Dense(units, "relu", kernel_initializer=init(units))]
    if rate:
        layers.append(keras.layers.Dropout(rate, seed=3))
    model = keras.Sequential(
        [*layers, keras.layers.Dense(1, kernel_initializer=init(1))], name=name
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def init(units):
    return keras.initializers.GlorotUniform(seed=units)


def fitted(model):
    model.fit(X, Y, epochs=2, verbose=0, shuffle=False)
    return [np.array(weight) for weight in model.get_weights()]


def distance(one, other):
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def ordinary_work():
    """What others do with Keras: train, predict, call, with all that a stack's trace replaces."""
    model = net(4, rate=0.25)
    weights = fitted(model)
    return [*weights, model.predict(X, verbose=0), np.array(model(X[:3]))]


class Beside:
    """A thread that does ordinary work, over and over, until the block ends."""

    def __init__(self, work=ordinary_work):
        self._work = work
        self._ends = threading.Event()
        self.began = threading.Event()
        self.results, self.errors = [], []
        self._thread = threading.Thread(target=self._loop)

    def _loop(self):
        while not self._ends.is_set():
            try:
                self.results.append(self._work())
            except BaseException as error:
                self.errors.append(error)
            self.began.set()

    def __enter__(self):
        self._thread.start()
        assert self.began.wait(60)
        return self

    def __exit__(self, *_):
        self._ends.set()
        self._thread.join()


def in_threads(*functions):
    """Calls them at once; returns their results, or raises the first of their errors."""
    results, failed = [None] * len(functions), []
    gate = threading.Barrier(len(functions))

    def call(i, function):
        try:
            gate.wait(60)
            results[i] = function()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=pair) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return results


@pytest.mark.nightly
def test_fit_in_the_main_thread_while_models_train_stacked_in_another():
    """D1: 3 of 4 died with a KeyError on TensorFlow."""
    reference = fitted(net())
    own = [fitted(net(rate=rate)) for rate in (0.1, 0.3)]
    with Beside(functools.partial(in_a_stack, epochs=2)) as beside:
        mine = [fitted(net()) for _ in range(4)]
    assert not beside.errors
    assert all(distance(weights, reference) == 0.0 for weights in mine)
    for weights in beside.results:
        assert max(map(distance, weights, own)) < 1e-5


def in_a_stack(rates=(0.1, 0.3), epochs=2):
    models = {f"m{rate}": net(rate=rate) for rate in rates}
    cohort = kc.Cohort(models, layout="stacked")
    cohort.fit(X, Y, epochs=epochs, verbose=0, shuffle=False)
    assert set(cohort.plan.frame["layout"]) == {"stacked"}, cohort.plan.frame["reason"]
    return [[np.array(w) for w in model.get_weights()] for model in models.values()]


@pytest.mark.nightly
def test_three_threads_with_a_stacked_cohort_each():
    """E8: two of them raised a KeyError on TensorFlow."""
    rates = [(0.1, 0.3), (0.2, 0.4), (0.15, 0.35)]
    found = in_threads(*(functools.partial(in_a_stack, own) for own in rates))
    for own, weights in zip(rates, found, strict=True):
        assert max(map(distance, weights, [fitted(net(rate=rate)) for rate in own])) < 1e-5


def test_estimate_memory_while_another_thread_calls_models():
    """D1: 9 of 20 were wrong."""
    model, other = net(64), net(256)
    alone = kc.estimate_memory([model]).frame
    with Beside(lambda: np.array(other(X[:2]))) as beside:
        frames = [kc.estimate_memory([model]).frame for _ in range(20)]
    assert not beside.errors
    assert all(frame.equals(alone) for frame in frames)


def test_a_model_that_is_replicated_is_whole_in_another_thread():
    """A step of one thread must not cut what another one gives to the same model."""
    model = net()
    seen = []
    call = model.call
    usual = np.array(model(X))

    def counted(inputs, *args, **kwargs):
        seen.append((threading.current_thread().name, inputs.shape[0]))
        return call(inputs, *args, **kwargs)

    model.call = counted
    with applied_in_pieces(model, 32):
        model(X)
        thread = threading.Thread(target=lambda: model(X), name="other")
        thread.start()
        thread.join()
    assert seen == [("MainThread", 32)] * 3 + [("other", 96)]
    assert model.call is counted
    assert distance([usual], [np.array(model(X))]) == 0.0


@pytest.mark.nightly
def test_replicated_members_beside_ordinary_work():
    own = fitted(net(16))
    with Beside() as beside:
        cohort = kc.Cohort({"a": net(), "b": net(16)}, replicas={"a": 2})
        cohort.fit(X, Y, epochs=2, verbose=0, shuffle=False)
    assert not beside.errors
    assert all(distance(found, beside.results[0]) == 0.0 for found in beside.results)
    assert distance(own, cohort.members["b"].get_weights()) < 1e-6


@pytest.mark.skipif(BACKEND != "tensorflow", reason="what is replaced is TensorFlow's")
class TestWhatAStackReplacesOnTensorFlow:
    """Inside the blocks, another thread finds, and does, what it always does."""

    @contextlib.contextmanager
    def replaced(self):
        from kerascohost.backends.tensorflow import stack, vectorized

        model = net()
        fitted(model)
        with vectorized.rules(2), stack._stateless(model):
            yield

    def test_training_goes_on(self):
        usual = ordinary_work()
        with self.replaced():
            found = in_threads(ordinary_work)[0]
        assert distance(found, usual) == 0.0

    def test_optimizers_of_another_thread_work_on_variables(self):
        import tensorflow as tf

        def step():
            optimizer, variable = keras.optimizers.Adam(0.1), keras.Variable([1.0, 2.0])
            optimizer.apply([tf.constant([1.0, 1.0])], [variable])
            return np.array(variable.value)

        usual = step()
        with self.replaced():
            np.testing.assert_array_equal(in_threads(step)[0], usual)

    def test_vectorisation_of_another_thread_has_tensorflow_s_rules(self):
        import tensorflow as tf
        from tensorflow.python.ops.parallel_for import pfor

        table = pfor._pfor_converter_registry

        def look():
            now = pfor._pfor_converter_registry
            return "Bitcast" in now, now.get("Conv2D") is table["Conv2D"], len(now) == len(table)

        def refused():
            with pytest.raises(ValueError, match="No pfor vectorization defined for Bitcast"):
                function = tf.function(
                    lambda x: tf.vectorized_map(
                        lambda row: tf.bitcast(row, tf.int32), x, fallback_to_while_loop=False
                    )
                )
                function(tf.ones((3, 2)))
            return True

        with self.replaced():
            assert look() == (True, False, False)
            assert in_threads(look)[0] == (False, True, True)
            assert in_threads(refused)[0]
        assert pfor._pfor_converter_registry is table

    def test_another_thread_s_errors_are_logged(self):
        import tensorflow as tf

        logger, records = tf.get_logger(), []
        logger.addFilter(keep := lambda record: records.append(record.getMessage()))
        try:
            with self.replaced():
                logger.error("ours")
                in_threads(lambda: logger.error("theirs"))
        finally:
            logger.removeFilter(keep)
        assert records == ["theirs"]

    def test_a_dropout_of_another_thread_is_tensorflow_s(self):
        import tensorflow as tf

        def drop():
            return tf.nn.experimental.stateless_dropout(tf.ones(8), 0.5, seed=[1, 2]).numpy()

        usual, function = drop(), tf.nn.experimental.stateless_dropout
        with self.replaced():
            np.testing.assert_array_equal(in_threads(drop)[0], usual)
        assert tf.nn.experimental.stateless_dropout is function


def test_nothing_stays_replaced():
    """After all of it, Keras's and TensorFlow's own functions stand where they stood."""
    before = replaceable()
    in_a_stack()
    kc.estimate_memory([net()])
    assert replaceable() == before


def replaceable():
    found = {"Layer": dict(vars(keras.Layer))}
    if BACKEND == "tensorflow":
        import tensorflow as tf
        from keras.src.backend.tensorflow.optimizer import TFOptimizer
        from tensorflow.python.ops.parallel_for import pfor

        found["optimizer"] = dict(vars(TFOptimizer))
        found["table"] = dict(pfor._pfor_converter_registry)
        found["dropout"] = tf.nn.experimental.stateless_dropout
        found["logger"] = dict(vars(tf.get_logger()))
        del found["logger"]["_cache"]
    return found


def pair(**kwargs):
    return kc.Cohort({"a": net(), "b": net(4)}, **kwargs)


class Once(keras.callbacks.Callback):
    """Calls something at the end of the first epoch, and keeps the error."""

    def __init__(self, call):
        super().__init__()
        self.call, self.error = call, None

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            try:
                self.call()
            except Exception as error:
                self.error = error


@pytest.mark.parametrize("what", one_in(3, ["fit", "evaluate", "predict"]))
@pytest.mark.parametrize("is_other_thread", one_in(2, [True, False]), ids=["thread", "callback"])
def test_a_cohort_does_one_thing_at_a_time(what, is_other_thread):
    """E8: refused before any harm; what is running ends as if nobody had asked."""
    cohort = pair()
    asked = functools.partial(getattr(cohort, what), X, verbose=0)
    asked = asked if what == "predict" else functools.partial(asked, Y)
    once = Once((lambda: in_threads(asked)) if is_other_thread else asked)
    cohort.fit(X, Y, epochs=2, verbose=0, shuffle=False, callbacks={"a": [once]})
    assert isinstance(once.error, kc.CohortError)
    assert f"Received: `{what}` of a, b while `fit` is running" in str(once.error)
    for name, units in (("a", 8), ("b", 4)):
        assert distance(fitted(net(units)), cohort.members[name].get_weights()) < 1e-6
    cohort.evaluate(X, Y, verbose=0)  # and it can be used again


def test_the_history_is_that_of_the_cohort_s_last_fit():
    cohort = pair()
    cohort.members["a"].fit(X, Y, verbose=0)
    assert len(cohort.history) == 0
    history = cohort.fit(X, Y, epochs=3, verbose=0)
    cohort.members["a"].fit(X, Y, epochs=1, verbose=0)
    assert cohort.history.frame.equals(history.frame)
    assert len(cohort.history["a"].epoch) == 3
    with pytest.raises(kc.CohortError):
        cohort.fit(X, Y, epochs=-1, verbose=0, batch_size="many")
    assert cohort.history.frame.equals(history.frame)

    def fail():
        raise RuntimeError("broken")

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: fail())
    with pytest.raises(RuntimeError, match="broken"):
        cohort.fit(X, Y, verbose=0, callbacks={"b": [callback]})
    assert cohort.history["b"].epoch == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_of_a_cohort_trains_on_as_the_cohort_would(copied):
    cohort = pair(layout="auto", group_factor={"a": 2})
    fit = functools.partial(kc.Cohort.fit, x=X, y=Y, epochs=2, verbose=0, shuffle=False)
    fit(cohort)
    other = copied(cohort)
    assert repr(other) == repr(cohort)
    assert len(other.history) == 0
    fit(cohort)
    fit(other)
    for name, model in cohort.members.items():
        assert other.members[name] is not model
        assert distance(other.members[name].get_weights(), model.get_weights()) < 1e-6
