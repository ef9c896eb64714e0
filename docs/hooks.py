"""What the documentation needs of its tools: files from elsewhere, and examples shown as code."""

import itertools
from pathlib import Path

import griffe
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files, config):
    """Adds the notebooks and their pictures, which lie outside this folder."""
    found = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/images/*.png")]
    for path in sorted(found):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


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
