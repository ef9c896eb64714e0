"""Callbacks see and change their own member exactly as in its own `fit`."""

import functools
import json
import random

import keras
import numpy as np
import pytest
from keras import callbacks, layers

import kerascohost as kc
from kerascohost import backends
from kerascohost.training import batches
from tests.helpers import compare
from tests.helpers.compare import Member

BACKEND = keras.backend.backend()
RARE = pytest.mark.nightly


def member(make_callbacks=None, seed=4, steps_per_execution=1, **fit):
    """A small model that is validated, and does not improve for ever."""

    def build():
        model = keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(8, "tanh"),
                layers.BatchNormalization(),
                layers.Dense(1),
            ]
        )
        model.compile(
            keras.optimizers.Adam(0.05),
            loss="mse",
            metrics=["mae"],
            steps_per_execution=steps_per_execution,
        )
        return model

    generator = np.random.default_rng(seed)
    x = generator.normal(size=(60, 4)).astype("float32")
    y = generator.normal(size=(60, 1)).astype("float32")
    defaults = {
        "x": x,
        "y": y,
        "batch_size": 8,
        "epochs": 6,
        "shuffle": False,
        "validation_split": 0.25,
    }
    if make_callbacks:
        fit["callbacks"] = make_callbacks
    return Member(build, **{**defaults, **fit})


def assert_callbacks(make_callbacks, **fit):
    """Compares a member with callbacks, beside one without any and of another length."""
    members = {"watched": member(make_callbacks, **fit), "free": member(seed=5, epochs=8)}
    compare.assert_parity(members)


def test_early_stopping_restores_the_best_weights_and_the_others_go_on():
    stop = lambda: [callbacks.EarlyStopping(patience=2, restore_best_weights=True)]  # noqa: E731
    members = {"watched": member(stop, epochs=30), "free": member(seed=5, epochs=30)}
    apart, together = compare.train_apart(members), compare.train_together(members)
    compare.assert_same(apart, together)
    assert len(together["watched"].history.epoch) < len(together["free"].history.epoch) == 30


@pytest.mark.nightly
def test_learning_rate_scheduler_and_reduce_on_plateau():
    def make():
        return [
            callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.8),
            callbacks.ReduceLROnPlateau(patience=1, factor=0.5),
        ]

    assert_callbacks(make)


@pytest.mark.nightly
def test_terminate_on_nan_stops_at_the_batch():
    x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
    x[37] = np.nan
    assert_callbacks(lambda: [callbacks.TerminateOnNaN()], x=x, validation_split=0.0)


@pytest.mark.nightly
def test_swap_ema_weights():
    def build():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.8), loss="mse")
        return model

    ema = member(lambda: [callbacks.SwapEMAWeights(swap_on_epoch=True)])
    ema.build = build
    compare.assert_parity({"ema": ema, "free": member(seed=5)})


@pytest.mark.parametrize("save_freq", ["epoch", pytest.param(5, marks=RARE)])
def test_checkpoints_hold_the_same_weights(tmp_path, save_freq):
    folders = iter([tmp_path / "apart", tmp_path / "together"])

    def make():
        path = next(folders) / "{epoch}.weights.h5"
        return [callbacks.ModelCheckpoint(path, save_weights_only=True, save_freq=save_freq)]

    assert_callbacks(make)
    files = sorted(path.name for path in (tmp_path / "apart").iterdir())
    assert files and files == sorted(path.name for path in (tmp_path / "together").iterdir())
    one, other = member().build(), member().build()
    for model in (one, other):
        model.optimizer.build(model.trainable_variables)  # which the files hold too
    for file in files:
        one.load_weights(tmp_path / "apart" / file)
        other.load_weights(tmp_path / "together" / file)
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.nightly
def test_csv_loggers_write_the_same_lines(tmp_path):
    files = iter([tmp_path / "apart.csv", tmp_path / "together.csv"])
    assert_callbacks(lambda: [callbacks.CSVLogger(next(files))])
    apart = np.genfromtxt(tmp_path / "apart.csv", delimiter=",", names=True)
    together = np.genfromtxt(tmp_path / "together.csv", delimiter=",", names=True)
    assert apart.dtype.names == together.dtype.names and len(apart) == 6
    for name in apart.dtype.names:
        np.testing.assert_allclose(apart[name], together[name], atol=1e-6)


class Interrupt(callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise RuntimeError("interrupted")


@pytest.mark.nightly
def test_backup_and_restore_goes_on_where_it_was_interrupted(tmp_path):
    def resumed(train, folder):
        backup = lambda: callbacks.BackupAndRestore(folder)  # noqa: E731
        model = member().build()
        with pytest.raises(RuntimeError, match="interrupted"):
            train(model, [backup(), Interrupt()])
        model = member(seed=9).build()
        return compare.Trained(model, train(model, [backup()]))

    fit = member().arguments(verbose=0)

    def apart(model, given):
        keras.utils.set_random_seed(3)
        return model.fit(**fit, callbacks=given)

    def together(model, given):
        keras.utils.set_random_seed(3)
        return kc.Cohort({"m": model}).fit(**fit, callbacks=given)["m"]

    keras.utils.set_random_seed(1)
    one = resumed(apart, tmp_path / "apart")
    keras.utils.set_random_seed(1)
    other = resumed(together, tmp_path / "together")
    assert one.history.epoch == [3, 4, 5]
    compare.assert_same({"m": one}, {"m": other})


class Diary(callbacks.Callback):
    """Writes down everything it is told, and a weight and the learning rate at each batch."""

    def __init__(self, pages):
        super().__init__()
        self.pages = pages

    def note(self, event, number, logs):
        weight = float(np.ravel(self.model.get_weights()[0])[0])
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        values = {name: float(value) for name, value in (logs or {}).items()}
        self.pages.append((event, number, weight, rate, values))

    def on_train_batch_begin(self, batch, logs=None):
        self.note("train begin", batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self.note("train end", batch, logs)

    def on_test_batch_end(self, batch, logs=None):
        self.note("test end", batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self.note("epoch end", epoch, logs)


def assert_same_pages(apart, together):
    assert [page[:2] for page in apart] == [page[:2] for page in together] != []
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_allclose(one[2:4], other[2:4], atol=1e-6)
        assert one[4].keys() == other[4].keys()
        np.testing.assert_allclose(list(one[4].values()), list(other[4].values()), atol=1e-5)


def test_batch_hooks_see_every_batch_with_its_logs_and_the_weights_of_that_moment():
    books = [[], []]
    pages = iter(books)
    assert_callbacks(lambda: [Diary(next(pages))])
    assert_same_pages(*books)


class Meddler(callbacks.Callback):
    """Sets weights and the learning rate in the middle of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            self.model.optimizer.learning_rate = 0.01
            self.model.set_weights([w * 0.9 for w in self.model.get_weights()])


@pytest.mark.nightly
def test_weights_and_learning_rates_set_in_mid_epoch_are_taken_up():
    assert_callbacks(lambda: [Meddler()])


class StopAtBatch(callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3 and self.model.optimizer.iterations > 8:
            self.model.stop_training = True


def test_training_stopped_in_mid_epoch_ends_there():
    assert_callbacks(lambda: [StopAtBatch()])


class ChangeAtEpoch(callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 0.05 / (epoch + 2)
        self.model.set_weights([w + 0.01 for w in self.model.get_weights()])


@pytest.mark.nightly
def test_weights_set_between_epochs_are_taken_up():
    assert_callbacks(lambda: [ChangeAtEpoch()])


@pytest.mark.nightly
def test_lambda_callbacks_with_batch_hooks():
    books = [[], []]
    pages = iter(books)

    def make():
        page = next(pages)
        return [
            callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: page.append((batch, float(logs["loss"]))),
                on_epoch_end=lambda epoch, logs: page.append((epoch, float(logs["val_loss"]))),
            )
        ]

    assert_callbacks(make)
    assert len(books[0]) == 6 * 6 + 6
    np.testing.assert_allclose(books[0], books[1], atol=1e-6)


@pytest.mark.nightly
@pytest.mark.skipif(BACKEND == "torch", reason="Keras on torch has no steps_per_execution")
@pytest.mark.parametrize("steps", [pytest.param(2, marks=RARE), 3, pytest.param(4, marks=RARE)])
def test_batch_hooks_keep_the_rhythm_of_steps_per_execution(steps, monkeypatch):
    monkeypatch.setattr(batches, "_CHUNK_BYTES", 5 * 4 * 8)  # few batches in a chunk
    books = []

    def make():
        books.append([])
        names = ("begin", "end")
        return [
            callbacks.LambdaCallback(
                **{
                    f"on_train_batch_{name}": lambda batch, logs, name=name, book=books[-1]: (
                        book.append((name, batch))
                    )
                    for name in names
                }
            )
        ]

    fit = {"validation_split": 0.0, "epochs": 2, "steps_per_execution": steps}
    assert_callbacks(make, **fit)
    assert books[0] == books[1]
    assert len(books[0]) == 2 * 2 * -(-8 // steps)


@pytest.mark.skipif(BACKEND != "jax", reason="only Keras on JAX finishes a fit that fails")
class Hooks(callbacks.Callback):
    """Notes each hook of batches, and of epochs, as it comes."""

    def __init__(self):
        super().__init__()
        self.seen = []
        for kind in ("train", "test", "predict"):
            for when in ("begin", "end"):
                name = f"on_{kind}_batch_{when}"
                setattr(self, name, functools.partial(self._note, name))

    def _note(self, name, batch, logs=None):
        self.seen.append((name, batch))

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(("epoch", epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(("end of epoch", epoch))


@pytest.mark.parametrize("steps", [1] if BACKEND == "torch" else [1, 3])
@pytest.mark.parametrize("given", [{}, {"steps_per_epoch": 2}], ids=["to the end", "2 steps"])
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_batch_hooks_come_also_for_the_batch_that_a_generator_lacks(steps, given):
    """`fit` calls the hook, and then finds that there is no more (not on torch)."""
    x, y = np.ones((20, 4), "float32"), np.ones((20, 1), "float32")

    def batches_of_5():
        return ((x[i : i + 5], y[i : i + 5]) for i in range(0, 20, 5))

    found = []
    for wrap in (lambda model: model, lambda model: kc.Cohort({"a": model})):
        model = compare.built(member(steps_per_execution=steps))
        trained, tested, predicted = Hooks(), Hooks(), Hooks()
        one = wrap(model)
        fit = {"callbacks": [trained], "verbose": 0, "shuffle": False, **given}
        one.fit(batches_of_5(), validation_data=batches_of_5(), **fit)
        one.evaluate(batches_of_5(), callbacks=[tested], verbose=0)
        one.predict(batches_of_5(), callbacks=[predicted], verbose=0)
        found.append([trained.seen, tested.seen, predicted.seen])
    assert found[0] == found[1]
    assert len(found[0][2]) > 2


@pytest.mark.skipif(BACKEND == "torch", reason="`steps_per_execution` is 1 there")
def test_prediction_hooks_keep_the_rhythm_of_steps_per_execution():
    x, shapes = np.ones((38, 4), "float32"), []

    class Outputs(callbacks.Callback):
        def on_predict_batch_end(self, batch, logs=None):
            shapes.append((batch, tuple(logs["outputs"].shape)))

    model = compare.built(member(steps_per_execution=3))
    expected = model.predict(x, batch_size=10, callbacks=[Outputs()], verbose=0)
    apart, shapes = shapes, []
    found = kc.Cohort({"a": model}).predict(x, batch_size=10, callbacks=[Outputs()], verbose=0)["a"]
    assert shapes == apart == [(2, (30, 1)), (5, (8, 1))]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_averaged_weights_are_taken_up_also_after_a_failure():
    def build():
        net = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
        net.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
        return net

    def fail(epoch, logs):
        if epoch == 2:
            raise RuntimeError("boom")

    make = lambda: [callbacks.LambdaCallback(on_epoch_end=fail)]  # noqa: E731
    each = Member(build, **{**member(make).fit, "validation_split": 0.0})
    alone, together = compare.built(each), compare.built(each)
    with pytest.raises(RuntimeError):
        alone.fit(**each.arguments(verbose=0))
    with pytest.raises(RuntimeError):
        kc.Cohort({"m": together}).fit(**compare.by_argument({"m": each}), verbose=0)
    for one, other in zip(alone.get_weights(), together.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


class Identity(callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.models = set()

    def on_epoch_begin(self, epoch, logs=None):
        self.models.add(self.model)


class Drawing(callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["drawn"] = np.random.random() + random.random()


class DrawnWhenReset(keras.metrics.MeanSquaredError):
    def reset_state(self):
        super().reset_state()
        self.total.assign(np.random.random())


@pytest.mark.nightly
@pytest.mark.skipif(BACKEND == "torch", reason="shuffles otherwise where there is a validation")
def test_callbacks_and_metrics_draw_global_random_numbers_as_alone():
    """On JAX `fit` shuffles by NumPy's state, too: the draws alternate."""

    def measured():
        model = drawing.build()
        model.compile("sgd", "mse", metrics=[DrawnWhenReset()])
        return model

    drawing = member(lambda: [Drawing()], shuffle=True)
    shifting = functools.partial(callbacks.LambdaCallback, on_epoch_begin=shift)
    compare.assert_parity(
        {
            "drawing": drawing,
            "shifting": member(lambda: [shifting()], seed=5, shuffle=True, epochs=4),
            "measured": Member(measured, **member(shuffle=True).fit),
            "free": member(shuffle=True),
        }
    )


def shift(epoch, logs=None):
    for _ in range(3):
        np.random.random()


def test_each_members_callbacks_know_that_member_only():
    models = {"a": member().build(), "b": member(seed=5).build()}
    known = {name: Identity() for name in models}
    fit = member().arguments(verbose=0)
    kc.Cohort(models).fit(**fit, callbacks={name: [known[name]] for name in models})
    assert {name: callback.models for name, callback in known.items()} == {
        name: {model} for name, model in models.items()
    }


def test_one_list_for_all_acts_on_each_member_apart():
    stop = lambda: [callbacks.EarlyStopping(patience=1)]  # noqa: E731
    members = {"a": member(stop, epochs=20), "b": member(stop, seed=8, epochs=20)}
    apart = compare.train_apart(members)
    for each in members.values():
        del each.fit["callbacks"]
    compare.assert_same(apart, compare.train_together(members, shared={"callbacks": stop()}))


@pytest.mark.nightly
@pytest.mark.skipif(
    BACKEND == "torch", reason="TensorBoard's graph of a model needs TensorFlow ops"
)
def test_tensorboard_logs_the_same_scalars(tmp_path):
    tf = pytest.importorskip("tensorflow", reason="TensorBoard writes through TensorFlow")
    folders = iter([tmp_path / "apart", tmp_path / "together"])
    assert_callbacks(lambda: [callbacks.TensorBoard(next(folders), update_freq=2)])

    def scalars(folder):
        events = [
            (event.step, value.tag, float(tf.make_ndarray(value.tensor)))
            for path in sorted(folder.rglob("events.*"))
            for event in tf.compat.v1.train.summary_iterator(str(path))
            for value in event.summary.value
            if value.tensor.dtype == tf.float32.as_datatype_enum
            and not value.tensor.tensor_shape.dim
        ]
        return [scalar for scalar in events if "per_second" not in scalar[1]]

    one, other = scalars(tmp_path / "apart"), scalars(tmp_path / "together")
    assert [s[:2] for s in one] == [s[:2] for s in other] != []
    np.testing.assert_allclose([s[2] for s in one], [s[2] for s in other], atol=1e-6)


def test_a_remote_monitor_like_callback_gets_plain_floats():
    seen = []
    record = callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(json.dumps(logs))
    )
    kc.Cohort({"m": member().build()}).fit(**member().arguments(verbose=0), callbacks=[record])
    assert len(seen) == 6


def test_metrics_are_reset_as_by_the_model(monkeypatch):
    """Sums and means are set to zero at once; others, and resets of one's own, are called."""

    class Kept(keras.metrics.MeanAbsoluteError):
        def reset_state(self):
            self.total.assign(self.total + 1)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    for metrics in (["mae", "mse"], ["mae", keras.metrics.AUC()], [Kept(name="kept")]):
        model.compile("sgd", "mse", metrics=metrics)
        x = np.ones((8, 3))
        model.fit(x, x[:, :1], verbose=0)
        before = [np.array(v.value) for v in model.metrics_variables]
        assert any(value.any() for value in before)
        model.reset_metrics()
        expected = [np.array(v.value) for v in model.metrics_variables]
        for variable, value in zip(model.metrics_variables, before, strict=True):
            variable.assign(value)
        backends.reset_metrics(model)
        for variable, value in zip(model.metrics_variables, expected, strict=True):
            np.testing.assert_array_equal(np.array(variable.value), value)
        model.fit(x, x[:, :1], verbose=0)  # which on JAX gives the memory of variables away
