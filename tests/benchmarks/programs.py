"""The three programs of `tests/helpers/scripts/`, together and in turn, start-up included.

Interleaved rounds of whole commands; the median of each side. Prints a row as a JSON line.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

PROGRAMS = sorted((Path(__file__).parents[1] / "helpers" / "scripts").glob("*.py"))
ROUNDS = 3


def seconds(*commands):
    began = time.perf_counter()
    for command in commands:
        subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
    return time.perf_counter() - began


def saved_weights(folder):
    models = [keras.saving.load_model(folder / f"{path.stem}.keras") for path in PROGRAMS]
    return [weights for model in models for weights in model.get_weights()]


def main():
    with tempfile.TemporaryDirectory() as scratch:
        alone, together = Path(scratch, "alone"), Path(scratch, "together")
        alone.mkdir()
        together.mkdir()
        run = ["-m", "kerascohost", "run", *PROGRAMS, "--", together]
        rounds = [
            (seconds(*([path, alone] for path in PROGRAMS)), seconds(run)) for _ in range(ROUNDS)
        ]
        pairs = zip(saved_weights(alone), saved_weights(together), strict=True)
        difference = max(float(np.abs(one - other).max()) for one, other in pairs)
    apart, ours = map(statistics.median, zip(*rounds, strict=True))
    row = {"alone": apart, "together": ours, "difference": difference}
    print(json.dumps({"backend": os.environ["KERAS_BACKEND"], **row}))


if __name__ == "__main__":
    main()
