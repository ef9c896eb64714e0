"""Trains several Keras models together on one device, each exactly as if it were alone."""

from typing import TYPE_CHECKING

from kerascohost import environment  # first: it raises if Keras has no backend

# isort: split
from kerascohost.data import Subset, shared
from kerascohost.deferred.context import cohost
from kerascohost.deferred.executor import Executor
from kerascohost.deferred.functions import map, together  # used as `kc.map`
from kerascohost.errors import CohortError
from kerascohost.layouts.benchmark import benchmark
from kerascohost.layouts.memory import MemoryEstimate, estimate_memory
from kerascohost.layouts.result import BenchmarkResult
from kerascohost.layouts.suggestions import GroupFactors, suggest_group_factors
from kerascohost.models.cloning import clones
from kerascohost.models.fusion import GroupBatch, UngroupBatch, fuse, group, ungroup
from kerascohost.results.history import CohortHistory
from kerascohost.results.plan import Plan
from kerascohost.results.plotting import plot_benchmark, plot_losses
from kerascohost.results.progress import Progress
from kerascohost.training.cohort import Cohort

if TYPE_CHECKING:
    from kerascohost.integrations.ray import RayWorkers
    from kerascohost.notebook.magic import InteractiveShell
    from kerascohost.notebook.session import CohostSession
    from kerascohost.notebook.widget import CohostWidget

__all__ = [
    "BenchmarkResult",
    "Cohort",
    "CohortError",
    "CohortHistory",
    "CohostSession",
    "CohostWidget",
    "Executor",
    "GroupBatch",
    "GroupFactors",
    "MemoryEstimate",
    "Plan",
    "Progress",
    "RayWorkers",
    "Subset",
    "UngroupBatch",
    "benchmark",
    "clones",
    "cohost",
    "estimate_memory",
    "fuse",
    "group",
    "map",
    "plot_benchmark",
    "plot_losses",
    "shared",
    "suggest_group_factors",
    "together",
    "ungroup",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> "type[CohostWidget] | type[CohostSession] | type[RayWorkers]":
    """Imports classes when they are first used, as they need libraries of widgets, or Ray."""
    if name == "RayWorkers":
        from kerascohost.integrations.ray import RayWorkers

        return RayWorkers
    with environment.extra("notebook"):
        if name == "CohostWidget":
            from kerascohost.notebook.widget import CohostWidget

            return CohostWidget
        if name == "CohostSession":
            from kerascohost.notebook.session import CohostSession

            return CohostSession
    from kerascohost.errors import did_you_mean

    hint = "" if name.startswith("_") else did_you_mean(name, __all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{hint}")


def __dir__() -> list[str]:
    """Returns the public names only, so that completion does not offer modules."""
    return [*__all__, "__version__"]


def load_ipython_extension(ipython: "InteractiveShell") -> None:
    """Adds the magics `%cohost` and `%%cohost`; `%load_ext kerascohost` calls it."""
    from kerascohost.notebook import magic  # only here: IPython is not needed otherwise

    magic.load(ipython)


def unload_ipython_extension(ipython: "InteractiveShell") -> None:
    """Removes the magics; `%unload_ext kerascohost` calls it."""
    from kerascohost.notebook import magic

    magic.unload(ipython)
