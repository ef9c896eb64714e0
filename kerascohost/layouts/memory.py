"""Memory that members take: predicted from their shapes, and measured while they train."""

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec

import keras
import pandas as pd
from keras import tree

from kerascohost import backends, errors
from kerascohost.arguments import Data, PerMember, counts_per_member, named_models, per_member
from kerascohost.backends import Tree
from kerascohost.errors import CohortError
from kerascohost.patching import patched
from kerascohost.results.table import Table
from kerascohost.training.cohort import Cohort

P = ParamSpec("P")

_MB = 2**20

# The temporary arrays of a variable's size that an update makes. One variable is updated at a time,
# except on torch, where Keras's optimizers update all of them by one call.
_UPDATE_COPIES = 3

# While the backward pass is at a layer, three gradients are in memory: of its output, before and
# after its activation, and of its input.
_BACKWARD_COPIES = 3


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
        sentence = f"All together: {self.total_mb:,.1f} MB, and the data."
        return Table(self.frame, [sentence], float_format="{:.1f}".format)

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
            specs = _specs(model, inputs[name], sizes[name])
            rows.append({"member": name, **_of_one(model, specs)})
    frame = pd.DataFrame(rows)
    state = frame["weights"] + frame["optimizer"]
    passing = frame["total"] - state
    # Members with much state run one after another instead of fused: only the largest of their
    # temporary peaks counts.
    apart = state * _MB > backends.FUSED_STATE_LIMIT / len(frame)
    at_once = max(passing[~apart].sum(), passing[apart].max() if apart.any() else 0.0)
    return MemoryEstimate(frame, float(state.sum() + at_once))


def _of_one(model: keras.Model, inputs: Tree) -> dict[str, float]:
    stored, outputs = _layer_bytes(model, inputs)
    trained = [_bytes(v.shape, v.dtype) for v in model.trainable_variables]
    weights = sum(_bytes(v.shape, v.dtype) for v in model.variables)
    optimizer = _optimizer_bytes(model, sum(trained))
    activations = sum(stored) + _BACKWARD_COPIES * max(outputs, default=0)
    updated = sum(trained) if keras.backend.backend() == "torch" else max(trained, default=0)
    step = sum(trained) + max(activations, _UPDATE_COPIES * updated)
    # On JAX a step makes a new state beside the old one.
    copies = 2 if keras.backend.backend() == "jax" else 1
    sizes = {
        "weights": weights,
        "optimizer": optimizer,
        "gradients": sum(trained),
        "activations": activations,
        "total": copies * (weights + optimizer) + step,
    }
    return {name: size / _MB for name, size in sizes.items()}


def _optimizer_bytes(model: keras.Model, trained: int) -> int:
    """Returns the size of the optimizer's variables; before it is built, a prediction."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return 0
    if not optimizer.built:
        probe = keras.Variable([0.0] * 64, name="probe")
        probed = type(optimizer).from_config(optimizer.get_config())
        probed.build([probe])
        rest = [v for v in probed.variables if math.prod(v.shape) == 64]
        return len(rest) * trained
    return sum(_bytes(v.shape, v.dtype) for v in optimizer.variables)


def _specs(model: keras.Model, x: Data, batch_size: int) -> Tree:
    """Returns the inputs of a step, as `KerasTensor`s."""
    if x is not None:
        return tree.map_structure(
            lambda leaf: keras.KerasTensor((batch_size, *leaf.shape[1:]), str(leaf.dtype)), x
        )
    known = getattr(model, "inputs", None)
    if not known or any(None in tensor.shape[1:] for tensor in known):
        raise CohortError(
            "Expected a model whose input shapes are known. Received: "
            f"{'one with unknown dimensions' if known else 'a model without inputs'}; give `x`."
        )
    given = known[0] if isinstance(model, keras.Sequential) else model.input
    return tree.map_structure(
        lambda tensor: keras.KerasTensor((batch_size, *tensor.shape[1:]), tensor.dtype), given
    )


def _layer_bytes(model: keras.Model, inputs: Tree) -> tuple[list[int], list[int]]:
    """Returns the bytes that each layer stores for the backward pass, and those of its output."""
    stored: list[int] = []
    sizes: list[int] = []

    def recording(
        call: Callable[Concatenate[keras.Layer, P], Tree],
    ) -> Callable[Concatenate[keras.Layer, P], Tree]:
        def recorded(layer: keras.Layer, *args: P.args, **kwargs: P.kwargs) -> Tree:
            before = len(stored)
            outputs = call(layer, *args, **kwargs)
            size = sum(
                _bytes(leaf.shape, keras.backend.standardize_dtype(leaf.dtype))
                for leaf in tree.flatten(outputs)
                if hasattr(leaf, "shape")
            )
            if isinstance(layer, keras.layers.RNN):
                stored[before:], sizes[before:] = [_recurrent_bytes(layer, args[0])], [size]
            elif len(stored) == before:  # of layers made of layers, the inner ones count
                stored.append(size)
                sizes.append(size)
            return outputs

        return recorded

    with patched(keras.layers.Layer, "__call__", recording):
        backends.call_on_symbols(model, inputs)
    return stored, sizes


def _recurrent_bytes(layer: keras.layers.RNN, sequence: keras.KerasTensor) -> int:
    """Returns the bytes that a recurrent layer stores for all time steps.

    These are the gates before and after their activation, the states and the output.
    """
    batch, times = sequence.shape[:2]
    cells = getattr(layer.cell, "cells", [layer.cell])
    widths = [
        2 * cell.kernel.shape[-1] + 3 * cell.units
        if hasattr(cell, "kernel") and hasattr(cell, "units")
        else 3 * sum(tree.flatten(cell.state_size))
        for cell in cells
    ]
    return _bytes((batch, times, sum(widths)), layer.compute_dtype)


def _bytes(shape: Sequence[int | None], dtype: str) -> int:
    return math.prod(size or 1 for size in shape) * backends.bytes_per_element(dtype)


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
