"""The data in a notebook's namespace that a model can be trained on."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import keras
import numpy as np
import pandas as pd
from keras import tree

from kerascohost.arguments import Data
from kerascohost.notebook import namespace
from kerascohost.notebook.namespace import Value, Variables

# The names of data that a model can be validated on, as `("x_val", "y_val")` or `("dataset",)`; a
# fraction of its training data, as `(0.1,)`; or `()` for none.
Validation: TypeAlias = tuple[float] | tuple[str, ...]

_Shape: TypeAlias = tuple[int | None, ...]

# The inputs or outputs of a model; `None` or none while it is not built.
_Tensors: TypeAlias = Sequence[keras.KerasTensor] | None


def data_in(variables: Variables) -> dict[str, Data]:
    """Returns the data by name: arrays, tensors, tables, structures of them, and datasets."""
    return {
        name: value
        for name, value in list(variables.items())
        if not name.startswith("_") and name not in namespace.NOT_THE_USERS and _is_data(value)
    }


def parts_of(chosen: str) -> list[str]:
    """Returns the names in a choice for several inputs: `"[a, b]"`; else the one name."""
    is_list = chosen.startswith("[")
    return [part.strip() for part in chosen[1:-1].split(",")] if is_list else [chosen]


def value_of(chosen: str, data: Mapping[str, Data]) -> Data | None:
    """Returns the data of a name, or of a list of names as `"[a, b]"`; `None` if one is missing."""
    values = [data.get(part) for part in parts_of(chosen)]
    if any(value is None for value in values):
        return None
    return values if chosen.startswith("[") else values[0]


def is_dataset(value: Value) -> bool:
    """Returns whether `value` yields batches by itself, inputs and targets together."""
    return isinstance(value, keras.utils.PyDataset) or any(
        kind.__module__.startswith(("tensorflow.python.data", "torch.utils.data"))
        and kind.__name__ in ("DatasetV2", "DataLoader")
        for kind in type(value).__mro__
    )


def inputs_for(name: str, model: keras.Model, data: Mapping[str, Data]) -> list[str]:
    """Returns the names of data that fit a model's inputs, the likeliest first.

    Args:
        name: The model's name; data of a similar name is likelier.
        model: The model.
        data: The data by name.
    """
    inputs = getattr(model, "inputs", None)
    fitting = [key for key, value in data.items() if _fits_inputs(value, inputs)]
    return sorted(fitting, key=lambda key: _unlikeliness(key, name, _X_WORDS))


def targets_for(name: str, model: keras.Model, x: str, data: Mapping[str, Data]) -> list[str]:
    """Returns the names of data that fit a model's outputs and have as many rows as its inputs.

    Args:
        name: The model's name; data of a similar name comes first.
        model: The model.
        x: The name of the model's inputs.
        data: The data by name.
    """
    inputs = value_of(x, data)
    if inputs is None or is_dataset(inputs):
        return []
    rows = rows_of(inputs)
    own = {id(leaf) for leaf in tree.flatten(inputs)}
    fitting = [
        key
        for key, value in data.items()
        if rows_of(value) == rows
        and _fits_outputs(value, model)
        and not own & {id(leaf) for leaf in tree.flatten(value)}
    ]
    partners = _partners(x)

    def unlikeliness(key: str) -> tuple[bool | int | str, ...]:
        return (key not in partners, *_unlikeliness(key, name, _Y_WORDS))

    return sorted(fitting, key=unlikeliness)


def each_input_for(name: str, model: keras.Model, data: Mapping[str, Data]) -> dict[str, list[str]]:
    """Returns for each of several inputs of a model, by its name, the arrays that fit it."""
    inputs = getattr(model, "inputs", None) or []
    found: dict[str, list[str]] = {}
    for tensor in inputs if len(inputs) > 1 else []:
        fitting = [
            key
            for key, value in data.items()
            if not is_dataset(value) and _fits_inputs(value, [tensor])
        ]
        found[tensor.name] = sorted(fitting, key=lambda key: _unlikeliness(key, name, _X_WORDS))
    return found


def sure_inputs(name: str, model: keras.Model, data: Mapping[str, Data]) -> str:
    """Returns the data that a model is surely to be trained on; `""` if there is a doubt.

    Sure is: one name fits better than all others, says that it is for inputs or for this model, and
    does not say that it is for validation. For several inputs: names of arrays are the inputs'.
    """
    if not getattr(model, "inputs", None):
        return ""
    found = inputs_for(name, model, data)
    best = _surely(found, name, _X_WORDS, others=_Y_WORDS)
    parts = each_input_for(name, model, data)
    if not best and parts and all(key in found for key, found in parts.items()):
        return f"[{', '.join(parts)}]"
    return best


def sure_targets(name: str, model: keras.Model, x: str, data: Mapping[str, Data]) -> str:
    """Returns the targets that surely belong to `x`; `""` if there is a doubt.

    Sure is: their name is that of `x` with the word for targets in it; or as for inputs, and there
    is no word in it that is neither in the name of the model nor in that of `x`.
    """
    found = targets_for(name, model, x, data) if getattr(model, "outputs", None) else []
    partners = [key for key in found if key in _partners(x)]
    known = {*_Y_WORDS, *_TRAINING, *_own_words(name), *_words(x)}
    own = [key for key in found if _words(key) <= known]
    return partners[0] if partners else _surely(own, name, _Y_WORDS, others=_X_WORDS)


def sure_validation(
    name: str, model: keras.Model, x: str, data: Mapping[str, Data]
) -> tuple[str, ...]:
    """Returns the validation data that surely belongs to a model; `()` if there is a doubt."""
    if not getattr(model, "inputs", None):
        return ()
    pairs = {
        names[0]: names
        for names in validation_for(name, model, data)
        if is_for_validation(names[0]) and names[1:] in [(y,) for y in _partners(names[0])] + [()]
    }
    likely = {key: _unlikeliness(key, name, _X_WORDS)[:1] for key in pairs}
    nearest = [key for key in pairs if likely[key] == min(likely.values())]
    return pairs[nearest[0]] if len(nearest) == 1 else ()


def _surely(found: Sequence[str], model: str, words: Sequence[str], others: Sequence[str]) -> str:
    """Returns the first name if it is meant; see `sure_inputs`."""
    if not found:
        return ""
    best = found[0]
    own = _words(best)
    says = own & {*words, *_own_words(model)} and not (own & set(others)) and not (own & _ASIDE)
    keys = [_unlikeliness(name, model, tuple(words))[:_TELLING] for name in found[:2]]
    return best if says and (len(keys) == 1 or keys[0] < keys[1]) else ""


def validation_for(
    name: str, model: keras.Model, data: Mapping[str, Data]
) -> list[tuple[str, ...]]:
    """Returns the names of data that a model can be validated on, the likeliest first.

    Args:
        name: The model's name; data of a similar name is likelier.
        model: The model.
        data: The data by name.

    Returns:
        A list of `(dataset,)` and `(inputs, targets)`.
    """
    found: list[tuple[str, ...]] = []
    for x in inputs_for(name, model, data):
        if is_dataset(data[x]):
            found.append((x,))
        else:
            found += [(x, y) for y in targets_for(name, model, x, data)[:1]]
    return sorted(found, key=lambda names: not is_for_validation(names[0]))


def is_for_validation(name: str) -> bool:
    """Returns whether the name says that the data is for validation."""
    return bool(_words(name) & {"val", "valid", "validation"})


def described(value: Data) -> str:
    """Returns the shape of data, or the class of a dataset."""
    if is_dataset(value):
        return type(value).__name__.lstrip("_")
    shapes = (f"({', '.join(map(str, leaf.shape))})" for leaf in tree.flatten(value))
    return ", ".join(shapes)


_X_WORDS = ("x", "inputs", "input", "features", "images", "data")
_Y_WORDS = ("y", "targets", "target", "labels", "label")
_TRAINING = ("train", "training")
_ASIDE = {"val", "valid", "validation", "test", "holdout"}


def _is_data(value: Value) -> bool:
    if is_dataset(value):
        return True
    if isinstance(value, (dict, list, tuple)):
        leaves = tree.flatten(value) if len(value) <= _MOST_LEAVES else []
        return bool(leaves) and all(map(_is_array, leaves)) and len(set(map(len, leaves))) == 1
    return _is_array(value)


# A longer list is not the inputs of a model.
_MOST_LEAVES = 100


def _is_array(value: Value) -> bool:
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


def rows_of(value: Data) -> int | None:
    """Returns the number of samples; `None` for a dataset, which may not know it."""
    return None if is_dataset(value) else len(tree.flatten(value)[0])


def _fits_inputs(value: Data, inputs: _Tensors) -> bool:
    if is_dataset(value):
        return _dataset_fits(value, inputs)
    leaves = tree.flatten(value)
    if not inputs:  # a model that is not built takes any data
        return True
    return len(leaves) == len(inputs) and all(
        _fits(tuple(leaf.shape)[1:], tuple(tensor.shape)[1:], _kind(leaf), tensor.dtype)
        for leaf, tensor in zip(leaves, inputs, strict=True)
    )


def _dataset_fits(dataset: Data, inputs: _Tensors) -> bool:
    """Returns whether a dataset fits a model's inputs; one without `element_spec` does."""
    spec = getattr(dataset, "element_spec", None)
    if spec is None or not inputs:
        return True
    x = tree.flatten(spec[0] if isinstance(spec, tuple) else spec)
    return len(x) == len(inputs) and all(
        leaf.shape.rank is None or _fits(tuple(leaf.shape)[1:], tuple(tensor.shape)[1:])
        for leaf, tensor in zip(x, inputs, strict=True)
    )


def _fits(given: _Shape, expected: _Shape, kind: str = "f", dtype: str = "float32") -> bool:
    if (kind in "OSU") != (dtype == "string"):
        return False
    given = given or (1,)  # Keras gives rows without further axes one of size 1
    return len(given) == len(expected) and all(
        size in (None, found) or found is None for found, size in zip(given, expected, strict=True)
    )


def _fits_outputs(value: Data, model: keras.Model) -> bool:
    if is_dataset(value):
        return False
    leaves, outputs = tree.flatten(value), getattr(model, "outputs", None)
    if not outputs:
        return True
    losses = tree.flatten(getattr(model, "loss", None))
    sparse = ["sparse" in str(getattr(loss, "name", loss)) for loss in losses] or [False]
    if len(sparse) != len(outputs):
        sparse = sparse[:1] * len(outputs)
    return len(leaves) == len(outputs) and all(
        _fits_output(leaf, tuple(tensor.shape)[1:], is_sparse)
        for leaf, tensor, is_sparse in zip(leaves, outputs, sparse, strict=True)
    )


def _fits_output(target: Data, expected: _Shape, is_sparse: bool) -> bool:
    given = tuple(target.shape)[1:]
    if _kind(target) in "OSU" or (is_sparse and not _is_whole(target)):
        return False
    if is_sparse:
        return given in (expected[:-1], (*expected[:-1], 1))
    return _fits(given, expected)


def _kind(array: Data) -> str:
    """Returns the kind of an array's values: `"i"`, `"f"`, or `"O"` for all but numbers."""
    dtypes = set(getattr(array, "dtypes", [])) if isinstance(array, pd.DataFrame) else {array.dtype}
    names = {str(dtype).removeprefix("torch.").lower() for dtype in dtypes}
    if all(name.startswith(("int", "uint", "bool")) for name in names):
        return "i"
    if all(name.startswith(("float", "bfloat", "int", "uint", "bool")) for name in names):
        return "f"
    return "O"


def _is_whole(array: Data) -> bool:
    """Returns whether the values may be class indices, which are floats in some files."""
    if _kind(array) == "i":
        return True
    head = np.asarray(array[:100] if not isinstance(array, pd.DataFrame) else array.iloc[:100])
    return bool(np.all(head == np.round(head)) and np.all(head >= 0))


def _words(name: str) -> set[str]:
    """Returns the words of a name: `{"x", "train", "2"}` of `"xTrain_2"` and `"x_train2"`."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)}


def _unlikeliness(key: str, model: str, words: tuple[str, ...]) -> tuple[bool | int | str, ...]:
    """Returns a sort key: smaller for names of data that are likelier to belong to a model.

    Args:
        key: The name of the data.
        model: The name of the model.
        words: The words that such data is usually named with, the likeliest first.
    """
    own, of_model = _words(key), _words(model)
    return (
        not own & _own_words(model),
        bool(own & _ASIDE),
        next((i for i, word in enumerate(words) if word in own), len(words)),
        not own & set(_TRAINING),
        bool({w for w in own if w.isdigit()} - of_model),
        len(key),
        key,
    )


# How many parts of the key above tell what is meant; those after them are an order for the eye.
_TELLING = 5


def _own_words(model: str) -> set[str]:
    """Returns the words of a model's name that tell it from others."""
    return _words(model) - {"model", "models", "net", "network"}


def _partners(x: str) -> set[str]:
    """Returns the names that the targets of inputs of this name usually have."""
    found = set()
    for word, others in (("x", "y"), ("X", "y"), ("X", "Y")):
        found.add(re.sub(rf"(?<![A-Za-z]){word}|{word}(?![A-Za-z])", others, x, count=1))
    for word in ("inputs", "features", "images", "data"):
        if word in x:
            found |= {x.replace(word, other) for other in _Y_WORDS}
    return found - {x}
