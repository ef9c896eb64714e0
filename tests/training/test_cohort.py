"""What a cohort refuses, and what is left when a run fails."""

import threading
import types
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from numpy.testing import assert_array_equal

import kerascohost as kc
from kerascohost.training import scheduler

BACKEND = keras.backend.backend()


def model(name="a", features=4, seed=0, **compile_args):
    keras.utils.set_random_seed(seed)
    net = keras.Sequential([keras.Input((features,)), layers.Dense(3), layers.Dense(1)], name=name)
    net.compile(**{"optimizer": "adam", "loss": "mse", **compile_args})
    return net


def data(rows=40, features=4):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, features)).astype("float32")
    return x, x[:, :1] * 2


def weights(net):
    return [keras.ops.convert_to_numpy(w.value).copy() for w in net.weights]


WORKERS = types.SimpleNamespace(num_workers=2)


class Untouched:
    """Checks that nothing was trained inside the block."""

    def __init__(self, *models):
        self.models = models

    def __enter__(self):
        self.before = [weights(net) for net in self.models]

    def __exit__(self, *_):
        for net, before in zip(self.models, self.before, strict=True):
            for one, other in zip(before, weights(net), strict=True):
                assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kc.Cohort([]), "at least one model"),
        (lambda: kc.Cohort("ab"), "dict or a list of models. Received: 'ab'"),
        (lambda: kc.Cohort({"": model()}), "names that are non-empty strings. Received: ''"),
        (lambda: kc.Cohort([model("a"), model("a")]), "Received: 'a' twice"),
        (lambda: kc.Cohort({"a": 3}), "'a' to be a keras.Model. Received: 3"),
        (lambda: kc.Cohort([model()], layout="join"), "layout='join'. Did you mean 'joined'"),
        (lambda: kc.Cohort([model()], group_factor=0), "Member 'a': .* at least 1. Received: .*=0"),
        (lambda: kc.Cohort([model()], replicas={"a": 1.5}), "Received: replicas=1.5"),
        (lambda: kc.Cohort([model()], group_factor={"b": 2}), "names of members: a. Received: 'b'"),
        (lambda: kc.Cohort([model()], workers=2), "`workers` to be `.*RayWorkers`.*: workers=2"),
        (lambda: kc.Cohort([model()], workers=WORKERS, at_once=2), "`at_once`. Received: both"),
        (lambda: kc.Cohort([model()], workers=WORKERS, devices=[]), "`devices`. Received: both"),
        (lambda: kc.Cohort([model()], devices="gpu"), "a list of devices.*: devices='gpu'. `work"),
    ],
)
def test_a_cohort_that_cannot_be_is_refused_with_the_reason(make, message):
    with pytest.raises(kc.CohortError, match=message):
        make()


def test_the_same_model_twice_points_to_replicas():
    net = model()
    with pytest.raises(kc.CohortError, match=r"same one as 'x' and 'y'.*`replicas`"):
        kc.Cohort({"x": net, "y": net})


def test_shared_variables_point_to_replicas():
    encoder = layers.Dense(3)
    nets = {}
    for name in ("x", "y"):
        nets[name] = keras.Sequential([keras.Input((4,)), encoder, layers.Dense(1)])
        nets[name].compile("adam", "mse")
    with (
        Untouched(*nets.values()),
        pytest.raises(kc.CohortError, match=r"'x' and 'y' with the same variable .*`replicas`"),
    ):
        kc.Cohort(nets).fit(*data(), verbose=0)


def test_a_shared_optimizer_is_refused():
    adam = keras.optimizers.Adam()
    nets = [model("a", optimizer=adam), model("b", optimizer=adam)]
    with pytest.raises(kc.CohortError, match=r"same optimizer.*optimizer of its own"):
        kc.Cohort(nets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": {"a": data()[0]}}, "data for every member. Received: none for 'b'"),
        ({"x": {"a": data()[0], "bb": data()[0]}}, "Received: 'bb'. Did you mean 'b'"),
        ({"x": {"c": data()[0]}}, "keys of `x` .* of which this is 'a', or .*. Received: 'c'"),
        ({"class_weight": {"bb": {0: 5.0}}}, "keys of `class_weight` .* Received: 'bb'. Did you"),
        ({"class_weight": {"bb": None}}, "keys of `class_weight` .* Received: 'bb'. Did you"),
        ({"sample_weight": {"bb": np.ones(40)}}, "keys of `sample_weight` .* Received: 'bb'. Did"),
        ({"epochs": {"c": 2}}, "keys of `epochs` to be names of members: a, b. Received: 'c'"),
        ({"epoch": 2}, "arguments of `keras.Model.fit`. Received: epoch=2. Did you mean 'epochs'"),
        ({"x": None}, "Member 'a': expected `x`"),
        ({"x": [data()[0]] * 2}, r"Member 'a': .* 1 input\(s\).* 2 arrays.*give a dict"),
        ({"y": {"a": data()[1]}}, "Member 'b': expected `y`"),
        ({"batch_size": {"b": -1}}, "Member 'b': .*`batch_size` to be an integer .*=-1"),
        ({"epochs": [1, 2]}, r"Received: epochs=\[1, 2\]. .*give a dict"),
        ({"validation_split": 1.5}, "`validation_split` to be from 0 to less than 1"),
        ({"validation_split": {"b": "x"}}, "Member 'b': .*`validation_split` .*: .*='x'"),
        ({"validation_split": 0.1, "validation_freq": 0}, "Member 'a': .*`validation_freq` .*=0"),
        ({"validation_data": data(), "validation_freq": (1, 2)}, r"`validation_freq` .*=\(1, 2\)"),
        ({"epochs": {"b": None}}, "Member 'b': .*`epochs` to be an integer .*: epochs=None"),
        ({"initial_epoch": None}, "Member 'a': .*`initial_epoch` to be an integer .*=None"),
        ({"callbacks": {"b": [3]}}, "Member 'b': expected `callbacks` .*Callback`. Received: 3"),
        ({"callbacks": "x"}, "Expected `callbacks` to be a list .*Received: 'x'"),
        ({"x": {}}, "Received: no keys."),
        ({"validation_data": data()[0]}, "Member 'a': validation_data: Expected `y`"),
        ({"callbacks": {"b": [keras.callbacks.EarlyStopping]}}, r"not EarlyStopping\(\)"),
    ],
)
def test_bad_arguments_are_refused_before_any_training(change, message):
    nets = {"a": model("a"), "b": model("b", seed=1)}
    x, y = data()
    with Untouched(*nets.values()), pytest.raises(kc.CohortError, match=message):
        kc.Cohort(nets).fit(**{"x": x, "y": y, "verbose": 0, **change})


def test_a_frequency_without_validation_data_is_not_looked_at():
    history = kc.Cohort([model()]).fit(*data(), validation_freq="x", verbose=0)
    assert history["a"].epoch == [0]


def test_weights_by_the_names_of_outputs_are_taken():
    x, y = data()
    inputs = keras.Input((4,))
    net = keras.Model(inputs, {"out": layers.Dense(1)(inputs)}, name="a")
    net.compile("adam", "mse")
    kc.Cohort([net]).fit(x, y, sample_weight={"out": np.ones(40)}, verbose=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": {"a": data(39)[1], "b": data()[1]}}, "cardinality.*\n.*member 'a'"),
        ({"x": {"a": data()[0], "b": data(40, 7)[0]}}, "shape.*\n.*member 'b'"),
        ({"validation_split": {"b": 0.999}}, "not sufficient to split.*\n.*member 'b'"),
        ({"sample_weight": np.ones(40), "class_weight": {0: 1.0}}, "member 'a'"),
        ({"validation_data": {"b": data(40, 7)}}, "shape.*\n.*`validation_data`.*\n.*member 'b'"),
    ],
)
def test_what_keras_refuses_keeps_its_type_and_names_the_member(change, message):
    """Before any training, as separate `fit` refuses it; a note has the member's name."""
    nets = {"a": model("a"), "b": model("b", seed=1)}
    x, y = data()
    with Untouched(*nets.values()), pytest.raises(ValueError, match="(?s)" + message) as caught:
        kc.Cohort(nets).fit(**{"x": x, "y": y, "verbose": 0, **change})
    assert not isinstance(caught.value, kc.CohortError)


def test_an_uncompiled_member_is_named():
    net = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    with pytest.raises(kc.CohortError, match=r"Member 'raw': you must call `compile\(\)`"):
        kc.Cohort({"raw": net}).fit(*data(), verbose=0)


def test_a_model_with_its_own_fit_is_refused():
    class Own(keras.Sequential):
        def fit(self, *args, **kwargs):
            return super().fit(*args, **kwargs)

    net = Own([keras.Input((4,)), layers.Dense(1)], name="own")
    net.compile("adam", "mse")
    with pytest.raises(kc.CohortError, match=r"'own': .* its own `fit`.*`train_step` .* is fine"):
        kc.Cohort([net]).fit(*data(), verbose=0)


def test_one_generator_for_all_is_refused():
    def stream():
        while True:
            yield data(4)

    with pytest.raises(kc.CohortError, match="Received: one generator for 'a' and 'b'"):
        kc.Cohort([model("a"), model("b")]).fit(stream(), steps_per_epoch=2, verbose=0)


class Reshuffled(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return data(4)

    def on_epoch_end(self):
        pass


def test_what_changes_while_it_is_used_is_not_shared():
    cohort = kc.Cohort([model("a"), model("b")])
    one = Reshuffled()
    with pytest.raises(kc.CohortError, match=r"one Reshuffled for 'a' and 'b'.*x=\{'a': \.\.\.,"):
        cohort.fit({"a": one, "b": one}, verbose=0)
    stop = keras.callbacks.EarlyStopping()
    with pytest.raises(kc.CohortError, match=r"`callbacks` that each .* one EarlyStopping for"):
        cohort.fit(*data(), callbacks={"a": [stop], "b": [stop]}, verbose=0)
    cohort.fit({"a": Reshuffled(), "b": Reshuffled()}, verbose=0)


def test_sparse_and_ragged_data_is_refused():
    sparse = pytest.importorskip("scipy.sparse", reason="a sparse matrix is SciPy's")
    with pytest.raises(kc.CohortError, match=r"'a': expected dense data. Received: csr_matrix"):
        kc.Cohort([model("a")]).fit(sparse.csr_matrix(data()[0]), data()[1], verbose=0)
    tf = pytest.importorskip("tensorflow", reason="ragged tensors are TensorFlow's")
    ragged = tf.ragged.constant([[1.0], [2.0, 3.0]])
    dataset = tf.data.Dataset.from_tensor_slices((ragged, [[1.0], [2.0]])).batch(2)
    with pytest.raises(kc.CohortError, match="Received: a dataset of RaggedTensor"):
        kc.Cohort([model("a")]).fit(dataset, verbose=0)


def test_one_file_for_all_members_is_refused(tmp_path):
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    with pytest.raises(kc.CohortError, match="CSVLogger for each member"):
        kc.Cohort([model("a"), model("b")]).fit(*data(), callbacks=[logger], verbose=0)


def test_replicas_of_a_model_with_its_own_train_step_are_refused():
    class Own(keras.Sequential):
        def train_step(self, *args):
            return super().train_step(*args)

    net = Own([keras.Input((4,)), layers.Dense(1)], name="own")
    net.compile("adam", "mse")
    with pytest.raises(kc.CohortError, match="Member 'own': expected `replicas=1`"):
        kc.Cohort([net], replicas=2).fit(*data(), verbose=0)


def test_replicas_that_do_not_split_the_batches_are_refused():
    def stream():
        while True:
            yield data(5)

    net = model()
    made = kc.Cohort([net], replicas=2)
    x, y = data(10)
    made.fit(x, y, batch_size=5, verbose=0)  # arrays are cut to fit
    made.fit(stream(), steps_per_epoch=1, shuffle=False, verbose=0)  # two batches are joined
    assert len(made.history["a"].epoch) == 1


class Boom(keras.callbacks.Callback):
    def __init__(self, error, epoch):
        super().__init__()
        self.error, self.epoch = error, epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_failing_callback_leaves_weights_and_histories(error):
    nets = {"good": model("good"), "bad": model("bad", seed=1)}
    cohort = kc.Cohort(nets)
    with Changed(nets["good"]), pytest.raises(type(error)) as caught:
        cohort.fit(*data(), epochs=5, callbacks={"bad": [Boom(error, 2)]}, verbose=0)
    assert len(cohort.history["good"].epoch) >= 2
    assert cohort.history["bad"].epoch == [0, 1, 2] or cohort.history["bad"].epoch == [0, 1]
    notes = getattr(caught.value, "__notes__", [])
    assert isinstance(error, KeyboardInterrupt) or "member 'bad'" in notes[0]
    cohort.fit(*data(), epochs=1, verbose=0)  # and it can go on


def test_an_interrupt_while_tracing_leaves_a_usable_cohort():
    class Slow(keras.Sequential):
        interrupts = 0

        def train_step(self, *args):
            if Slow.interrupts:
                Slow.interrupts -= 1
                raise KeyboardInterrupt
            return super().train_step(*args)

    nets = {"a": model("a"), "b": Slow([keras.Input((4,)), layers.Dense(1)])}
    nets["b"].compile("sgd", "mse")
    cohort = kc.Cohort(nets)
    Slow.interrupts = 1
    with pytest.raises(KeyboardInterrupt):
        cohort.fit(*data(), verbose=0)
    cohort.fit(*data(), epochs={"a": 2, "b": 1}, verbose=0)
    assert len(cohort.history["a"].epoch) == 2


@pytest.mark.skipif(BACKEND == "torch", reason="torch runs eagerly: Keras's own logs are handed on")
@pytest.mark.parametrize("layout", ["joined", "stacked"])
def test_no_tensor_is_left_to_numpy_which_would_lose_an_interrupt(layout, monkeypatch):
    logs = []
    call = scheduler._Program.__call__
    monkeypatch.setattr(
        scheduler._Program, "__call__", lambda *args: logs.append(call(*args)) or logs[-1]
    )
    kc.Cohort([model("a"), model("b", seed=1)], layout=layout).fit(*data(), verbose=0)
    leaves = keras.tree.flatten(logs)
    assert leaves
    assert all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in leaves)


def test_stop_from_outside_ends_within_the_epoch():
    net = model("a")
    other = model("b", seed=1)
    stopper = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: setattr(net, "stop_training", True)
    )
    x, y = data(400)
    cohort = kc.Cohort([net, other])
    cohort.fit(x, y, batch_size=4, epochs=3, callbacks={"b": [stopper]}, verbose=0)
    assert cohort.history["a"].epoch == [0]
    assert steps_of(net) < 100
    assert steps_of(other) == 300


def test_stop_as_the_first_member_begins_stops_those_that_begin_after_it():
    cohort = kc.Cohort([model("a"), model("b", seed=1)])
    stopping = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: cohort.stop())
    cohort.fit(*data(), epochs=3, batch_size=4, callbacks={"a": [stopping]}, verbose=0)
    assert [history.epoch for history in cohort.history.values()] == [[0], [0]]
    assert [steps_of(net) for net in cohort.members.values()] == [1, 1]
    cohort.fit(*data(), epochs=2, verbose=0)
    assert [history.epoch for history in cohort.history.values()] == [[0, 1], [0, 1]]


class Changed:
    """Checks that the model was trained inside the block, and holds usable weights."""

    def __init__(self, net):
        self.net = net

    def __enter__(self):
        self.before = weights(self.net)

    def __exit__(self, *_):
        pairs = zip(self.before, weights(self.net), strict=True)
        assert any(not np.array_equal(one, other) for one, other in pairs)
        assert all(np.isfinite(w).all() for w in weights(self.net))


def steps_of(net):
    return int(keras.ops.convert_to_numpy(net.optimizer.iterations.value))


def classifier(name, seed):
    keras.utils.set_random_seed(seed)
    net = keras.Sequential([keras.Input((4,)), layers.Dense(5, activation="softmax")], name=name)
    net.compile("sgd", "sparse_categorical_crossentropy")
    return net


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="only TensorFlow on a CPU checks labels while it computes"
)
def test_a_step_that_fails_names_its_member_and_tears_no_other():
    """A label out of range in the 23rd batch of one member."""
    import tensorflow as tf

    nets = {name: classifier(name, seed) for seed, name in enumerate(["one", "bad", "two"])}
    x, labels = data(40 * 4)[0], np.arange(160) % 5
    wrong = labels.copy()
    wrong[22 * 4] = 99
    cohort = kc.Cohort(nets)
    y = {"one": labels, "bad": wrong, "two": labels}
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        cohort.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert "member 'bad'" in caught.value.__notes__[0]
    assert steps_of(nets["bad"]) == 22
    for name in ("one", "two"):
        alone = classifier(name, ["one", "bad", "two"].index(name))
        alone.fit(
            x, labels, batch_size=4, shuffle=False, verbose=0, steps_per_epoch=steps_of(nets[name])
        )
        for a, b in zip(weights(alone), weights(nets[name]), strict=True):
            assert_array_equal(a, b)


def test_a_second_fit_traces_nothing():
    traces = []

    class Counting(keras.Sequential):
        def call(self, *args, **kwargs):
            traces.append(self.name)
            return super().call(*args, **kwargs)

    nets = []
    for name in ("a", "b"):
        net = Counting([keras.Input((4,)), layers.Dense(1)], name=name)
        net.compile("adam", "mse")
        nets.append(net)
    cohort = kc.Cohort(nets)
    arguments = {"epochs": 2, "validation_split": 0.25, "verbose": 0, "batch_size": 8}
    cohort.fit(*data(), **arguments)
    traced = len(traces)
    cohort.fit(*data(), **arguments)
    assert traced > 0
    assert BACKEND == "torch" or len(traces) == traced


def test_compiling_a_member_anew_is_noticed():
    net = model(optimizer=keras.optimizers.SGD(0.0))
    cohort = kc.Cohort([net])
    with Untouched(net):
        cohort.fit(*data(), verbose=0)
    net.compile(keras.optimizers.SGD(0.1), "mse")
    with Changed(net):
        cohort.fit(*data(), verbose=0)


def test_a_list_of_callbacks_is_copied_for_each_member():
    stopper = keras.callbacks.EarlyStopping("loss", mode="max", patience=0)
    nets = [model("a"), model("b")]
    history = kc.Cohort(nets).fit(*data(), epochs=9, callbacks=[stopper], verbose=0)
    assert [len(history[name].epoch) for name in history] == [2, 2]
    assert stopper.model is None


def test_progress_shows_a_bar_per_member(capsys):
    nets = [model("first"), model("second")]
    kc.Cohort(nets).fit(*data(), epochs={"first": 1, "second": 2}, verbose=1)
    shown = capsys.readouterr().err
    assert "first: 100%" in shown and "second: 100%" in shown and "epoch=2/2" in shown


def test_progress_by_lines_and_silence(capsys):
    nets = [model("first"), model("second")]
    cohort = kc.Cohort(nets)
    cohort.fit(*data(), epochs=1, verbose={"first": 2, "second": 0})
    out, err = capsys.readouterr()
    assert out.startswith("first: Epoch 1/1 - loss: ") and "second" not in out + err


def test_a_loss_that_compares_with_nothing_needs_no_targets():
    class Size(keras.losses.Loss):
        def __call__(self, y_true, y_pred, sample_weight=None):
            return keras.ops.mean(y_pred**2)

    nets = [model("a"), model("b")]
    for net in nets:
        net.compile("sgd", Size())
    x, _ = data()
    nets[1].set_weights(nets[0].get_weights())
    expected = nets[0].fit(x, shuffle=False, verbose=0).history["loss"]
    found = kc.Cohort([nets[1]]).fit(x, shuffle=False, verbose=0)
    np.testing.assert_allclose(found["b"].history["loss"], expected, rtol=1e-6)


def test_output_to_a_file_is_a_line_per_epoch(capsys):
    kc.Cohort([model("first")]).fit(*data(), epochs=2)
    out, err = capsys.readouterr()
    assert out.count("first: Epoch ") == 2 and not err


def test_a_cohort_shows_its_members():
    cohort = kc.Cohort([model("a"), model("b")])
    assert repr(cohort) == "Cohort(a, b, layout='joined')"
    grouped = kc.Cohort(cohort.members, group_factor={"a": 2})
    assert repr(grouped) == "Cohort(a, b, layout='joined', group_factor={'a': 2, 'b': 1})"
    assert list(cohort.members) == ["a", "b"]


def test_evaluate_and_predict_show_progress_too(capsys):
    cohort = kc.Cohort([model("first"), model("second")])
    cohort.evaluate(*data(), verbose={"first": 2, "second": 0})
    cohort.predict(data()[0], verbose={"first": 1, "second": 0})
    out, err = capsys.readouterr()
    assert out.startswith("first: loss: ") and "first: 100%" in err and "second" not in out + err


def test_callbacks_of_two_members_that_write_to_one_file_are_refused(tmp_path):
    cohort = kc.Cohort({name: keras.Sequential([keras.layers.Dense(1)]) for name in "ab"})
    for model in cohort.members.values():
        model.compile("sgd", "mse")
    loggers = {name: [keras.callbacks.CSVLogger(tmp_path / "log.csv")] for name in "ab"}
    with pytest.raises(kc.CohortError, match=r"log\.csv'.* of 'a' and in one of 'b'; give each"):
        cohort.fit(np.ones((4, 2)), np.ones((4, 1)), callbacks=loggers, verbose=0)


def test_the_most_epochs_that_keras_allows_are_those_of_fit():
    x, y = data()
    histories, told = [], []
    keras.config.set_max_epochs(2)
    try:
        for train in (keras.Model.fit, lambda net, *args, **kw: kc.Cohort([net]).fit(*args, **kw)):
            with warnings.catch_warnings(record=True) as raised:
                warnings.simplefilter("always")
                history = train(model(), x, y, epochs=4, verbose=0)
            histories.append(
                history.history if hasattr(history, "history") else history["a"].history
            )
            messages = [str(one.message) for one in raised]
            told.append([one for one in messages if one.startswith("Limiting")])
    finally:
        keras.config.set_max_epochs(None)
    assert told[0] == told[1] == ["Limiting epochs to 2"]
    assert len(histories[1]["loss"]) == 2
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], abs=1e-6)


class Locked(keras.callbacks.Callback):
    """A callback that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_callbacks_that_cannot_be_copied_are_refused_for_several_members():
    nets = {"a": model(), "b": model("b")}
    with Untouched(*nets.values()), pytest.raises(kc.CohortError, match="callbacks that can be co"):
        kc.Cohort(nets).fit(*data(), callbacks=[Locked()], verbose=0)
    own = {name: [Locked()] for name in nets}
    assert len(kc.Cohort(nets).fit(*data(), callbacks=own, verbose=0)) == 2


def test_a_list_object_of_callbacks_is_taken_as_fit_takes_it():
    class Noting(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def on_epoch_end(self, epoch, logs=None):
            self.seen.append((epoch, self.model.name, round(logs["loss"], 5)))

    seen = []
    for train in (keras.Model.fit, lambda net, *args, **kw: kc.Cohort([net]).fit(*args, **kw)):
        net, noting = model(), Noting()
        callbacks = keras.callbacks.CallbackList([noting], add_history=True, model=net)
        train(net, *data(), epochs=2, shuffle=False, callbacks=callbacks, verbose=0)
        seen.append((noting.seen, net.history.epoch))
    assert seen[0] == seen[1] and len(seen[0][0]) == 2


def test_logs_that_are_no_dict_fail_as_in_fit():
    class Listing(keras.Sequential):
        def train_step(self, *args, **kwargs):
            logs = super().train_step(*args, **kwargs)
            return [1.0] if BACKEND != "jax" else ([1.0], logs[1])

    for train in (keras.Model.fit, lambda net, *args, **kw: kc.Cohort([net]).fit(*args, **kw)):
        net = Listing([keras.Input((4,)), layers.Dense(1)], name="a")
        net.compile("sgd", "mse")
        with pytest.raises(AttributeError, match="has no attribute 'items'"):
            train(net, *data(), verbose=0)
