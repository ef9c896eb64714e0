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
        left |= _of_loops(str(cell))
    return left


def _of_loops(code: str) -> set[str]:
    """Returns the variables of the loops in a cell, or in one within a cell magic such as `%%time`.

    Those of functions and classes are their own, and in no namespace of a notebook.
    """
    left: set[str] = set()
    nodes: list[ast.AST] = []
    if "for" in code:
        with contextlib.suppress(SyntaxError):  # a cell that never ran
            nodes = [ast.parse(code)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.For, ast.AsyncFor)):
            left |= {one.id for one in ast.walk(node.target) if isinstance(one, ast.Name)}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "run_cell_magic":
            left |= _of_loops(_transformed(node.args[-1]))
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            nodes += ast.iter_child_nodes(node)
    return left


def _transformed(source: ast.expr) -> str:
    """Returns the source of a cell magic as the Python code that IPython runs."""
    from IPython.core.inputtransformer2 import TransformerManager  # there, as its magic was called

    cell = source.value if isinstance(source, ast.Constant) else ""
    with contextlib.suppress(SyntaxError):  # a cell that is not Python
        return TransformerManager().transform_cell(str(cell))
    return ""


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
