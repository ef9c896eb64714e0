"""Trials of a study end fused as they end one after another."""

import time

import keras
import numpy as np
import optuna
import pytest
from keras import layers
from optuna_integration import KerasPruningCallback
from sklearn.datasets import load_digits

import kerascohost as kc
from kerascohost.integrations.optuna import optimize

X, Y = load_digits(n_class=3, return_X_y=True)
X, Y = (X[:90] / 16).astype("float32"), Y[:90]

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() == "torch",
        reason="there a fit in turn after an evaluate shuffles in another order",
    ),
    # Of Keras, for the many small models.
    pytest.mark.filterwarnings("ignore:.*triggered tf.function retracing"),
]
optuna.logging.set_verbosity(optuna.logging.ERROR)


def network(rate, units=8):
    net = keras.Sequential(
        [keras.Input((64,)), layers.Dense(units, "relu"), layers.Dense(3, activation="softmax")]
    )
    net.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return net


def seeded(trial):
    """An objective as in the tutorials."""
    keras.utils.set_random_seed(trial.number)
    net = network(trial.suggest_float("rate", 1e-3, 1e-1, log=True))
    net.fit(X[:60], Y[:60], epochs=2, verbose=0)
    return net.evaluate(X[60:], Y[60:], verbose=0)[0]


def unseeded(trial):
    return min(
        network(trial.suggest_float("rate", 1e-3, 1e-1))
        .fit(X, Y, epochs=2, verbose=0)
        .history["loss"]
    )


def new_study(**options):
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=5), **options)


def told(study):
    return [(t.number, t.state.name, t.params, t.values) for t in study.trials]


@pytest.mark.parametrize("objective", [seeded, pytest.param(unseeded, marks=pytest.mark.nightly)])
def test_trials_equal_those_one_after_another(objective):
    keras.utils.set_random_seed(2)
    plain = new_study()
    plain.optimize(objective, n_trials=3)
    keras.utils.set_random_seed(2)
    together = new_study()
    optimize(together, objective, 3, layout="joined", verbose=0)
    assert told(plain) == told(together)


class Watched(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.began = time.perf_counter()

    def on_train_end(self, logs=None):
        self.ended = time.perf_counter()


@pytest.mark.parametrize("layout", ["joined", "auto"])
def test_a_pruning_callback_stops_its_own_trial_only(layout):
    watched = []

    def pruned(trial):
        keras.utils.set_random_seed(trial.number)
        # From the second on they learn nothing, and are worse than the first.
        net = network([0.05, 1e-7, 0.05][trial.number])
        watched.append(Watched())
        prune = KerasPruningCallback(trial, "loss")
        history = net.fit(X, Y, epochs=3, verbose=0, callbacks=[prune, watched[-1]])
        return history.history["loss"][-1]

    pruner = optuna.pruners.ThresholdPruner(upper=1.1, n_warmup_steps=1)
    study = new_study(pruner=pruner)
    optimize(study, pruned, 3, layout=layout, verbose=0)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert list(study.trials[1].intermediate_values) == [0, 1]
    assert max(it.began for it in watched) < min(it.ended for it in (watched[0], watched[2]))


def test_stop_lets_no_more_trials_begin(capsys):
    def stopping(study, trial):
        if trial.number == 1:
            study.stop()

    study = new_study()
    optimize(study, lambda trial: trial.number, 20, callbacks=[stopping], verbose=2)
    assert len(study.trials) == 2
    assert "stop" not in vars(study)
    assert capsys.readouterr().out.splitlines() == ["trial[0]: ended", "trial[1]: ended"]


def test_stop_in_an_objective_before_its_fit():
    def stopping(trial):
        keras.utils.set_random_seed(0)
        if trial.number == 1:
            trial.study.stop()
        network(0.1).fit(X, Y, verbose=0)
        return 1.0

    study = new_study()
    optimize(study, stopping, 20, at_once=2, verbose=0)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 2


def test_no_trials_begin_after_the_timeout():
    study = new_study()
    optimize(study, lambda trial: time.sleep(0.1) or 1.0, None, timeout=0.35, verbose=0)
    assert 3 <= len(study.trials) <= 4
    optimize(study, seeded, 0, verbose=0)
    assert len(study.trials) <= 4


def test_failures():
    def failing(trial):
        keras.utils.set_random_seed(0)
        network(0.1).fit(X[:, :60] if trial.number == 1 else X, Y, verbose=0)
        if trial.number == 2:
            raise KeyError("two")
        return 1.0

    study = new_study()
    optimize(study, failing, 4, catch=(KeyError, ValueError), verbose=0)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    study = new_study()
    with pytest.raises(ValueError, match="60"):
        optimize(study, failing, 9, at_once=2, catch=KeyError, verbose=0)
    assert [t.state.name for t in study.trials][:2] == ["COMPLETE", "FAIL"]
    assert len(study.trials) == 2


def test_a_storage_in_a_file(tmp_path):
    options = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "digits"}
    optimize(new_study(**options), lambda trial: trial.suggest_int("n", 0, 9), 3, verbose=0)
    study = new_study(**options, load_if_exists=True)
    optimize(study, lambda trial: trial.suggest_int("n", 0, 9), 2, verbose=0)
    assert [t.number for t in study.trials] == list(range(5))
    assert all(t.state.name == "COMPLETE" for t in study.trials)


def test_trials_that_set_no_seed_begin_unlike_and_none_is_called_again():
    weights = []

    def drawing(trial):
        net = network(0.01)
        weights.append(net.get_weights()[0])
        stop = keras.callbacks.EarlyStopping("loss", patience=1)
        net.fit(X, Y, epochs=1, verbose=0, callbacks=[stop])
        return float(np.random.random())

    study = new_study()
    optimize(study, drawing, 3, verbose=0)
    assert len(study.trials) == len(weights) == 3
    assert not np.allclose(weights[0], weights[1])
    assert not np.allclose(weights[1], weights[2])


def test_progress_of_the_whole_search(capsys):
    optimize(new_study(), lambda trial: trial.number + 1.0, 10)
    shown = capsys.readouterr().err
    assert "10/10" in shown and "best=1" in shown


def test_options_that_cannot_be():
    with pytest.raises(kc.CohortError, match=r"Expected `n_trials` .* Received: 1\.5"):
        optimize(new_study(), seeded, 1.5)
    with pytest.raises(kc.CohortError, match="group_factor"):
        optimize(new_study(), seeded, 1, layout="grouped")
    for option, value in (("timeout", "x"), ("catch", 3), ("callbacks", told)):
        with pytest.raises(kc.CohortError, match=f"Expected `{option}` .* Received: "):
            optimize(new_study(), seeded, 1, **{option: value})


@pytest.mark.parametrize("outer", [optimize, optuna.Study.optimize])
def test_a_study_in_its_own_objective_is_refused(outer):
    study = new_study()

    def objective(trial):
        optimize(new_study(), lambda trial: 1.0, 1, verbose=0)  # another one may be
        optimize(study, lambda trial: 1.0, 1, verbose=0)
        return 1.0

    with pytest.raises(kc.CohortError, match=r"the study of this trial; make another study\."):
        outer(study, objective, n_trials=1)
    optimize(study, lambda trial: 1.0, 1, verbose=0)
    assert len(study.trials) == 2
