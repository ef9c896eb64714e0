"""Measures cohorts against separate `fit` on the current backend; prints rows as JSON lines.

Fairness: in one process, both sides from the same weights over the same batches in the same order.
Warm is an epoch of a `fit` of several, rounds interleaved, medians of them; cold is a first epoch
with fresh models, tracing and compiling included. The other side is plain `fit`, and `fit` with
`steps_per_execution=32`, which is what a knowing user would try first. A weight difference is taken
after the cold epoch.
"""

import json
import statistics
import sys
from collections import defaultdict
from functools import partial

import keras
import numpy as np

import kerascohost as kc
from tests.benchmarks import cases, seconds

ROUNDS = 5
EPOCHS = 3  # of a warm `fit`
BATCH = 32


def fit_separately(models, data, factors=None, epochs=1):
    for name, model in models.items():
        size = BATCH * (factors or {}).get(name, 1)
        model.fit(*data[name], batch_size=size, epochs=epochs, shuffle=False, verbose=0)


def fit_together(cohort, data, epochs=1):
    x, y = ({name: pair[i] for name, pair in data.items()} for i in (0, 1))
    cohort.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)


def difference(models, others):
    return max(
        float(np.abs(np.subtract(a, b)).max())
        for name in models
        for a, b in zip(models[name].get_weights(), others[name].get_weights(), strict=True)
    )


def fresh_sides(make, data, cohort_layout, group_factor, over_joined):
    """Fresh models of every side, and what trains each side for an epoch."""
    models = {"cohort": make(), "fit": make(), "tuned": make(steps_per_execution=32)}
    cohort = kc.Cohort(models["cohort"], layout=cohort_layout, group_factor=group_factor)
    train = {"cohort": partial(fit_together, cohort, data)}
    for side in ("fit", "tuned"):
        train[side] = partial(fit_separately, models[side], data)
    if over_joined:
        train["joined"] = partial(fit_together, kc.Cohort(make()), data)
    return models, train


def compare(
    case,
    make,
    data,
    layout="joined",
    group_factor=1,
    by_hand=False,
    cold_rounds=2,
    cohort_layout="joined",
    over_joined=False,
):
    """One row of the table; `layout` is what it says there, `cohort_layout` the cohort's own."""
    cold = defaultdict(list)
    for _ in range(cold_rounds):
        models, train = fresh_sides(make, data, cohort_layout, group_factor, over_joined)
        for side, epoch in train.items():
            cold[side].append(seconds(epoch))
    reference = models["fit"]
    if group_factor != 1:
        reference = make()
        fit_separately(reference, data, group_factor)
    apart = difference(reference, models["cohort"])

    if by_hand:
        train["by_hand"] = Fused(make(), data).fit
    warm = interleaved({side: partial(fit, epochs=EPOCHS) for side, fit in train.items()})
    ours = statistics.median(warm["cohort"])
    emit(
        case=case,
        layout=layout,
        warm=over(warm, "fit"),
        warm_tuned=over(warm, "tuned"),
        by_hand=over(warm, "by_hand"),
        over_joined=over(warm, "joined"),
        cold=over(cold, "fit"),
        cold_tuned=over(cold, "tuned"),
        spread=[min(warm["cohort"]) / ours, max(warm["cohort"]) / ours],
        difference=apart,
        seconds=ours / EPOCHS,
        plan=cohort_plan(train["cohort"].args[0]),
    )


def cohort_plan(cohort):
    """How many members are joined, and in words what became of all."""
    joined = int((cohort.plan.frame["layout"] == "joined").sum())
    return {"joined": joined, "summary": cohort.plan.summary}


def interleaved(train):
    """How long each of these functions takes, round by round."""
    times = defaultdict(list)
    for _ in range(ROUNDS):
        for side, epoch in train.items():
            times[side].append(seconds(epoch))
    return times


def over(times, side, ours="cohort"):
    """How many times as long as our side another one takes, if it was measured."""
    return statistics.median(times[side]) / statistics.median(times[ours]) if times[side] else None


class Fused:
    """The same models joined by hand as one functional model, trained by plain `fit`."""

    def __init__(self, models, data):
        self.model = kc.fuse(models)
        self.model.compile("adam", "mse")
        self.x = [data[name][0] for name in models]
        self.y = [data[name][1] for name in models]
        self.fit()  # the first epoch traces

    def fit(self, epochs=1):
        options = {"batch_size": BATCH, "epochs": epochs, "shuffle": False, "verbose": 0}
        self.model.fit(self.x, self.y, **options)


def emit(**row):
    print(json.dumps({"backend": keras.backend.backend(), **row}), flush=True)


def main():
    cases.mlp(99).fit(*cases.MLP_DATA, verbose=0)  # the backend's own start is nobody's cost
    pair = cases.founding_pair
    compare("founding pair", pair, cases.PAIR_DATA)
    compare("founding pair", pair, cases.PAIR_DATA, "grouped", group_factor={"mlp": 2})
    sixteen = cases.named(cases.mlp, 16)
    compare("16 MLPs", sixteen, cases.shared(cases.MLP_DATA, 16), by_hand=True)
    eight = cases.named(cases.cnn, 8)
    compare("8 CNNs", eight, cases.shared(cases.CNN_DATA, 8), cold_rounds=1)
    one = cases.named(cases.mlp, 1)
    compare("one small MLP", one, cases.shared(cases.MLP_DATA, 1))
    large = cases.named(lambda seed, **k: cases.mlp(seed, 256, 2048, **k), 1)
    compare("one large MLP (4.7 M weights)", large, cases.shared(cases.LARGE_DATA, 1))


if __name__ == "__main__":
    sys.exit(main())
