"""`make release` refuses a release whose version, tag and changelog do not agree."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kerascohost import __version__

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / ".ci" / "release"
needs_git = pytest.mark.skipif(
    not (RELEASE.exists() and shutil.which("git")), reason="needs git, and a clone"
)


def git(folder, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "tag.gpgsign=false"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path):
    """A repository at a release, with the files that are compared."""
    (tmp_path / "kerascohost").mkdir()
    (tmp_path / "kerascohost" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (tmp_path / "pyproject.toml").write_text('Source = "https://github.com/a/kerascohost"\n')
    (tmp_path / "CITATION.cff").write_text("version: 0.1.0\n")
    text = "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-12-01\n\n- All.\n"
    (tmp_path / "CHANGELOG.md").write_text(text)
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "All", "--no-gpg-sign")
    git(tmp_path, "tag", "-a", "v0.1.0", "-m", "All")
    return tmp_path


def refusal(folder):
    """The line that the check prints, or `""`."""
    done = subprocess.run(
        [sys.executable, str(RELEASE), "--check"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr.strip()


@needs_git
def test_a_release_whose_parts_agree_passes(clone):
    assert refusal(clone) == ""


@needs_git
@pytest.mark.parametrize(
    ("file", "whole", "torn", "told"),
    [
        ("kerascohost/__init__.py", "0.1.0", "0.1", "Expected a version X.Y.Z in"),
        ("kerascohost/__init__.py", "0.1.0", "0.2.0", "Expected `## [0.2.0] - YYYY-MM-DD` as"),
        ("CHANGELOG.md", "## [0.1.0]", "## 0.1.0", "Received: none. Move the lines of Unrel"),
        ("CITATION.cff", "0.1.0", "0.0.9", "Expected `version: 0.1.0` in CITATION.cff."),
        ("pyproject.toml", "/a/", "/OWNER/", "Expected a public address."),
        ("CHANGELOG.md", "All", "Most", "Expected a clean working tree."),
    ],
)
def test_a_part_that_does_not_agree_is_named(clone, file, whole, torn, told):
    path = clone / file
    path.write_text(path.read_text().replace(whole, torn))
    assert told in refusal(clone)


@needs_git
def test_the_tag_has_to_be_here(clone):
    git(clone, "commit", "--allow-empty", "-m", "More", "--no-gpg-sign")
    assert "Expected the tag v0.1.0 at this commit. Received: it at " in refusal(clone)
    git(clone, "tag", "-d", "v0.1.0")
    assert "Received: none. git tag --annotate v0.1.0" in refusal(clone)


@pytest.mark.skipif(not (ROOT / "CITATION.cff").exists(), reason="needs a clone")
def test_the_citation_names_the_version():
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
