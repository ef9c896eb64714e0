"""`make bench-scale`: what workers of Ray cost on this machine, and what many of them would cost.

Measured with 1, 2 and 4 workers here: their start, shipping a member there and back, the bytes sent
for it, a synchronisation, and the training itself. From these numbers the time of a fit is
predicted, for more members and workers than there are here:

    workers start + members * ship + members / workers * epochs * (epoch + sync)

on workers with one core each of this machine's kind, and `members * epochs * epoch` for one cohort.
What the program does for one member after another, to ship and to synchronise, is measured there.
Prints the table, and draws it in `docs/images/scale.png`, marked as predicted.
"""

import time
from pathlib import Path
from statistics import median

import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure

import kerascohost as kc
from kerascohost.training.workers import Workers

PICTURE = Path("docs/images/scale.png")
MEASURED_WORKERS = (1, 2, 4)
MEMBERS = 16
EPOCHS = 6
ROWS = 4096
PREDICTED_MEMBERS = (16, 64, 256, 1024, 4096)
PREDICTED_WORKERS = (1, 2, 4, 8, 16, 32, 64)
PREDICTED_EPOCHS = (20, 200)

RANDOM = np.random.default_rng(0)
X = RANDOM.random((ROWS, 784), "float32")
Y = RANDOM.integers(10, size=ROWS)


def models():
    made = {}
    for i in range(MEMBERS):
        keras.utils.set_random_seed(i)
        net = keras.Sequential(
            [keras.Input((784,)), layers.Dense(64, activation="relu"), layers.Dense(10)]
        )
        net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        made[f"net{i}"] = net
    return made


def seconds(cohort, **fit):
    began = time.perf_counter()
    cohort.fit(X, Y, verbose=0, **fit)
    return time.perf_counter() - began


class Counted:
    """The bytes of the jobs that workers were given."""

    def __init__(self, workers: Workers):
        self.bytes = 0
        start = workers.start

        def counted(worker, job, arrays):
            self.bytes += len(job)
            start(worker, job, arrays)

        workers.start = counted


def measured(count):
    """What `count` workers cost, in seconds and bytes for each member."""
    began = time.perf_counter()
    with kc.RayWorkers(num_workers=count, resources_per_worker={"CPU": 0.5}) as workers:
        sent = Counted(workers)
        cohort = kc.Cohort(models(), layout="stacked", workers=workers)
        seconds(cohort, epochs=1)  # a first fit traces
        start = time.perf_counter() - began
        sent.bytes = 0
        # Nothing is trained: what is left is the way there and back.
        ship = median(seconds(cohort, initial_epoch=1, epochs=1) for _ in range(3)) / MEMBERS
        job_bytes = sent.bytes / 3 / MEMBERS
        few, many = (seconds(cohort, epochs=n) for n in (2, 2 + EPOCHS))
        workers.sync_every = 1000
        few_apart, many_apart = (seconds(cohort, epochs=n) for n in (2, 2 + EPOCHS))
    each = MEMBERS * EPOCHS
    sync = max(0.0, (many - few) - (many_apart - few_apart)) / each
    return {
        "start": start,
        "ship": ship,
        "bytes": job_bytes,
        "sync": sync,
        "epoch": (many_apart - few_apart) / each,
    }


def predicted(cost, members, workers, epochs):
    """The seconds of a fit, the start of the workers included; `workers` 0 is one cohort here."""
    if not workers:
        return members * epochs * cost["epoch"]
    in_turn = cost["start"] + members * (cost["ship"] + epochs * cost["sync"])
    return in_turn + members / workers * epochs * cost["epoch"]


def pays_from(cost, workers, epochs):
    """The number of members from which workers are faster than one cohort; `None`: never."""
    saved = epochs * cost["epoch"] * (1 - 1 / workers) - cost["ship"] - epochs * cost["sync"]
    return cost["start"] / saved if saved > 0 else None


def draw(cost):
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots(1, len(PREDICTED_EPOCHS), sharey=True)
    for ax, epochs in zip(axes, PREDICTED_EPOCHS, strict=True):
        for workers in (0, *PREDICTED_WORKERS[1::2]):
            times = [predicted(cost, members, workers, epochs) for members in PREDICTED_MEMBERS]
            label = f"{workers} workers" if workers else "one cohort, no workers"
            ax.plot(PREDICTED_MEMBERS, times, "o-" if workers else "k--", label=label)
        ax.set(xscale="log", yscale="log", xlabel="members", title=f"{epochs} epochs, predicted")
        ax.set_xticks(PREDICTED_MEMBERS, labels=map(str, PREDICTED_MEMBERS), minor=False)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("seconds, start included (predicted)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=120)


def main():
    rows = {count: measured(count) for count in MEASURED_WORKERS}
    print(f"Measured, MLPs 784-64-10 over {ROWS} rows, {MEMBERS} members, stacked:\n")
    print("| workers | start (s) | ship (ms) | bytes sent | synchronise (ms) | epoch (ms) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count, row in rows.items():
        told = [f"{1000 * row[key]:.2f}" for key in ("ship", "sync", "epoch")]
        print(
            f"| {count} | {row['start']:.1f} | {told[0]} | {row['bytes']:.0f} | {told[1]} | "
            f"{told[2]} |"
        )
    # An epoch of a member on one core: with more workers than cores they wait for each other.
    cost = {**{key: median(row[key] for row in rows.values()) for key in ("ship", "sync")}}
    cost |= {"start": rows[1]["start"], "epoch": rows[1]["epoch"]}
    print("\n(ship, synchronise, epoch: for a member.) Predicted seconds of a fit:\n")
    columns = ["one cohort", *(f"{n} workers" for n in PREDICTED_WORKERS)]
    for epochs in PREDICTED_EPOCHS:
        print(f"| members, {epochs} epochs | " + " | ".join(columns) + " |")
        print("| --- |" + " --- |" * len(columns))
        for members in PREDICTED_MEMBERS:
            times = [predicted(cost, members, n, epochs) for n in (0, *PREDICTED_WORKERS)]
            print(f"| {members} | " + " | ".join(f"{time:.0f}" for time in times) + " |")
        told = {n: pays_from(cost, n, epochs) for n in PREDICTED_WORKERS[1:]}
        told = [f"{n} workers from {m:.0f} members" for n, m in told.items() if m is not None]
        print(f"\nSplitting pays, predicted: {', '.join(told) or 'never'}.\n")
    draw(cost)
    print(f"Drawn in {PICTURE}.")


if __name__ == "__main__":
    main()
