"""Data for a trial: the first rows of the user's data, or random rows that suit a model."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

import keras
import numpy as np
from keras import tree

from kerascohost import backends, errors
from kerascohost.arguments import Data, PerMember, per_member
from kerascohost.backends import Chunk, Tree
from kerascohost.data import Subset
from kerascohost.errors import CohortError
from kerascohost.training import batches

# The size of a dimension that a model leaves open.
_ANY_LENGTH = 16


def sample_data(
    models: Mapping[str, keras.Model],
    x: PerMember[Data],
    y: PerMember[Data],
    batch_sizes: Mapping[str, int],
    steps: int,
) -> tuple[dict[str, tuple[Tree, Tree]], dict[str, int]]:
    """Returns some batches of data for each model, as arrays.

    Args:
        models: The models, by name.
        x: Arrays or datasets, for all or by name; `None` for random arrays.
        y: Targets, likewise.
        batch_sizes: Samples per batch, by name; a dataset has its own.
        steps: The number of batches; fewer if the data has fewer.

    Returns:
        `(x, y)` by name, and the samples per batch by name.

    Raises:
        CohortError: If the data cannot be read, or no random data can be made.
    """
    data, sizes = {}, dict(batch_sizes)
    inputs = per_member("x", x, models)
    targets = per_member("y", y, models, None)
    for name, model in models.items():
        with errors.about(name):
            own_x, own_y = inputs[name], targets[name]
            if own_x is None:
                data[name] = _random_data(model, sizes[name] * steps)
            elif own_y is None and isinstance(own_x, (dict, list)) and _are_arrays(own_x):
                data[name] = _rows("x", own_x, sizes[name] * steps), None
            elif own_y is None and not hasattr(own_x, "shape"):
                data[name], sizes[name] = _from_stream(own_x, steps)
            else:
                rows = sizes[name] * steps
                data[name] = _rows("x", own_x, rows), _rows("y", own_y, rows)
    return data, sizes


def _rows(key: str, value: Data, rows: int) -> Tree:
    if value is None or not _are_arrays(value):
        raise CohortError(
            f"Expected `{key}` made of arrays. Received: {type(value).__name__}. "
            "Without x and y, random data is used."
        )
    return tree.map_structure(
        lambda leaf: np.asarray(leaf[:rows] if isinstance(leaf, Subset) else leaf)[:rows], value
    )


def _are_arrays(value: Data) -> bool:
    return all(hasattr(leaf, "shape") for leaf in tree.flatten(value))


def _from_stream(dataset: Data, steps: int) -> tuple[tuple[Tree, Tree], int]:
    """Returns the first batches of a dataset as one array each of x and y, and the batch size."""
    if hasattr(dataset, "__next__"):
        raise CohortError(
            "Expected data that can be read more than once. Received: a generator, which a trial "
            "would use up; give arrays, a dataset, or neither x nor y."
        )
    try:
        stream = batches.batches((dataset, None, None), backends.get_backend().row_order)
    except ValueError as error:
        raise CohortError(
            f"Expected arrays or a dataset. Received: {type(dataset).__name__} ({error})"
        ) from error
    read = list(itertools.islice(_single(stream.epoch(steps)), steps))
    if not read:
        raise CohortError("Expected at least one batch of data. Received: none.")
    taken = tree.map_structure(
        lambda *parts: None if parts[0] is None else np.concatenate(parts), *read
    )
    x, y, _ = keras.utils.unpack_x_y_sample_weight(taken)
    first = next(leaf for leaf in tree.flatten(read[0]) if leaf is not None)
    return (x, y), len(first)  # the last batch may be smaller


def _single(chunks: Iterable[Chunk]) -> Iterator[Tree]:
    """Yields the batches in some chunks."""
    for chunk in chunks:
        for i in range(chunk.start, chunk.stop):
            yield tree.map_structure(
                lambda leaf, i=i: None if leaf is None else leaf[i], chunk.data
            )


def _random_data(model: keras.Model, rows: int) -> tuple[Tree, Tree]:
    random = np.random.default_rng(0)
    if not getattr(model, "inputs", None):
        raise CohortError(
            "Expected a model whose inputs are known. Received: one that is subclassed, or not "
            "built; give x and y."
        )
    # A Sequential has both as lists only; other models have them with their nesting.
    is_sequential = isinstance(model, keras.Sequential)
    given, made = (
        (model.inputs[0], model.outputs[0]) if is_sequential else (model.input, model.output)
    )
    inputs = tree.map_structure(lambda tensor: _random_input(random, tensor, rows), given)
    losses = _per_output(model)
    outputs = [
        _random_target(random, tensor, loss, rows)
        for tensor, loss in zip(model.outputs, losses, strict=True)
    ]
    return inputs, tree.pack_sequence_as(made, outputs)


def _per_output(model: keras.Model) -> list[str]:
    losses = tree.flatten(model.loss) if isinstance(model.loss, (list, tuple, dict)) else None
    found = losses if losses and len(losses) == len(model.outputs) else None
    each = found or [model.loss] * len(model.outputs)
    return [
        loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
        for loss in each
    ]


def _random_input(random: np.random.Generator, tensor: keras.KerasTensor, rows: int) -> np.ndarray:
    shape = (rows, *(size or _ANY_LENGTH for size in tensor.shape[1:]))
    if "int" in tensor.dtype:
        return random.integers(0, 2, shape).astype(tensor.dtype)  # in any vocabulary
    return random.normal(size=shape).astype("float32")


def _random_target(
    random: np.random.Generator, tensor: keras.KerasTensor, loss: str, rows: int
) -> np.ndarray:
    shape = (rows, *(size or _ANY_LENGTH for size in tensor.shape[1:]))
    if loss.startswith("sparse_categorical"):
        return random.integers(0, shape[-1], shape[:-1])
    if loss.startswith(("categorical", "kl_divergence")):
        return np.eye(shape[-1], dtype="float32")[random.integers(0, shape[-1], shape[:-1])]
    if loss.startswith("binary"):
        return random.integers(0, 2, shape).astype("float32")
    return random.normal(size=shape).astype("float32")
