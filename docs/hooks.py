"""What the documentation needs of its tools: files from elsewhere, and examples shown as code."""

import itertools
import re
from pathlib import Path

import griffe
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent

_OPTIONS = "<!-- options of the magics: written by docs/hooks.py -->"


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files, config):
    """Adds the notebooks and their pictures, which lie outside this folder."""
    found = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/images/*.png")]
    for path in sorted(found):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, **kwargs):
    """Leads to the notebooks, which lie beside this folder and in the site inside; adds options."""
    markdown = re.sub(r"\]\(\.\./((?:\.\./)*notebooks/)", r"](\1", markdown)
    return markdown.replace(_OPTIONS, _options()) if _OPTIONS in markdown else markdown


def on_page_content(html, page, **kwargs):
    """Leads links between notebooks to their pages, and loads no badges from elsewhere."""
    if page.file.src_uri.endswith(".ipynb"):
        html = re.sub(r'href="([\w-]+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', html)
        html = re.sub(r'<img alt="([^"]*)" src="https://[^"]*"\s*/?>', r"\1", html)
    return html


def _options():
    """A table of the options, in Markdown."""
    from kerascohost.notebook.magic import CohostMagics  # only here: it loads Keras

    rows = ["| option | meaning |", "| --- | --- |"]
    for action in CohostMagics.cohost.parser._actions:  # noqa: SLF001  # argparse has no public list
        names = [f"{name} {action.metavar or ''}".strip() for name in action.option_strings]
        shown = ", ".join(f"`{name}`" for name in names or [f"{action.metavar} ..."])
        rows.append(f"| {shown} | {action.help} |")
    return "\n".join(rows)


class Doctests(griffe.Extension):
    """Fences the examples in docstrings: to Markdown `>>>` is a quotation in a quotation."""

    def on_instance(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = "\n".join(_fenced(obj.docstring.value.splitlines()))


def _fenced(lines):
    """The lines, with a fence around each paragraph that begins with `>>>`."""
    for blank, paragraph in itertools.groupby(lines, lambda line: not line.strip()):
        text = list(paragraph)
        is_example = not blank and text[0].lstrip().startswith(">>>")
        yield from ["```pycon", *text, "```"] if is_example else text
