"""Measures `layout="stacked"` on the current backend; prints rows as JSON lines.

Fair in the same way as `joined`. Against the limit: the same members, with data of their own each,
by a loop written by hand for these MLPs and nothing else.
"""

import importlib
import statistics
import sys
from functools import partial

import keras
import numpy as np

import kerascohost as kc
from tests.benchmarks import cases, joined

MEMBERS = 16
CURVE = (1, 4, 16, 64, 256, 1024)
# The members, and the epochs beyond the first, by which the work of the host is measured.
HOST_MEMBERS, HOST_EPOCHS = 128, 40

# Of each: how models are made, their data, and whether it is measured on JAX too.
FAMILIES = {
    "16 MLPs": (cases.mlp, cases.MLP_DATA, True),
    "16 MLPs, BN + Dropout": (cases.regularized, cases.MLP_DATA, True),
    "16 Conv1D": (cases.conv1d, cases.SIGNAL_DATA, False),
    "16 attention": (cases.attention, cases.SEQUENCE_DATA, False),
    "16 LSTMs": (cases.lstm, cases.SEQUENCE_DATA, True),
}


def compare_families():
    on_jax = keras.backend.backend() == "jax"
    for case, (make, data, also_on_jax) in FAMILIES.items():
        if on_jax and not also_on_jax:
            continue
        many, data = cases.named(make, MEMBERS), cases.shared(data, MEMBERS)
        rounds = 2 if case == "16 MLPs" else 1  # tracing 16 LSTMs three times over takes a minute
        joined.compare(case, many, data, "stacked", cold_rounds=rounds, cohort_layout="stacked")


def compare_cnns():
    """Here stacking loses, which `auto` has to know."""
    joined.compare(
        "8 CNNs",
        cases.named(cases.cnn, 8),
        cases.shared(cases.CNN_DATA, 8),
        "auto",
        cold_rounds=1,
        cohort_layout="auto",
        over_joined=True,
    )


def in_batches(arrays):
    """Every member's array as `(steps, members, rows, ...)`."""
    apart = [array.reshape(-1, joined.BATCH, *array.shape[1:]) for array in arrays]
    return np.stack(apart, axis=1)


def own_data(count):
    """Data of each member's own: the same values in another order."""
    x, y = cases.MLP_DATA
    orders = [np.random.default_rng(i).permutation(len(x)) for i in range(count)]
    return {f"m{i}": (x[order], y[order]) for i, order in enumerate(orders)}


def against_hand(epochs):
    """A `fit` of so many epochs against a loop by hand; both are given NumPy arrays each time."""
    models, data = cases.named(cases.mlp, MEMBERS)(), own_data(MEMBERS)
    module = importlib.import_module(f"tests.benchmarks.hand_{keras.backend.backend()}")
    hand = module.Hand([model.get_weights() for model in models.values()])
    cohort = kc.Cohort(models, layout="stacked")
    x, y = ({name: pair[i] for name, pair in data.items()} for i in (0, 1))
    options = {"batch_size": joined.BATCH, "shuffle": False, "verbose": 0}

    def by_hand():
        hand.fit(tuple(in_batches(part.values()) for part in (x, y)), epochs)

    train = {"cohort": partial(cohort.fit, x, y, epochs=epochs, **options), "hand": by_hand}
    for first in train.values():
        first()
    apart = hand_difference(models, hand)
    times = joined.interleaved(train)
    joined.emit(
        case=f"{MEMBERS} MLPs against a loop by hand",
        epochs=epochs,
        speed=joined.over(times, "hand"),
        difference=apart,
        seconds=statistics.median(times["cohort"]),
    )


def hand_difference(models, hand):
    own = zip(*(model.get_weights() for model in models.values()), strict=True)
    pairs = zip(own, hand.weights(), strict=True)
    return max(float(np.abs(np.stack(ours) - theirs).max()) for ours, theirs in pairs)


def cost_curve():
    """What a warm epoch costs per model, by the number of models."""
    train = {}
    for count in CURVE:
        cohort = kc.Cohort(cases.named(cases.mlp, count)(), layout="stacked")
        data = cases.shared(cases.MLP_DATA, count)
        train[count] = partial(joined.fit_together, cohort, data, epochs=joined.EPOCHS)
    alone, data = cases.named(cases.mlp, 1)(), cases.shared(cases.MLP_DATA, 1)
    train["fit"] = partial(joined.fit_separately, alone, data, epochs=joined.EPOCHS)
    for first in train.values():
        first()
    times = joined.interleaved(train)
    medians = {s: 1000 * statistics.median(own) / joined.EPOCHS for s, own in times.items()}
    joined.emit(
        case="cost curve",
        members=CURVE,
        milliseconds=[medians[count] / count for count in CURVE],
        fit=medians["fit"],
    )


def host_work():
    """What the host does for a member and an epoch, by members of next to no compute."""
    models = {}
    for i in range(HOST_MEMBERS):
        net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        net.compile("sgd", "mse")
        models[f"m{i}"] = net
    cohort = kc.Cohort(models, layout="stacked")
    x, y = np.zeros((32, 4), "float32"), np.zeros((32, 1), "float32")

    def fit(epochs):
        cohort.fit(x, y, epochs=epochs, verbose=0)

    fit(1)
    times = joined.interleaved({"one": partial(fit, 1), "many": partial(fit, 1 + HOST_EPOCHS)})
    one, many = (statistics.median(times[side]) for side in ("one", "many"))
    microseconds = 1e6 * (many - one) / HOST_EPOCHS / HOST_MEMBERS
    joined.emit(case="host work", members=HOST_MEMBERS, microseconds=microseconds)


def main():
    cases.mlp(99).fit(*cases.MLP_DATA, verbose=0)  # the backend's own start is nobody's cost
    compare_families()
    if keras.backend.backend() == "tensorflow":
        compare_cnns()
    for epochs in (1, 5):
        against_hand(epochs)
    cost_curve()
    host_work()


if __name__ == "__main__":
    sys.exit(main())
