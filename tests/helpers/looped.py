"""Runs programs with loops as written and in turn, and compares what they leave."""

import ast
import contextlib
import dataclasses
import io
import itertools
import linecache
import os
import pickle
import re
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pandas as pd

from kerascohost import backends
from kerascohost.deferred import loops

# On JAX, XLA may fuse the loop of several members otherwise than that of one.
TOLERANCE = 0.0 if keras.backend.backend() == "tensorflow" else 1e-5


@dataclasses.dataclass
class Left:
    """What a program leaves.

    Attributes:
        values: Everything that is compared, by a text that says what it is.
        reports: What became of its loops.
    """

    values: dict[str, Any]
    reports: list[loops.Report]

    @property
    def told(self) -> list[str]:
        """The lines that are printed of its loops."""
        return [str(report) for report in self.reports]


def known(text: str, file: str) -> str:
    """The name of a file whose source can be read, as that of a notebook's cell."""
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    return file


def made(preamble: str) -> dict[str, Any]:
    """The names of a program after its preamble."""
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(preamble, known(preamble, "<preamble>"), "exec"), names)
    return names


def run(preamble: str, program: str, with_loops: bool, layout: str = "joined") -> Left:
    """Runs a program in the present folder, from the same state each time."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    names = made(preamble)
    file = known(program, f"<program {with_loops}>")
    in_turn = loops.Loops(names, layout)
    printed, error = io.StringIO(), None
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the programs
        try:
            if with_loops:
                code = compile(in_turn.prepared(ast.parse(program, file), file), file, "exec")
                with in_turn.entered():
                    exec(code, names)
            else:
                exec(compile(program, file, "exec"), names)
        except Exception as failed:
            error = failed
    values = {
        "error": repr(error),
        "random": [pickle.dumps(part) for part in backends.random_state().states],
        "next name": keras.layers.Dense(1).name,
        "environment": {k: v for k, v in os.environ.items() if k.startswith("LOOP")},
        "folder": Path.cwd().name,
        "printed": printed.getvalue(),
        "names": {k: value(v) for k, v in names.items() if not k.startswith("__")},
        "files": {path.name: _content(path) for path in sorted(Path.cwd().iterdir())},
    }
    return Left(values, in_turn.reports)


def value(thing: Any, depth: int = 5) -> Any:
    """Everything that is to be equal of an object of a program."""
    kind = type(thing)
    if isinstance(thing, keras.Model):
        optimizer = value(thing.optimizer)
        history = getattr(thing, "history", None)
        return thing.name, _values(thing.weights), optimizer, history and history.history
    if isinstance(thing, keras.callbacks.History):
        return thing.history, thing.epoch
    if isinstance(thing, keras.Variable | keras.Layer | keras.optimizers.Optimizer):
        variables = [thing] if isinstance(thing, keras.Variable) else thing.variables
        return kind.__name__, _values(variables)
    if isinstance(thing, np.ndarray):
        return thing.tolist()
    if isinstance(thing, np.random.Generator):
        return repr(thing.bit_generator.state)
    if isinstance(thing, pd.DataFrame | pd.Series):
        return value(thing.to_dict())
    if isinstance(thing, float | np.floating):
        return float(thing)
    if isinstance(thing, int | str | np.generic | BaseException):
        return repr(thing)
    if not depth:
        return kind.__name__
    if isinstance(thing, list | tuple):
        return kind.__name__, [value(each, depth - 1) for each in thing]
    if isinstance(thing, dict):
        return [(repr(key), value(each, depth - 1)) for key, each in thing.items()]
    if isinstance(thing, set):
        return sorted(map(repr, thing))
    if hasattr(kind, "__next__") and not hasattr(thing, "fileno"):
        return kind.__name__, [value(each, depth - 1) for each in itertools.islice(thing, 8)]
    is_own = getattr(kind, "__module__", None) == "program"
    if is_own or isinstance(thing, keras.callbacks.Callback | types.FunctionType):
        return kind.__name__, _attributes(vars(thing), depth)
    if isinstance(thing, type) and thing.__module__ == "program":
        return thing.__name__, _attributes(vars(thing), depth)
    return kind.__name__


def _values(variables: list[keras.Variable]) -> list:
    """The variables' values. On JAX a `fit` that fails may leave variables without any."""
    return [variable._value is not None and np.array(variable).tolist() for variable in variables]


def _attributes(attributes: Any, depth: int) -> list:
    return [
        (name, value(each, depth - 1))
        for name, each in attributes.items()
        if not name.startswith("_") and not isinstance(each, types.FunctionType | property)
    ]


def _content(path: Path) -> Any:
    """What a file or folder holds, but for times."""
    if path.suffix == ".h5":
        return _weights(path)
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return _weights(io.BytesIO(archive.read("model.weights.h5")))
    return path.read_text() if path.is_file() else sorted(p.name for p in path.iterdir())


def _weights(file: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def note(name: str, thing: Any) -> None:
        if isinstance(thing, h5py.Dataset):
            found[name] = np.array(thing).tolist()

    with h5py.File(file) as opened:
        opened.visititems(note)
    return found


def difference(one: Any, other: Any, tolerance: float = TOLERANCE) -> str | None:
    """Says in what two values differ, or returns `None`."""
    if isinstance(one, float) and isinstance(other, float):
        if np.isclose(one, other, tolerance, tolerance, equal_nan=True):
            return None
    elif isinstance(one, str) and isinstance(other, str) and tolerance:
        if re.sub(r"(\.\d{3})\d*", r"\1", one) == re.sub(r"(\.\d{3})\d*", r"\1", other):
            return None
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            found = difference(one.get(key), other.get(key), tolerance)
            if found is not None:
                return f"[{key!r}]{found}"
        return None
    elif isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            found = difference(*pair, tolerance)
            if found is not None:
                return f"[{i}]{found}"
        return None
    elif one == other:
        return None
    return f": {one!r:.300} as written, {other!r:.300} in turn"


def assert_same(one: Any, other: Any, tolerance: float = TOLERANCE) -> None:
    """Asserts that two programs leave the same; `one` is what the program as written leaves."""
    found = difference(one, other, tolerance)
    assert found is None, found
