"""Functions in turn end as functions called one after another."""

import concurrent.futures
import contextlib
import functools
import gc
import io
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
import weakref

import keras
import numpy as np
import pytest
from keras import layers
from keras.src.backend.common import global_state
from keras.src.saving import serialization_lib
from sklearn.datasets import load_wine

import kerascohost as kc
from kerascohost.backends import observed
from kerascohost.training.stacks import Stacks

X, Y = load_wine(return_X_y=True)
X = ((X - X.mean(0)) / X.std(0)).astype("float32")
ON_TORCH = keras.backend.backend() == "torch"


# There a DataLoader draws once from torch's global generator, where a cohort's evaluation does not.
evaluation_draws = pytest.mark.skipif(ON_TORCH, reason="evaluate draws from torch's generator")
compiled = pytest.mark.skipif(ON_TORCH, reason="steps are not traced on torch")


def trace(function):
    """The function as the backend compiles it."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, autograph=False)  # which wraps what a function raises


def classifier(units=8, **kwargs):
    net = keras.Sequential(
        [
            keras.Input((13,)),
            layers.Dense(units, activation="relu"),
            # Without a seed it draws from torch's global generator, which the members share.
            *([] if ON_TORCH else [layers.Dropout(0.2)]),
            layers.Dense(3, activation="softmax"),
        ]
    )
    net.compile(
        **{"optimizer": "sgd", "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
        | kwargs
    )
    return net


def fold(i, epochs=2):
    """Trains on all rows but every fifth; returns all that there is to see."""
    is_test = np.arange(len(X)) % 5 == i
    net = classifier()
    history = net.fit(X[~is_test], Y[~is_test], epochs=epochs, verbose=0)
    score = net.evaluate(X[is_test], Y[is_test], verbose=0)
    best = net.predict(X[is_test], verbose=0)
    return history.history, score, best, net.get_weights(), net.name, net.layers[0].name


def seeded_fold(seed, i):
    keras.utils.set_random_seed(seed)
    return fold(i)


def draws():
    return [random.random(), np.random.random(), float(keras.random.normal(())), keras.Sequential()]


def assert_as_loop(function, *iterables, **options):
    """Asserts that `kc.map` ends as the built-in `map`, random states and names included."""
    ends = []
    for call in (map, lambda *args: kc.map(*args, **{"layout": "joined", "verbose": 0} | options)):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(3)
        results = list(call(function, *iterables))
        *numbers, net = draws()
        ends.append((results, numbers, net.name))
    (plain, numbers, name), (together, *others) = ends
    assert len(plain) == len(together) > 0
    keras.tree.map_structure(np.testing.assert_array_equal, plain, together)
    assert [numbers, name] == others
    return together


@pytest.mark.nightly
def test_seeded_folds():
    assert_as_loop(seeded_fold, [5, 6, 5], range(3))


@pytest.mark.nightly
@evaluation_draws
def test_each_function_goes_on_drawing_where_the_one_before_ends():
    assert_as_loop(fold, range(3))  # a warning, that one is called again, would be an error


@evaluation_draws
def test_functions_that_draw_after_a_fit_are_called_again():
    times = []

    def two(i):
        times.append(i)
        return [fold(i), random.random(), fold(i)]

    times.clear()
    with pytest.warns(UserWarning, match=r"two\[1\] drew random numbers before .* two\[0\] ends"):
        assert_as_loop(two, range(3))
    assert times[3:] != [0, 1, 2], "the functions did not begin before the first had ended"


def test_a_function_that_stops_early_is_waited_for():
    def stopping(i):
        net = classifier()
        stop = keras.callbacks.EarlyStopping("loss", min_delta=10.0, patience=1)
        net.fit(X, Y, epochs=5, verbose=0, callbacks=[stop])
        return net.get_weights(), np.random.random()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of functions called again, where a fit draws
        assert_as_loop(stopping, range(3))


def test_what_only_later_functions_draw_from_begins_where_earlier_ones_end():
    """The first draws from NumPy after its fit, the second only then from NumPy at all."""

    def drawing(i):
        keras.utils.set_random_seed(i)
        np.random.set_state(unseeded) if i == 0 else None
        net = classifier()
        net.fit(X, Y, verbose=0, shuffle=False)
        return np.random.random()

    unseeded = np.random.get_state()
    assert_as_loop(drawing, range(2))


@pytest.mark.nightly
def test_stacked_to_tolerance():
    plain = list(map(seeded_fold, range(3), range(3)))
    together = kc.map(seeded_fold, range(3), range(3), layout="stacked", verbose=0)
    for (_, score, best, *_), (_, other, other_best, *_) in zip(plain, together, strict=True):
        np.testing.assert_allclose(score, other, rtol=1e-4)
        np.testing.assert_allclose(best, other_best, rtol=1e-3, atol=1e-5)


@pytest.mark.nightly
def test_functions_that_begin_while_others_that_began_with_ended_ones_go_on():
    def trains(epochs):
        keras.utils.set_random_seed(epochs)
        net = classifier()
        net.fit(X, Y, epochs=epochs, verbose=0)
        return net.get_weights()

    assert_as_loop(trains, [1, 3, 2, 1], at_once=2)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.* drew random numbers before")
def test_models_from_outside_that_a_function_has_trained_are_restored_before_it_is_called_again():
    def twice(model):
        for _ in range(2):
            model.fit(X, Y, verbose=0)
        return model.get_weights(), np.random.random()

    ends = []
    for call in (map, lambda *args: kc.map(*args, layout="joined", verbose=0)):
        keras.utils.set_random_seed(4)
        ends.append([*call(twice, [classifier() for _ in range(3)]), np.random.random()])
    keras.tree.map_structure(np.testing.assert_array_equal, *ends)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.* drew random numbers before")
def test_draws_of_a_fit_that_runs_while_the_function_before_it_draws():
    def draws(net, epochs):
        net.fit(X, Y, epochs=epochs, verbose=0)
        return np.random.random(), net.get_weights()

    ends = []
    for call in (map, lambda *args: kc.map(*args, layout="joined", verbose=0)):
        keras.utils.set_random_seed(4)
        nets = [classifier() for _ in range(2)]
        ends.append(list(call(draws, nets, [1, 3])))
    keras.tree.map_structure(np.testing.assert_array_equal, *ends)


@pytest.mark.filterwarnings("ignore:.* drew random numbers before")
@pytest.mark.parametrize("before", [pytest.param(True, marks=pytest.mark.nightly), False])
def test_a_random_state_that_a_function_restores_is_not_its_own(before):
    def restoring(i):
        state = np.random.get_state()
        if not before:
            np.random.seed(0)
        first = np.random.random()
        np.random.set_state(state)
        net = classifier()
        net.fit(X, Y, verbose=0, shuffle=False)
        return first, np.random.random()

    assert_as_loop(restoring, range(3))


@evaluation_draws
def test_fits_that_a_block_has_deferred_are_trained_before_functions_are_called():
    ends = []
    methods = dict(vars(keras.Model))
    for block, call in ((contextlib.nullcontext, map), (kc.cohost, kc.map)):
        keras.utils.set_random_seed(5)
        net = classifier()

        def score(i, net=net):
            return net.evaluate(X, Y, verbose=0), i

        with block():
            net.fit(X, Y, verbose=0)
            ends.append([*call(score, range(2)), net.get_weights()])
    keras.tree.map_structure(np.testing.assert_allclose, *ends)
    assert dict(vars(keras.Model)) == methods


@pytest.mark.nightly
def test_an_interrupt_of_one_function_ends_all():
    called = []

    def interrupted(i):
        called.append(i)
        if i == 1:
            signal.raise_signal(signal.SIGINT)
            time.sleep(5)
        seeded_fold(i, i)

    with pytest.raises(KeyboardInterrupt):
        kc.map(interrupted, range(4), verbose=0)
    assert called == [0, 1]


def test_each_function_has_its_own_streams_and_record_of_warnings():
    found = sys.stderr, sys.stdout, warnings.showwarning, warnings.filters

    def recording(i):
        with (
            contextlib.redirect_stderr(io.StringIO()) as stream,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            keras.utils.set_random_seed(i)
            classifier().fit(X, Y, epochs=1 + i % 2, verbose=0)
            warnings.warn(f"of {i}", stacklevel=1)
            print("in", i, file=sys.stderr)
        return [str(w.message) for w in caught if "of " in str(w.message)], stream.getvalue()

    results = kc.map(recording, range(3), verbose=0)
    assert results == [([f"of {i}"], f"in {i}\n") for i in range(3)]
    assert found == (sys.stderr, sys.stdout, warnings.showwarning, warnings.filters)


@evaluation_draws
@pytest.mark.parametrize("layout", ["joined", pytest.param("stacked", marks=pytest.mark.nightly)])
def test_what_functions_change_between_their_calls(layout):
    def changing(seed):
        keras.utils.set_random_seed(seed)
        net = classifier(optimizer=keras.optimizers.Adam(0.01))
        net.fit(X, Y, verbose=0)
        net.optimizer.learning_rate = 0.001 * (seed + 1)
        net.layers[0].kernel.assign(net.layers[0].kernel * 0.5)
        net.fit(X, Y, verbose=0, epochs=1 + seed % 2)
        first = net.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
        net.layers[0].trainable = False
        net.compile("adam", "sparse_categorical_crossentropy")
        net.fit(X, Y, verbose=0)
        return first, net.evaluate(X, Y, verbose=0), *net.get_weights()

    plain = list(map(changing, range(3)))
    together = kc.map(changing, range(3), layout=layout, verbose=0)
    tolerance = 0.0 if layout == "joined" else 1e-4
    for one, other in zip(keras.tree.flatten(plain), keras.tree.flatten(together), strict=True):
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance)


class Recorder(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["drawn"] = np.random.random() + random.random()


class DrawnReset(keras.metrics.SparseCategoricalAccuracy):
    def reset_state(self):
        super().reset_state()
        self.total.assign(np.random.random())


class DrawnRows(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        rows = np.random.permutation(len(X))[:32]
        return X[rows], Y[rows]


@pytest.mark.parametrize(
    ("compiling", "fitting"),
    [
        (dict, lambda: {"callbacks": [Recorder()]}),
        (lambda: {"metrics": [DrawnReset()]}, dict),
        (dict, lambda: {"x": DrawnRows(), "y": None}),
    ],
    ids=["callback", "metric", "dataset"],
)
def test_what_runs_between_steps_finds_the_state_of_its_function(compiling, fitting):
    def drawing(seed):
        keras.utils.set_random_seed(seed)
        net = classifier(**compiling())
        history = net.fit(**{"x": X, "y": Y, "epochs": 2, "verbose": 0} | fitting())
        return history.history, np.random.random(), random.random(), *net.get_weights()

    assert_as_loop(drawing, range(3))


def test_unlike_functions():
    def trains():
        return seeded_fold(1, 0)

    results = kc.together([trains, lambda: 5, trains], layout="joined", verbose=0)
    assert results[1] == 5
    keras.tree.map_structure(np.testing.assert_array_equal, results[0][:4], results[2][:4])
    keras.tree.map_structure(np.testing.assert_array_equal, results[0][:4], trains()[:4])


@evaluation_draws
def test_a_shared_model_is_trained_by_one_function_after_the_other(capsys):
    def go_on(epochs):
        net.fit(X, Y, epochs=epochs, verbose=0)
        return net.evaluate(X, Y, verbose=0)

    ends = []
    for call in (map, kc.map):
        keras.utils.set_random_seed(2)
        net = classifier()
        ends.append([*call(go_on, [1, 2, 1]), net.get_weights()])
    keras.tree.map_structure(np.testing.assert_array_equal, *ends)
    assert "go_on[1] waits for the end of go_on[0], as both use" in capsys.readouterr().out


def total(model):
    return float(sum(np.sum(weights) for weights in model.get_weights()))


def begun_from(net):
    fresh = classifier()
    fresh.set_weights(net.get_weights())
    fresh.fit(X, Y, verbose=0)
    return total(fresh)


def saved(net):
    with tempfile.TemporaryDirectory() as folder:
        net.save(f"{folder}/net.keras")
        return total(keras.models.load_model(f"{folder}/net.keras"))


USES = {
    "reads its weights": total,
    "sets its weights": lambda net: net.set_weights([w * 0 + 9 for w in net.get_weights()]),
    "begins from its weights": begun_from,
    "calls it": lambda net: float(np.sum(net(X[:8]))),
    "saves it": saved,
    "reads its optimizer": lambda net: int(net.optimizer.iterations.numpy()),
}


@compiled
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_function_that_uses_what_an_earlier_one_trains_waits_for_its_end(use, capsys):
    def trains_or_uses(i):
        keras.utils.set_random_seed(i)
        if i == 1:
            return use(net)
        net.fit(X, Y, epochs=2, verbose=0)
        net.fit(X, Y, verbose=0)
        return total(net)

    ends = []
    for call in (map, functools.partial(kc.map, layout="joined")):
        keras.utils.set_random_seed(2)
        net = classifier()
        ends.append([*call(trains_or_uses, range(3)), total(net)])
    assert ends[0] == ends[1]
    assert (
        "uses[1] waits for the end of trains_or_uses[0], which uses it" in capsys.readouterr().out
    )


@compiled
def test_what_a_later_function_has_changed_too_early_is_refused():
    def reads(i):
        keras.utils.set_random_seed(i)
        (net if i else classifier()).fit(X, Y, epochs=3 - i, verbose=0)
        return total(net)

    def predicts(i):
        keras.utils.set_random_seed(i)
        if i == 0:
            classifier().fit(X, Y, epochs=3, verbose=0)
            net.fit(X, Y, verbose=0)
        return net.predict(X, verbose=0)

    net = classifier()
    net.build((None, 13))
    with pytest.raises(
        kc.CohortError, match=r"predicts\[0\], which uses .* after predicts\[1\] has"
    ):
        kc.map(predicts, range(2), verbose=0)
    with pytest.raises(kc.CohortError, match=r"reads\[0\], in which the value of '.*kernel' is r"):
        kc.map(reads, range(2), verbose=0)
    begun = net.get_weights()
    ends = []
    for call in (map, functools.partial(kc.map, at_once=1, layout="joined")):
        net = classifier()
        net.set_weights(begun)
        ends.append(list(call(reads, range(2))))
    assert ends[0] == ends[1]


@compiled
def test_a_later_function_may_have_used_what_no_training_changes():
    base = keras.Sequential([keras.Input((13,)), layers.Dense(3)])
    base.trainable = False

    def tuned(i):
        keras.utils.set_random_seed(i)
        if i == 0:
            classifier().fit(X, Y, epochs=3, verbose=0)
        net = keras.Sequential([base, layers.Dense(3, activation="softmax")])
        net.compile("sgd", "sparse_categorical_crossentropy")
        net.fit(X, Y, verbose=0)
        return total(net), float(np.sum(base(X[:4])))

    assert list(map(tuned, range(3))) == kc.map(tuned, range(3), layout="joined", verbose=0)


@compiled
def test_a_later_function_may_have_predicted_with_a_model_that_nobody_trains():
    teacher = classifier()

    def distilled(i):
        keras.utils.set_random_seed(i)
        net = classifier()
        net.fit(X, Y, epochs=3 - i, verbose=0)
        score = teacher.evaluate(X, Y, verbose=0)
        return teacher.predict(X, verbose=0), total(net), float(np.sum(teacher(X[:4]))), score

    ends = list(map(distilled, range(3))), kc.map(distilled, range(3), layout="joined", verbose=0)
    keras.tree.map_structure(np.testing.assert_array_equal, *ends)


@compiled
def test_a_block_in_a_function_waits_for_what_an_earlier_one_trains():
    def trains(i):
        keras.utils.set_random_seed(i)
        if i == 0:
            net.fit(X, Y, epochs=2, verbose=0)
            return total(net)
        with kc.cohost():
            net.fit(X, Y, epochs=3, verbose=0)
        return total(net)

    ends = []
    for call in (map, functools.partial(kc.map, layout="joined")):
        keras.utils.set_random_seed(2)
        net = classifier()
        ends.append(list(call(trains, range(2))))
    assert ends[0] == ends[1]


@compiled
@pytest.mark.parametrize("late", ["a callback", "weights that are set", "a model of a loss"])
def test_what_comes_too_late_is_refused(late):
    class Counts(keras.callbacks.Callback):
        ends = 0

        def on_train_end(self, logs=None):
            self.ends += 1

    counting, teacher = Counts(), classifier()

    def distilled(y, prediction):
        return keras.ops.mean((teacher(keras.ops.ones((1, 13))) - prediction) ** 2)

    def trains(i):
        keras.utils.set_random_seed(i)
        if i == 0:
            classifier().fit(X, Y, epochs=5, verbose=0)
        if late == "a callback":
            classifier().fit(X, Y, callbacks=[counting], verbose=0)
        elif i == 1:
            student = classifier(loss=distilled) if late == "a model of a loss" else None
            return (
                teacher.predict(X, verbose=0) if student is None else student.fit(X, Y, verbose=0)
            )
        elif late == "weights that are set":
            teacher.set_weights([w * 0 for w in teacher.get_weights()])
        else:
            teacher.fit(X, Y, verbose=0)
        return None

    with pytest.raises(kc.CohortError, match=r"trains\[0\], .* after trains\[1\] has used it"):
        kc.map(trains, range(2), verbose=0)


@compiled
@pytest.mark.parametrize("use", ["logged", "traced"])
def test_waiting_in_logging_or_a_traced_function_is_refused(use):
    def uses(i):
        keras.utils.set_random_seed(i)
        if i == 0:
            net.fit(X, Y, verbose=0)
        elif use == "logged":
            logging.getLogger("ours").warning("bias %s", net.weights[-1])
        else:
            traced(X[:4])

    handler = logging.StreamHandler(io.StringIO())
    logging.getLogger("ours").addHandler(handler)
    net = classifier()
    traced = trace(lambda x: net(x))
    try:
        with pytest.raises(kc.CohortError, match=r"outside of traced .*uses\[1\], in which"):
            kc.map(uses, range(2), verbose=0)
    finally:
        logging.getLogger("ours").removeHandler(handler)


def test_an_executor_in_a_function():
    def searches(i):
        with kc.Executor() as executor:
            futures = [executor.submit(seeded_fold, 10 * i + k, 0) for k in range(2)]
            return [future.result()[1] for future in futures]

    assert list(map(searches, range(2))) == kc.map(searches, range(2), layout="joined")


@compiled
def test_data_of_functions_that_have_ended_is_released(monkeypatch):
    known, most = {}, []
    shape = Stacks._shape

    def counted(self, name, chunk):
        found = shape(self, name, chunk)
        known.setdefault(id(self), self)
        most.append(max(len(stacks._shapes) for stacks in known.values()))
        return found

    monkeypatch.setattr(Stacks, "_shape", counted)

    def trains(i):
        keras.utils.set_random_seed(i)
        classifier().fit(X[i:], Y[i:], verbose=0)

    kc.map(trains, range(8), layout="stacked", at_once=2, verbose=0)
    assert most
    assert max(most) <= 2


@compiled
def test_what_functions_wait_for_is_named(capsys):
    stopping = keras.callbacks.EarlyStopping(monitor="loss")

    def trains(i):
        keras.utils.set_random_seed(i)
        classifier().fit(X, Y, verbose=0, callbacks=[stopping])

    kc.map(trains, range(2))
    told = capsys.readouterr().out
    assert "trains[1] waits for the end of trains[0], as both use 'EarlyStopping'." in told


@compiled
def test_nothing_is_watched_once_functions_have_ended():
    def trains(i):
        keras.utils.set_random_seed(i)
        net = classifier()
        net.fit(X, Y, verbose=0)
        models.append(weakref.ref(net))
        if i == 2:
            raise ValueError("no")

    models = []
    with pytest.raises(ValueError, match="no"):
        kc.map(trains, range(4), verbose=0)
    owner = observed.owner_of(keras.Variable, "value")
    assert not observed.is_hook(vars(owner)["value"])
    gc.collect()
    assert not any(model() for model in models[:2])


def test_functions_find_the_scopes_and_settings_of_keras_around_them():
    def found(i):
        net = classifier()
        net.fit(X, Y, verbose=0)
        return net.weights[0].path.split("/")[0], keras.config.is_nnx_enabled(), is_unsafe()

    def is_unsafe():
        return serialization_lib.in_safe_mode() is False

    ends = []
    with keras.name_scope("outer"):
        before = serialization_lib.in_safe_mode()
        keras.config.enable_unsafe_deserialization()
        try:
            for call in (map, kc.map):
                ends.append(list(call(found, range(3))))
        finally:
            global_state.set_global_attribute("safe_mode_saving", before)
    assert ends[0] == ends[1]
    assert ends[0][0][0] == "outer"


def test_best_so_far_and_no_training_at_all():
    assert kc.map(lambda a, b: a + b, [1, 2], [3, 4, 5]) == [4, 6]
    assert kc.map(fold, []) == []


def test_at_most_so_many_are_under_way():
    under_way, most = set(), []

    def counted(i):
        under_way.add(i)
        most.append(len(under_way))
        classifier().fit(X, Y, verbose=0)
        under_way.discard(i)

    kc.map(counted, range(4), at_once=2, verbose=0)
    assert max(most) == 2


def test_a_failure_is_raised_with_its_function_when_the_others_have_finished():
    finished = []

    def failing(i):
        seeded_fold(i, i)
        if i in (1, 2):
            raise ValueError(f"no {i}")
        finished.append(i)

    with pytest.raises(ValueError, match="no 1") as raised:
        kc.map(failing, range(4), verbose=0)
    assert sorted(finished) == [0, 3]
    assert raised.value.__notes__ == [
        "Raised by failing[1].",
        "failing[2] failed, too: ValueError('no 2').",
    ]


def test_a_function_may_handle_what_its_fit_raises():
    def handled(i):
        keras.utils.set_random_seed(i)
        try:
            classifier().fit(X[:, :i], Y, verbose=0)
        except ValueError:
            return "handled"
        return "trained"

    assert kc.map(handled, [13, 12, 13], verbose=0) == ["trained", "handled", "trained"]


def test_an_interrupt_ends_all_functions_with_their_models_after_whole_steps():
    models, ended = [], []

    class Interrupts(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def interrupted(i):
        keras.utils.set_random_seed(i)
        if i == 3:
            raise ValueError("before")
        net = classifier(optimizer="sgd")
        models.append(net)
        asked = {"epochs": 4, "shuffle": False, "verbose": 0}
        try:
            net.fit(X, Y, callbacks=[Interrupts()] if i == 1 else None, **asked)
        finally:
            ended.append(i)

    with pytest.raises(KeyboardInterrupt) as raised:
        kc.map(interrupted, range(4), verbose=0)
    assert raised.value.__notes__ == ["interrupted[3] failed, too: ValueError('before')."]
    assert sorted(ended) == [0, 1, 2]
    for i, net in enumerate(models):
        keras.utils.set_random_seed(i)
        twin = classifier(optimizer="sgd")
        steps = int(net.optimizer.iterations)
        assert 6 < steps <= 4 * 6
        order = np.resize(np.arange(6), steps)
        for step in order:
            rows = slice(32 * step, 32 * step + 32)
            twin.train_on_batch(X[rows], Y[rows])
        for mine, its in zip(net.get_weights(), twin.get_weights(), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)
    assert not [t for t in threading.enumerate() if "_main" in t.name]


@pytest.mark.nightly
def test_models_are_released_when_their_functions_have_ended():
    models = []

    def forgetting(i):
        alive.append(sum(model() is not None for model in models))
        net = classifier()
        models.append(weakref.ref(net))
        net.fit(X, Y, verbose=0)
        net.evaluate(X, Y, verbose=0)
        del net
        gc.collect()

    alive = []
    kc.map(forgetting, range(4), at_once=1, layout="auto", verbose=0)
    assert max(alive) <= 2


@pytest.mark.nightly
@compiled
def test_models_that_a_function_trains_in_turn_keep_their_traces():
    traces = []

    class Counted(keras.layers.Dense):
        def call(self, inputs):
            traces.append(self.name)
            return super().call(inputs)

    def alternating(seed, times=3):
        keras.utils.set_random_seed(seed)
        nets = [keras.Sequential([keras.Input((13,)), Counted(3)]) for _ in range(2)]
        for net in nets:
            net.compile("sgd", "mse")
        for _ in range(times):
            for net in nets:
                net.fit(X, np.eye(3)[Y], verbose=0, shuffle=False)
        return [net.get_weights() for net in nets]

    plain = [alternating(seed) for seed in range(2)]
    traces.clear()
    kc.map(alternating, range(2), [1, 1], layout="joined", verbose=0)
    traced = len(traces)
    traces.clear()
    together = kc.map(alternating, range(2), layout="joined", verbose=0)
    keras.tree.map_structure(np.testing.assert_array_equal, plain, together)
    assert len(traces) == traced


def test_options_that_cannot_be():
    for options, expected in (
        ({"at_once": 0}, r"Expected `at_once` to be a positive integer. Received: 0"),
        ({"layout": "grouped"}, "group_factor"),
        ({"verbose": 7}, "Expected `verbose` to be 0, 1, 2 or 'auto'. Received: 7"),
    ):
        with pytest.raises(kc.CohortError, match=expected):
            kc.map(fold, range(2), **options)
    with pytest.raises(kc.CohortError, match="Expected at least one iterable"):
        kc.map(fold)
    with pytest.raises(kc.CohortError, match=r"Expected a function\. Received: 3"):
        kc.map(3, range(2))
    with pytest.raises(kc.CohortError, match=r"Expected functions without arguments\. Received: 3"):
        kc.together([3])


@pytest.mark.nightly
def test_executor():
    plain = [seeded_fold(i, i)[:4] for i in range(3)]
    with kc.Executor(layout="joined") as executor:
        futures = [executor.submit(seeded_fold, i, i=i) for i in range(3)]
        failed = executor.submit(seeded_fold, "no seed", 1)
        assert list(executor.map(abs, [-1, 2])) == [1, 2]
    results = [future.result()[:4] for future in futures]
    keras.tree.map_structure(np.testing.assert_array_equal, plain, results)
    assert isinstance(failed.exception(), ValueError)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)


def test_a_function_cannot_wait_for_another_one():
    with kc.Executor() as executor:
        first = executor.submit(seeded_fold, 1, 1)
        second = executor.submit(lambda: first.result())
    assert "Expected a future to be waited for outside" in str(second.exception())


def test_executor_begins_with_the_random_state_of_its_next_submit():
    keras.utils.set_random_seed(1)
    with kc.Executor() as executor:
        executor.submit(np.random.random).result()
        after = np.random.random()
        keras.utils.set_random_seed(7)
        drawn = executor.submit(np.random.random).result()
    keras.utils.set_random_seed(1)
    assert [np.random.random(), np.random.random()][1] == after
    np.random.seed(7)
    assert np.random.random() == drawn


def test_executor_is_one_of_concurrent_futures():
    called = []
    with kc.Executor(at_once=2) as executor:
        futures = {executor.submit(seeded_fold, i, i): i for i in range(3)}
        for future in futures:
            future.add_done_callback(called.append)
        done, left = concurrent.futures.wait(futures, timeout=300)
        assert done == set(futures)
        assert not left
        assert set(concurrent.futures.as_completed(futures)) == set(futures)
    assert set(called) == set(futures)


def test_executor_cancels_what_has_not_begun():
    begun = threading.Event()
    release = threading.Event()

    def waits():
        begun.set()
        release.wait(60)

    executor = kc.Executor(at_once=1)
    first, second = executor.submit(waits), executor.submit(abs, 1)
    begun.wait(60)
    executor.shutdown(wait=False, cancel_futures=True)
    release.set()
    executor.shutdown()
    assert first.result() is None
    assert second.cancelled()


def test_each_function_has_the_environment_as_the_call_found_it(monkeypatch):
    """What a function changes in it is seen by that function only."""
    monkeypatch.setenv("COHOST_GONE", "there")
    monkeypatch.delenv("COHOST_SET", raising=False)

    def names():
        return os.environ.get("COHOST_GONE"), os.environ.get("COHOST_SET")

    def train(i):
        before = names()
        os.environ["COHOST_SET"] = str(i)
        del os.environ["COHOST_GONE"]
        classifier().fit(X, Y, verbose=0)
        return before, names()

    assert kc.map(train, range(2)) == [(("there", None), (None, str(i))) for i in range(2)]
    assert names() == ("there", None)


def test_each_function_draws_in_its_own_figure():
    pyplot = pytest.importorskip("matplotlib.pyplot")

    def train(i):
        figure = pyplot.figure()
        classifier().fit(X, Y, verbose=0)
        pyplot.plot([i, i])
        drawn = [line.get_ydata()[0] for axes in figure.axes for line in axes.lines]
        pyplot.close(figure)
        return drawn

    assert kc.map(train, range(2)) == [[0], [1]]


def test_an_executor_in_a_function_calls_at_once():
    def inner():
        with kc.Executor() as executor:
            failed = executor.submit(lambda: 1 / 0)
            trained = executor.submit(lambda: classifier().fit(X, Y, verbose=0).epoch)
            return repr(failed.exception()), trained.result()

    with kc.Executor() as executor:
        future = executor.submit(inner)
    assert future.result() == ("ZeroDivisionError('division by zero')", [0])
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(inner)


def test_functions_with_some_arguments_given_have_the_name_of_the_function():
    def fails(a, b):
        raise ValueError("here")

    with pytest.raises(ValueError, match="here") as raised:
        kc.map(functools.partial(functools.partial(fails, 1)), [2])
    assert raised.value.__notes__ == ["Raised by fails[0]."]
