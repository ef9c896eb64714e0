"""What of a notebook's namespace can take part in a cohort."""

import ast
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import pandas as pd

from kerascohost.errors import CohortError, did_you_mean


def models_in(namespace: Mapping[str, Any], given: Iterable[str] = ()) -> dict[str, keras.Model]:
    """The Keras models of a namespace by name, each once, without names that begin with `_`.

    Args:
        namespace: The namespace.
        given: Names that the user has given: of a model's names the first of these is taken, else
            the first that is not only what a loop left behind.
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


def _left_by_loops(namespace: Mapping[str, Any]) -> set[str]:
    """The variables of the loops in the cells so far, of which IPython keeps the source in `In`."""
    left: set[str] = set()
    for cell in namespace.get("In", []):
        if "for" not in str(cell):
            continue
        with contextlib.suppress(SyntaxError):  # a cell that never ran
            loops = [node for node in ast.parse(cell).body if isinstance(node, ast.For)]
            targets = [node for loop in loops for node in ast.walk(loop.target)]
            left |= {node.id for node in targets if isinstance(node, ast.Name)}
    return left


def chosen(namespace: Mapping[str, Any], names: Iterable[str]) -> dict[str, keras.Model]:
    """The models with these names.

    Raises:
        CohortError: If a name stands for nothing, or for something else, with the nearest name.
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
    """A row for each model: its kind, its shapes, its size, and how it is compiled."""
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


def _shape(shape: tuple) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in shape[1:])})"


def _compiled(model: keras.Model) -> str:
    if not model.compiled:
        return "no"
    loss = getattr(model, "loss", None)
    name = loss if isinstance(loss, str) else getattr(loss, "name", type(loss).__name__)
    return f"{type(model.optimizer).__name__}, {name}"
