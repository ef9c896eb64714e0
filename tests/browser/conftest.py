"""A notebook that is opened in a browser, and where pictures of it go."""

import contextlib
import os
from pathlib import Path

import pytest


@pytest.fixture
def shots(tmp_path):
    """Where the pictures go."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def opened(tmp_path):
    """Opens a notebook with these cells, all of them run: `opened(page, cells, app="lab")`."""
    from tests.browser import lab  # what it imports is not installed wherever tests are collected

    with contextlib.ExitStack() as stack:

        def open_in(page, cells, app="lab", saves_state=True):
            path = tmp_path / "widget.ipynb"
            lab.notebook(path, cells)
            address, token = stack.enter_context(lab.server(tmp_path, app, saves_state))
            folder = "lab/tree" if app == "lab" else "notebooks"
            page.goto(f"{address}/{folder}/{path.name}?token={token}&reset")
            lab.run_all(page)
            page.get_by_role("button", name="Train", exact=True).first.wait_for(timeout=120_000)
            return path

        yield open_in
