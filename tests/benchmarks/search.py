"""Searches with the tools of others, as they are and fused; run on its own, on one backend:

    KERAS_BACKEND=jax python -m tests.benchmarks.search [CASE ...]

The sides take turns (`ROUNDS` of them, by default one); tracing and compiling are included, as each
side makes its models afresh. Prints a line of JSON for each case: seconds of wall and CPU time, and
the largest difference of a score from the plain search.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time

import keras
import keras_tuner
import numpy as np
import optuna
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_validate

from kerascohost.integrations.keras_tuner import search
from kerascohost.integrations.optuna import optimize
from kerascohost.integrations.sklearn import KerasClassifier, fused

X, Y = load_digits(return_X_y=True)
X = (X / 16).astype("float32")
HELD_OUT = slice(1400, None)
TRAINED = slice(0, 1400)
EPOCHS = 5
ROUNDS = int(os.environ.get("ROUNDS", "1"))

# How many times as fast as the plain search `auto` is meant to be.
TARGETS = {"grid": 6, "folds": 5, "optuna": 6, "random": 3, "hyperband": 2}

SIDES = ("plain", "joined", "auto")

# The searches whose trials do not depend on results, so that each score has its counterpart.
COMPARABLE = {"grid", "folds", "optuna", "random"}


def network(rate, dropout=0.2, units=64):
    keras.utils.set_random_seed(7)
    net = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(units, activation="relu"),
            layers.Dropout(dropout, seed=1),
            layers.Dense(10, activation="softmax"),
        ]
    )
    net.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return net


def build(rate=0.001, dropout=0.2):
    return network(rate, dropout)


def in_block(side):
    if side == "plain":
        return contextlib.nullcontext()
    return fused(layout=side, verbose=0)


def grid(side):
    values = {"rate": [3e-4, 1e-3, 3e-3, 1e-2], "dropout": [0.0, 0.2, 0.4]}
    classifier = KerasClassifier(build, epochs=EPOCHS, verbose=0)
    with in_block(side):
        found = GridSearchCV(classifier, values, cv=5, refit=False).fit(X, Y).cv_results_
    return found["mean_test_score"]


def folds(side):
    with in_block(side):
        return cross_validate(
            KerasClassifier(build, epochs=EPOCHS, verbose=0), X, Y, cv=10, scoring="neg_log_loss"
        )["test_score"]


def objective(trial):
    net = network(trial.suggest_float("rate", 1e-4, 1e-1, log=True))
    net.fit(X[TRAINED], Y[TRAINED], epochs=EPOCHS, verbose=0)
    return net.evaluate(X[HELD_OUT], Y[HELD_OUT], verbose=0)[0]


def study(side):
    made = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    if side == "plain":
        made.optimize(objective, n_trials=64)
    else:
        optimize(made, objective, 64, layout=side, verbose=0)
    return [trial.value for trial in made.trials]


def tuned(kind, side, **options):
    def made(hp):
        return network(hp.Float("rate", 1e-4, 1e-1, sampling="log"))

    data = {"validation_data": (X[HELD_OUT], Y[HELD_OUT]), "epochs": EPOCHS, "verbose": 0}
    with tempfile.TemporaryDirectory() as folder:
        tuner = kind(made, "val_loss", seed=1, directory=folder, **options)
        if side == "plain":
            tuner.search(X[TRAINED], Y[TRAINED], **data)
        else:
            search(tuner, X[TRAINED], Y[TRAINED], layout=side, **data)
        return [trial.score for trial in tuner.oracle.trials.values()]


CASES = {
    "grid": grid,
    "folds": folds,
    "optuna": study,
    "random": lambda side: tuned(keras_tuner.RandomSearch, side, max_trials=16),
    "hyperband": lambda side: tuned(keras_tuner.Hyperband, side, max_epochs=9, factor=3),
}


def measured(name):
    """The seconds of wall and CPU time by side, and the largest differences from the plain one."""
    taken, scores = {side: [] for side in SIDES}, {}
    for _ in range(ROUNDS):
        for side in SIDES:
            keras.utils.clear_session()
            wall, cpu = time.perf_counter(), time.process_time()
            scores[side] = CASES[name](side)
            taken[side].append((time.perf_counter() - wall, time.process_time() - cpu))
    median = {
        side: [statistics.median(times) for times in zip(*taken[side], strict=True)]
        for side in SIDES
    }
    plain = scores["plain"]
    apart = {
        side: float(np.abs(np.subtract(plain, scores[side])).max())
        for side in SIDES[1:]
        if name in COMPARABLE
    }
    return median, apart


def main():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in sys.argv[1:] or CASES:
        seconds, apart = measured(name)
        (wall, cpu), (fused_wall, fused_cpu) = seconds["plain"], seconds["auto"]
        row = {
            "backend": keras.backend.backend(),
            "case": name,
            "seconds": seconds,
            "difference": apart,
            "wall": wall / fused_wall,
            "cpu": cpu / fused_cpu,
            "target": TARGETS[name],
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
