"""Peak memory of one way to train 16 MLPs for an epoch; prints it in MB.

One process per way (`python -m tests.benchmarks.memory separate|joined`), as a peak cannot be
taken back.
"""

import resource
import sys

import kerascohost as kc
from tests.benchmarks import cases


def main(way):
    models = cases.named(cases.mlp, 16)()
    if way == "joined":
        kc.Cohort(models).fit(*cases.MLP_DATA, epochs=2, verbose=0)
    else:
        for model in models.values():
            model.fit(*cases.MLP_DATA, epochs=2, verbose=0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main(sys.argv[1])
