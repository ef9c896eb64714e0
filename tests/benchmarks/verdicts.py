"""What `benchmark` says where fusing is not expected to pay, and whether it keeps its budget.

Prints a line of JSON for each such case: large models (which gain on TensorFlow with two cores all
the same), and on JAX convolutions over images. Then one for each number of small MLPs: the seconds
that a benchmark takes, and its budget.
"""

import functools

import keras

import kerascohost as kc
from tests.benchmarks import cases, joined, seconds

BUDGET_S = 30.0
ON_JAX = keras.backend.backend() == "jax"


def large(seed):
    return cases.mlp(seed, features=784, units=2048)


def planted():
    """Models whose verdict is to be "separate", with their data and batch size."""
    yield (
        "2 large MLPs (5.8 M weights)",
        cases.named(large, 2)(),
        cases.normal(4096, (784,), 1),
        256,
    )
    if ON_JAX:
        yield "4 CNNs over images", cases.named(cases.cnn, 4)(), cases.CNN_DATA, 64


def main():
    for title, models, (x, y), batch_size in planted():
        result = kc.benchmark(models, x, y, batch_size, budget_s=2 * BUDGET_S, progress=False)
        frame = result.frame.set_index("layout")["speedup"].dropna()
        told = {"verdict": title, "best": result.best, "exact": result.best_exact}
        joined.emit(**told, speedups=frame.round(2).to_dict())
    for members in (2, 16, 64):
        models = cases.named(cases.mlp, members)()
        took = seconds(functools.partial(kc.benchmark, models, budget_s=BUDGET_S, progress=False))
        joined.emit(members=members, took=took, budget=BUDGET_S)


if __name__ == "__main__":
    main()
