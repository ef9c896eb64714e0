"""A table with sentences below it, as text and as HTML: how results are shown."""

import dataclasses
import html
from collections.abc import Callable, Sequence

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with sentences below it.

    Attributes:
        frame: The cells.
        sentences: The sentences, as plain text.
        index: Whether the index is shown, as the first column.
        float_format: How floats are written; by default as pandas does.

    Example:

    >>> table = Table(pd.DataFrame({"member": ["mlp"], "steps": [8]}), ["Steps are < 9."])
    >>> print(table.text())
    member  steps
       mlp      8
    <BLANKLINE>
    Steps are < 9.
    >>> table.html().endswith("</table><p>Steps are &lt; 9.</p>")
    True
    """

    frame: pd.DataFrame
    sentences: Sequence[str] = ()
    index: bool = False
    float_format: Callable[[float], str] | None = None

    def text(self) -> str:
        """Returns the table for a terminal."""
        table = self.frame.to_string(index=self.index, float_format=self.float_format)
        return "\n\n".join([table, *self.sentences])

    def html(self) -> str:
        """Returns the table for a notebook."""
        table = self.frame.to_html(index=self.index, float_format=self.float_format, border=0)
        return table + "".join(f"<p>{html.escape(line)}</p>" for line in self.sentences)
