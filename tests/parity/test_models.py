"""Every kind of model ends in a cohort as by its own `fit`."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerascohost as kc
from tests.helpers import compare
from tests.helpers.compare import Member

BACKEND = keras.backend.backend()
RANDOM = np.random.default_rng(1)
X = RANDOM.normal(size=(44, 4)).astype("float32")
Y = RANDOM.normal(size=(44, 1)).astype("float32")
CLASSES = RANDOM.integers(2, size=(44, 1))


def member(build, **fit):
    return Member(build, **{"x": X, "y": Y, "batch_size": 8, "epochs": 3, "shuffle": False, **fit})


def compiled(model, **kwargs):
    adam = keras.optimizers.Adam(0.01)
    model.compile(**{"optimizer": adam, "loss": "mse", "metrics": ["mae"], **kwargs})
    return model


def dense(*more, inputs=True, cls=keras.Sequential):
    return cls([*([keras.Input((4,))] if inputs else []), layers.Dense(5, "tanh"), *more])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(5, "tanh"), layers.Dense(1)

    def call(self, inputs):
        return self.out(self.hidden(inputs))


def built_subclass():
    model = Subclassed()
    model(X[:2])
    return compiled(model)


def nested():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh")])
    x = keras.Input((4,))
    return compiled(keras.Model(x, layers.Dense(1)(inner(x))))


def frozen():
    model = dense(layers.Dense(1))
    model.layers[0].trainable = False
    return compiled(model)


class Penalty(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.1 * ops.mean(ops.square(inputs)))
        return inputs


def many_metrics():
    model = dense(layers.Dense(1, "sigmoid"))
    # Named, as Keras numbers the names of metrics that it makes up.
    names = [
        keras.metrics.AUC(name="auc"),
        keras.metrics.Precision(name="precision"),
        keras.metrics.F1Score(threshold=0.5, name="f1"),
        "accuracy",
    ]
    return compiled(model, loss="binary_crossentropy", metrics=names)


FORMS = {
    "Sequential": member(lambda: compiled(dense(layers.Dense(1)))),
    "unbuilt Sequential": member(lambda: compiled(dense(layers.Dense(1), inputs=False))),
    "subclass": member(built_subclass),
    "unbuilt subclass": member(lambda: compiled(Subclassed())),
    "nested": member(nested),
    "frozen": member(frozen),
    "add_loss": member(lambda: compiled(dense(Penalty(), layers.Dense(1)))),
    "activity": member(
        lambda: compiled(dense(layers.Dense(3, activity_regularizer="l2"), layers.Dense(1)))
    ),
    "many metrics": member(many_metrics, y=CLASSES),
    "weighted metrics": member(
        lambda: compiled(dense(layers.Dense(1)), weighted_metrics=["mse"]),
        sample_weight=np.linspace(0, 1, 44),
    ),
}


@pytest.mark.parametrize("names", [list(FORMS)[:5], list(FORMS)[5:]], ids=["form", "losses"])
def test_forms_of_models(names):
    compare.assert_parity({name: FORMS[name] for name in names})


def several(dict_outputs):
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    joined = layers.Concatenate()([a, b])
    left, right = layers.Dense(1, name="left")(joined), layers.Dense(2, name="right")(joined)
    outputs = {"left": left, "right": right} if dict_outputs else [left, right]
    model = keras.Model({"a": a, "b": b}, outputs)
    keys = {"left": "mse", "right": "mae"}
    return compiled(
        model,
        loss=keys if dict_outputs else list(keys.values()),
        loss_weights={"left": 1.0, "right": 0.3} if dict_outputs else [1.0, 0.3],
        metrics=None,
    )


def test_several_inputs_and_outputs():
    x, two = {"a": X, "b": X[:, :2]}, Y @ np.ones((1, 2), "float32")
    members = {
        "dicts": member(lambda: several(True), x=x, y={"left": Y, "right": two}),
        "lists": member(lambda: several(False), x=x, y=[Y, two]),
    }
    compare.assert_parity(members)


class OwnStep(keras.Sequential):
    """A train step and logs of its own, as Keras's guides write them for each backend."""

    extra = False

    def _named(self, logs):
        return {**logs, "twice": 2 * logs["loss"]} if self.extra else logs

    if BACKEND == "jax":

        def train_step(self, state, data):
            x, y = data
            logs, state = super().train_step(state, (x * 0.5, y))
            return self._named(logs), state

        def test_step(self, state, data):
            logs, state = super().test_step(state, data)
            return self._named(logs), state

    else:

        def train_step(self, data):
            x, y = data
            return self._named(super().train_step((x * 0.5, y)))

        def test_step(self, data):
            return self._named(super().test_step(data))


class OwnLogs(OwnStep):
    extra = True


@pytest.mark.parametrize("cls", [OwnStep, OwnLogs])
def test_steps_of_their_own(cls):
    def build():
        return compiled(dense(layers.Dense(1), cls=cls))

    plain = member(lambda: compiled(dense(layers.Dense(1))))
    compare.assert_parity({"own": member(build, validation_split=0.3), "plain": plain})


def test_run_eagerly_jit_compile_and_steps_per_execution():
    ways = [{"run_eagerly": True}, {"jit_compile": False}]
    ways += [] if BACKEND == "torch" else [{"jit_compile": True}, {"steps_per_execution": 4}]
    members = {
        str(way): member(lambda way=way: compiled(dense(layers.Dense(1)), **way)) for way in ways
    }
    compare.assert_parity(members)


def test_mixed_precision_scales_its_loss():
    def build():
        policy = keras.DTypePolicy("mixed_float16")
        x = keras.Input((4,))
        hidden = layers.Dense(5, "tanh", dtype=policy)(x)
        model = keras.Model(x, layers.Dense(1, dtype="float32")(hidden))
        sgd = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))
        return compiled(model, optimizer=sgd)

    plain = member(lambda: compiled(dense(layers.Dense(1))))
    # Half precision has 11 bits: XLA's other fusions show in its last one.
    tolerance = 1e-6 if BACKEND != "jax" else 2e-3
    compare.assert_parity({"half": member(build), "plain": plain}, tolerance)


@pytest.mark.nightly
@pytest.mark.skipif(
    BACKEND == "torch", reason="Keras 3.15 on torch cannot train a stateful LSTM, alone or not"
)
def test_a_stateful_rnn_of_fixed_batch_size():
    def build():
        net = [keras.Input(batch_shape=(8, 4, 1)), layers.LSTM(3, stateful=True), layers.Dense(1)]
        return compiled(keras.Sequential(net))

    stateful = member(build, x=X[:40, :, None], y=Y[:40])
    compare.assert_parity({"stateful": stateful, "plain": FORMS["Sequential"]})


def test_a_model_trained_in_a_cohort_is_saved_whole(tmp_path):
    models = {"a": compiled(dense(layers.Dense(1))), "b": built_subclass()}
    kc.Cohort(models).fit(X, Y, epochs=2, verbose=0)
    models["a"].save(tmp_path / "a.keras")
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    for kind in ("variables", "optimizer"):
        one, other = (getattr(m, kind) for m in (models["a"], loaded))
        if kind == "optimizer":
            one, other = one.variables, other.variables
        for left, right in zip(one, other, strict=True):
            values = (ops.convert_to_numpy(v.value) for v in (left, right))
            np.testing.assert_array_equal(*values)
