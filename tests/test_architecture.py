"""The plan of the code: which package may import which, and where private names may stand."""

import ast
import functools
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import kerascohost

PACKAGE = Path(__file__).parent.parent / "kerascohost"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Imports run down this list, or stay in one line of it.
LEVELS = [
    {"environment", "errors", "patching"},
    {"arguments", "data", "results"},
    {"backends"},
    {"models", "tracing"},
    {"training"},
    {"deferred", "layouts"},
    {"integrations", "notebook", "__main__"},
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
    notebook = {"IPython", "anywidget", "ipywidgets", "traitlets"}
    assert not notebook & {name.split(".")[0] for name in imported(path)}


def test_importing_loads_no_backend_but_the_chosen_one():
    code = (
        "import os, sys; os.environ['KERAS_BACKEND'] = 'jax'; import kerascohost; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_what_can_be_imported():
    importable = {
        name
        for name, value in vars(kerascohost).items()
        if not (name.startswith("_") or inspect.ismodule(value))
    }
    hooks = {"load_ipython_extension", "unload_ipython_extension"}
    typing_only = {"TYPE_CHECKING", "Any"}
    lazy = {"CohostSession", "CohostWidget", "RayWorkers"}
    assert importable - hooks - typing_only | lazy == set(kerascohost.__all__)
    assert all(hasattr(kerascohost, name) for name in kerascohost.__all__)
    assert sorted(kerascohost.__all__) == kerascohost.__all__


def is_near(one, other):
    """Whether at most one letter is added, left out or replaced."""
    if len(one) > len(other):
        one, other = other, one
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    return one[same + 1 :] == other[same + 1 :] or one[same:] == other[same + 1 :]


def test_the_nearest_public_name_is_told():
    with pytest.raises(AttributeError, match=r"no attribute 'cohort'\. Did you mean 'cohost'\?"):
        _ = kerascohost.cohort
    assert not hasattr(kerascohost, "__wrapped__")


def test_no_submodule_is_taken_for_a_public_name():
    assert is_near("cohort", "cohost") and is_near("plan", "plans") and not is_near("fit", "fuse")
    modules = [name for name, value in vars(kerascohost).items() if inspect.ismodule(value)]
    for name in {*modules, *(path.stem for path in PACKAGE.iterdir())} - {"__init__"}:
        assert not [public for public in kerascohost.__all__ if is_near(name, public)], name


BACKENDS = sorted((PACKAGE / "backends").rglob("*.py"))


def private_imports(path):
    """The names that a file imports from Keras's private modules, as `module:name`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("keras.src"):
            yield from (f"{node.module}:{alias.name}" for alias in node.names)


IMPORTS = sorted({name for path in BACKENDS for name in private_imports(path)})


@pytest.mark.parametrize("name", IMPORTS)
def test_keras_still_has_a_private_name_that_is_imported(name):
    module, _, name = name.partition(":")
    if "tensorflow" in module or "torch" in module:
        pytest.importorskip(module, reason="the backend that it is of is not installed")
    found = importlib.import_module(module)
    assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}")


def private_attributes(path):
    """The private attributes that a file reads of others than `self` and `cls`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own:
                yield node.attr


def defined_here():
    """The private names that our own classes and modules define."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr


ATTRIBUTES = sorted({name for path in BACKENDS for name in private_attributes(path)})
# Not Keras's: of Python (named tuples, `sys`), TensorFlow and torch.
FOREIGN = {
    "_convert_flatten_batch", "_create_op", "_fields", "_filename", "_functions", "_getframe",
    "_inputs", "_replace", "_update_snapshot",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(ATTRIBUTES) - set(defined_here()) - FOREIGN))
def test_keras_still_has_a_private_attribute_that_is_read(name):
    sources = keras_sources()
    assert re.search(rf"\b{name}\b", sources), f"no `{name}` in Keras {keras.__version__}"


@functools.cache
def keras_sources():
    return "\n".join(path.read_text() for path in Path(keras.__file__).parent.rglob("*.py"))


# Words that were in use before the present ones; a reader would not find them explained anywhere.
GONE = re.compile(
    r"\b(anatom\w+|lifted|twins?|seats?|seated|put_back|as_they_were|bring_home|let_go|look_ahead"
    r"|forsake|held fits?|HeldFit|HeldHistory\w*|backend_module|keras_data|trial_data)\b",
    re.IGNORECASE,
)
ROOT = PACKAGE.parent
TEXTS = [*MODULES, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_words_that_were_given_up_are_gone(path):
    assert not GONE.findall(path.read_text())


def docstrings(path):
    """All docstrings of a file: of the module, its classes and its functions."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
    return [text for text in map(ast.get_docstring, nodes) if text]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_begin_with_a_verb_or_a_noun(path):
    riddle = re.compile(r"(What|Whether|How|Lets|Within)\b")
    assert not [text for text in docstrings(path) if riddle.match(text)]


def test_any_is_rare():
    """A type that says nothing is no type: at most 1.5 in 100 lines."""
    texts = [path.read_text() for path in MODULES]
    count = sum(len(re.findall(r"\bAny\b", text)) for text in texts)
    assert count <= 0.015 * sum(text.count("\n") for text in texts)
