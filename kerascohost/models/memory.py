"""Memory that a model takes while it trains, predicted from its shapes."""

import math
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec

import keras
from keras import tree

from kerascohost import backends
from kerascohost.arguments import Data
from kerascohost.backends import Tree
from kerascohost.data import dtype_of
from kerascohost.errors import CohortError
from kerascohost.patching import patched

P = ParamSpec("P")

# The temporary arrays of a variable's size that an update makes. One variable is updated at a time,
# except on torch, where Keras's optimizers update all of them by one call.
_UPDATE_COPIES = 3

# While the backward pass is at a layer, three gradients are in memory: of its output, before and
# after its activation, and of its input.
_BACKWARD_COPIES = 3


def training_bytes(model: keras.Model, batch_size: int, x: Data = None) -> dict[str, int]:
    """Returns how much memory a model takes while it trains, in bytes.

    Args:
        model: The model.
        batch_size: The samples of a step.
        x: Inputs, of which only the shapes matter; needed where the model does not know them.

    Returns:
        A dict: `weights`, `optimizer`, `gradients`, `activations` and `total`, its peak.

    Raises:
        CohortError: If the shape of the model's inputs is not known.
    """
    stored, outputs = _layer_bytes(model, _specs(model, x, batch_size))
    trained = [_bytes(v.shape, v.dtype) for v in model.trainable_variables]
    weights = sum(_bytes(v.shape, v.dtype) for v in model.variables)
    optimizer = _optimizer_bytes(model, sum(trained))
    activations = sum(stored) + _BACKWARD_COPIES * max(outputs, default=0)
    updated = sum(trained) if keras.backend.backend() == "torch" else max(trained, default=0)
    step = sum(trained) + max(activations, _UPDATE_COPIES * updated)
    # On JAX a step makes a new state beside the old one.
    copies = 2 if keras.backend.backend() == "jax" else 1
    return {
        "weights": weights,
        "optimizer": optimizer,
        "gradients": sum(trained),
        "activations": activations,
        "total": copies * (weights + optimizer) + step,
    }


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
        return tree.map_structure(lambda leaf: _spec(leaf, batch_size), x)
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


def _spec(array: Data, batch_size: int) -> keras.KerasTensor:
    if not hasattr(array, "shape"):
        raise CohortError(
            "Expected `x` to be arrays, tensors or DataFrames, of which the shapes are known. "
            f"Received: {type(array).__name__}; give a batch of it."
        )
    dtype = dtype_of(array)
    kind = getattr(dtype, "kind", "")
    if kind in ("S", "U"):
        dtype = "string"
    elif kind == "O":  # such as of a DataFrame with unlike columns, which `fit` makes floats of
        dtype = keras.config.floatx()
    shape = (batch_size, *map(int, array.shape[1:]))
    return keras.KerasTensor(shape, keras.backend.standardize_dtype(dtype))


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
