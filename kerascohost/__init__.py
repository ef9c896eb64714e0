"""Train several Keras models together on one device, each exactly as if it were alone."""

from kerascohost.benchmark import BenchmarkResult, benchmark
from kerascohost.capture import cohost
from kerascohost.cohort import Cohort
from kerascohost.errors import CohortError
from kerascohost.fusion import GroupBatch, UngroupBatch, fuse, group, ungroup
from kerascohost.history import CohortHistory
from kerascohost.memory import estimate_memory
from kerascohost.plotting import plot_losses
from kerascohost.suggestions import suggest_group_factors

__all__ = [
    "BenchmarkResult",
    "Cohort",
    "CohortError",
    "CohortHistory",
    "GroupBatch",
    "UngroupBatch",
    "benchmark",
    "cohost",
    "estimate_memory",
    "fuse",
    "group",
    "plot_losses",
    "suggest_group_factors",
    "ungroup",
]
__version__ = "0.1.0"


def load_ipython_extension(ipython: object) -> None:
    """Adds the magics `%cohost` and `%%cohost`: what `%load_ext kerascohost` calls."""
    from kerascohost.notebook import magic  # only here: IPython is not needed otherwise

    magic.load(ipython)


def unload_ipython_extension(ipython: object) -> None:
    """Takes the magics away again: what `%unload_ext kerascohost` calls."""
    from kerascohost.notebook import magic

    magic.unload(ipython)
