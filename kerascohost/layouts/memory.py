"""Memory that members take: predicted from their shapes, and measured while they train."""

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import keras
import pandas as pd

from kerascohost import backends, errors
from kerascohost.arguments import Data, PerMember, counts_per_member, named_models, per_member
from kerascohost.models.memory import training_bytes
from kerascohost.results.table import Table
from kerascohost.training.cohort import Cohort

_MB = 2**20


def _rounded(mb: float) -> str:
    """Returns a number of MB as text, also of models that take less than one."""
    return f"{mb:,.1f}" if mb >= 1 or not mb else f"{mb:.2g}"


class MemoryEstimate:
    """A prediction by `estimate_memory`, in MB (of 2**20 bytes).

    Attributes:
        frame: A row for each member: `weights`, `optimizer`, `gradients`, `activations` (which a
            step stores for its backward pass) and `total`, its peak while it trains alone.
        total_mb: The peak of all members together.
    """

    def __init__(self, frame: pd.DataFrame, total_mb: float):
        self.frame = frame
        self.total_mb = total_mb

    def more_clones(self, limit_mb: float) -> dict[str, int]:
        """Returns how many more copies of each member would fit, if only it were copied.

        Args:
            limit_mb: The memory that is available, in MB.

        Returns:
            A dict from each member's name to the number of further copies.
        """
        left = max(0.0, limit_mb - self.total_mb)
        return {
            member: int(left // total)
            for member, total in zip(self.frame["member"], self.frame["total"], strict=True)
        }

    @property
    def _table(self) -> Table:
        sentence = f"All together: {_rounded(self.total_mb)} MB, and the data."
        return Table(self.frame, [sentence], float_format=_rounded)

    def __repr__(self) -> str:
        return self._table.text()

    def _repr_html_(self) -> str:
        return self._table.html()


def estimate_memory(
    models: Mapping[str, keras.Model] | Sequence[keras.Model] | Cohort,
    batch_size: PerMember[int] = 32,
    x: PerMember[Data] = None,
) -> MemoryEstimate:
    """Predicts how much memory the models take while they train together.

    Counted are the weights, the optimizer's variables, a gradient for each weight, and the outputs
    of all layers at this batch size, which the backward pass needs (of recurrent layers the gates
    of each time step). Not counted are the data and the backend's own memory: tens of MB to trace,
    and for convolutions and recurrent layers on JAX's CPU backend often more than the activations
    themselves.

    Args:
        models: The models: a dict, a list, or a `Cohort`.
        batch_size: Samples per batch, for all members or as a dict by member (one that is not named
            there: 32). For a `Cohort` it is multiplied by each member's group factor and replicas;
            for models in a dict or list, multiply it yourself.
        x: Inputs for all members or as a dict by member, of which only the shapes matter; needed
            for subclassed models and where a dimension is not known.

    Returns:
        A `MemoryEstimate`.

    Raises:
        CohortError: If the shape of a model's inputs is not known, or a dict names no member.

    Example:

    >>> net = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(500)], name="net")
    >>> net.compile("adam", "mse")
    >>> estimate_memory([net]).frame["weights"].round(2).tolist()
    [1.91]
    """
    named = models.members if isinstance(models, Cohort) else named_models(models)
    sizes = counts_per_member("batch_size", batch_size, named, default=32)
    if isinstance(models, Cohort):
        sizes = {n: sizes[n] * models.group_factor[n] * models.replicas[n] for n in named}
    inputs = per_member("x", x, named, None)
    rows = []
    for name, model in named.items():
        with errors.about(name):
            taken = training_bytes(model, sizes[name], inputs[name])
            rows.append({"member": name, **{kind: n / _MB for kind, n in taken.items()}})
    frame = pd.DataFrame(rows)
    state = frame["weights"] + frame["optimizer"]
    passing = frame["total"] - state
    # Members with much state run one after another instead of fused: only the largest of their
    # temporary peaks counts.
    apart = state * _MB > backends.FUSED_STATE_LIMIT / len(frame)
    at_once = max(passing[~apart].sum(), passing[apart].max() if apart.any() else 0.0)
    return MemoryEstimate(frame, float(state.sum() + at_once))


@contextlib.contextmanager
def peak() -> Iterator[dict[str, float]]:
    """Measures the most memory that the block takes in addition to what was taken before it.

    Yields:
        A dict whose `"mb"` is set at the end: of the GPU's memory where there is one, else of the
        resident memory of the process; NaN where it cannot be measured (on systems but Linux).
    """
    found = {"mb": math.nan}
    gc.collect()
    backend = backends.get_backend()
    backend.reset_device_peak()
    count = _resident_bytes if backend.device_bytes() is None else backend.device_bytes
    _reset_resident_peak()
    before = count()
    try:
        yield found
    finally:
        after = count()
        # A peak that could not be reset, and was not exceeded, is not that of the block.
        if before and after and (after[1] > before[1] or before[1] == before[0]):
            found["mb"] = max(0, after[1] - before[0]) / _MB


def _reset_resident_peak() -> None:
    """Resets the process's peak to its present memory, see `man 5 proc_pid_clear_refs`."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is not reset
        Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes() -> tuple[int, int] | None:
    """Returns the resident memory of the process and its peak, in bytes; `None` if not on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    now, most = (1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM"))
    return now, max(now, most)
