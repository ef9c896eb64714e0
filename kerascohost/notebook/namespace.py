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

# A namespace, such as a notebook's `globals()`.
Variables: TypeAlias = Mapping[str, Value]


def models_in(namespace: Variables, given: Iterable[str] = ()) -> dict[str, keras.Model]:
    """Returns the Keras models of a namespace by name, each once.

    Args:
        namespace: The namespace. Names that begin with `_` are ignored.
        given: Names that the user has given. They are preferred where a model has several names;
            names that are not variables of a loop come next.
    """
    names = [
        name
        for name, value in list(namespace.items())
        if isinstance(value, keras.Model) and not name.startswith("_")
    ]
    asked, left = list(given), _left_by_loops(namespace)
    found: dict[int, str] = {}
    for name in sorted(names, key=lambda name: (name not in asked, name in left)):
        found.setdefault(id(namespace[name]), name)
    return {name: namespace[name] for name in names if name in found.values()}


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
    """Returns the models with these names.

    Raises:
        CohortError: If a name is not that of a model, or two names are of one model. The message
            suggests the nearest name.
    """
    names, known = list(names), models_in(namespace)
    for name in names:
        value = namespace.get(name)
        if not isinstance(value, keras.Model):
            received = f"{name!r}, a {type(value).__name__}" if name in namespace else f"{name!r}"
            there_are = f" There are: {', '.join(known)}." if known else " There are none yet."
            raise CohortError(
                f"Expected names of Keras models. Received: {received}."
                f"{did_you_mean(name, known) or there_are}"
            )
    owner: dict[int, str] = {}
    for name in names:
        first = owner.setdefault(id(namespace[name]), name)
        if first != name:
            raise CohortError(
                f"Expected models to be named once. Received: {first!r} and {name!r}, which are "
                "one model."
            )
    return {name: namespace[name] for name in names}


def table(models: Mapping[str, keras.Model]) -> pd.DataFrame:
    """Returns a table with a row for each model: kind, shapes, parameters, optimizer and loss."""
    rows = {
        name: {
            "kind": type(model).__name__,
            "input": _shapes(model, "inputs"),
            "output": _shapes(model, "outputs"),
            "parameters": f"{model.count_params():,}" if model.built else "not built",
            "compiled": _compiled(model),
        }
        for name, model in models.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _shapes(model: keras.Model, side: str) -> str:
    tensors = getattr(model, side, None) or []
    return ", ".join(_shape(tensor.shape) for tensor in tensors)


def _shape(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape[1:])})"


def _compiled(model: keras.Model) -> str:
    if not model.compiled:
        return "no"
    loss = getattr(model, "loss", None)
    name = loss if isinstance(loss, str) else getattr(loss, "name", type(loss).__name__)
    return f"{type(model.optimizer).__name__}, {name}"
