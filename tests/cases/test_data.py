"""Members see the batches that their own `fit` would, in its order, read no earlier."""

import contextlib
import gc
import random

import keras
import numpy as np
import pytest
from keras import layers
from numpy.testing import assert_allclose

import kerascohost as kc
from kerascohost.errors import CohortError
from tests.helpers import compare
from tests.helpers.compare import Member

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5], [0.3]])).astype("float32")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Your input ran out of data"),
    pytest.mark.filterwarnings("ignore:The data ended before the epoch did"),
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored"),
]


def net(steps_per_execution=1, units=3, optimizer="sgd"):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(units, "tanh"), layers.Dense(1)])
    model.compile(optimizer, "mse", metrics=["mae"], steps_per_execution=steps_per_execution)
    return model


def pairs(**changes):
    """Two members, so that their reads come in turn."""
    fit = {"epochs": 3, "validation_freq": 1, **changes}
    return {"a": Member(net, **fit), "b": Member(lambda: net(units=2), **fit)}


def in_all_layouts(members, **tolerance):
    apart = compare.train_apart(members)
    compare.assert_same(apart, compare.train_together(members, layout="joined"), **tolerance)
    compare.assert_same(apart, compare.train_together(members, layout="stacked"), tolerance=1e-4)


# tf.data


def dataset(*steps, rows=48, seed=5):
    tf = pytest.importorskip("tensorflow", reason="a tf.data.Dataset needs TensorFlow")
    made = tf.data.Dataset.from_tensor_slices((X[:rows], Y[:rows])).shuffle(rows, seed=seed)
    for step in steps:
        made = step(made)
    return made.batch(8)


def noisy():
    tf = pytest.importorskip("tensorflow", reason="a tf.data.Dataset needs TensorFlow")
    return dataset().map(lambda x, y: (x + tf.random.normal(tf.shape(x), seed=3), y))


def of_unknown_length():
    return dataset(lambda made: made.filter(lambda x, _: x[0] > -1))


def dropping():
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5, seed=1), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    return model


DATASETS = {
    "plain": lambda: {"x": dataset},
    "repeat": lambda: {"x": lambda: dataset(lambda d: d.repeat()), "steps_per_epoch": 4},
    "one order": lambda: {"x": lambda: dataset().shuffle(6, 1, reshuffle_each_iteration=False)},
    "fewer steps": lambda: {"x": dataset, "steps_per_epoch": 4},
    "more steps": lambda: {"x": dataset, "steps_per_epoch": 8},
    "validation": lambda: {
        "x": dataset,
        "validation_data": lambda: dataset(seed=8),
        "validation_steps": 4,
    },
    "noise": lambda: {"x": noisy, "epochs": 2},
    "unknown length": lambda: {"x": of_unknown_length},
    "executions": lambda: {"x": dataset, "build": lambda: net(4)},
    "unknown length, drawing": lambda: {"x": of_unknown_length, "build": dropping},
}


@pytest.mark.nightly
def test_reshuffling_datasets_are_iterated_as_fit_iterates_them():
    members = {}
    for name, make in DATASETS.items():
        fit = {"epochs": 4, **make()}
        members[name] = Member(fit.pop("build", net), **fit)
    in_all_layouts(members)


def two_outputs():
    x = keras.Input((4,))
    model = keras.Model(x, [layers.Dense(1, name="left")(x), layers.Dense(1, name="right")(x)])
    metrics = [["mae"], ["mse"]]
    model.compile("adam", ["mse", "mae"], metrics=metrics, weighted_metrics=metrics)
    return model


def of_two_outputs(rows, weighted=False, batch=None):
    tf = pytest.importorskip("tensorflow", reason="a tf.data.Dataset needs TensorFlow")

    def made():
        for start in range(0, 40, 8):
            x, y = X[start : start + 8], Y[start : start + 8]
            yield (x, (y, y), np.abs(y[:, 0])) if weighted else (x, (y, y))

    of_y = tf.TensorSpec((rows, 1), "float32")
    of_weights = [tf.TensorSpec((rows,), "float32")] if weighted else []
    signature = (tf.TensorSpec((rows, 4), "float32"), (of_y, of_y), *of_weights)
    return tf.data.Dataset.from_generator(made, output_signature=signature)


LOSSES_BY_OUTPUT = {
    "rows known": lambda: {"x": lambda: of_two_outputs(8)},
    "weighted": lambda: {"x": lambda: of_two_outputs(8, weighted=True)},
    "rows unknown": lambda: {"x": lambda: of_two_outputs(None)},
    "validated": lambda: {
        "x": X[:16],
        "y": [Y[:16], Y[:16]],
        "validation_data": lambda: of_two_outputs(None),
    },
    "validated, rows known": lambda: {
        "x": X[:16],
        "y": [Y[:16], Y[:16]],
        "validation_data": lambda: of_two_outputs(8),
    },
    "even": lambda: {"x": X[:16], "y": [Y[:16], Y[:16]], "batch_size": 8},
    "uneven": lambda: {"x": X[:16], "y": [Y[:16], Y[:16]], "batch_size": 5},
    "one batch": lambda: {"x": X[:16], "y": [Y[:16], Y[:16]], "steps_per_epoch": 1},
}


@pytest.mark.parametrize(
    "names",
    [
        ("rows unknown", "uneven"),
        pytest.param(tuple(LOSSES_BY_OUTPUT), marks=pytest.mark.nightly),
    ],
    ids=["quick", "all"],
)
def test_metrics_count_rows_as_fit_counts_them(names):
    """On TensorFlow by the batches' static shape, and once more where the data ends."""
    in_all_layouts({n: Member(two_outputs, epochs=2, **LOSSES_BY_OUTPUT[n]()) for n in names})


def test_one_dataset_that_reshuffles_for_several_members_is_refused():
    shared = dataset()
    models = {"a": net(), "b": net()}
    with pytest.raises(CohortError, match=r"'a' and 'b'.* give each its own"):
        kc.Cohort(models).fit(shared, epochs=2, verbose=0)
    with pytest.raises(CohortError, match="'a' and 'b'"):
        data = {"a": shared.take(2), "b": shared.skip(2)}
        kc.Cohort(models).fit(x=data, verbose=0)
    with pytest.raises(CohortError, match="'a' and 'b'"):
        kc.Cohort(models).fit(X, Y, validation_data=shared, verbose=0)
    assert all(int(model.optimizer.iterations.value) == 0 for model in models.values())


class Cut(keras.utils.PyDataset):
    """Batches that a function changes; keeps them."""

    def __init__(self, change):
        super().__init__()
        self.change, self.kept = change, {}

    def __len__(self):
        return 6

    def __getitem__(self, i):
        rows = slice(8 * i, 8 * i + 8)
        x = self.change(X[rows].copy())
        x[0] = 0
        self.kept[i] = x
        return x, Y[rows]


def drawn_by(rng):
    return lambda x: x + rng.normal(size=x.shape).astype("float32")


def noisy_generator(rng):
    tf = pytest.importorskip("tensorflow", reason="a tf.data.Dataset needs TensorFlow")

    def rows():
        for x, y in zip(X, Y, strict=True):
            yield drawn_by(rng)(x), y

    spec = (tf.TensorSpec((4,)), tf.TensorSpec((1,)))
    return tf.data.Dataset.from_generator(rows, output_signature=spec).batch(8)


def noisy_function(rng):
    tf = pytest.importorskip("tensorflow", reason="a tf.data.Dataset needs TensorFlow")
    draw = drawn_by(rng)
    fixed = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    return fixed.map(lambda x, y: (tf.numpy_function(lambda a: draw(a), [x], x.dtype), y))


class Counting(Cut):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        self.reads += 1
        return x * self.reads, y


def counting(rng):
    made = Counting(lambda x: x)
    made.reads = 0
    return made


def noisy_layer(rng):
    noise = layers.GaussianNoise(0.1, seed=3)
    return Cut(lambda x: keras.ops.convert_to_numpy(noise(x, training=True)).copy())


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda rng: Cut(drawn_by(rng)), r"random generator \(Generator\)"),
        (noisy_generator, r"random generator \(Generator\)"),
        (noisy_function, r"random generator \(Generator\)"),
        (noisy_layer, r"random layer in a dataset \(.*\)"),
        (counting, "Counting"),
    ],
)
def test_data_that_draw_from_one_random_state_for_several_members_are_refused(make, what):
    rng = np.random.default_rng(3)
    given, models = make(rng), {"a": net(), "b": net()}
    message = rf"one {what} for 'a' and 'b'.*kerascohost.shared\("
    with pytest.raises(CohortError, match=message):
        kc.Cohort(models).fit(given, verbose=0)
    with pytest.raises(CohortError, match=message):
        kc.Cohort(models).fit(X, Y, validation_data=given, verbose=0)
    if make not in (noisy_layer, counting):
        with pytest.raises(CohortError, match=message):
            kc.Cohort(models).fit({"a": make(rng), "b": make(rng)}, verbose=0)
    assert all(int(model.optimizer.iterations.value) == 0 for model in models.values())


def test_data_that_keep_what_they_have_read_may_be_shared():
    known = layers.Normalization()
    known.adapt(X)
    given = Cut(lambda x: keras.ops.convert_to_numpy(known(x)).copy())
    compare.assert_parity({n: Member(m.build, x=given, epochs=2) for n, m in pairs().items()})


def test_one_dataset_in_one_order_may_be_shared():
    tf = pytest.importorskip("tensorflow", reason="a tf.data.Dataset needs TensorFlow")
    fixed = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(9, 4, reshuffle_each_iteration=False)
    apart = {n: Member(m.build, x=fixed.batch(8), epochs=2) for n, m in pairs().items()}
    compare.assert_parity(apart)


def test_evaluate_and_predict_iterate_datasets_as_the_models_do():
    for executions, steps in ((4, 4), (1, None)):
        alone, model = net(executions), net(executions)
        model.set_weights(alone.get_weights())
        one, other = dataset(), dataset()
        cohort = kc.Cohort({"m": model})
        for _ in range(2):
            own = alone.evaluate(one, steps=steps, verbose=0)
            assert_allclose(cohort.evaluate(other, steps=steps, verbose=0)["m"], own, atol=1e-6)
            own = alone.predict(one, steps=steps, verbose=0)
            assert_allclose(cohort.predict(other, steps=steps, verbose=0)["m"], own, atol=1e-6)


# Steps per execution

EXECUTIONS = {
    "16 batches": {"steps_per_epoch": 4},
    "5 steps": {"steps_per_epoch": 5, "epochs": 5},
    "initial": {"steps_per_epoch": 7, "initial_epoch": 1},
    "all": {"batch_size": 7},
    "validation": {"validation_data": (X, Y), "validation_steps": 4, "validation_batch_size": 3},
}


@pytest.mark.nightly
def test_whole_executions_are_run():
    arrays = {"x": X, "y": Y, "batch_size": 3, "epochs": 2, "shuffle": False}
    members = {
        name: Member(lambda: net(3), **{**arrays, **fit}) for name, fit in EXECUTIONS.items()
    }
    members["generator"] = Member(
        lambda: net(3), x=lambda: generator(16), steps_per_epoch=4, epochs=5
    )
    members["PyDataset"] = Member(lambda: net(3), x=lambda: Rows(), steps_per_epoch=4, epochs=2)
    in_all_layouts(members)


def test_whole_executions_are_evaluated_and_predicted():
    model = net(3)
    cohort = kc.Cohort({"m": model})
    arguments = {"batch_size": 4, "steps": 4, "verbose": 0}
    assert_allclose(cohort.evaluate(X, Y, **arguments)["m"], model.evaluate(X, Y, **arguments))
    own = model.predict(X, **arguments)
    assert_allclose(cohort.predict(X, **arguments)["m"], own, atol=1e-6)
    assert len(own) == 24


# Generators and PyDatasets


def generator(batches, log=None, seen=lambda: 0):
    for i in range(batches):
        if log is not None:
            log.append(seen())
        at = i * 4 % 48
        yield X[at : at + 4], Y[at : at + 4]


class Rows(keras.utils.PyDataset):
    """Batches of 8; notes what is asked of it beside how far its model is."""

    def __init__(self, log=None, seen=lambda: 0, noise=False, **kwargs):
        super().__init__(**kwargs)
        self.log = [] if log is None else log
        self.seen = seen
        self.noise = noise

    def __len__(self):
        return 3

    def __getitem__(self, i):
        self.log.append(("read", i, self.seen()))
        noise = random.random() + np.random.normal() if self.noise else 0
        return X[i * 8 : i * 8 + 8] + noise, Y[i * 8 : i * 8 + 8]

    def on_epoch_begin(self):
        self.log.append(("begin", self.seen()))

    def on_epoch_end(self):
        self.log.append(("end", self.seen()))


class Steps(keras.callbacks.Callback):
    """Counts steps in a way that can be read at any time, also in `fit` on JAX."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1


def logs_of(train, make, **fit):
    """What the data noted while it was read."""
    steps, log = Steps(), []
    train(x=make(log, lambda: steps.count), callbacks=[steps], verbose=0, **fit)
    return log


def only(kind, log):
    return [entry for entry in log if entry[0] in kind]


@pytest.mark.parametrize("workers", [1, 2])
def test_hooks_and_reads_come_when_fit_makes_them(workers):
    def make(log, seen):
        return Rows(log, seen, workers=workers)

    for validated in (False, True):
        logs = []
        for train in (net().fit, kc.Cohort({"m": net()}).fit):
            fit = {"epochs": 3, "shuffle": False}
            validation = []
            if validated:
                fit["validation_data"] = Rows(validation)
            logs.append([logs_of(train, make, **fit), validation])
        hooks = [[only(("begin", "end"), log) for log in both] for both in logs]
        assert hooks[0] == hooks[1]
        if BACKEND == "jax" and workers == 1:  # on TensorFlow other threads read for `fit`
            assert logs[0] == logs[1]
        assert [entry[1] for entry in hooks[1][0] if entry[0] == "end"][-4:] == [0, 3, 6, 9]


def test_on_epoch_end_sees_the_steps_of_its_epoch_without_callbacks():
    model = net()
    rows = Rows(seen=lambda: int(keras.ops.convert_to_numpy(model.optimizer.iterations.value)))
    kc.Cohort({"m": model, "other": net()}).fit(
        {"m": rows, "other": X}, {"m": None, "other": Y}, epochs=3, verbose=0
    )
    assert [entry[1] for entry in rows.log if entry[0] == "end"][-4:] == [0, 3, 6, 9]
    reads = [entry[2] for entry in rows.log if entry[0] == "read"]
    if BACKEND != "jax":  # whose `fit` hides the variables from code that makes batches
        assert reads[-9:] == list(range(9))


def test_generators_are_read_step_by_step():
    logs = []
    for train in (net().fit, kc.Cohort({"m": net()}).fit):
        logs.append(logs_of(train, lambda *log: generator(40, *log), steps_per_epoch=5, epochs=2))
    if BACKEND == "jax":
        assert logs[0] == logs[1]
    assert logs[1] == [0, 0, *range(2, 10)]


def failing(after):
    yield from generator(after)
    raise OSError("no more")


def test_what_was_read_before_a_failure_is_trained():
    own, model = net(), net()
    with pytest.raises(Exception, match="no more"):
        own.fit(failing(7), steps_per_epoch=9, verbose=0)
    with pytest.raises(OSError, match="no more") as caught:
        kc.Cohort({"m": model}).fit(failing(7), steps_per_epoch=9, verbose=0)
    assert "'m'" in " ".join(caught.value.__notes__)
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations.value)) == 7


SHUFFLED = {
    "shuffled": lambda: {"x": Rows},
    "noise": lambda: {"x": lambda: Rows(noise=True)},
    "workers": lambda: {"x": lambda: Rows(workers=2)},
    "validated": lambda: {"x": Rows, "validation_data": lambda: Rows(noise=True)},
    "steps": lambda: {"x": Rows, "steps_per_epoch": 2},
    "drawn": lambda: {"x": lambda: drawn(), "steps_per_epoch": 3},
    "ended": lambda: {"x": lambda: generator(12), "steps_per_epoch": 5, "epochs": 4},
    "length unknown": lambda: {"x": lambda: generator(5), "epochs": 3},
}


def drawn():
    while True:
        at = random.randrange(40)
        yield X[at : at + 8] + np.random.normal(), Y[at : at + 8]


def test_members_draw_as_if_alone():
    members = {name: Member(net, **{"epochs": 3, **make()}) for name, make in SHUFFLED.items()}
    in_all_layouts(members)


def test_a_second_fit_draws_on():
    alone, in_cohort = net(), net()
    in_cohort.set_weights(alone.get_weights())
    keras.utils.set_random_seed(1)
    for _ in range(2):
        alone.fit(Rows(noise=True), epochs=2, verbose=0)
    keras.utils.set_random_seed(1)
    for _ in range(2):
        kc.Cohort([in_cohort]).fit(Rows(noise=True), epochs=2, verbose=0)
    after = random.random(), np.random.normal()
    for one, other in zip(alone.get_weights(), in_cohort.get_weights(), strict=True):
        assert_allclose(one, other, atol=1e-6)
    alone = net()
    keras.utils.set_random_seed(1)
    for _ in range(2):
        alone.fit(Rows(noise=True), epochs=2, verbose=0)
    assert after == (random.random(), np.random.normal())


def test_deferred_fits_read_as_fit():
    apart = compare.train_apart({n: Member(net, epochs=3, **SHUFFLED[n]()) for n in ["shuffled"]})
    model = net()
    model.set_weights(compare.built(Member(net)).get_weights())
    with kc.cohost():
        keras.utils.set_random_seed(7)
        model.fit(Rows(), epochs=3, verbose=0)
    for one, other in zip(apart["shuffled"].model.get_weights(), model.get_weights(), strict=True):
        assert_allclose(one, other, atol=1e-6)


# What there is nothing of


def test_an_optional_input_may_be_missing():
    class Both(layers.Layer):
        def call(self, x, o=None):
            return x if o is None else x + o

    def build():
        x = keras.Input((4,), name="x")
        o = keras.Input((4,), name="o", optional=True)
        model = keras.Model({"x": x, "o": o}, layers.Dense(1)(Both()(x, o)))
        model.compile("sgd", "mse")
        return model

    data = {"x": X, "o": None}
    in_all_layouts({n: Member(build, x={"x": X, "o": o}, y=Y) for n, o in [("a", None), ("b", X)]})
    model = build()
    cohort = kc.Cohort({"m": model})
    value = cohort.evaluate({"m": data}, Y, verbose=0)["m"]
    assert_allclose(value, model.evaluate(data, Y, verbose=0), atol=1e-6)
    value = cohort.predict({"m": data}, verbose=0)["m"]
    assert_allclose(value, model.predict(data, verbose=0), atol=1e-6)


def empty_dataset(filtered=False):
    made = dataset()
    return made.filter(lambda *_: False) if filtered else made.take(0)


class NoRows(Rows):
    def __len__(self):
        return 0


EMPTY = {
    "arrays": lambda: (X[:0], Y[:0]),
    "dataset": lambda: (empty_dataset(), None),
    "filtered": lambda: (empty_dataset(filtered=True), None),
    "generator": lambda: (generator(0), None),
    "PyDataset": lambda: (NoRows(), None),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_empty_data_is_named_before_any_member_trains(kind):
    x, y = EMPTY[kind]()
    fine = net()
    with pytest.raises(ValueError, match=r"least one|length 0") as caught:
        kc.Cohort({"fine": fine, "bad": net()}).fit(
            {"fine": X, "bad": x}, {"fine": Y, "bad": y}, verbose=0
        )
    assert "'bad'" in " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert not fine.optimizer.built or int(np.asarray(fine.optimizer.iterations.value)) == 0


def not_dense():
    sparse = pytest.importorskip("scipy.sparse")
    rows = sparse.csr_matrix(X[:8])
    kinds = [rows, np.array([np.ones(2), np.ones(3)], object)]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        kinds += [tf.sparse.from_dense(X[:8]), tf.ragged.constant([[1.0], [1.0, 2.0]])]
    else:
        import jax.experimental.sparse

        kinds += [jax.experimental.sparse.BCOO.fromdense(X[:8])]
    return kinds


class Given(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return self.x, Y[:8]


def test_what_is_not_dense_is_refused_before_training():
    for rows in not_dense():
        kinds = [
            (rows, Y[: rows.shape[0]]),
            (((rows, Y[:8]) for _ in range(2)), None),
            (Given(rows), None),
        ]
        for x, y in kinds:
            fine = net()
            with pytest.raises(CohortError, match="'bad': expected dense data"):
                kc.Cohort({"fine": fine, "bad": net()}).fit(
                    {"fine": X, "bad": x}, {"fine": Y, "bad": y}, verbose=0
                )


def test_verbose_is_checked():
    with pytest.raises(CohortError, match=r"'a': expected `verbose`.*'loud'"):
        kc.Cohort({"a": net()}).fit(X, Y, verbose="loud")


def test_a_cohort_cannot_be_called_by_its_own_callback():
    cohort = kc.Cohort({"a": net()})

    class Again(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            cohort.fit(X, Y, verbose=0)

    with pytest.raises(CohortError, match=r"`fit` of a while `fit` is running"):
        cohort.fit(X, Y, verbose=0, callbacks={"a": [Again()]})
    cohort.fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    "fit",
    [
        {"x": X, "y": Y[:5]},
        {"x": lambda: generator(4), "sample_weight": np.ones(48)},
        {"x": Rows, "y": Y},
        {"x": X, "y": Y, "sample_weight": np.ones(48), "class_weight": {0: 1.0}},
    ],
)
def test_what_fit_refuses_is_refused_by_the_same_exception(fit):
    each = Member(net, **fit)
    with pytest.raises(Exception) as own:
        net().fit(**each.arguments(verbose=0))
    with pytest.raises(type(own.value)):
        kc.Cohort({"a": net()}).fit(**each.arguments(verbose=0))


@pytest.mark.skipif(BACKEND != "jax", reason="only programs on JAX keep data")
def test_programs_let_go_of_data():
    import jax

    cohort = kc.Cohort({"a": net(), "b": net(units=2)})
    cohort.fit(X, Y, verbose=0, batch_size=6)
    gc.collect()
    assert not [array for array in jax.live_arrays() if array.shape == (8, 6, 4)]
    cohort.fit(X, Y, verbose=0, batch_size=6, epochs={"a": 1, "b": 0})


def images(layer):
    tf = pytest.importorskip("tensorflow", reason="a tf.data.Dataset needs TensorFlow")
    pixels = X[:, :4].reshape((-1, 2, 2, 1))
    pairs = tf.data.Dataset.from_tensor_slices((pixels, Y)).batch(3)
    return pairs.map(lambda x, y: (layer(x, training=True), y))


def image_net():
    model = keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            layers.Flatten(),
            layers.Dense(1, kernel_initializer="zeros"),
        ]
    )
    model.compile("sgd", "mse")
    return model


def test_a_random_layer_in_the_datasets_of_two_members_is_refused():
    flip = layers.RandomFlip("horizontal", seed=3)
    cohort = kc.Cohort({"a": image_net(), "b": image_net()})
    with pytest.raises(CohortError, match=r"one random layer .* for 'a' and 'b'"):
        cohort.fit({"a": images(flip), "b": images(flip)}, verbose=0)


def test_an_adapted_layer_in_the_datasets_of_two_members_is_shared():
    known = layers.Normalization()
    known.adapt(X[:, :4].reshape((-1, 2, 2, 1)))
    words = layers.StringLookup(vocabulary=["a", "b"])
    models = {"a": image_net(), "b": image_net()}
    data = [images(known).map(lambda x, y: (x, words(["a", "b", "a"]))) for _ in models]
    history = kc.Cohort(models).fit(dict(zip(models, data, strict=True)), verbose=0)
    assert all(len(history[name].epoch) == 1 for name in models)


def test_random_layers_in_datasets_draw_as_in_fit():
    """On JAX the first batch builds the model; what was read until then is drawn, too."""
    ends = []
    for hold in (contextlib.nullcontext, kc.cohost):
        flip, models = layers.RandomFlip("horizontal", seed=3), [image_net(), image_net()]
        with hold():
            for model in models:
                model.fit(images(flip), epochs=2, verbose=0)
        ends.append([model.get_weights()[0] for model in models])
    assert not np.allclose(*ends[0])
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-6)


@pytest.mark.parametrize("layout", ["joined", "stacked"])
def test_batches_of_a_fixed_size_weigh_as_in_fit(layout):
    """On TensorFlow the metrics of several losses are weighted only where the size is known."""
    tf = pytest.importorskip("tensorflow", reason="a tf.data.Dataset needs TensorFlow")

    def build():
        inputs = keras.Input((4,))
        outputs = {name: layers.Dense(1, name=name)(inputs) for name in ("a", "b")}
        model = keras.Model(inputs, outputs)
        model.compile("sgd", {"a": "mse", "b": "mae"})
        return model

    def batches(drop_remainder):
        pairs = tf.data.Dataset.from_tensor_slices((X, {"a": Y, "b": Y}))
        return lambda: pairs.batch(10, drop_remainder=drop_remainder)

    for fixed in (True, False):
        fits = {name: Member(build, x=batches(fixed), epochs=2) for name in ("one", "two")}
        compare.assert_parity(fits, 1e-5, layout=layout)
