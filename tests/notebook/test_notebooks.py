"""The notebooks run from the first cell to the last, and lie there as a reader should find them."""

import re
import tomllib
from pathlib import Path

import keras
import nbformat
import pytest

from notebooks import execute

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# These run for a minute or more.
LONG = {"02-group-and-replicate", "03-stack", "05-programs", "06-when-not-to", "07-search"}


def outputs(notebook):
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.nightly] if path.stem in LONG else [])
        for path in NOTEBOOKS
    ],
)
@pytest.mark.filterwarnings("default")  # of Jupyter's own start-up, not of the notebook
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="their numbers and texts are TensorFlow's"
)
def test_the_notebook_runs(path):
    found = outputs(execute.executed(path))
    assert found
    assert not [out for out in found if out.output_type == "error"]


@each_notebook
def test_the_committed_notebook_has_been_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    found = outputs(notebook)
    assert any("image/png" in out.get("data", {}) for out in found) or "programs" in path.stem
    assert not [out for out in found if out.output_type == "error"]
    runs = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert runs == list(range(1, len(runs) + 1)), "run it with: make notebooks"


@each_notebook
def test_github_shows_the_committed_notebook(path):
    """It refuses one whose widgets have no state, and shows a widget without kernel as its code."""
    notebook = nbformat.read(path, as_version=4)
    widgets = notebook.metadata.get("widgets", {})
    assert all("state" in state for state in widgets.values())
    assert not [out for out in outputs(notebook) if execute.WIDGET in out.get("data", {})]
    assert path.stat().st_size < 1_000_000


@each_notebook
def test_the_notebook_begins_with_its_title(path):
    notebook = nbformat.read(path, as_version=4)
    title = notebook.cells[0]
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")


def links(text):
    """The targets of Markdown's links that lie in this repository."""
    return re.findall(r"\]\(([\w./-]+)(?:#[\w.-]+)?\)", text)


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
OTHERS = [ROOT / "CITATION.cff", *ROOT.glob(".github/**/*.yml"), ROOT / "pyproject.toml"]


@pytest.mark.parametrize(
    "path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_every_link_inside_the_repository_leads_somewhere(path):
    texts = [path.read_text()]
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    missing = [link for text in texts for link in links(text) if not (path.parent / link).exists()]
    assert not missing


def test_every_link_leads_to_the_one_address_of_the_project():
    """The address stands in pyproject; a copy of it that differs would lead nowhere."""
    owner_and_name = PROJECT["urls"]["Source"].removeprefix("https://github.com/")
    for path in [ROOT / "README.md", *NOTEBOOKS]:
        pattern = r"(?:github\.com|/github|/gh)/([\w.-]+/kerascohost)\b"
        assert set(re.findall(pattern, path.read_text())) == {owner_and_name}, path.name
    for path in filter(Path.exists, [*PAGES, *OTHERS]):
        assert set(re.findall(pattern, path.read_text())) <= {owner_and_name}, path.name
