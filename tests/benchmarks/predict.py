"""Measures prediction and the second round of a search on the current backend; prints a JSON line.

16 MLPs (784-64-10) predict 2,048 rows: one after another by their own `predict`, stacked, and by
the loop that one would write by hand, batch by batch, which has the weights stacked already. In one
process, rounds interleaved, medians of them; the first calls trace and compile. Then 16 clones are
trained and evaluated, and 16 others: how often a layer is called to trace the second ones.
"""

import importlib
import json
import statistics
import sys
import time
from collections import defaultdict

import keras
import numpy as np

import kerascohost as kc
from tests.benchmarks.real_size import BATCH, MEMBERS, data, models

ROWS, ROUNDS = 2048, 7


def timed(call):
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def traces_of_a_second_generation(x, y):
    calls = []
    call = keras.layers.Dense.call

    def counted(self, inputs, training=None):
        calls.append(self)
        return call(self, inputs, training=training)

    def generation():
        cohort = kc.Cohort(models(), layout="stacked")
        cohort.build(x, y)
        before = len(calls)
        cohort.fit(x, y, validation_split=0.25, verbose=0)
        cohort.predict(x, verbose=0)
        return len(calls) - before

    keras.layers.Dense.call = counted
    try:
        generation()
        return generation()
    finally:
        keras.layers.Dense.call = call


def main():
    x, y = (array[:ROWS] for array in data())
    backend = keras.backend.backend()
    own = models()
    hand = importlib.import_module(f"tests.benchmarks.hand_{backend}").Hand(
        [model.get_weights() for model in own.values()]
    )
    cohort = kc.Cohort(own, layout="stacked")
    sides = {
        "separate": lambda: {n: m.predict(x, verbose=0) for n, m in own.items()},
        "stacked": lambda: cohort.predict(x, verbose=0),
        "by_hand": lambda: dict(zip(own, hand.predict(x, BATCH), strict=True)),
    }
    first, warm, found = {}, defaultdict(list), {}
    for side, predict in sides.items():
        found[side], first[side] = timed(predict)
    for _ in range(ROUNDS):
        for side, predict in sides.items():
            warm[side].append(timed(predict)[1])
    row = {
        "backend": backend,
        "members": MEMBERS,
        "first": first,
        "warm": {side: statistics.median(times) for side, times in warm.items()},
        "difference": max(
            float(np.abs(found["separate"][name] - found[side][name]).max())
            for side in ("stacked", "by_hand")
            for name in own
        ),
        "traces": traces_of_a_second_generation(x, y),
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
