"""What stands around the package: its backend, its versions, and the wheel that is built of it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import pytest

from kerascohost import __version__, environment
from tests.conftest import BACKEND

ROOT = Path(__file__).parent.parent

# Python without some packages: as they are installed here, they are hidden from it.
WITHOUT = """
import importlib.util, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in {names!r} else find(name)
sys.meta_path.insert(0, Hidden())
import kerascohost
"""


def python(*arguments, **variables):
    environ = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environ | variables,
    )


def last_line_without(*names, **variables):
    done = python("-c", WITHOUT.format(names=set(names)), **variables)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_without_any_backend_the_extras_are_named(tmp_path):
    line = last_line_without("tensorflow", "jax", "torch", KERAS_HOME=str(tmp_path))
    assert line == (
        "ImportError: Expected a backend for Keras. Received: tensorflow is not installed. "
        "Install one of `kerascohost[tensorflow]`, `kerascohost[cpu]`, `kerascohost[gpu]`, "
        "`kerascohost[jax]`, `kerascohost[torch]`; with the last two set KERAS_BACKEND=jax or "
        "KERAS_BACKEND=torch."
    )


def test_without_tensorflow_the_backend_that_is_there_is_named(tmp_path):
    line = last_line_without("tensorflow", "torch", KERAS_HOME=str(tmp_path))
    assert line == (
        "ImportError: Expected a backend for Keras. Received: tensorflow is not installed. "
        "Set KERAS_BACKEND=jax, which is installed, or install `kerascohost[tensorflow]`."
    )


@pytest.mark.nightly
def test_what_else_is_missing_is_left_to_speak_for_itself():
    assert last_line_without("tqdm") == "ModuleNotFoundError: No module named 'tqdm'"


def test_info_reports_what_runs_here():
    done = python("-m", "kerascohost", "info", KERAS_BACKEND=BACKEND)
    assert done.returncode == 0, done.stderr
    shown = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert shown["keras"] == keras.__version__
    assert shown["backend"].startswith(f"{BACKEND} ")
    assert shown["numpy"].count(".") == 2
    assert shown["devices"]


def test_a_package_that_is_not_there_is_said_so():
    assert environment.version("no-such-package") == "not installed"


@pytest.mark.parametrize("version", ["3.16.0", "4.0", "3.16.0.dev20261128"])
def test_a_keras_newer_than_any_tested_is_told_in_a_sentence(version):
    with pytest.warns(UserWarning, match="newer than any that kerascohost has been tested") as told:
        environment._warn_if_untested(version)
    assert str(told[0].message) == (
        f"Keras {version} is newer than any that kerascohost has been tested with (3.15): compare "
        "an important result with that of plain `fit`."
    )


@pytest.mark.parametrize("version", ["3.14.0", "3.15.9", keras.__version__])
def test_a_keras_that_was_tested_is_not(version):
    environment._warn_if_untested(version)  # a warning would be an error


def test_a_newer_keras_is_told_once_at_import():
    code = "import keras; keras.__version__ = '3.99.0'; import kerascohost; import kerascohost"
    done = python("-c", code, KERAS_BACKEND=BACKEND)
    assert done.stderr.count("Keras 3.99.0 is newer") == 1
    assert "<string>:1: UserWarning" in done.stderr  # where the program imports it
    assert done.returncode == 0


@pytest.mark.nightly
def test_help_lists_the_commands():
    shown = python("-m", "kerascohost", "--help", KERAS_BACKEND=BACKEND).stdout
    assert "run scripts" in shown
    assert "bug report" in shown


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by the build backend that pyproject names, without an environment."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    done = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = ROOT / "kerascohost"
    there = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert packed == {p.relative_to(ROOT).as_posix() for p in there}
    assert "kerascohost/py.typed" in packed


def test_the_wheel_says_what_it_needs(wheel):
    [path] = [name for name in wheel.namelist() if name.endswith("METADATA")]
    metadata = wheel.read(path).decode()
    assert f"Version: {__version__}\n" in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    optional = [line for line in needed if "extra ==" in line]
    assert not [line for line in set(needed) - set(optional) if "tensorflow" in line]
    for extra in environment.EXTRAS:
        assert f"Provides-Extra: {extra}\n" in metadata
        assert [line for line in optional if f"extra == '{extra}'" in line]
