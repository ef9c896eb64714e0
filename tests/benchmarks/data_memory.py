"""Memory that a `fit` takes at its peak beyond the user's own arrays; prints it in bytes.

Of so many rows of 8,000 bytes, for so many members in a layout; in a process of its own (`python -m
tests.benchmarks.data_memory joined 16 20000`). Two runs that differ in rows tell what a row costs.
"""

import sys
from pathlib import Path

import keras
import numpy as np

import kerascohost as kc

FEATURES = 2000
BATCH = 64


def model(name):
    net = keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(2), keras.layers.Dense(1)], name=name
    )
    net.compile("sgd", "mse")
    return net


def process(key):
    """A size of this process, in bytes: Linux keeps `VmRSS` and its peak, `VmHWM`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def main(layout, members, rows):
    x, y = np.ones((rows, FEATURES), "float32"), np.zeros((rows, 1), "float32")
    cohort = kc.Cohort([model(f"m{i}") for i in range(members)], layout=layout)
    cohort.fit(x[:BATCH], y[:BATCH], batch_size=BATCH, verbose=0)  # traces
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = process("VmRSS")
    cohort.fit(x, y, batch_size=BATCH, verbose=0)
    print(process("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
