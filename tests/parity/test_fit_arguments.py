"""Every argument of `fit`, and every kind of data, means in a cohort what it means alone."""

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from numpy.testing import assert_allclose

import kerascohost as kc
from tests.helpers import compare
from tests.helpers.compare import Member

BACKEND = keras.backend.backend()
RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(60, 4)).astype("float32")
Y = (X @ RANDOM.normal(size=(4, 1))).astype("float32")
LABELS = RANDOM.integers(3, size=60)
pytestmark = [
    # Keras's own words for what these tests do on purpose.
    pytest.mark.filterwarnings("ignore:Your input ran out of data"),
    pytest.mark.filterwarnings("ignore:The data ended before the epoch did"),
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored"),
]


def regressor(**compile_args):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(1)])
    adam = keras.optimizers.Adam(0.01)
    model.compile(**{"optimizer": adam, "loss": "mse", "metrics": ["mae"], **compile_args})
    return model


def classifier():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        "sparse_categorical_crossentropy",
        weighted_metrics=["accuracy"],
    )
    return model


def member(build=regressor, apart=None, **fit):
    y = LABELS if build is classifier else Y
    defaults = {"x": X, "y": y, "batch_size": 8, "epochs": 3, "shuffle": False}
    return Member(build, apart=apart, **{**defaults, **fit})


VALIDATION = (X[:20] + 1, Y[:20])
ARGUMENTS = {
    "nothing but the data": {"batch_size": None},
    "initial_epoch": {"initial_epoch": 1, "epochs": 4},
    "validation_split": {"validation_split": 0.3},
    "validation_data": {"validation_data": VALIDATION},
    "weighted validation": {"validation_data": (*VALIDATION, np.linspace(0, 1, 20))},
    "validation_batch_size": {"validation_data": VALIDATION, "validation_batch_size": 7},
    "validation_steps": {"validation_data": VALIDATION, "validation_steps": 2},
    "validation_freq": {"validation_data": VALIDATION, "validation_freq": 2, "epochs": 5},
    "validation_freq listed": {"validation_data": VALIDATION, "validation_freq": [1, 3]},
    "steps_per_epoch": {"steps_per_epoch": 3, "epochs": 4},
    "more steps than data": {"steps_per_epoch": 6, "epochs": 4},
    "sample_weight": {"sample_weight": np.linspace(0, 2, 60)},
    "class_weight": {"build": classifier, "class_weight": {0: 1.0, 1: 3.0, 2: 0.5}},
}


@pytest.mark.parametrize("names", [list(ARGUMENTS)[:7], list(ARGUMENTS)[7:]], ids=["1", "2"])
def test_every_argument_beside_members_that_have_others(names):
    compare.assert_parity({name: member(**ARGUMENTS[name]) for name in names})


def test_a_member_with_nothing_left_to_do_is_left_alone():
    models = {"done": regressor(), "busy": regressor()}
    before = models["done"].get_weights()
    fit = member(epochs=2).arguments(verbose=0)
    history = kc.Cohort(models).fit(**fit, initial_epoch={"done": 2})
    assert [len(history[name].epoch) for name in models] == [0, 2]
    for one, other in zip(before, models["done"].get_weights(), strict=True):
        assert_allclose(one, other)


@pytest.mark.parametrize("layout", ["joined", "stacked"])
def test_without_an_epoch_left_nothing_is_built_but_what_fit_builds(layout):
    def unbuilt():
        model = keras.Sequential([layers.Dense(5, "tanh"), layers.Dense(1)])
        model.compile("adam", "mse", metrics=["mae"])
        return model

    members = {
        "unbuilt": member(unbuilt, initial_epoch=3),
        "without slots": member(initial_epoch=3),
        "busy": member(),
    }
    compare.assert_parity(members, layout=layout)


def seven_batches():
    for i in range(7):
        yield X[i * 8 : i * 8 + 8], Y[i * 8 : i * 8 + 8]


def ends_early(optimizer):
    def build():
        return regressor(optimizer=optimizer())

    return member(build, x=seven_batches, y=None, batch_size=None, epochs=2, shuffle=True)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_what_an_optimizer_does_while_fit_finds_that_the_data_has_ended():
    optimizers = {
        "decays": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1),
        "keeps a product": lambda: keras.optimizers.Nadam(0.05),
        "counts": lambda: keras.optimizers.SGD(0.05),
    }
    compare.assert_parity({name: ends_early(optimizers[name]) for name in optimizers})


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_gradients_are_accumulated_until_the_data_ends():
    def build():
        return regressor(optimizer=keras.optimizers.SGD(0.05, gradient_accumulation_steps=2))

    ends = {"x": seven_batches, "y": None, "batch_size": None, "shuffle": True, "epochs": 1}
    apart = {"x": X[:56], "y": Y[:56]}
    trained = compare.train_together({"ends": member(build, **ends)})["ends"]
    known = compare.train_apart({"ends": member(build, epochs=1, **apart)})["ends"]
    for one, other in zip(known.model.get_weights(), trained.model.get_weights(), strict=True):
        assert_allclose(one, other, atol=1e-6)


def test_one_value_for_all_is_each_members_own():
    members = {"a": member(), "b": member()}
    for each in members.values():
        each.fit = {}
    shared = {"x": X, "y": Y, "batch_size": 16, "epochs": 2, "shuffle": False}
    apart = {"a": member(batch_size=16, epochs=2), "b": member(batch_size=16, epochs=2)}
    together = compare.train_together(members, shared=shared)
    compare.assert_same(compare.train_apart(apart), together)


@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_shuffling_under_a_seed_follows_separate_training(shuffle):
    compare.assert_parity({"a": member(shuffle=shuffle), "b": member(classifier, shuffle=shuffle)})


def test_a_second_fit_shuffles_on_where_the_first_one_ended():
    alone, in_cohort = regressor(), regressor()
    in_cohort.set_weights(alone.get_weights())
    fit = member(shuffle=True, epochs=2).arguments(verbose=0)
    keras.utils.set_random_seed(4)
    for _ in range(2):
        alone.fit(**fit)
    keras.utils.set_random_seed(4)
    cohort = kc.Cohort({"m": in_cohort})
    for _ in range(2):
        cohort.fit(**fit)
    for one, other in zip(alone.get_weights(), in_cohort.get_weights(), strict=True):
        assert_allclose(one, other, atol=1e-6)


class Rows(keras.utils.PyDataset):
    """Batches of 8 rows; counts the epochs that it is told of."""

    ended = 0

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return X[i * 8 : i * 8 + 8], Y[i * 8 : i * 8 + 8]

    def on_epoch_end(self):
        self.ended += 1


def generator():
    while True:
        for i in range(8):
            yield X[i * 8 : i * 8 + 8], Y[i * 8 : i * 8 + 8]


def tf_dataset():
    tf = pytest.importorskip("tensorflow", reason="a tf.data.Dataset needs TensorFlow")
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)


def data_loader():
    data = pytest.importorskip("torch.utils.data", reason="a DataLoader needs torch")
    rows = [(x, y) for x, y in zip(X, Y, strict=True)]
    return data.DataLoader(rows, batch_size=8)


def of_kind(x, **fit):
    return Member(regressor, x=x, shuffle=False, **{"epochs": 3, **fit})


KINDS = {
    "float64": lambda: member(x=X.astype("float64"), y=Y.astype("float64")),
    "pandas": lambda: member(x=pd.DataFrame(X), y=pd.Series(Y[:, 0])),
    "tensors": lambda: member(
        x=lambda: keras.ops.convert_to_tensor(X), y=lambda: keras.ops.convert_to_tensor(Y)
    ),
    "PyDataset": lambda: of_kind(lambda: Rows()),
    "generator": lambda: of_kind(generator, steps_per_epoch=5),
    "tf.data": lambda: of_kind(tf_dataset),
    "tf.data in parts": lambda: of_kind(lambda: tf_dataset().repeat(), steps_per_epoch=5),
    "tf.data validation": lambda: member(validation_data=lambda: tf_dataset()),
}


@pytest.mark.parametrize(
    "kinds",
    [list(KINDS)[::2], pytest.param(list(KINDS), marks=pytest.mark.nightly)],
    ids=["half", "all"],
)
def test_kinds_of_data(kinds):
    compare.assert_parity({kind: KINDS[kind]() for kind in kinds})


@pytest.mark.skipif(BACKEND == "jax", reason="Keras on JAX reads no torch DataLoader of tensors")
def test_a_torch_data_loader():
    pytest.importorskip("torch", reason="a DataLoader needs torch")
    compare.assert_parity({"loader": of_kind(data_loader), "arrays": member()})


@pytest.mark.parametrize("factor", ["group_factor", "replicas"])
def test_grouped_and_replicated_members_equal_the_larger_batch(factor):
    def regularized():
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(5, "tanh", kernel_regularizer="l2", activity_regularizer="l1"),
                layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
        return model

    members = {
        "twice": member(apart={"batch_size": 16}),
        "thrice": member(regularized, apart={"batch_size": 24}),
        "once": member(classifier),
    }
    compare.assert_parity(members, **{factor: {"twice": 2, "thrice": 3}})


class Sum(layers.Layer):
    """Adds its inputs, of which the second is optional."""

    def call(self, one, other=None):
        return one if other is None else one + other


def optional():
    one, other = keras.Input((4,), name="one"), keras.Input((4,), name="other", optional=True)
    model = keras.Model({"one": one, "other": other}, layers.Dense(1)(Sum()(one, other)))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def masked():
    """A model with a mask for each step of its outputs, which its loss leaves out."""
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(4, 3, mask_zero=True),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


@pytest.mark.parametrize("factor", ["group_factor", "replicas"])
def test_optional_inputs_and_masks_are_those_of_the_larger_batch(factor):
    tokens = RANDOM.integers(0, 4, (60, 4))
    twice = {"batch_size": 16}
    members = {
        "absent": member(optional, twice, x={"one": X, "other": None}),
        "masked": member(masked, twice, x=tokens, y=np.float32(tokens)[..., None]),
    }
    compare.assert_parity(members, **{factor: 2})


def test_grouped_streams_equal_the_larger_batch():
    grouped = Member(
        regressor,
        x=lambda: tf_dataset(),
        apart={"x": X, "y": Y, "batch_size": 24},
        epochs=2,
        shuffle=False,
    )
    compare.assert_parity({"grouped": grouped, "plain": member()}, group_factor={"grouped": 3})


def test_replicas_normalise_each_batch_apart():
    def normalised():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model

    replicated, twice = normalised(), normalised()
    kc.Cohort({"m": replicated}, replicas=2).fit(X, Y, batch_size=10, shuffle=False, verbose=0)
    twice.fit(X, Y, batch_size=10, shuffle=False, verbose=0)
    moving = [model.layers[0].get_weights()[2] for model in (replicated, twice)]
    assert_allclose(*moving, atol=1e-6)  # the statistics of the same batches of ten


def test_fit_goes_on_from_a_cohort_and_a_cohort_from_fit():
    alone, in_cohort = regressor(), regressor()
    in_cohort.set_weights(alone.get_weights())
    fit = member(epochs=1).arguments(verbose=0)
    for _ in range(3):
        alone.fit(**fit)
    in_cohort.fit(**fit)
    kc.Cohort({"m": in_cohort}).fit(**fit)
    in_cohort.fit(**fit)
    for one, other in zip(alone.optimizer.variables, in_cohort.optimizer.variables, strict=True):
        assert_allclose(*map(keras.ops.convert_to_numpy, (one.value, other.value)), atol=1e-6)


def test_evaluate_and_predict_equal_each_models_own():
    models = {"a": regressor(), "b": classifier()}
    y = {"a": Y, "b": LABELS}
    cohort = kc.Cohort(models)
    values = cohort.evaluate(X, y, batch_size=16)
    dicts = cohort.evaluate(X, y, batch_size=16, return_dict=True, steps=2)
    predicted = cohort.predict(X, batch_size=16)
    for name, model in models.items():
        own = model.evaluate(X, y[name], batch_size=16, verbose=0)
        assert_allclose(values[name], own, atol=1e-6)
        own = model.evaluate(X, y[name], batch_size=16, verbose=0, return_dict=True, steps=2)
        assert own.keys() == dicts[name].keys()
        assert_allclose(list(dicts[name].values()), list(own.values()), atol=1e-6)
        assert_allclose(predicted[name], model.predict(X, verbose=0), atol=1e-6)


def test_a_py_dataset_is_told_of_every_epoch():
    counts = []
    for train in (regressor().fit, kc.Cohort({"m": regressor()}).fit):
        rows = Rows()
        train(rows, epochs=3, shuffle=False, verbose=0)
        counts.append(rows.ended)
    assert counts[0] == counts[1]


@pytest.mark.nightly
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    rows=st.tuples(st.integers(3, 60), st.integers(3, 60)),
    size=st.integers(1, 20),
    epochs=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    factor=st.integers(1, 3),
)
def test_any_two_members(rows, size, epochs, factor):
    members = {}
    for name, n, length in zip("ab", rows, epochs, strict=True):
        alone = {"batch_size": size * (factor if name == "a" else 1)}
        fit = {"x": X[:n], "y": Y[:n], "batch_size": size, "epochs": length}
        members[name] = member(apart=alone, **fit)
    compare.assert_parity(members, group_factor={"a": factor})


def test_predictions_of_several_chunks_are_whole(monkeypatch):
    monkeypatch.setattr("kerascohost.training.batches._CHUNK_BYTES", 400)
    model = regressor()
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_predict_batch_end=lambda batch, logs: seen.append((batch, len(logs["outputs"])))
    )
    cohort = kc.Cohort({"m": model})
    own = model.predict(X, batch_size=8, verbose=0)
    assert_allclose(cohort.predict(X, batch_size=8, verbose=0)["m"], own, atol=1e-6)
    watched = cohort.predict(X, batch_size=8, verbose=0, callbacks=[watch])["m"]
    assert_allclose(watched, own, atol=1e-6)
    assert seen == [(batch, 8) for batch in range(7)] + [(7, 4)]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere `predict` raises")
def test_predictions_of_several_lengths_are_ragged():
    model = keras.Sequential([keras.Input((None, 1)), keras.layers.Conv1D(2, 3)])
    batches = [np.arange(16.0).reshape(2, 8, 1), np.arange(15.0).reshape(3, 5, 1)]
    own = model.predict(((x,) for x in batches), verbose=0)
    together = kc.Cohort({"m": model}).predict(((x,) for x in batches), verbose=0)["m"]
    assert own.shape == together.shape == (5, None, 2)
    assert_allclose(together.values, own.values, atol=1e-6)
    assert together.row_lengths().numpy().tolist() == own.row_lengths().numpy().tolist()


def test_predictions_with_batch_hooks_are_the_same():
    seen = []
    each = member()
    model, x = compare.built(each), each.arguments()["x"]
    hook = keras.callbacks.LambdaCallback(
        on_predict_batch_end=lambda batch, logs: seen.append((batch, len(logs["outputs"])))
    )
    alone = model.predict(x, batch_size=8, verbose=0)
    together = kc.Cohort([model]).predict(x, batch_size=8, callbacks=[hook], verbose=0)
    assert_allclose(together[model.name], alone, atol=1e-6)
    assert [batch for batch, _ in seen] == list(range(-(-len(x) // 8)))
    assert sum(rows for _, rows in seen) == len(x)


def of_many_shapes():
    random = np.random.default_rng(0)
    for rows in [4, 4, 4, 2, 2, 4, 3, 4, 4, 4, 4, 4, 2] * 2:
        x = random.normal(size=(rows, 4)).astype("float32")
        yield x, x[:, :1]


def test_streams_of_varying_batch_sizes():
    fit = {"x": of_many_shapes, "y": None, "steps_per_epoch": 13, "epochs": 2}
    compare.assert_parity({"varying": member(**fit), "even": member()})


def test_frames_of_columns_of_several_types():
    numbers = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    frame = pd.DataFrame(numbers, columns=list("abcd"))
    mixed = frame.assign(a=frame["a"] > 0, b=np.arange(40) % 3, c=frame["c"].astype("float64"))
    compare.assert_parity({"mixed": member(x=mixed, y=numbers[:, :1])})


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has tensors of strings")
def test_datasets_of_strings_and_a_model_that_is_not_built():
    import tensorflow as tf

    words = np.random.default_rng(0).choice(["yes", "no", "perhaps"], (40, 1))

    def build():
        lookup = layers.StringLookup(vocabulary=["yes", "no"], output_mode="multi_hot")
        net = keras.Sequential([lookup, layers.Dense(1)])
        net.compile("sgd", "mse")
        return net

    dataset = lambda: (  # noqa: E731
        tf.data.Dataset.from_tensor_slices((words, np.ones((40, 1)))).batch(8)
    )
    compare.assert_parity({"words": Member(build, x=dataset, epochs=2)})


def test_an_uncompiled_model_predicts():
    model = keras.Sequential([layers.Dense(2)])
    predicted = kc.Cohort({"m": model}).predict(X, verbose=0)["m"]
    assert_allclose(predicted, model.predict(X, verbose=0), atol=1e-6)


@pytest.mark.nightly
def test_validation_steps_without_a_batch_size():
    fit = {"batch_size": None, "validation_data": (X, Y), "validation_steps": 2}
    compare.assert_parity({"a": member(**fit), "b": member()})


def test_training_stopped_before_an_epoch_takes_one_more_step():
    class StopAtEpoch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    stopped = member(callbacks=lambda: [StopAtEpoch()])
    compare.assert_parity({"stopped": stopped, "free": member()})


def test_evaluating_replicas_of_any_batch():
    model = regressor()
    value = kc.Cohort({"m": model}, replicas=7).evaluate(X, Y, verbose=0)["m"]
    assert_allclose(value, model.evaluate(X, Y, verbose=0), atol=1e-6)
