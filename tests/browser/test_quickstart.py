"""The quickstart in a real JupyterLab, as `make lab` opens it."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("playwright", reason="pip install playwright jupyterlab notebook")

from tests.browser import lab

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

pytestmark = lab.marks("its numbers and texts are TensorFlow's")


@pytest.mark.nightly
def test_all_cells_of_the_quickstart_run_in_the_browser(tmp_path):
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks")
    path = tmp_path / "notebooks" / "01-quickstart.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)
    with lab.server(tmp_path) as (address, token), lab.browser_page(height=6000) as page:
        page.goto(f"{address}/lab/tree/notebooks/{path.name}?token={token}&reset")
        lab.run_all(page)
        lab.wait_for_all(page)
        page.get_by_role("button", name="Train", exact=True).first.wait_for()
        if "SCREENSHOTS" in os.environ:
            page.screenshot(path=Path(os.environ["SCREENSHOTS"], "quickstart.png"))
        outputs = [out for cell in lab.save(page, path).cells for out in cell.get("outputs", [])]
    assert outputs and not [out for out in outputs if out.output_type == "error"]
    assert any("image/png" in out.get("data", {}) for out in outputs)
