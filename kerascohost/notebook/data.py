"""What of a notebook's namespace a model can be trained on."""

import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import tree


def data_in(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """What can be trained on: arrays, tensors, tables, structures of them, and datasets."""
    return {
        name: value
        for name, value in list(namespace.items())
        if not name.startswith("_") and name not in _NOT_DATA and _is_data(value)
    }


def is_dataset(value: Any) -> bool:
    """Whether `value` yields batches by itself, inputs and targets together."""
    return isinstance(value, keras.utils.PyDataset) or any(
        kind.__module__.startswith(("tensorflow.python.data", "torch.utils.data"))
        and kind.__name__ in ("DatasetV2", "DataLoader")
        for kind in type(value).__mro__
    )


def inputs_for(name: str, model: keras.Model, data: Mapping[str, Any]) -> list[str]:
    """The names of data that fit a model's inputs, the likeliest first."""
    wanted = getattr(model, "inputs", None)
    fitting = [key for key, value in data.items() if _fits_inputs(value, wanted)]
    return sorted(fitting, key=lambda key: _unlikeliness(key, name, _X_WORDS))


def targets_for(name: str, model: keras.Model, x: str, data: Mapping[str, Any]) -> list[str]:
    """The names of data that fit a model's outputs and have a row for each of `x`'s."""
    if x not in data or is_dataset(data[x]):
        return []
    rows = rows_of(data[x])
    fitting = [
        key
        for key, value in data.items()
        if key != x and rows_of(value) == rows and _fits_outputs(value, model)
    ]
    partners = _partners(x)

    def unlikeliness(key: str) -> tuple:
        return (key not in partners, *_unlikeliness(key, name, _Y_WORDS))

    return sorted(fitting, key=unlikeliness)


def validation_for(name: str, model: keras.Model, data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Names of datasets, and of pairs of inputs and targets, that a model can be validated on."""
    found: list[tuple[str, ...]] = []
    for x in inputs_for(name, model, data):
        if is_dataset(data[x]):
            found.append((x,))
        else:
            found += [(x, y) for y in targets_for(name, model, x, data)[:1]]
    return sorted(found, key=lambda names: not is_for_validation(names[0]))


def is_for_validation(name: str) -> bool:
    """Whether data of this name was put aside to validate on."""
    return bool(_words(name) & {"val", "valid", "validation"})


def described(value: Any) -> str:
    """A few words that tell data from other data: the shape, or the kind of dataset."""
    if is_dataset(value):
        return type(value).__name__.lstrip("_")
    shapes = (f"({', '.join(map(str, leaf.shape))})" for leaf in tree.flatten(value))
    return ", ".join(shapes)


# What IPython itself puts into the namespace.
_NOT_DATA = ("In", "Out", "exit", "quit")

_X_WORDS = ("x", "inputs", "input", "features", "images", "data")
_Y_WORDS = ("y", "targets", "target", "labels", "label")
_TRAINING = ("train", "training")
_ASIDE = {"val", "valid", "validation", "test", "holdout"}


def _is_data(value: Any) -> bool:
    if is_dataset(value):
        return True
    if isinstance(value, (dict, list, tuple)):
        leaves = tree.flatten(value) if len(value) <= _MOST_LEAVES else []
        return bool(leaves) and all(map(_is_array, leaves)) and len(set(map(len, leaves))) == 1
    return _is_array(value)


# A longer list is not the inputs of a model.
_MOST_LEAVES = 100


def _is_array(value: Any) -> bool:
    if isinstance(value, (type, keras.Variable, keras.KerasTensor)):
        return False
    shape = getattr(value, "shape", None)
    sized = isinstance(shape, tuple) or type(shape).__name__ in ("TensorShape", "Size")
    return (
        shape is not None
        and sized
        and len(shape) >= 1
        and hasattr(value, "__len__")
        and hasattr(value, "__getitem__")
    )


def rows_of(value: Any) -> int | None:
    """How many samples there are; `None` for a dataset, which may not know."""
    return None if is_dataset(value) else len(tree.flatten(value)[0])


def _fits_inputs(value: Any, wanted: Any) -> bool:
    if is_dataset(value):
        return _dataset_fits(value, wanted)
    leaves = tree.flatten(value)
    if not wanted:  # a model that is not built takes what it gets
        return True
    return len(leaves) == len(wanted) and all(
        _fits(tuple(leaf.shape)[1:], tuple(tensor.shape)[1:], _kind(leaf), tensor.dtype)
        for leaf, tensor in zip(leaves, wanted, strict=True)
    )


def _dataset_fits(dataset: Any, wanted: Any) -> bool:
    """Datasets that do not say what is in them are taken to fit."""
    spec = getattr(dataset, "element_spec", None)
    if spec is None or not wanted:
        return True
    x = tree.flatten(spec[0] if isinstance(spec, tuple) else spec)
    return len(x) == len(wanted) and all(
        leaf.shape.rank is None or _fits(tuple(leaf.shape)[1:], tuple(tensor.shape)[1:])
        for leaf, tensor in zip(x, wanted, strict=True)
    )


def _fits(given: tuple, wanted: tuple, kind: str = "f", dtype: str = "float32") -> bool:
    if (kind in "OSU") != (dtype == "string"):
        return False
    given = given or (1,)  # Keras gives plain rows an axis of 1
    return len(given) == len(wanted) and all(
        want in (None, have) or have is None for have, want in zip(given, wanted, strict=True)
    )


def _fits_outputs(value: Any, model: keras.Model) -> bool:
    if is_dataset(value):
        return False
    leaves, outputs = tree.flatten(value), getattr(model, "outputs", None)
    if not outputs:
        return True
    losses = tree.flatten(getattr(model, "loss", None))
    sparse = ["sparse" in str(getattr(loss, "name", loss)) for loss in losses] or [False]
    if len(sparse) != len(outputs):
        sparse = sparse[:1] * len(outputs)
    if len(leaves) != len(outputs):
        return False
    for leaf, tensor, is_sparse in zip(leaves, outputs, sparse, strict=True):
        wanted, given = tuple(tensor.shape)[1:], tuple(leaf.shape)[1:]
        if _kind(leaf) in "OSU" or (is_sparse and not _is_whole(leaf)):
            return False
        if is_sparse:
            if given not in (wanted[:-1], (*wanted[:-1], 1)):
                return False
        elif not _fits(given, wanted):
            return False
    return True


def _kind(array: Any) -> str:
    """The kind of its numbers, as NumPy's letter: `"f"`, `"i"`, …; `"O"` for anything else."""
    dtypes = set(getattr(array, "dtypes", [])) if isinstance(array, pd.DataFrame) else {array.dtype}
    names = {str(dtype).removeprefix("torch.").lower() for dtype in dtypes}
    if all(name.startswith(("int", "uint", "bool")) for name in names):
        return "i"
    if all(name.startswith(("float", "bfloat", "int", "uint", "bool")) for name in names):
        return "f"
    return "O"


def _is_whole(array: Any) -> bool:
    """Whether it may hold class indices: also floats do, when they were read from a file."""
    if _kind(array) == "i":
        return True
    head = np.asarray(array[:100] if not isinstance(array, pd.DataFrame) else array.iloc[:100])
    return bool(np.all(head == np.round(head)) and np.all(head >= 0))


def _words(name: str) -> set[str]:
    """`"xTrain_2"` and `"x_train2"` as `{"x", "train", "2"}`."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)}


def _unlikeliness(key: str, model: str, words: tuple[str, ...]) -> tuple:
    """Sorts names of data by how likely they are meant for a model and a use."""
    own, of_model = _words(key), _words(model)
    generic = {"model", "net", "network"}
    return (
        not own & (of_model - generic),
        bool(own & _ASIDE),
        next((i for i, word in enumerate(words) if word in own), len(words)),
        not own & set(_TRAINING),
        bool({w for w in own if w.isdigit()} - of_model),
        len(key),
        key,
    )


def _partners(x: str) -> set[str]:
    """The names that targets would have beside inputs of this name."""
    found = set()
    for word, others in (("x", "y"), ("X", "y"), ("X", "Y")):
        found.add(re.sub(rf"(?<![A-Za-z]){word}|{word}(?![A-Za-z])", others, x, count=1))
    for word in ("inputs", "features", "images", "data"):
        if word in x:
            found |= {x.replace(word, other) for other in _Y_WORDS}
    return found - {x}
