"""What `benchmark` and `suggest_group_factors` say, against what is timed by hand.

Prints a line of JSON for each of three unequal pairs: how far the suggested group factors are from
the best of all those tried, and how far the `separate` row is from `fit` in a plain loop.
"""

import itertools
import json
import statistics

import keras
from keras import layers

import kerascohost as kc
from tests.benchmarks import cases, seconds

FACTORS = (1, 2, 4, 8)
ROUNDS = 5


def sequence(units=16):
    keras.utils.set_random_seed(1)
    net = [keras.Input((24, 4)), layers.LSTM(units), layers.Dense(1)]
    return cases.compiled(keras.Sequential(net))


def pairs():
    founding = cases.founding_pair()
    yield (
        "founding pair",
        founding,
        {
            "cnn": cases.normal(3000, (20, 20, 3), 1),
            "mlp": cases.normal(6000, (2,), 3),
        },
    )
    yield (
        "LSTM and MLP",
        {"lstm": sequence(), "mlp": cases.mlp(2)},
        {"lstm": cases.normal(1000, (24, 4), 1), "mlp": cases.normal(8000, (20,), 1)},
    )
    yield (
        "wide and narrow MLP",
        {"wide": cases.mlp(3, units=512), "narrow": cases.mlp(4, units=8)},
        {"wide": cases.normal(4000, (20,), 1), "narrow": cases.normal(5000, (20,), 1)},
    )


def epochs(models, x, y, settings):
    """The median time of an epoch for each setting of the factors, in interleaved rounds."""
    times = {factors: [] for factors in settings}
    cohorts = {
        f: kc.Cohort(models, group_factor=dict(zip(models, f, strict=True))) for f in settings
    }
    for turn in range(ROUNDS + 2):  # the first two trace, and find out how fast the steps are
        for factors, cohort in cohorts.items():
            taken = seconds(lambda cohort=cohort: cohort.fit(x, y, shuffle=False, verbose=0))
            if turn > 1:
                times[factors].append(taken)
    return {factors: statistics.median(found) for factors, found in times.items()}


def plain(models, x, y):
    """The times of each model's own `fit`, one after another."""

    def run():
        for name, model in models.items():
            model.fit(x[name], y[name], shuffle=False, verbose=0)

    run()
    return [seconds(run) for _ in range(ROUNDS)]


def main():
    for title, models, data in pairs():
        x, y = ({name: pair[i] for name, pair in data.items()} for i in (0, 1))
        samples = {name: len(x[name]) for name in models}
        before = plain(models, x, y)  # and after: the machine's own pace changes within minutes
        result = kc.benchmark(
            models, x, y, layouts=["joined", "grouped"], group_factor=4, steps=10_000,
            repeats=ROUNDS, progress=False,
        )  # fmt: skip
        by_hand = statistics.median(before + plain(models, x, y))
        suggested = kc.suggest_group_factors(result, by="both", samples=samples)
        found = tuple(suggested.values())
        times = epochs(models, x, y, {found, *itertools.product(FACTORS, repeat=2)})
        best = min(times, key=times.get)
        separate = result.frame.set_index("layout")["samples_per_s"]["separate"]
        row = {
            "pair": title,
            "suggested": suggested,
            "best": dict(zip(models, best, strict=True)),
            "ratio": times[found] / times[best],
            "ungrouped": times[(1, 1)] / times[best],
            "separate": separate / (sum(samples.values()) / by_hand),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
