"""Stacks end as separate `fit`, or disband into joined, on what public programs have shown."""

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc
from tests.helpers import compare
from tests.helpers.compare import Member

BACKEND = keras.backend.backend()

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="nothing is stacked on torch")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.Variable, TensorFlow's")


def train(make, count=2, each=lambda i: {}, **fit):
    """Asserts parity of a stacked cohort of members of this kind; returns the cohort."""
    members = {f"m{i}": Member(_seeded(make, i), **{**fit, **each(i)}) for i in range(count)}
    apart = compare.train_apart(members)
    cohort = kc.Cohort({n: compare.built(m) for n, m in members.items()}, layout="stacked")
    keras.utils.set_random_seed(7)
    history = cohort.fit(verbose=0, **compare.by_argument(members))
    trained = {n: compare.Trained(model, history[n]) for n, model in cohort.members.items()}
    compare.assert_same(apart, trained, 1e-4)
    return cohort


def _seeded(make, i):
    def build():
        keras.utils.set_random_seed(i)
        return make(i)

    return build


def layouts(cohort):
    return set(cohort.plan.frame["layout"])


def reasons(cohort):
    return " ".join(map(str, cohort.plan.frame["reason"]))


def data(rows=64, shape=(5,), seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, *shape)).astype("float32")
    return {"x": x, "y": random.normal(size=(rows, 1)).astype("float32")}


def network(*parts, shape=(5,), optimizer="adam"):
    net = keras.Sequential([keras.Input(shape), *parts, layers.Dense(1)])
    net.compile(optimizer, "mse")
    return net


FIT = {"batch_size": 32, "shuffle": False, "epochs": 2}

RARELY = pytest.mark.nightly
ONE_FEATURE = {
    "Dense": ((1,), lambda: [layers.Dense(8)]),
    "Dense of one unit": ((3,), lambda: [layers.Dense(1, "relu"), layers.BatchNormalization()]),
    "Conv1D": ((6, 1), lambda: [layers.Conv1D(2, 2), layers.MaxPooling1D(), layers.Flatten()]),
    "Conv2D": ((5, 5, 1), lambda: [layers.Conv2D(2, 2), layers.GlobalAveragePooling2D()]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[RARELY] if n.startswith("Conv") else []) for n in ONE_FEATURE]
)
def test_one_member_of_a_stack_served_alone(name):
    shape, parts = ONE_FEATURE[name]

    def each(i):
        return {**data(60 if i == 0 else 64, shape, i), "epochs": 2 + i}

    cohort = train(lambda i: network(*parts(), shape=shape), each=each, **FIT)
    assert layouts(cohort) == {"stacked"}


def accumulating(i):
    return network(optimizer=keras.optimizers.Adam(0.01, gradient_accumulation_steps=2))


def leaky(i):
    return network(layers.Dense(4), layers.LeakyReLU(0.1 + 0.1 * i))


@pytest.mark.parametrize("make", [accumulating, leaky])
def test_what_cannot_be_vectorised_dissolves_whatever_the_batch_sizes(make):
    cohort = train(make, each=lambda i: {"batch_size": 32 - 16 * i}, **data(), shuffle=False)
    assert layouts(cohort) == {"stacked" if (make, BACKEND) == (accumulating, "jax") else "joined"}


class Meta(keras.Model):
    """A graph of layers, of a class of the user's."""

    def __init__(self, inputs, outputs, tag=None):
        super().__init__(inputs, outputs)
        self.tag = tag


class Own(layers.Dense):
    """A layer whose initializer is used by Keras's code only."""


def of_a_subclass(tag):
    def make(i):
        x = keras.Input((5,))
        start = keras.initializers.GlorotUniform(i)
        net = Meta(x, Own(1)(Own(4, kernel_initializer=start)(x)), tag(i))
        net.compile("adam", "mse")
        return net

    return make


def test_functional_models_of_a_subclass_stack():
    assert layouts(train(of_a_subclass(lambda i: "one"), **data(), **FIT)) == {"stacked"}


def test_what_a_subclass_adds_of_its_own_does_not_stack():
    cohort = train(of_a_subclass(lambda i: f"tag {i}"), **data(), **FIT)
    assert layouts(cohort) == {"joined"}
    assert "model.tag" in reasons(cohort)


class Noise(layers.Layer):
    """Draws in each step what its initializer's seed says."""

    def __init__(self, seed):
        super().__init__()
        self.draw = keras.initializers.RandomNormal(seed=seed)

    def call(self, x):
        return x + self.draw((1, 5))


def test_an_initializer_that_a_step_calls_does_not_stack_with_another_seed():
    assert layouts(train(lambda i: network(Noise(i)), **data(), **FIT)) == {"joined"}


class Counts(layers.Layer):
    """Changes in Python when it is called, thus when it is traced."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def call(self, x):
        self.calls += 1
        return x


def test_python_state_that_a_step_changes_is_not_changed_for_one_member_only():
    cohort = train(lambda i: network(Counts()), **data(), **FIT)
    assert layouts(cohort) == {"joined"}
    assert "changed by Python code" in reasons(cohort)


class Counting(layers.Layer):
    """Counts its calls in a variable that Keras does not know."""

    def __init__(self):
        import tensorflow as tf

        super().__init__()
        self.count = tf.Variable(0, trainable=False)

    def call(self, x):
        self.count.assign_add(1)
        return x


@on_tensorflow
def test_a_variable_that_keras_does_not_know():
    cohort = train(lambda i: network(Counting()), **data(96), **FIT)
    assert "does not track" in reasons(cohort)
    counts = [int(net.layers[0].count) for net in cohort.members.values()]
    assert counts == [6, 6]


@on_tensorflow
def test_a_global_variable_that_a_step_changes():
    import tensorflow as tf

    seen = tf.Variable(0)
    globals()["SEEN"] = seen
    cohort = train(lambda i: network(layers.Lambda(sees)), **data(96), **FIT)
    assert layouts(cohort) == {"joined"}
    assert int(seen) == 24  # by separate training, and by the cohort


def sees(x):
    SEEN.assign_add(1)  # noqa: F821  # set by the test
    return x


class Lengths(keras.utils.PyDataset):
    """Each batch of sequences has a length of its own."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        random = np.random.default_rng(i)
        return random.integers(9, size=(8, 3 + i)), random.normal(size=(8, 1))


def test_lengths_that_differ_from_batch_to_batch():
    def make(i):
        return network(layers.Embedding(9, 3), layers.GlobalAveragePooling1D(), shape=(None,))

    cohort = train(make, x=Lengths, shuffle=False)
    assert layouts(cohort) == {"stacked"}
    if BACKEND == "tensorflow":
        (active,) = cohort._scheduler.stacks.active_stacks
        traced = [specs for specs, _ in active.programs["train"]._run._functions.values()]
        assert [specs[0][0].shape.as_list() for specs in traced] == [[None, 2, None, None]]


@pytest.mark.skipif(BACKEND != "jax", reason="Keras on TensorFlow trains on as it was traced")
def test_layers_frozen_after_the_stack_was_trained():
    nets = {f"m{i}": network(layers.Dense(4)) for i in range(2)}
    cohort = kc.Cohort(nets, layout="stacked")
    cohort.fit(**data(), verbose=0)
    for net in nets.values():
        net.layers[0].trainable = False
    before = [net.get_weights()[0] for net in nets.values()]
    with pytest.raises(Exception, match="m0"):
        cohort.fit(**data(), verbose=0)
    for net, kernel in zip(nets.values(), before, strict=True):
        np.testing.assert_array_equal(net.get_weights()[0], kernel)


def test_a_new_member_under_a_used_name_does_not_bring_back_the_old_one():
    nets = {name: network(layers.Dense(4)) for name in "ab"}
    cohort = kc.Cohort(nets, layout="stacked")
    cohort.fit(**data(), verbose=0)
    scheduler = cohort._scheduler
    other = kc.Cohort({name: network(layers.Dense(4)) for name in "ab"}, layout="stacked")
    other._scheduler = scheduler
    other.fit(**data(), verbose=0, epochs=2)
    assert {m.model for m in scheduler.stacks.active_stacks[0].members} == set(
        other.members.values()
    )
    assert len(scheduler.stacks.active_stacks) == 1
