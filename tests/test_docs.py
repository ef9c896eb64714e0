"""The checks of the documentation, and what its pages quote of the code."""

import ast
import re
from pathlib import Path

import pytest

from docs.check_links import broken

ROOT = Path(__file__).parents[1]


@pytest.fixture
def site(tmp_path):
    """Two pages and a picture that lead to each other."""
    (tmp_path / "guides").mkdir()
    (tmp_path / "drawing.svg").touch()
    (tmp_path / "index.html").write_text('<a href="guides/a.html#one">a</a>')
    (tmp_path / "guides" / "a.html").write_text(
        '<h2 id="one">One</h2><a href="..">start</a><a href="#one">one</a>'
        '<img src="../drawing.svg">'
        '<a href="https://keras.io/nowhere">not followed</a>'
    )
    return tmp_path


def test_links_that_lead_somewhere_are_fine(site):
    assert broken(site) == []


@pytest.mark.parametrize(
    ("whole", "torn", "told"),
    [
        ('href="#one"', 'href="#two"', "#two: no such anchor"),
        ("../drawing.svg", "../picture.svg", "../picture.svg: no such file"),
        ('href=".."', 'href="b.html"', "b.html: no such file"),
        ("../drawing.svg", "https://a.b/c.svg", "https://a.b/c.svg: loaded from elsewhere"),
    ],
)
def test_a_link_an_anchor_or_a_picture_that_leads_nowhere_is_told(site, whole, torn, told):
    page = site / "guides" / "a.html"
    page.write_text(page.read_text().replace(whole, torn))
    assert broken(site) == [f"guides/a.html: {told}"]


def test_a_site_that_was_not_built_is_told(tmp_path):
    assert broken(tmp_path) == [f"Expected built pages. Received: none in {tmp_path}."]


def texts():
    """All texts of the package's code, with `…` where a value is put in."""
    for path in (ROOT / "kerascohost").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", None) for part in node.values]
                yield "".join(part if isinstance(part, str) else "…" for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


LIMITS = ROOT / "docs" / "limits.md"
QUOTED = re.findall(r'^\| "([^"]+)" \|', LIMITS.read_text("utf-8"), re.MULTILINE)


def test_every_message_that_the_limits_quote_is_one_of_the_code():
    known = [*texts()]
    assert len(QUOTED) > 20
    for message in QUOTED:
        assert [text for text in known if message.rstrip("…").strip() in text], message
