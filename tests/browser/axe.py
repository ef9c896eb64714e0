"""axe-core, which looks for what a user with a disability could not use."""

import functools
import os
import shutil
import subprocess
from pathlib import Path


@functools.cache
def axe():
    """The source of axe-core, which the set-up of this test gets from npm."""
    folder = Path(os.environ.get("AXE", "/tmp/kerascohost-axe"))
    file = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not file.exists():
        if shutil.which("npm") is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--prefix", str(folder), "axe-core@4"]
        subprocess.run(command, check=False, timeout=120)
    return file.read_text() if file.exists() else None


def violations(page, where="html"):
    """What axe-core finds in a part of the page: rules, each with an element that breaks it."""
    page.evaluate(axe())
    rules = "where => axe.run(where).then(f => f.violations.map(v => [v.id, v.nodes[0].html]))"
    return page.evaluate(rules, where)
