"""A real JupyterLab on a free port, and a browser that looks at it."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import keras
import nbformat
import pytest

# What cannot be reached in a test, or is JupyterLab's own; the last is said by Notebook 7.6 for any
# notebook, whenever the settings folder names an extension that only JupyterLab has.
_NOT_OURS = ("favicon", "Failed to load resource", "ResizeObserver", "(reading 'schema')")

_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def has_browser():
    """Whether there is a chromium to test with."""
    return _BROWSER is not None


def marks(why_tensorflow):
    """What every test in a browser has; `why_tensorflow`: why one backend is enough."""
    return [
        pytest.mark.skipif(not has_browser(), reason="apt-get install chromium"),
        pytest.mark.skipif(
            keras.backend.backend() != "tensorflow",
            reason=f"{why_tensorflow}: runs with KERAS_BACKEND=tensorflow",
        ),
        pytest.mark.filterwarnings("default"),  # of Jupyter's own, not of the notebook
        pytest.mark.xdist_group("browser"),  # one after another: each is a kernel and a browser
    ]


def notebook(path, cells):
    """Writes a notebook with these code cells."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(made, path)


@contextlib.contextmanager
def server(folder, app="lab", saves_state=True):
    """JupyterLab, or Notebook 7 (`app="notebook"`); yields its address and token.

    `saves_state`: whether the state of widgets is saved in notebooks, which is a setting of users.
    """
    settings = Path(folder, ".settings")
    for plugin, values in {
        "@jupyterlab/apputils-extension/notification": {
            "fetchNews": "false",
            "checkForUpdates": False,
        },
        "@jupyter-widgets/jupyterlab-manager/plugin": {"saveState": saves_state},
    }.items():
        path = settings / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        "HOME": str(folder),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(Path(folder, ".workspaces")),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "jupyter", app, "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={folder}"]
    log = Path(folder, ".jupyter.log")
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", process, log)
            yield f"http://127.0.0.1:{port}", token
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):  # on a busy machine
                process.wait(30)
            process.kill()
            process.wait(30)


def _wait_for(address, process, log):
    for _ in range(120):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.5)
    raise AssertionError(log.read_text())


@contextlib.contextmanager
def browser_page(width=1200, height=1400):
    """A page; when the block ends, no error of ours may have been reported on it."""
    from playwright.sync_api import sync_playwright  # not installed wherever this is imported

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_BROWSER,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(60_000)
            found = []
            page.on("pageerror", lambda error: found.append(str(error)))
            page.on("console", lambda m: found.append(m.text) if m.type == "error" else None)
            yield page
            ours = [text for text in found if not any(known in text for known in _NOT_OURS)]
            assert not ours, ours
        finally:
            browser.close()


def run_all(page):
    """Runs all cells; the kernel may not take the first request, so it is asked again."""
    page.wait_for_selector(
        ".jp-Notebook-ExecutionIndicator[data-status=idle]",
        state="attached",
        timeout=120_000,
    )
    page.get_by_text("Python 3 (ipykernel)").first.wait_for(state="attached")
    # On a busy machine there may be no kernel yet: then it asks for one, and offers the right one.
    question = page.locator(".jp-Dialog")
    page.add_locator_handler(question, lambda: question.locator(".jp-mod-accept").click())
    for _ in range(10):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(3000)
        if page.locator(".jp-InputPrompt").first.inner_text() != "[ ]:":
            page.remove_locator_handler(question)
            return
        if not question.is_visible():
            page.keyboard.press("Escape")
    raise AssertionError("the kernel takes no work")


def use_theme(page, name):
    """Changes JupyterLab's theme."""
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).first.hover()
    page.wait_for_timeout(500)
    page.get_by_role("menuitem", name=name, exact=True).click()
    page.wait_for_timeout(1500)


def run_cell(page, number, text=None, pasted=False):
    """Runs one cell, from its editor, and waits for its end; first writes or pastes into it."""
    cell = page.locator(".jp-Cell").nth(number)
    prompt = cell.locator(".jp-InputPrompt")
    before = prompt.inner_text()
    cell.locator(".cm-content").click()
    if text is not None or pasted:
        page.keyboard.press("Control+a")
        page.keyboard.press("Control+v") if pasted else page.keyboard.insert_text(text)
    page.keyboard.press("Control+Enter")
    for _ in range(600):
        page.wait_for_timeout(200)
        if prompt.inner_text() not in (before, "[*]:"):
            return
    raise AssertionError(f"cell {number} does not end")


def save(page, path):
    """Saves the notebook; returns it, as it is written in the file."""
    before = path.stat().st_mtime_ns
    page.keyboard.press("Escape")
    page.keyboard.press("Control+s")
    for _ in range(300):
        page.wait_for_timeout(200)
        with contextlib.suppress(json.JSONDecodeError):  # it is being written
            if path.stat().st_mtime_ns != before:
                return nbformat.from_dict(json.loads(path.read_text()))
    raise AssertionError("the notebook is not saved")


def restart(page, item=re.compile("^Restart Kernel…")):
    """A new kernel, by an item of the menu."""
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name=item, exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()


def restart_and_run_all(page):
    """A new kernel, and all cells run in it."""
    restart(page, "Restart Kernel and Run All Cells…")
    # The prompts of the old kernel go, those of the new one come.
    page.locator(".jp-InputPrompt", has_text="[*]:").first.wait_for()
    wait_for_all(page)


def wait_for_all(page):
    """Waits until all cells that were asked for have run."""
    last = page.locator(".jp-CodeCell .jp-InputPrompt").last
    for _ in range(600):
        page.wait_for_timeout(200)
        if last.inner_text().strip("[]: ").isdigit():
            return
    raise AssertionError("the kernel does not run the cells")
