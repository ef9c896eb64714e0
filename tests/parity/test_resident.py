"""Rows of arrays that stay on the device train as the copied batches do, to the last bit."""

import gc
import weakref

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

import kerascohost as kc
from kerascohost.backends import resident
from tests.helpers import compare
from tests.helpers.compare import Member
from tests.helpers.sampled import one_in

BACKEND = keras.backend.backend()
RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(50, 4)).astype("float32")
Y = (X @ RANDOM.normal(size=(4, 1))).astype("float32")
LABELS = RANDOM.integers(3, size=50)
WEIGHTS = np.linspace(0, 1, 50)

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="torch's steps take batches from memory")


def regressor(units=5):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(units, "tanh"), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


def classifier():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        "sparse_categorical_crossentropy",
        weighted_metrics=["accuracy"],
    )
    return model


def embedder():
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            layers.Embedding(9, 4),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    return model


def two_ways():
    one, two = keras.Input((4,), name="one"), keras.Input((2,), name="two")
    hidden = layers.Dense(4, "tanh")(layers.Concatenate()([one, two]))
    outputs = {"mean": layers.Dense(1, name="mean")(hidden), "kind": layers.Dense(3)(hidden)}
    model = keras.Model({"one": one, "two": two}, outputs)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", {"mean": "mse", "kind": crossentropy})
    return model


def member(build=regressor, **fit):
    y = LABELS if build is classifier else Y
    return Member(build, **{"x": X, "y": y, "batch_size": 8, "epochs": 2, **fit})


def executions(build=regressor):
    def built():
        model = build()
        model.compile("adam", "mse", steps_per_execution=3)
        return model

    return built


INTEGERS = RANDOM.integers(9, size=(50, 3))
TWO = {
    "x": {"one": X, "two": X[:, 1:3]},
    "y": {"mean": Y, "kind": LABELS},
    "sample_weight": {"mean": WEIGHTS, "kind": WEIGHTS[::-1]},
}

# Members of one cohort: each pair of names that begin alike can be stacked.
MEMBERS = {
    "shuffled 1": lambda: member(),
    "shuffled 2": lambda: member(validation_data=(X[:20] + 1, Y[:20])),
    "shuffled 3": lambda: member(validation_split=0.2, epochs=3),
    "own data 1": lambda: member(lambda: regressor(3), x=X[:30], y=Y[:30], batch_size=5),
    "own data 2": lambda: member(lambda: regressor(3), x=X[10:43] + 1, y=Y[10:43], batch_size=5),
    "own data 3": lambda: member(lambda: regressor(3), x=X[:30], y=Y[:30] + 1, batch_size=6),
    "weights 1": lambda: member(classifier, class_weight={0: 1.0, 1: 2.0, 2: 0.5}),
    "weights 2": lambda: member(classifier, sample_weight=WEIGHTS, shuffle=False),
    "in order 1": lambda: member(lambda: regressor(2), shuffle=False, batch_size=10),
    "in order 2": lambda: member(lambda: regressor(2), shuffle="batch", batch_size=10),
    "two ways 1": lambda: member(two_ways, **TWO, shuffle=False),
    "two ways 2": lambda: member(two_ways, **TWO, validation_split=0.3),
    "integers 1": lambda: member(embedder, x=INTEGERS),
    "integers 2": lambda: member(embedder, x=INTEGERS.astype("uint8"), y=Y.astype("float64")),
    "tensors 1": lambda: member(lambda: regressor(4), x=keras.ops.convert_to_tensor(X)),
    "tensors 2": lambda: member(lambda: regressor(4), x=keras.ops.convert_to_tensor(X + 1)),
    "other 1": lambda: member(executions(), x=X.astype("float64"), steps_per_epoch=5, epochs=3),
    "other 2": lambda: member(executions(), x=pd.DataFrame(X), validation_data=(X, Y, WEIGHTS)),
}
QUICK = ("shuffled", "own data", "weights", "two ways")


def in_chunks(monkeypatch):
    return monkeypatch.setattr(resident, "_SHARE", 0)


def assert_as_chunks(members, layout, monkeypatch, put):
    """Asserts that nothing of a training depends on where its arrays are; returns it."""
    there = compare.train_together(members, layout=layout)
    assert put
    put.clear()
    with monkeypatch.context() as patch:
        in_chunks(patch)
        copied = compare.train_together(members, layout=layout)
    assert not put
    compare.assert_same(copied, there, tolerance=0)
    return there


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # of "other 1", as by `fit`
@pytest.mark.filterwarnings("ignore:The data ended before the epoch did")
@pytest.mark.parametrize(
    "kinds", [QUICK, pytest.param(tuple(MEMBERS), marks=pytest.mark.nightly)], ids=["quick", "all"]
)
@pytest.mark.parametrize("layout", ["joined", "stacked"])
def test_members_end_as_in_chunks_and_as_by_their_own_fit(layout, kinds, monkeypatch, put):
    members = {name: make() for name, make in MEMBERS.items() if name.startswith(kinds)}
    there = assert_as_chunks(members, layout, monkeypatch, put)
    tolerance = None if layout == "joined" else 1e-4
    compare.assert_same(compare.train_apart(members), there, tolerance)


def test_an_array_is_put_once_for_all_that_train_and_validate_on_it(put):
    models = {f"{kind} {i}": regressor() for kind in ("same", "other") for i in range(2)}
    cohort = kc.Cohort(models, layout="stacked")
    cohort.fit(X, Y, epochs=2, validation_data=(X, Y), verbose=0)
    assert sorted(map(len, put)) == [1, 1] and len(put) == 2
    put.clear()
    joined = kc.Cohort(models)
    joined.evaluate(X, Y, verbose=0)
    joined.predict(X, verbose=0)
    assert len(put) == 3  # x and y, then x: each call is a run of its own


def test_members_with_data_of_their_own_are_put_one_behind_the_other(put):
    cohort = kc.Cohort({"a": regressor(), "b": regressor()}, layout="stacked")
    cohort.fit({"a": X, "b": X[:40]}, {"a": Y, "b": Y[:40]}, epochs=2, verbose=0)
    assert put == [[(50, 4), (40, 4)], [(50, 1), (40, 1)]]


def test_evaluations_and_predictions_are_those_in_chunks(monkeypatch, put):
    cohort = kc.Cohort({"a": regressor(), "b": regressor(3)})

    def results():
        scores = cohort.evaluate(X, Y, batch_size=7, sample_weight=WEIGHTS, verbose=0)
        return scores, cohort.predict({"a": X, "b": X[:33]}, batch_size=7, verbose=0)

    there = results()
    assert put
    in_chunks(monkeypatch)
    copied = results()
    assert there[0] == copied[0]
    for name in cohort.members:
        np.testing.assert_array_equal(there[1][name], copied[1][name])


class Refill(keras.callbacks.Callback):
    """Changes the data in place after each epoch, as `fit` on JAX sees it."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def on_epoch_end(self, epoch, logs=None):
        self.x += 1


@pytest.mark.parametrize("layout", one_in(2, ["joined", "stacked"]))
def test_a_change_in_place_between_epochs_is_seen(layout, monkeypatch, put):
    def trained():
        keras.utils.set_random_seed(0)
        models = {name: regressor() for name in "abc"}
        arrays = {name: X.copy() for name in models}
        callbacks = {"a": [Refill(arrays["a"])], "b": [Refill(arrays["b"])]}
        cohort = kc.Cohort(models, layout=layout)
        history = cohort.fit(arrays, Y, epochs=3, shuffle=False, callbacks=callbacks, verbose=0)
        return history, models

    there, models = trained()
    assert put
    with monkeypatch.context() as patch:
        in_chunks(patch)
        copied, others = trained()
    for name in models:
        assert there[name].history == copied[name].history
        for one, other in zip(models[name].weights, others[name].weights, strict=True):
            np.testing.assert_array_equal(one, other)
    if BACKEND == "jax":  # TensorFlow's `fit` may copy the arrays as it begins
        keras.utils.set_random_seed(0)
        x, apart = X.copy(), regressor()
        history = apart.fit(x, Y, epochs=3, shuffle=False, callbacks=[Refill(x)], verbose=0)
        np.testing.assert_allclose(history.history["loss"], there["a"].history["loss"], 1e-5)


def test_a_fit_sees_what_was_changed_since_the_last_one(put):
    x, model = X.copy(), regressor()
    cohort = kc.Cohort({"a": model})
    cohort.fit(x, Y, verbose=0)
    x += 1
    assert cohort.evaluate(x, Y, verbose=0)["a"] == model.evaluate(x, Y, verbose=0)


def test_what_is_not_plain_memory_of_numbers_is_read_in_chunks(put, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(53.0), 4)
    unlike = pd.DataFrame({**{str(i): X[:, i] for i in range(3)}, "3": range(50)})
    for x in (mapped, mapped[:40], windows, unlike):
        kc.Cohort([regressor()]).fit(x, Y[: len(x)], verbose=0)
    hook = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: None)
    kc.Cohort([regressor()]).fit(X, Y, callbacks=[hook], verbose=0)
    eager = regressor()
    eager.compile("adam", "mse", run_eagerly=True)
    kc.Cohort([eager]).fit(X, Y, verbose=0)
    assert not put


def test_arrays_beyond_the_budget_are_read_in_chunks(put, monkeypatch):
    monkeypatch.setattr(resident, "free_bytes", lambda: int(4 * 50 * 5 / resident._SHARE))
    models = [regressor(), regressor()]
    models[1].name = "second"
    kc.Cohort(models).fit({models[0].name: X, "second": X + 1}, Y, verbose=0)
    assert put == [[(50, 4)], [(50, 1)]]


def test_nothing_stays_after_a_run(monkeypatch):
    made = []
    usual = resident.ResidentArray.__init__

    def recorded(self, source):
        usual(self, source)
        made.append(weakref.ref(self))

    monkeypatch.setattr(resident.ResidentArray, "__init__", recorded)
    for layout in ("joined", "stacked"):
        cohort = kc.Cohort({"a": regressor(), "b": regressor()}, layout=layout)
        cohort.fit({"a": X, "b": X + 1}, Y, verbose=0)
        cohort.fit(X, Y, epochs={"a": 1, "b": 3}, verbose=0)
    gc.collect()
    assert made and not [array for array in made if array() is not None]


class Traced(keras.Model):
    """Counts how often its step is traced."""

    traces = 0

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, x):
        type(self).traces += 1
        return self.dense(x)


@pytest.mark.parametrize("layout", ["joined", "stacked"])
def test_other_lengths_trace_nothing(layout):
    models = {"a": Traced(), "b": Traced()}
    for model in models.values():
        model.compile("adam", "mse")
    cohort = kc.Cohort(models, layout=layout)
    x, y = np.tile(X, (21, 1)), np.tile(Y, (21, 1))
    cohort.fit(x[:1020], y[:1020], batch_size=10, verbose=0)
    before = Traced.traces
    cohort.fit(x[:1010], y[:1010], batch_size=10, verbose=0)
    assert Traced.traces == before
