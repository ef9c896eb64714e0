"""Measures data of real size on the current backend; prints rows as JSON lines.

16 MLPs (784-64-10) over one x of 20,000 rows, shuffled: cohorts against the loops that one would
write by hand, which take the rows of each step from one array on the device, and against themselves
with all batches copied chunk by chunk (what is done with arrays beyond the budget). In one process,
rounds interleaved, medians of them; a time is an epoch of a warm `fit`.
"""

import importlib
import json
import statistics
import sys
import time
from collections import defaultdict
from functools import partial

import keras
import numpy as np

import kerascohost as kc
from kerascohost.backends import resident

MEMBERS, ROWS, FEATURES, BATCH = 16, 20_000, 784, 32
ROUNDS = 5
EPOCHS = 2  # of a warm `fit`


def mlp(seed):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile("adam", "mse")
    return model


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, FEATURES)).astype("float32")
    return x, (x @ random.normal(size=(FEATURES, 10)) / 28).astype("float32")


def models():
    return {f"m{seed}": mlp(seed) for seed in range(MEMBERS)}


def fit(cohort, share, x, y):
    """Trains with so much of the free memory for arrays that stay on the device."""
    resident._SHARE, before = share, resident._SHARE
    try:
        keras.utils.set_random_seed(0)
        cohort.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    finally:
        resident._SHARE = before


def measured(sides, rounds):
    """Seconds of an epoch of each side, and the processor's seconds."""
    wall, busy = defaultdict(list), defaultdict(list)
    for _ in range(rounds):
        for side, train in sides.items():
            began, ran = time.perf_counter(), time.process_time()
            train()
            wall[side].append((time.perf_counter() - began) / EPOCHS)
            busy[side].append((time.process_time() - ran) / EPOCHS)
    return [{s: statistics.median(own) for s, own in times.items()} for times in (wall, busy)]


def by_auto(x, y, rounds):
    """Seconds of an epoch of each layout and of `auto`, on arrays that stay on the device."""
    layouts = ("joined", "stacked", "auto")
    cohorts = {layout: kc.Cohort(models(), layout=layout) for layout in layouts}
    sides = {
        layout: partial(fit, cohort, resident._SHARE, x, y) for layout, cohort in cohorts.items()
    }
    for train in sides.values():
        train()
    wall, busy = measured(sides, rounds)
    row = {"backend": keras.backend.backend(), "layout": "auto"}
    print(json.dumps({**row, "seconds": wall, "processor": busy}), flush=True)


def main(rounds=ROUNDS, layouts=("joined", "stacked", "auto")):
    x, y = data()
    hand = importlib.import_module(f"tests.benchmarks.hand_{keras.backend.backend()}")
    for layout in layouts:
        if layout == "auto":
            by_auto(x, y, rounds)
            continue
        sides = {}
        cohorts = {side: kc.Cohort(models(), layout=layout) for side in ("resident", "chunks")}
        sides["resident"] = partial(fit, cohorts["resident"], resident._SHARE, x, y)
        sides["chunks"] = partial(fit, cohorts["chunks"], 0, x, y)
        weights = [model.get_weights() for model in models().values()]
        groups = [weights] if layout == "stacked" else [[own] for own in weights]
        sides["by_hand"] = partial(by_hand, [hand.Hand(own) for own in groups], x, y)
        for train in sides.values():
            train()
        apart = max(
            float(np.abs(a - b).max())
            for name in cohorts["chunks"].members
            for a, b in zip(
                *(cohort.members[name].get_weights() for cohort in cohorts.values()), strict=True
            )
        )
        wall, busy = measured(sides, rounds)
        row = {"backend": keras.backend.backend(), "layout": layout, "difference": apart}
        print(json.dumps({**row, "seconds": wall, "processor": busy}), flush=True)


def by_hand(loops, x, y):
    """Trains by these loops, each of one or more models, in an order per epoch."""
    random = np.random.default_rng(0)
    orders = [random.permutation(ROWS).reshape(-1, BATCH) for _ in range(EPOCHS)]
    on_device = loops[0].put((x, y))
    for loop in loops:
        loop.fit_rows(on_device, [order.astype(np.int32) for order in orders])


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2]), *[sys.argv[2:]] * (len(sys.argv) > 2)))
