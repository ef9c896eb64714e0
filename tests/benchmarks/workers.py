"""Long training by two workers of Ray, one core each, and by one cohort on two cores.

Both sides train the same unlike models from the same weights. Prints a line of JSON: seconds of
each side, the start of the workers apart, and the largest difference of a weight.
"""

import json
import os
import time

import keras
import numpy as np
from keras import layers

import kerascohost as kc

MEMBERS = 8
EPOCHS = 15
X, Y = (np.random.default_rng(0).normal(size=(8192, n)).astype("float32") for n in (64, 1))


def models():
    made = {}
    for i in range(MEMBERS):
        keras.utils.set_random_seed(i)
        net = keras.Sequential(
            [keras.Input((64,)), layers.Dense(192 + 32 * i, activation="relu"), layers.Dense(1)]
        )
        net.compile("adam", "mse")
        made[f"net{i}"] = net
    return made


def trained(workers):
    """The seconds of a training whose programs are compiled, if here, and the weights."""
    made = models()
    cohort = kc.Cohort(made, workers=workers)
    keras.utils.set_random_seed(0)
    began = time.perf_counter()
    cohort.fit(X, Y, epochs=EPOCHS, verbose=0)
    return time.perf_counter() - began, [net.get_weights() for net in made.values()]


def main():
    began = time.perf_counter()
    with kc.RayWorkers(num_workers=2) as workers:
        kc.Cohort(models(), workers=workers).fit(X[:64], Y[:64], verbose=0)
        start = time.perf_counter() - began
        one, here = trained(None)
        two, there = trained(workers)
    apart = keras.tree.map_structure(lambda a, b: float(np.abs(a - b).max()), here, there)
    difference = max(keras.tree.flatten(apart))
    row = {"members": MEMBERS, "one": one, "two": two, "start": start, "difference": difference}
    print(json.dumps({"backend": os.environ["KERAS_BACKEND"], **row}))


if __name__ == "__main__":
    main()
