"""The plan of the code: which package may import which, and where private names may stand."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kerascohost"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Imports run down this list, or stay in one line of it.
LEVELS = [
    {"environment", "errors", "patching"},
    {"arguments", "results"},
    {"backends"},
    {"models", "tracing"},
    {"training"},
    {"deferred", "layouts"},
    {"notebook", "__main__"},
]


def imported(path):
    """The dotted names of all modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level(name):
    return next(i for i, names in enumerate(LEVELS) if name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_down(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if here == "__init__":
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "kerascohost" and len(parts) > 1:
            assert level(parts[1]) <= level(here), f"{here} imports {name}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_keras_names_are_imported_in_backends_only(path):
    private = [name for name in imported(path) if name.startswith("keras.src")]
    assert not private or "backends" in path.parts, private


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_core_knows_no_notebook_library(path):
    if path.parent.name == "notebook":
        return
    notebook = {"IPython", "ipywidgets", "traitlets"}
    assert not notebook & {name.split(".")[0] for name in imported(path)}


def test_importing_loads_no_backend_but_the_chosen_one():
    code = (
        "import os, sys; os.environ['KERAS_BACKEND'] = 'jax'; import kerascohost; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
