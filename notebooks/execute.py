"""Runs notebooks from the first cell to the last and saves them with their outputs.

    python notebooks/execute.py [--check] [--most-mb N] [NOTEBOOK ...]

With `--check` nothing is saved. Behind each name stand how long it took, and the most memory that
its kernel, or that of a notebook before it, had (not on Windows, which does not tell).
"""

import argparse
import contextlib
import math
import re
import sys
import time
from pathlib import Path

import nbclient
import nbformat

with contextlib.suppress(ImportError):  # not on Windows
    import resource

FOLDER = Path(__file__).parent

# What TensorFlow's native part says at its start, before anyone can ask it to be quiet.
_OF_THE_START = re.compile(
    r"^(WARNING: All log messages before absl|I0000 |To enable the following instr).*\n?",
    re.MULTILINE,
)

WIDGET = "application/vnd.jupyter.widget-view+json"


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run, in the folder where it lies."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.clear()  # of an earlier run: when each cell was run
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
    ).execute()
    return notebook


def worth_saving(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what says nothing to a reader: start-up noise, and widgets.

    Where no kernel is, as on GitHub, a widget is a line of code; its picture is in the text.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = _OF_THE_START.sub("", output.text)
        cell.outputs = [out for out in cell.outputs if _says_something(out)]
    return notebook


def _says_something(output: nbformat.NotebookNode) -> bool:
    if output.output_type == "stream":
        return bool(output.text.strip())
    data = output.get("data", {})
    return WIDGET not in data and data != {"text/plain": ""}


def _peak_mb() -> float:
    """The most memory that a process begun here had, in MB; NaN on Windows."""
    if sys.platform == "win32":
        return math.nan
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--check", action="store_true", help="save nothing")
    parser.add_argument("--most-mb", type=float, metavar="N", help="fail if a kernel has more")
    asked = parser.parse_args()
    for path in asked.notebooks or sorted(FOLDER.glob("*.ipynb")):
        began = time.perf_counter()
        notebook = executed(path)
        seconds = time.perf_counter() - began
        if not asked.check:
            nbformat.write(worth_saving(notebook), path)
        peak = _peak_mb()
        print(f"{path.stem:<24} {seconds:5.1f} s  {peak:6.0f} MB", flush=True)
        if asked.most_mb and peak > asked.most_mb:
            raise SystemExit(f"Expected at most {asked.most_mb:.0f} MB. Received: {peak:.0f} MB.")


if __name__ == "__main__":
    main()
