"""The Keras models in a notebook's namespace."""

import ast
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import keras
import pandas as pd

from kerascohost.errors import CohortError, did_you_mean

# The value of a variable of the notebook: an object of any type.
Value: TypeAlias = Any

# Variables that IPython itself adds to the namespace.
NOT_THE_USERS = ("In", "Out", "exit", "quit")

# A namespace, such as a notebook's `globals()`.
Variables: TypeAlias = Mapping[str, Value]


def models_in(namespace: Variables, given: Iterable[str] = ()) -> dict[str, keras.Model]:
    """Returns the Keras models of a namespace by name, each once.

    Models in lists, tuples and dicts are named by the code that gets them, as `seeds[0]`.

    Args:
        namespace: The namespace. Names that begin with `_` are ignored.
        given: Names that the user has given. They are preferred where a model has several names;
            variables come next, then items of lists and dicts, then what a loop has left behind.
    """
    names, asked, left = _names(namespace), set(given), _left_by_loops(namespace)
    ranks = {name: (name not in asked, name in left, bool(group_of(name))) for name in names}
    found: dict[int, str] = {}
    for name in sorted(names, key=ranks.__getitem__):
        found.setdefault(id(names[name]), name)
    shown = set(found.values())
    return {name: model for name, model in names.items() if name in shown}


def group_of(name: str) -> str:
    """Returns the list or dict that a model is in: `"seeds"` for `"seeds[0]"`; `""` for none."""
    group, bracket, _ = name.partition("[")
    return group if bracket else ""


def is_whole(namespace: Variables, group: str, names: Iterable[str]) -> bool:
    """Returns whether `names` are all the models of a list or dict, in its order."""
    return list(_items(group, namespace.get(group))) == list(names)


def _names(namespace: Variables) -> dict[str, keras.Model]:
    """Returns all names of all models, those in a list or dict where the list or dict stands."""
    names: dict[str, keras.Model] = {}
    for name, value in list(namespace.items()):
        if name.startswith("_") or name in NOT_THE_USERS:
            continue
        if isinstance(value, keras.Model):
            names[name] = value
        else:
            names |= _items(name, value)
    return names


def _items(name: str, value: Value) -> dict[str, keras.Model]:
    """Returns the models in a list, tuple or dict of models by name, else `{}`."""
    if isinstance(value, dict):
        items = {repr(key): item for key, item in value.items() if isinstance(key, (str, int))}
    elif isinstance(value, (list, tuple)):
        items = {repr(key): item for key, item in enumerate(value)}
    else:
        return {}
    if len(items) != len(value) or not all(isinstance(i, keras.Model) for i in items.values()):
        return {}
    return {f"{name}[{key}]": item for key, item in items.items()}


def _left_by_loops(namespace: Variables) -> set[str]:
    """Returns the variables of the loops in earlier cells, whose source IPython stores in `In`."""
    left: set[str] = set()
    for cell in namespace.get("In", []):
        if "for" not in str(cell):
            continue
        with contextlib.suppress(SyntaxError):  # a cell that never ran
            loops = [node for node in ast.parse(cell).body if isinstance(node, ast.For)]
            targets = [node for loop in loops for node in ast.walk(loop.target)]
            left |= {node.id for node in targets if isinstance(node, ast.Name)}
    return left


def chosen(namespace: Variables, names: Iterable[str]) -> dict[str, keras.Model]:
    """Returns the models with these names; a list or dict of models stands for all in it.

    Raises:
        CohortError: If a name is not that of a model, or two names are of one model. The message
            suggests the nearest name.
    """
    every, found = _names(namespace), dict[str, keras.Model]()
    for name in names:
        items = _items(name, namespace.get(name))
        if name not in every and not items:
            raise CohortError(_no_model(namespace, name))
        found |= items or {name: every[name]}
    owner: dict[int, str] = {}
    for name, model in found.items():
        first = owner.setdefault(id(model), name)
        if first != name:
            raise CohortError(
                f"Expected models to be named once. Received: {first!r} and {name!r}, which are "
                "one model."
            )
    return found


def _no_model(namespace: Variables, name: str) -> str:
    known = [*models_in(namespace), *dict.fromkeys(map(group_of, _names(namespace)))]
    known = [one for one in known if one]
    value = namespace.get(name)
    received = f"{name!r}, a {type(value).__name__}" if name in namespace else f"{name!r}"
    if isinstance(value, (list, tuple, dict)):
        received += " with more than Keras models in it" if value else " without models"
    there_are = f" There are: {', '.join(known)}." if known else " There are none yet."
    hint = did_you_mean(name, known) or there_are
    return f"Expected names of Keras models. Received: {received}.{hint}"


def table(models: Mapping[str, keras.Model]) -> pd.DataFrame:
    """Returns a table with a row for each model: kind, shapes, parameters, optimizer and loss."""
    rows = {
        name: {
            "kind": type(model).__name__,
            "input": _shapes(model, "inputs"),
            "output": _shapes(model, "outputs"),
            "parameters": f"{model.count_params():,}" if model.built else "not built",
            "compiled": compiled(model),
        }
        for name, model in models.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def shapes(model: keras.Model) -> str:
    """Returns the shapes of a row of the model's inputs and outputs, `""` if it is not built."""
    inputs = _shapes(model, "inputs")
    return f"{inputs} → {_shapes(model, 'outputs')}" if inputs else ""


def _shapes(model: keras.Model, side: str) -> str:
    tensors = getattr(model, side, None) or []
    return ", ".join(_shape(tensor.shape) for tensor in tensors)


def _shape(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape[1:])})"


def compiled(model: keras.Model) -> str:
    """Returns the optimizer and the loss of a model; `"no"` if it is not compiled."""
    if not model.compiled:
        return "no"
    loss = getattr(model, "loss", None)
    name = loss if isinstance(loss, str) else getattr(loss, "name", type(loss).__name__)
    return f"{type(model.optimizer).__name__}, {name}"
