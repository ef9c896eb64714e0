"""Tools to search with, and widgets, are optional: nothing imports their libraries beforehand."""

import subprocess
import sys

import pytest

import kerascohost
from tests.conftest import BACKEND

MODULES = [
    ("sklearn", "sklearn", "sklearn"),
    ("optuna", "optuna", "optuna"),
    ("keras_tuner", "keras_tuner", "tuner"),
    ("ray", "ray", "ray"),
    ("ray", "cloudpickle", "ray"),
    # On TensorFlow every trial imports it.
    *([("keras_tuner", "tensorboard", "tuner")] if BACKEND == "tensorflow" else []),
]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_kerascohost_imports_none_of_them():
    # Keras itself imports scikit-learn where it is installed.
    done = run(
        "import sys, kerascohost\n"
        "names = {'optuna', 'keras_tuner', 'tensorboard', 'ray', 'kerascohost.integrations'}\n"
        "names |= {'anywidget', 'ipywidgets', 'kerascohost.notebook'}\n"
        "print(sorted(names & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.nightly
@pytest.mark.parametrize(("module", "library", "extra"), MODULES)
def test_a_missing_library_is_one_sentence_that_names_the_extra(module, library, extra):
    done = run(
        f"import sys; sys.modules[{library!r}] = None\nimport kerascohost.integrations.{module}"
    )
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: Expected `{library}` to be installed, as "
        f'`pip install "kerascohost[{extra}]"` does.'
    )


@pytest.mark.parametrize("name", ["CohostWidget", "CohostSession"])
def test_missing_widgets_are_one_sentence_that_names_the_extra(name, monkeypatch):
    """Where nothing of Jupyter is there, all else can be imported."""
    for library in ("anywidget", "ipywidgets", "traitlets"):
        monkeypatch.setitem(sys.modules, library, None)
    for module in [module for module in sys.modules if module.startswith("kerascohost.notebook")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError) as caught:
        getattr(kerascohost, name)
    missing = "anywidget" if name == "CohostWidget" else "traitlets"
    assert str(caught.value) == (
        f'Expected `{missing}` to be installed, as `pip install "kerascohost[notebook]"` does.'
    )
