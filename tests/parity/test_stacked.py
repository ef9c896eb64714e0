"""Members of a stack end as their own `fit` would have left them, to floating-point tolerance."""

import dataclasses
import functools
import itertools
import os

import keras
import numpy as np
import pytest
from keras import callbacks, layers, optimizers

import kerascohost as kc
from kerascohost.backends import stacking
from kerascohost.training.scheduler import Scheduler
from kerascohost.training.stacks import Stacks
from tests.helpers import compare, layer_families, optimizer_options
from tests.helpers.compare import Member

BACKEND = keras.backend.backend()
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}

pytestmark = pytest.mark.skipif(
    BACKEND == "torch", reason="torch runs eagerly: runs once a torch program compiles its steps"
)

# What cannot be vectorised ends joined, and still as its own `fit`. (GRU and ConvLSTM2D are left
# out: TensorFlow takes half a minute to vectorise their loops, which LSTM's test covers.)
JOINED = {
    "tensorflow": {
        "MultiOptimizer",
        "SpectralNormalization",
        "stateful SimpleRNN",
        "ScheduleFreeAdamW",
        "ema_overwrite_frequency",
        "gradient_accumulation_steps",
    },
    "jax": {"MultiOptimizer", "stateful SimpleRNN"},
}.get(BACKEND, set())
# What Keras does with a sparse gradient there has a branch that TensorFlow cannot vectorise.
BRANCHES = ("Adadelta", "Adafactor", "Adagrad", "RMSprop")
JOINED_PAIRS = {("Embedding", name) for name in BRANCHES if BACKEND == "tensorflow"}


def twins(name, make, *args, count=2):
    """Members with weights and data of their own."""
    base = make(name, *args)

    def twin(seed):
        def build():
            keras.utils.set_random_seed(seed)
            return base.build()

        rows = np.random.default_rng(seed).permutation(len(base.fit["x"]))
        return Member(build, **{**base.fit, "x": base.fit["x"][rows], "y": base.fit["y"][rows]})

    return {f"{name} {seed}": twin(seed) for seed in range(count)}


def train(members, layout="stacked"):
    """Asserts parity of a cohort in this layout; returns the cohort."""
    apart = compare.train_apart(members)
    cohort = kc.Cohort({n: compare.built(m) for n, m in members.items()}, layout=layout)
    keras.utils.set_random_seed(7)
    history = cohort.fit(verbose=0, **compare.by_argument(members))
    trained = {n: compare.Trained(model, history[n]) for n, model in cohort.members.items()}
    compare.assert_same(apart, trained, TOLERANCE[keras.config.floatx()])
    return cohort


def assert_stacked(members, stacked=True):
    """Parity, and that it was a stack that was compared; returns the cohort."""
    cohort = train(members)
    is_stacked = cohort.plan.frame["layout"] == "stacked"
    assert is_stacked.all() if stacked else not is_stacked.any(), cohort.plan
    return cohort


SLOW = {"GRU", "ConvLSTM2D", "Masking, SimpleRNN"}
FAMILIES = sorted(set(layer_families.FAMILIES) - SLOW)
OPTIMIZERS = [*optimizer_options.CLASSES, *optimizer_options.OPTIONS]

# All pairs take 20 minutes; otherwise each family meets the next optimizer, and sparse gradients,
# which TensorFlow makes of an Embedding's, those which square or clip them.
SPARSE = [("Embedding", name) for name in ("Adam", "RMSprop", "clipnorm")]
PAIRS = (
    list(itertools.product(FAMILIES, OPTIMIZERS))
    if os.environ.get("PAIRS") == "all"
    else [*zip(FAMILIES, itertools.cycle(OPTIMIZERS), strict=False), *SPARSE]
)


# Of these, on every change: a family and an optimizer of each kind.
QUICK = {"Dense", "BatchNormalization", "Conv2D", "Dropout"}


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [pytest.param(*pair, marks=[] if pair[0] in QUICK else pytest.mark.nightly) for pair in PAIRS],
)
def test_a_layer_family_with_an_optimizer(family, optimizer):
    make = functools.partial(optimizer_options.made, optimizer)
    members = twins(family, layer_families.member, make, optimizer_options.build_outside_of_fit)
    is_joined = {family, optimizer} & JOINED or (family, optimizer) in JOINED_PAIRS
    assert_stacked(members, stacked=not is_joined)


@pytest.mark.nightly
@pytest.mark.parametrize("family", sorted(set(layer_families.IN_DOUBLE_PRECISION) - SLOW))
def test_a_layer_family_agrees_to_1e_9_in_float64(family, float64):
    assert_stacked(twins(family, layer_families.member))


@pytest.mark.nightly
@pytest.mark.parametrize("name", optimizer_options.IN_DOUBLE_PRECISION)
def test_an_optimizer_agrees_to_1e_9_in_float64(name, float64):
    assert_stacked(twins(name, optimizer_options.member))


def member(seed, build_kwargs=None, build=None, **fit):
    """A member with everything that a stack has to keep apart; its own data and weights."""

    def usual():
        keras.utils.set_random_seed(seed)
        return network(**(build_kwargs or {}))

    random = np.random.default_rng(seed)
    x = random.normal(size=(64, 4)).astype("float32")
    y = np.eye(3, dtype="float32")[random.integers(3, size=64)]
    defaults = {"x": x, "y": y, "batch_size": 8, "epochs": 4, "shuffle": False}
    return Member(build or usual, **{**defaults, **fit})


def network(
    rate=0.2,
    l2=1e-3,
    bn=0.9,
    smoothing=0.1,
    optimizer=lambda: optimizers.AdamW(0.02, weight_decay=0.01),
    weights=None,
):
    net = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, "relu", kernel_regularizer=keras.regularizers.L2(l2)),
            layers.BatchNormalization(momentum=bn),
            layers.Dropout(rate),
            layers.Dense(3, "softmax"),
        ]
    )
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    metrics = [
        "accuracy",
        # Few thresholds: of 200, one lies within rounding of a prediction on some processors, and
        # which side of it a prediction falls is no matter of parity.
        keras.metrics.AUC(num_thresholds=20, name="auc"),
        keras.metrics.TopKCategoricalAccuracy(2, name="top"),
    ]
    net.compile(optimizer(), loss, loss_weights=weights, metrics=metrics)
    return net


def own(seed, **kwargs):
    return member(seed, kwargs)


SWEEPS = {
    "learning rate": lambda v: {"optimizer": lambda: optimizers.Adam(v / 10)},
    "dropout rate": lambda v: {"rate": v},
    "L2": lambda v: {"l2": v / 10},
    "momentum of BatchNormalization": lambda v: {"bn": 1 - v / 2},
    "label smoothing": lambda v: {"smoothing": v},
    "loss weight": lambda v: {"weights": [v * 2]},
    "momentum": lambda v: {"optimizer": lambda: optimizers.SGD(0.05, momentum=v)},
    "betas": lambda v: {"optimizer": lambda: optimizers.Adam(0.02, beta_1=v, beta_2=1 - v / 9)},
    "weight decay": lambda v: {"optimizer": lambda: optimizers.AdamW(0.02, weight_decay=v / 5)},
    "clipnorm": lambda v: {"optimizer": lambda: optimizers.Adam(0.02, clipnorm=v)},
    "clipvalue": lambda v: {"optimizer": lambda: optimizers.SGD(0.05, clipvalue=v / 10)},
    "schedule": lambda v: {
        "optimizer": lambda: optimizers.SGD(optimizers.schedules.ExponentialDecay(v, 5, v))
    },
    "ema momentum": lambda v: {
        "optimizer": lambda: optimizers.SGD(0.05, use_ema=True, ema_momentum=v)
    },
}

if BACKEND == "jax":
    del SWEEPS["clipvalue"]  # `jnp.clip` takes numbers and arrays, and nothing like a number


# Of these, on every change: a float of each kind of part.
QUICK_SWEEPS = {"learning rate", "dropout rate"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK_SWEEPS else pytest.mark.nightly)
        for name in SWEEPS
    ],
)
def test_a_sweep_over_a_float_is_one_stack(name):
    members = {f"{v}": own(i, **SWEEPS[name](v)) for i, v in enumerate((0.2, 0.7))}
    cohort = assert_stacked(members)
    assert cohort.plan.frame["stack"].nunique() == 1


@pytest.mark.nightly
def test_what_cannot_be_a_traced_float_is_stacked_apart():
    """`momentum=0.0` keeps no velocities; a rate of 0 draws no random numbers."""
    rates = [0.0, 0.0, 0.3, 0.3]
    members = {f"m{i}": own(i, rate=rate) for i, rate in enumerate(rates)}
    cohort = assert_stacked(members)
    assert cohort.plan.frame["stack"].tolist() == [1, 1, 2, 2]


def test_members_with_other_numbers_of_samples_batches_and_epochs():
    def cut(seed, rows, **fit):
        whole = member(seed).fit
        return member(seed, x=whole["x"][:rows], y=whole["y"][:rows], **fit)

    members = {
        "a": cut(0, 60),
        "b": cut(1, 43, epochs=7),
        "c": cut(2, 16, epochs=2),
        "d": cut(3, 57, batch_size=16),
        "e": cut(4, 43, epochs=5, initial_epoch=2),
    }
    assert_stacked(members)


@pytest.mark.nightly
def test_members_that_come_in_another_order_keep_their_values():
    """Fits whose last batches differ end in turns, and what follows them comes in that order."""

    def trained(seed):
        model = own(seed, optimizer=lambda: optimizers.Adam(0.01 * (seed + 1))).build()
        x, y = (member(seed).fit[name][: 60 - seed % 2] for name in "xy")
        told = []
        for epochs in (2, 1):
            model.fit(x, y, batch_size=8, epochs=epochs, verbose=0)
            told += [model.predict(x, verbose=0), model.evaluate(x, y, verbose=0)]
        return [*told, *model.get_weights()]

    apart = [trained(seed) for seed in range(3)]
    together = kc.map(trained, range(3), layout="stacked", verbose=0)
    keras.tree.map_structure(
        functools.partial(np.testing.assert_allclose, atol=1e-4), together, apart
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA compiles for each shape by itself")
@pytest.mark.parametrize(
    ("most_in_vain", "traces"), [pytest.param(500, 1, marks=pytest.mark.nightly), (20, 2)]
)
def test_some_members_are_computed_as_if_by_all(monkeypatch, most_in_vain, traces):
    """The trace for all serves some of them, until one for fewer is worth its time."""
    from kerascohost.backends.tensorflow import stack
    from kerascohost.training import stacks

    monkeypatch.setattr(stack, "_MOST_IN_VAIN", most_in_vain)
    kinds = []
    usual = stack.Program._trace
    monkeypatch.setattr(
        stack.Program, "_trace", lambda self, *given: kinds.append(self.kind) or usual(self, *given)
    )
    monkeypatch.setattr(stacks, "compiled_stacks", type(stacks.compiled_stacks)())
    members = {
        f"m{i}": Member(
            own(i).build, x=own(i).fit["x"][: 40 - i], y=own(i).fit["y"][: 40 - i], epochs=8 - 3 * i
        )
        for i in range(3)
    }
    assert_stacked(members)
    assert kinds == ["train"] * traces


def test_callbacks_of_members_see_and_change_their_own_models():
    seen = []

    def looks():
        return [
            callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: seen.append(sorted(logs)),
            ),
            callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
        ]

    class Halves(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.set_weights([w / 2 for w in self.model.get_weights()])

    members = {
        "stops": member(0, callbacks=looks, validation_split=0.3, epochs=20),
        "slows": member(
            1, callbacks=lambda: [callbacks.LearningRateScheduler(lambda e, lr: lr / (e + 1))]
        ),
        "plateau": member(
            2,
            callbacks=lambda: [callbacks.ReduceLROnPlateau("loss", patience=1)],
            validation_split=0.2,
            validation_freq=2,
        ),
        "halved": member(3, callbacks=lambda: [Halves()]),
        "watched": member(4, callbacks=lambda: [callbacks.TerminateOnNaN()]),
        "free": member(5),
    }
    assert_stacked(members)
    assert seen


class Outside(layers.Layer):
    """What it does when not in training cannot be vectorised."""

    def call(self, x, training=False):
        if training:
            return x
        import tensorflow as tf

        return tf.ensure_shape(tf.numpy_function(lambda v: v * 1, [x], x.dtype), x.shape)


@pytest.mark.nightly
@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX vectorises whatever it can trace")
def test_a_stack_that_dissolves_when_a_twin_has_just_been_reset():
    def cut(seed, rows):
        def build():
            keras.utils.set_random_seed(seed)
            net = keras.Sequential([keras.Input((4,)), Outside(), layers.Dense(3, "softmax")])
            net.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
            return net

        x, y = member(seed).fit["x"], member(seed).fit["y"]
        validation = (x[:20], y[:20])
        return member(seed, x=x[:rows], y=y[:rows], validation_data=validation, build=build)

    cohort = train({"a": cut(0, 43), "b": cut(1, 40)})
    assert (cohort.plan.frame["layout"] == "joined").all()


def images(seed, *of_layers):
    """A member that begins with these layers, on small images of four channels."""

    def build():
        keras.utils.set_random_seed(seed)
        net = keras.Sequential([keras.Input((5, 5, 4)), *(make() for make in of_layers)])
        net.compile("sgd", "mse")
        return net

    x = np.random.default_rng(seed).normal(size=(12, 5, 5, 4)).astype("float32")
    return Member(build, x=x, y=x[:, 0, 0, :1], epochs=2, batch_size=4, shuffle=False)


def test_a_convolution_in_groups_of_channels():
    def grouped():
        return layers.Conv2D(2, 2, groups=2)

    members = {
        f"m{i}": images(i, grouped, layers.Flatten, functools.partial(layers.Dense, 1))
        for i in range(2)
    }
    cohort = assert_stacked(members, stacked=BACKEND != "tensorflow")
    if BACKEND == "tensorflow":
        assert "in groups of channels" in cohort.plan.summary


class Holding(layers.Layer):
    """A layer with an attribute, which stacked models must have in common."""

    def __init__(self, held):
        super().__init__()
        self.held = held

    def call(self, x):
        return x * 1.0


class Scaled:
    """An object whose method is a loss."""

    def __init__(self, scale):
        self.scale = scale

    def loss(self, y, predicted):
        return self.scale * keras.ops.mean(keras.ops.square(y - predicted))


def _scaled(y, predicted, scale):
    return scale * keras.ops.mean(keras.ops.square(y - predicted))


def holding(held=None, loss="mse", seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((2,)), Holding(held), layers.Dense(1)])
    model.compile("sgd", loss)
    return model


def _partial(scale):
    loss = functools.partial(_scaled, scale=scale)
    loss.__name__ = "scaled"  # Keras asks for it
    return loss


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (lambda: {"held": slice(2)}, lambda: {"held": slice(2)}, ""),
        (lambda: {"held": slice(2)}, lambda: {"held": slice(3)}, r"differs from '.' at `.*held.s"),
        (lambda: {"held": {(1, 2): "a"}}, lambda: {"held": {(1, 2): "a"}}, ""),
        (lambda: {"held": {(1, 2): "a"}}, lambda: {"held": {(1, 3): "a"}}, "differs from"),
        (lambda: {"held": {"a", "b"}}, lambda: {"held": {"b", "a"}}, ""),
        (lambda: {"held": {object}}, lambda: {"held": {object}}, "holds a set of objects at"),
        (
            lambda: {"held": np.array([object()])},
            lambda: {"held": np.array([object()])},
            "holds an array of objects at",
        ),
        (lambda: {"held": iter([1])}, lambda: {"held": iter([1])}, "holds a list_iterator at"),
        (lambda: {"loss": Scaled(1.0).loss}, lambda: {"loss": Scaled(1.0).loss}, ""),
        (lambda: {"loss": Scaled(1.0).loss}, lambda: {"loss": Scaled(2.0).loss}, "differs from"),
        (lambda: {"loss": _partial(1.0)}, lambda: {"loss": _partial(1.0)}, ""),
        (lambda: {"loss": _partial(1.0)}, lambda: {"loss": _partial(2.0)}, "differs from"),
    ],
)
def test_what_models_hold_is_compared(one, other, told):
    cohort = kc.Cohort({"a": holding(**one()), "b": holding(**other())}, layout="stacked")
    frame = cohort.plan.frame
    if told:
        assert set(frame["layout"]) == {"joined"}
        assert frame["reason"].str.contains(told).all(), frame["reason"].tolist()
    else:
        assert set(frame["layout"]) == {"stacked"}


@pytest.mark.nightly
def test_a_method_as_loss_and_the_weights_of_losses_are_those_of_each_member():
    def build(seed):
        keras.utils.set_random_seed(seed)
        x = keras.Input((4,))
        model = keras.Model(x, [layers.Dense(1, name="u")(x), layers.Dense(1, name="v")(x)])
        losses = [Scaled(1.0).loss, "mae"]
        model.compile("sgd", losses, loss_weights=[1.0 + seed, 0.5])
        return model

    x = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    fit = {"x": x, "y": [x[:, :1], x[:, 1:2]], "batch_size": 8}
    assert_stacked({f"m{i}": Member(functools.partial(build, i), **fit) for i in range(2)})


def test_members_that_run_eagerly_or_as_replicas_are_joined():
    eager = [holding(), holding()]
    for model in eager:
        model.compile("sgd", "mse", run_eagerly=True)
    assert (
        "runs eagerly"
        in kc.Cohort(dict(zip("ab", eager, strict=True)), layout="stacked").plan.summary
    )
    alike = {"a": holding(), "b": holding(seed=1)}
    cohort = kc.Cohort(alike, layout="stacked", replicas=2)
    cohort.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=4, verbose=0)
    assert "is applied several times in a step" in cohort.plan.summary


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_models_without_weights_are_joined():
    members = {f"m{i}": images(i, layers.ReLU, layers.GlobalMaxPooling2D) for i in range(2)}
    cohort = assert_stacked(members, stacked=False)
    assert "has no weights to train" in cohort.plan.summary


def test_models_that_are_not_compiled_predict():
    models = {name: keras.Sequential([keras.Input((4,)), layers.Dense(2)]) for name in "ab"}
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    cohort = kc.Cohort(models, layout="stacked")
    predicted = cohort.predict(x, verbose=0)
    for name, model in models.items():
        np.testing.assert_allclose(predicted[name], model.predict(x, verbose=0), atol=1e-6)
    assert "is not compiled" in cohort.plan.summary


@pytest.mark.nightly
def test_a_member_that_is_compiled_differently_by_its_callback_leaves():
    class Recompiles(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                self.model.jit_compile = not self.model.jit_compile

    plain = {"rate": 0.0}  # XLA draws other random numbers
    train({"a": member(0, plain), "b": member(1, plain, callbacks=lambda: [Recompiles()])})


def test_a_metric_with_a_reset_of_its_own():
    class Halving(keras.metrics.CategoricalAccuracy):
        def reset_state(self):
            self.total.assign(self.total / 2)

    def halves(seed):
        def build():
            keras.utils.set_random_seed(seed)
            net = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
            net.compile("adam", "categorical_crossentropy", metrics=[Halving()])
            return net

        return member(seed, build=build, validation_split=0.2)

    assert_stacked({f"m{i}": halves(i) for i in range(2)})


def sums(seed, rows=64, **fit):
    """A member whose metrics are reset to zero, which a stack does for all at once."""

    def build():
        keras.utils.set_random_seed(seed)
        net = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
        net.compile("adam", "categorical_crossentropy", metrics=["accuracy", "mse"])
        return net

    data = {key: member(seed).fit[key][:rows] for key in "xy"}
    return member(seed, build=build, validation_split=0.2, **data, **fit)


def test_metrics_that_are_sums_begin_anew_in_each_epoch_and_validation():
    assert_stacked({"a": sums(0), "b": sums(1, rows=50, epochs=6), "c": sums(2, epochs=2)})


def test_metrics_that_are_sums_where_a_stack_dissolves_between_two_epochs(monkeypatch):
    plan_calls = Stacks.plan_calls
    turns = itertools.count()

    def dissolving(self, requests):
        if next(turns) == 9:
            assert self._unreset
            self._leave(self.active_stacks[0])
        return plan_calls(self, requests)

    monkeypatch.setattr(Stacks, "plan_calls", dissolving)
    train({f"m{i}": sums(i, epochs=8) for i in range(2)})
    assert next(turns) > 9


def test_metrics_that_are_sums_after_an_interrupt(monkeypatch):
    call_stack = Scheduler._call_stack
    calls = itertools.count()

    def interrupted(self, active, program, ranges):
        if next(calls) == 9:
            assert any(own.metrics_at_zero for own in ranges.values())
            raise KeyboardInterrupt
        return call_stack(self, active, program, ranges)

    monkeypatch.setattr(Scheduler, "_call_stack", interrupted)
    models = {f"m{i}": sums(i).build() for i in range(2)}
    fit = sums(0).fit
    with pytest.raises(KeyboardInterrupt):
        kc.Cohort(models, layout="stacked").fit(**{**fit, "verbose": 0, "epochs": 8})
    for model in models.values():
        assert all(value == 0 for value in model.get_metrics_result().values())


@pytest.mark.nightly
def test_sample_and_class_weights_and_validation_data():
    random = np.random.default_rng(0)

    def weighted(seed):
        whole = member(seed).fit
        return member(
            seed,
            sample_weight=random.random(64).astype("float32"),
            validation_data=(whole["x"][:20], whole["y"][:20]),
        )

    assert_stacked({f"m{i}": weighted(i) for i in range(3)})


@pytest.mark.nightly
def test_auto_stacks_where_it_pays_and_joins_the_rest():
    def convolution(seed):
        def build():
            keras.utils.set_random_seed(seed)
            net = keras.Sequential(
                [keras.Input((6, 6, 1)), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(1)]
            )
            net.compile("sgd", "mse")
            return net

        x = np.random.default_rng(seed).normal(size=(24, 6, 6, 1)).astype("float32")
        return Member(build, x=x, y=x[:, 0, 0], epochs=2, batch_size=8, shuffle=False)

    members = {"a": member(0), "b": member(1), "c": convolution(2), "d": convolution(3)}
    cohort = train(members, layout="auto")
    assert cohort.plan.frame["layout"].tolist() == ["stacked", "stacked", "joined", "joined"]
    assert "on a CPU" in cohort.plan.summary


def test_a_second_fit_traces_nothing_and_takes_up_what_was_changed(monkeypatch):
    members = {f"m{i}": member(i) for i in range(3)}
    cohort = assert_stacked(members)
    models = {name: compare.built(m) for name, m in members.items()}
    for name, model in models.items():
        for _ in range(2):
            model.fit(**members[name].arguments(verbose=0))
        cohort.members[name].optimizer.learning_rate = 0.5
        model.optimizer.learning_rate = 0.5
        model.fit(**members[name].arguments(verbose=0))
    cohort.fit(verbose=0, **compare.by_argument(members))  # not yet at the third fit
    for name in models:
        cohort.members[name].optimizer.learning_rate = 0.5
    active_stacks = list(cohort._scheduler.stacks.active_stacks)
    compiled = [program._run for active in active_stacks for program in active.programs.values()]
    before = [len(getattr(p, "_functions", None) or p._traced) for p in compiled]
    cohort.fit(verbose=0, **compare.by_argument(members))
    assert before == [len(getattr(p, "_functions", None) or p._traced) for p in compiled]
    assert list(cohort._scheduler.stacks.active_stacks) == active_stacks


def test_the_reason_says_what_went_wrong_and_not_where():
    text = (
        'in user code:\n\n    File "a.py", line 3, in f\n        g()\n\n    ValueError: no rule\n'
    )
    assert stacking.reason(ValueError(text)) == "no rule"


# The comparison sees what it is there to see.


def breaks(members):
    with pytest.raises(AssertionError, match=r"m[01]: "):
        assert_stacked(members)


@pytest.fixture
def three():
    return {f"m{i}": own(i, rate=rate) for i, rate in enumerate((0.2, 0.4, 0.6))}


@pytest.mark.nightly
def test_rows_stored_into_another_member_are_seen(three, monkeypatch):
    from kerascohost import backends

    rows = backends.get_backend().StackedState
    store = rows.store
    monkeypatch.setattr(rows, "store", lambda self, *args: swap(self, args, store))
    breaks(three)


def swap(self, args, store):
    own_variables = self.stack.variables
    self.stack.variables = [own_variables[1], own_variables[0], *own_variables[2:]]
    try:
        store(self, *args)
    finally:
        self.stack.variables = own_variables


@pytest.mark.nightly
def test_a_traced_float_of_another_member_is_seen(three, monkeypatch):
    original = stacking.Stack.__init__

    def shifted(self, *args):
        original(self, *args)
        self.values = [[*values[1:], values[0]] for values in self.values]

    monkeypatch.setattr(stacking.Stack, "__init__", shifted)
    breaks(three)


@pytest.mark.nightly
def test_metrics_that_are_not_reset_are_seen(three, monkeypatch):
    sync_from_models = stacking.StackedState.sync_from_models

    def without_reset(self, ranges):
        kept = {n: dataclasses.replace(own, metrics_reset=False) for n, own in ranges.items()}
        sync_from_models(self, kept)

    monkeypatch.setattr(stacking.StackedState, "sync_from_models", without_reset)
    breaks(three)


def test_metrics_that_are_not_set_to_zero_in_a_stack_are_seen(monkeypatch):
    from kerascohost import backends

    rows = backends.get_backend().StackedState
    monkeypatch.setattr(rows, "set_to_zero", lambda self, *args: None)
    breaks({f"m{i}": sums(i) for i in range(2)})


@pytest.mark.nightly
def test_a_change_by_a_callback_that_is_not_taken_up_is_seen(monkeypatch):
    def kept_away(self, names, begun=()):
        self.store(self.rows([name for name in names if name in self._stale]), self._all)

    class Halves(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.set_weights([w / 2 for w in self.model.get_weights()])

    monkeypatch.setattr(stacking.StackedState, "sync_to_models", kept_away)
    breaks({f"m{i}": member(i, callbacks=lambda: [Halves()]) for i in range(2)})
