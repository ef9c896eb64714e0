"""clones(): fresh, seeded copies, with hyperparameters of their own; and what they are for."""

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers, optimizers
from numpy.testing import assert_array_equal
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import KFold

import kerascohost as kc
from kerascohost import CohortError
from tests.conftest import BACKEND

stacks = pytest.mark.skipif(
    BACKEND == "torch", reason="torch runs eagerly: runs once a torch program compiles its steps"
)


def build(rate=0.2, units=8):
    net = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(units, "relu", kernel_regularizer=keras.regularizers.L2(0.01)),
            layers.Dropout(rate),
            layers.Dense(3, "softmax"),
        ],
        name="net",
    )
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    net.compile(optimizers.AdamW(0.01, weight_decay=0.1), loss, metrics=["accuracy"])
    return net


def test_clones_have_weights_of_their_own_which_the_seed_makes_again():
    net = build()
    one, two, again = (kc.clones(net, 3, seed=seed) for seed in (1, 2, 1))
    for first, second in zip(one, again, strict=True):
        for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
            assert_array_equal(a, b)
    kernels = [clone.get_weights()[0] for clone in [net, *one, *two]]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)
    assert_array_equal(kc.clones(net, 2, seed=1)[1].get_weights()[0], one[1].get_weights()[0])
    assert [clone.name for clone in one] == ["net_0", "net_1", "net_2"]
    assert all(clone.optimizer is not net.optimizer and clone.compiled for clone in one)


def test_a_seed_changes_no_random_numbers_of_the_user():
    keras.utils.set_random_seed(3)
    expected = np.random.random()
    keras.utils.set_random_seed(3)
    kc.clones(build, 2, seed=0)
    kc.clones(build(), 2, seed=0)
    keras.utils.set_random_seed(3)
    kc.clones(build, 1, seed=0)
    assert np.random.random() == expected


def test_overrides_are_found_in_optimizer_loss_and_layers():
    values = [0.1, 0.2]
    clones = kc.clones(
        build(), 2, learning_rate=values, rate=values, l2=values, label_smoothing=values
    )
    for clone, value in zip(clones, values, strict=True):
        assert float(clone.optimizer.learning_rate) == pytest.approx(value)
        assert clone.layers[1].rate == value
        assert float(clone.layers[0].kernel_regularizer.l2) == pytest.approx(value)
        assert clone.loss.label_smoothing == value
        assert clone.optimizer.weight_decay == 0.1


def test_a_function_gets_what_it_takes_and_the_rest_is_set_on_its_model():
    clones = kc.clones(build, 2, units=[4, 16], weight_decay=[0.3, 0.4])
    assert [clone.layers[0].units for clone in clones] == [4, 16]
    assert [clone.optimizer.weight_decay for clone in clones] == [0.3, 0.4]


def test_a_series_gives_its_values_in_order():
    values = pd.Series([0.1, 0.2], index=[5, 6])
    clones = kc.clones(build(), 2, rate=values)
    assert [clone.layers[1].rate for clone in clones] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("<lambda>", "net_0"),
        ("__", "net_0"),
        ("_build", "build_0"),
        ("größe", "gr__e_0"),
        ("build", "build_0"),
    ],
)
def test_the_names_of_clones_are_scopes_of_tensorflow(name, expected):
    def function():
        return build()

    function.__name__ = name
    clones = kc.clones(function, 2)
    assert clones[0].name == expected
    x = np.ones((4, 4), "float32")
    kc.Cohort(clones).fit(x, x[:, :3], verbose=0)


def test_a_function_that_returns_one_model_twice_is_refused():
    net = build()
    with pytest.raises(CohortError, match=r"new model at each call. Received: 'net' twice\."):
        kc.clones(lambda: net, 2)
    assert net.name == "net"
    assert kc.clones(lambda: net, 2, rate=[0.1, 0.2])[0] is not net


def test_what_is_not_initial_is_kept():
    x = np.random.default_rng(0).normal(5, size=(50, 4)).astype("float32")
    scaled = layers.Normalization()
    scaled.adapt(x)
    frozen = keras.Sequential([keras.Input((4,)), scaled, layers.Dense(6)], name="frozen")
    frozen.trainable = False
    net = keras.Sequential([keras.Input((4,)), frozen, layers.Dense(1)])
    optimizer = optimizers.AdamW(0.01)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    net.compile(optimizer, "mse")
    clone = kc.clones(net, 1)[0]
    assert_array_equal(clone.layers[0](x), net.layers[0](x))
    assert not clone.layers[0].trainable and len(clone.trainable_variables) == 2
    assert [clone.optimizer._use_weight_decay(v) for v in clone.trainable_variables] == [
        True,
        False,
    ]


def test_what_cannot_be_cloned_says_so():
    net = build()
    with pytest.raises(CohortError, match=r"'learning_rat'\. Did you mean 'learning_rate'?"):
        kc.clones(net, 2, learning_rat=[1, 2])
    with pytest.raises(CohortError, match=r"'lr'\. Did you mean 'learning_rate'?"):
        kc.clones(net, 2, lr=[1, 2])
    with pytest.raises(CohortError, match="sequence of 3 values"):
        kc.clones(net, 3, rate=[0.1, 0.2])
    for values in ({0: 0.1, 1: 0.2}, {0.1, 0.2}):
        with pytest.raises(CohortError, match="sequence of 2 values"):
            kc.clones(net, 2, rate=values)
    with pytest.raises(CohortError, match="positive integer"):
        kc.clones(net, 0)
    for seed in ("x", -1, 1.5):
        with pytest.raises(CohortError, match=r"`seed` to be an integer .* Received: seed="):
            kc.clones(net, 2, seed=seed)
    with pytest.raises(CohortError, match="without `compile"):
        kc.clones(keras.Sequential([keras.Input((2,)), layers.Dense(1)]), 2)

    class Own(keras.Model):
        def __init__(self, depth):
            super().__init__()
            self.dense = layers.Dense(depth)

    own = Own(2)
    own.compile("adam", "mse")
    with pytest.raises(CohortError, match=r"kc\.clones\(build"):
        kc.clones(own, 2)


def classifier(features, classes):
    net = keras.Sequential(
        [keras.Input((features,)), layers.Dense(16, "relu"), layers.Dense(classes, "softmax")]
    )
    net.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return net


def assert_all_in_one_stack(cohort):
    assert cohort.plan.frame["stack"].tolist() == [1] * len(cohort.members)


def assert_as_by_itself(model, alike, history, *data, **fit):
    """`alike`, trained by its own `fit`, ends as `model` did in the cohort."""
    expected = alike.fit(*data, shuffle=False, verbose=0, **fit).history
    for a, b in zip(model.get_weights(), alike.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for name, values in expected.items():
        np.testing.assert_allclose(history.history[name], values, atol=1e-4)


@pytest.mark.nightly
@stacks
def test_an_ensemble_of_32_seeds():
    data = load_wine()
    x, y = ((data.data - data.data.mean(0)) / data.data.std(0)).astype("float32"), data.target
    net = classifier(13, 3)
    cohort = kc.Cohort(kc.clones(net, 32, seed=0), layout="stacked")
    history = cohort.fit(x, y, epochs=8, shuffle=False, verbose=0)
    assert_all_in_one_stack(cohort)
    votes = np.stack(list(cohort.predict(x, verbose=0).values())).mean(0)
    assert (votes.argmax(1) == y).mean() > 0.8
    name, model = list(cohort.members.items())[17]
    assert_as_by_itself(model, kc.clones(net, 18, seed=0)[17], history[name], x, y, epochs=8)


@pytest.mark.nightly
@stacks
def test_a_cross_validation_with_5_folds():
    data = load_digits()
    x, y = (data.data / 16).astype("float32"), data.target
    folds = [(x[i], y[i], x[j], y[j]) for i, j in KFold(5).split(x)]
    models = kc.clones(classifier(64, 10), 5, seed=0)
    names = [model.name for model in models]
    cohort = kc.Cohort(models, layout="stacked")
    history = cohort.fit(
        {name: fold[0] for name, fold in zip(names, folds, strict=True)},
        {name: fold[1] for name, fold in zip(names, folds, strict=True)},
        validation_data={name: fold[2:] for name, fold in zip(names, folds, strict=True)},
        epochs=4,
        shuffle=False,
        verbose=0,
    )
    assert_all_in_one_stack(cohort)
    for i in (0, 4):  # of 1437 and of 1438 samples
        alike = kc.clones(classifier(64, 10), 5, seed=0)[i]
        own, result = cohort.members[names[i]], history[names[i]]
        assert_as_by_itself(
            own, alike, result, *folds[i][:2], epochs=4, validation_data=folds[i][2:]
        )


@stacks
def test_a_sweep_over_8_learning_rates():
    data = load_breast_cancer()
    x, y = ((data.data - data.data.mean(0)) / data.data.std(0)).astype("float32"), data.target
    rates = np.logspace(-4, -1, 8)
    cohort = kc.Cohort(
        kc.clones(classifier(30, 2), 8, seed=0, learning_rate=rates), layout="stacked"
    )
    history = cohort.fit(x, y, epochs=3, validation_split=0.2, shuffle=False, verbose=0)
    assert_all_in_one_stack(cohort)
    assert set(cohort.plan.frame["differs"]) == {"learning_rate"}
    gains = [np.ptp(history[name].history["loss"]) for name in history]
    assert gains[0] < min(gains[3:])  # the smallest rate has hardly begun
    alike = kc.clones(classifier(30, 2), 8, seed=0, learning_rate=rates)[5]
    name = list(history)[5]
    fit = {"epochs": 3, "validation_split": 0.2}
    assert_as_by_itself(cohort.members[name], alike, history[name], x, y, **fit)


@stacks
def test_a_plan_before_the_first_fit_knows_metrics_that_are_not_built():
    net = classifier(4, 3)
    net.compile("adam", "categorical_crossentropy", metrics=[keras.metrics.AUC()])
    assert_all_in_one_stack(kc.Cohort(kc.clones(net, 2), layout="stacked"))


def test_a_plan_tells_who_is_where_and_why(capsys):
    models = [*kc.clones(build(), 2, rate=[0.1, 0.3]), classifier(4, 3)]
    models[2].name = "other"
    cohort = kc.Cohort(models, layout="stacked")
    x, y = np.ones((20, 4), "float32"), np.ones((20, 3), "float32")
    cohort.fit(x, {"net_0": y, "net_1": y, "other": y[:, 0]}, epochs=1, verbose=2)
    plan = cohort.plan
    told = capsys.readouterr().out.splitlines()[0]
    assert told == f"stacked: {plan.summary}"
    assert plan.frame["batch_size"].tolist() == [32, 32, 32]
    if BACKEND != "torch":
        assert plan.frame["stack"].tolist()[:2] == [1, 1]
        assert plan.frame["differs"].tolist() == ["rate", "rate", ""]
        assert plan.summary.startswith("2 members in 1 stack, 1 joined (other: differs from ")
    assert "<table" in plan._repr_html_() and "other" in repr(plan)


@pytest.mark.parametrize("made", [3, keras.Sequential([layers.Dense(1)])])
def test_a_function_must_return_a_compiled_model(made):
    with pytest.raises(CohortError, match="a function that returns a compiled model"):
        kc.clones(lambda: made, 2)


def test_layers_that_are_not_initial_are_kept_in_copies_that_are_not_built():
    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.normal, self.frozen = layers.Normalization(), layers.Dense(2)
            self.frozen.trainable = False
            self.last = layers.Dense(1)

        def call(self, x):
            return self.last(self.frozen(self.normal(x)))

    x = np.random.default_rng(0).normal(3.0, size=(20, 3)).astype("float32")
    model = Own()
    model.normal.adapt(x)
    model(x[:1])
    model.compile("sgd", "mse")
    for copy in kc.clones(model, 2, seed=0):
        copy(x[:1])
        for name in ("normal", "frozen"):
            kept = (getattr(one, name).get_weights() for one in (copy, model))
            for one, other in zip(*kept, strict=True):
                assert_array_equal(one, other)
        assert not np.array_equal(copy.last.get_weights()[0], model.last.get_weights()[0])
