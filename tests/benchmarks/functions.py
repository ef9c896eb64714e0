"""Ten folds of an MLP with `evaluate`: a plain loop, `kc.map`, the loop in turn, and by hand.

Each round makes fresh models, so that tracing and compiling are included; the sides take turns.
Those that wait are functions which share a model, so that none can be run with another. Prints a
row as a JSON line.
"""

import json
import os
import statistics
import time

import keras
import numpy as np
from keras import layers

import kerascohost as kc
from kerascohost.deferred import loops
from tests.benchmarks import cases

FOLDS = 10
EPOCHS = 20
ROUNDS = 3
X, Y = cases.normal(1000, (20,), 1)
ROWS = np.arange(len(X)) % FOLDS


def net(seed):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(32, activation="relu"),
            layers.Dense(16, activation="relu"),
            layers.Dense(1),
        ]
    )
    return cases.compiled(model)


def fold(i):
    model = net(i)
    model.fit(X[i != ROWS], Y[i != ROWS], epochs=EPOCHS, verbose=0)
    return model.evaluate(X[i == ROWS], Y[i == ROWS], verbose=0)


def by_hand(layout):
    models = {f"m{i}": net(i) for i in range(FOLDS)}
    cohort = kc.Cohort(models, layout=layout)
    apart = [{f"m{i}": data[i != ROWS] for i in range(FOLDS)} for data in (X, Y)]
    held_out = [{f"m{i}": data[i == ROWS] for i in range(FOLDS)} for data in (X, Y)]
    cohort.fit(*apart, epochs=EPOCHS, verbose=0)
    return list(cohort.evaluate(*held_out, verbose=0).values())


def go_on(model):
    model.fit(X, Y, epochs=3, verbose=0)
    return model.evaluate(X, Y, verbose=0)


def waiting(call):
    model = net(0)
    return list(call(go_on, [model] * FOLDS))


def in_turn(layout):
    return kc.map(fold, range(FOLDS), layout=layout, verbose=0)


LOOP = """
scores = []
for i in range(FOLDS):
    model = net(i)
    model.fit(X[i != ROWS], Y[i != ROWS], epochs=EPOCHS, verbose=0)
    scores.append(model.evaluate(X[i == ROWS], Y[i == ROWS], verbose=0))
"""
WAITING_LOOP = """
model, scores = net(0), []
for i in range(FOLDS):
    model.fit(X, Y, epochs=3, verbose=0)
    scores.append(model.evaluate(X, Y, verbose=0))
"""


def loop(program, layout="joined"):
    """The results of a program whose loops run in turn."""
    names = {k: v for k, v in globals().items() if not k.startswith("__")}
    names["__name__"] = "program"
    loops.run(program, "<program>", names, layout, tell=lambda line: None)
    return names["scores"]


SIDES = {
    "plain": lambda: list(map(fold, range(FOLDS))),
    "map, joined": lambda: in_turn("joined"),
    "map, auto": lambda: in_turn("auto"),
    "loop, joined": lambda: loop(LOOP),
    "loop, auto": lambda: loop(LOOP, "auto"),
    "by hand, joined": lambda: by_hand("joined"),
    "by hand, auto": lambda: by_hand("auto"),
    "waits, plain": lambda: waiting(map),
    "waits, map": lambda: waiting(lambda f, models: kc.map(f, models, verbose=0)),
    "waits, loop": lambda: loop(WAITING_LOOP),
}


def main():
    times, scores = {side: [] for side in SIDES}, {}
    for _ in range(ROUNDS):
        for side, run in SIDES.items():
            keras.utils.clear_session(free_memory=False)
            began = time.perf_counter()
            scores[side] = run()
            times[side].append(time.perf_counter() - began)
    seconds = {side: statistics.median(taken) for side, taken in times.items()}
    differences = {
        side: float(np.abs(np.subtract(scores["plain"], scores[side])).max())
        for side in ("map, joined", "loop, joined")
    }
    row = {"seconds": seconds, "difference": differences["map, joined"], "differences": differences}
    print(json.dumps({"backend": os.environ["KERAS_BACKEND"], **row}))


if __name__ == "__main__":
    main()
