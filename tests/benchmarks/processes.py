"""16 MLPs in one cohort against as many processes as there are cores, one core each, at most 4.

Start-up is not counted: every process trains one epoch first, then all begin together. A round of
the processes lasts until the slowest is done. Prints a row as a JSON line.
"""

import json
import multiprocessing
import os
import statistics
import time

from tests.benchmarks import confine, cores

COUNT = 16
ROUNDS = 5


def train_share(seeds, core, barrier, results):
    """One process: the models of `seeds`, on one core, by plain `fit`."""
    confine(core)
    from tests.benchmarks import cases

    models = [cases.mlp(seed) for seed in seeds]
    for round_ in range(ROUNDS + 1):
        barrier.wait()
        began = time.perf_counter()
        for model in models:
            model.fit(*cases.MLP_DATA, batch_size=32, shuffle=False, verbose=0)
        if round_:
            results.put((round_, time.perf_counter() - began))
        barrier.wait()


def processes_seconds(used):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(used)), context.Queue()
    shares = [range(i, COUNT, len(used)) for i in range(len(used))]
    workers = [
        context.Process(target=train_share, args=(list(seeds), core, barrier, results))
        for seeds, core in zip(shares, used, strict=True)
    ]
    for worker in workers:
        worker.start()
    timed = [results.get() for _ in range(ROUNDS * len(used))]
    for worker in workers:
        worker.join()
    slowest = [max(s for r, s in timed if r == round_) for round_ in range(1, ROUNDS + 1)]
    return statistics.median(slowest)


def cohort_seconds():
    import kerascohost as kc
    from tests.benchmarks import cases

    cohort = kc.Cohort(cases.named(cases.mlp, COUNT)())
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        cohort.fit(*cases.MLP_DATA, batch_size=32, shuffle=False, verbose=0)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


if __name__ == "__main__":
    used = cores()[:4]
    apart = processes_seconds(used)
    ours = cohort_seconds()
    backend = os.environ["KERAS_BACKEND"]
    print(json.dumps({"backend": backend, "processes": len(used), "ratio": apart / ours}))
