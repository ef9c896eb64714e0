"""What of a notebook's namespace can take part in a cohort."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import pandas as pd

from kerascohost.errors import CohortError, did_you_mean


def models_in(namespace: Mapping[str, Any]) -> dict[str, keras.Model]:
    """The Keras models of a namespace by name, each once, without names that begin with `_`."""
    found: dict[int, str] = {}
    for name, value in list(namespace.items()):
        if isinstance(value, keras.Model) and not name.startswith("_"):
            found.setdefault(id(value), name)
    return {name: namespace[name] for name in found.values()}


def chosen(namespace: Mapping[str, Any], names: Iterable[str]) -> dict[str, keras.Model]:
    """The models with these names.

    Raises:
        CohortError: If a name stands for nothing, or for something else, with the nearest name.
    """
    known = models_in(namespace)
    for name in names:
        value = namespace.get(name)
        if not isinstance(value, keras.Model):
            received = f"{name!r}, a {type(value).__name__}" if name in namespace else f"{name!r}"
            there_are = f" There are: {', '.join(known)}." if known else " There are none yet."
            raise CohortError(
                f"Expected names of Keras models. Received: {received}."
                f"{did_you_mean(name, known) or there_are}"
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
