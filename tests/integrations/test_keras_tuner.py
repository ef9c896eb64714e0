"""Trials of KerasTuner end fused as they end one after another."""

import keras
import keras_tuner
import numpy as np
import pytest
from keras import layers
from keras_tuner.src.engine.tuner_utils import TunerCallback
from sklearn.datasets import load_digits

import kerascohost as kc
from kerascohost.integrations.keras_tuner import search
from kerascohost.training.member import _looks_at_batches

X, Y = load_digits(n_class=3, return_X_y=True)
X, Y = (X[:90] / 16).astype("float32"), Y[:90]
DATA = {"x": X[:60], "y": Y[:60], "validation_data": (X[60:], Y[60:]), "epochs": 2, "verbose": 0}

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() == "torch",
        reason="there a fit in turn after an evaluate shuffles in another order",
    ),
    # Of Keras, for the many small models, and for weights that are loaded without an optimizer.
    pytest.mark.filterwarnings("ignore:.*triggered tf.function retracing"),
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning"),
]


def build(hp):
    net = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(hp.Choice("units", [4, 8]), activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )
    rate = hp.Choice("rate", [0.003, 0.03])
    net.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    return net


def build_seeded(hp):
    keras.utils.set_random_seed(3)
    return build(hp)


class Registering(keras_tuner.HyperModel):
    """A hypermodel of whose hyperparameters one is known only after a first trial."""

    def build(self, hp):
        return build_seeded(hp)

    def fit(self, hp, model, *args, **kwargs):
        return model.fit(*args, batch_size=hp.Choice("batch_size", [16, 32]), **kwargs)


def told(tuner):
    return [
        (id_, trial.status, trial.hyperparameters.values, trial.score, trial.best_step)
        for id_, trial in tuner.oracle.trials.items()
    ]


@pytest.mark.parametrize(
    ("kind", "hypermodel"),
    [
        (keras_tuner.RandomSearch, build),
        pytest.param(keras_tuner.GridSearch, build_seeded, marks=pytest.mark.nightly),
        pytest.param(keras_tuner.RandomSearch, Registering(), marks=pytest.mark.nightly),
    ],
)
def test_trials_equal_those_one_after_another(kind, hypermodel, tmp_path):
    ends = []
    for name in ("plain", "together"):
        options = {"directory": tmp_path, "project_name": name, "seed": 4, "max_trials": 3}
        tuner = kind(hypermodel, "val_loss", **options)
        keras.utils.set_random_seed(8)
        if name == "plain":
            tuner.search(**DATA)
        else:
            search(tuner, layout="joined", **DATA)
        [best] = tuner.get_best_models()
        ends.append((told(tuner), best.predict(X, verbose=0).tolist()))
    assert ends[0] == ends[1]


@pytest.mark.nightly
def test_a_search_is_resumed(tmp_path):
    def made(trials):
        return keras_tuner.RandomSearch(
            build_seeded, "val_loss", max_trials=trials, seed=4, directory=tmp_path
        )

    first = made(2)
    search(first, **DATA)
    second = made(3)
    assert told(second) == told(first)
    search(second, **DATA)
    assert [id_ for id_, *_ in told(second)] == ["0", "1", "2"]
    assert told(second)[:2] == told(first)


class Interrupts(keras.callbacks.Callback):
    """Interrupts the second trial."""

    begun = 0

    def on_train_begin(self, logs=None):
        type(self).begun += 1
        if self.begun == 2:
            raise KeyboardInterrupt


@pytest.mark.nightly
def test_trials_of_an_interrupted_search_are_run_again(tmp_path):
    tuner = keras_tuner.RandomSearch(
        build_seeded, "val_loss", max_trials=3, seed=4, directory=tmp_path
    )
    with pytest.raises(KeyboardInterrupt):
        search(tuner, callbacks=[Interrupts()], **DATA)
    assert len(tuner.oracle.trials) == 3
    search(tuner, **DATA)
    assert [status for _, status, *_ in told(tuner)] == ["COMPLETED"] * 3
    assert len(tuner.oracle.trials) == 3


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (keras_tuner.BayesianOptimization, {"max_trials": 4, "num_initial_points": 2}),
        (keras_tuner.Hyperband, {"max_epochs": 4, "factor": 2}),
    ],
)
def test_tuners_that_learn_from_results(kind, options, tmp_path):
    tuner = kind(build_seeded, "val_loss", seed=4, directory=tmp_path, **options)
    search(tuner, at_once=4, **{**DATA, "epochs": 1})
    trials = tuner.oracle.trials.values()
    assert {trial.status for trial in trials} == {"COMPLETED"}
    assert len(trials) >= 4
    [best] = tuner.get_best_models()
    assert np.isfinite(best.predict(X, verbose=0)).all()
    # Each trial's score is that of its hyperparameters, trained alone.
    first = next(iter(trials))
    net = build_seeded(first.hyperparameters)
    epochs = first.hyperparameters.values.get("tuner/epochs", 1)
    history = net.fit(**{**DATA, "epochs": epochs}).history
    np.testing.assert_allclose(min(history["val_loss"]), first.score, rtol=1e-4)


@pytest.mark.nightly
def test_a_trial_that_fails(tmp_path):
    def failing(hp):
        net = build_seeded(hp)
        if (hp.get("units"), hp.get("rate")) == (8, 0.03):
            raise keras_tuner.errors.FailedTrialError("too large")
        return net

    tuner = keras_tuner.GridSearch(failing, "val_loss", max_trials=4, directory=tmp_path)
    search(tuner, **{**DATA, "epochs": 1})
    assert sorted(status for _, status, *_ in told(tuner)) == ["COMPLETED"] * 3 + ["FAILED"]


def test_a_tuner_s_own_hooks_of_batches_are_called(tmp_path):
    seen = []

    class Watching(keras_tuner.RandomSearch):
        def on_batch_end(self, trial, model, batch, logs=None):
            seen.append(batch)

    search(Watching(build_seeded, "val_loss", max_trials=1, directory=tmp_path), **DATA)
    assert seen == [0, 1, 0, 1]


@pytest.mark.nightly
def test_a_tuner_s_hooks_of_batches_that_do_nothing_do_not_slow_its_trials(tmp_path):
    found = []

    class Seen(keras_tuner.HyperModel):
        def build(self, hp):
            return build_seeded(hp)

        def fit(self, hp, model, *args, callbacks, **kwargs):
            found.extend(it for it in callbacks if isinstance(it, TunerCallback))
            return model.fit(*args, callbacks=callbacks, **kwargs)

    for run in (keras_tuner.RandomSearch.search, search):
        tuner = keras_tuner.RandomSearch(
            Seen(), "val_loss", max_trials=1, directory=tmp_path, overwrite=True
        )
        run(tuner, **DATA)
    assert [_looks_at_batches(it, "train") for it in found] == [True, False]


def test_progress_of_the_whole_search(tmp_path, capsys):
    def valued(hp):
        return float(hp.Int("n", 0, 20))

    class Values(keras_tuner.RandomSearch):
        def run_trial(self, trial, *args, **kwargs):
            return valued(trial.hyperparameters)

    tuner = Values(max_trials=9, seed=1, directory=tmp_path)
    search(tuner)
    out, err = capsys.readouterr()
    assert "9/9" in err and "best=" in err
    assert "Trial" not in out
    assert tuner.oracle.verbose == 1


def test_options_that_cannot_be(tmp_path):
    tuner = keras_tuner.RandomSearch(build, "val_loss", max_trials=1, directory=tmp_path)
    with pytest.raises(kc.CohortError, match="group_factor"):
        search(tuner, layout="grouped")
    with pytest.raises(kc.CohortError, match="Expected a tuner of KerasTuner"):
        search(build)
