"""The style of the widget, and functions that make its controls."""

import html
import io
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import ipywidgets as widgets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Control = TypeVar("Control", bound=widgets.Widget)
Choice = TypeVar("Choice")

# The size of a plot in inches, and its dots per inch: twice as many as are shown, for print and for
# screens of high resolution.
_SIZE, _DPI = (6.4, 3.2), 200
WIDTH = 640

# The outputs below the widget are for readers without a kernel. This style hides them where the
# widget itself is shown, as they would only repeat it.
STYLE = """<style>
.jp-OutputArea-child:has(.kerascohost) + .jp-OutputArea-child,
.jp-OutputArea-child:has(.kerascohost) + .jp-OutputArea-child + .jp-OutputArea-child
  { display: none; }
.kerascohost
  { container-type: inline-size; --jp-widgets-margin: 0; font-size: var(--jp-ui-font-size1);
    color: var(--jp-ui-font-color1); }
.kerascohost .widget-html-content { line-height: 1.5; }
.kerascohost select, .kerascohost input, .kerascohost button { font-family: inherit; }
.kerascohost-part { gap: 6px; margin-bottom: 14px; }
.kerascohost-part > .widget-html:has(> .widget-html-content:empty) { display: none; }
.kerascohost h4 { margin: 0 6px 0 0; font-size: 1em; font-weight: 600; }
.kerascohost-row { flex-flow: row wrap; align-items: center; gap: 6px; }
.kerascohost-row .widget-label { width: auto; margin: 0 6px 0 10px; }
.kerascohost-seconds { width: auto; }
.kerascohost-seconds input { width: 5em; flex: none; }
.kerascohost th, .kerascohost-muted { color: var(--jp-ui-font-color2); font-weight: normal; }

.kerascohost-grid { gap: 4px 14px; align-items: center; overflow-x: auto; padding-bottom: 2px; }
.kerascohost-grid .widget-label
  { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.kerascohost-grid .widget-checkbox .widget-label, .kerascohost-grid .widget-html > .widget-label
  { display: none; }
.kerascohost-grid .widget-html-content
  { white-space: nowrap; font-variant-numeric: tabular-nums; }
.kerascohost .widget-label-basic { align-items: center; }
.kerascohost .widget-label-basic input { margin: 0 8px 0 0; }
.kerascohost-grid .kerascohost-long .widget-html-content
  { white-space: normal; overflow-wrap: anywhere; }
.kerascohost-grid .kerascohost-number { text-align: right; }
.kerascohost-models
  { grid-template-columns: minmax(8em, max-content) repeat(3, max-content) minmax(8em, 1fr); }
.kerascohost-data
  { grid-template-columns: max-content 1.3fr 1.1fr 1fr 5em 5em; max-width: 64em; }
.kerascohost-factors { grid-template-columns: max-content minmax(6em, 14em) 5em max-content; }
.kerascohost-bars { grid-template-columns: max-content minmax(6em, 10em) 1fr; }
.kerascohost .widget-hprogress { height: 20px; }

.kerascohost table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.kerascohost th, .kerascohost td
  { padding: 3px 11px 3px 0; text-align: right; white-space: nowrap; }
.kerascohost th:first-child, .kerascohost td:first-child { text-align: left; }
.kerascohost tbody tr { border-top: 1px solid var(--jp-border-color2); }
.kerascohost-table { overflow-x: auto; }
.kerascohost-table p { margin: 6px 0 0; max-width: 56em; }
.kerascohost-measured th:nth-child(n+7), .kerascohost-measured td:nth-child(n+7)
  { text-align: left; white-space: normal; }
.kerascohost-measured th:nth-child(7) { min-width: 10.5em; }
.kerascohost-past { opacity: 0.5; }

.kerascohost [role=alert]
  { border-left: 3px solid var(--jp-error-color1); padding: 2px 10px; max-width: 56em;
    color: var(--jp-error-color1); white-space: pre-wrap; overflow-wrap: anywhere; }
.kerascohost-code .widget-textarea { flex-direction: column; width: 100%; }
.kerascohost-code .widget-label { width: auto; text-align: left; }
.kerascohost-code textarea
  { font-family: var(--jp-code-font-family); font-size: 0.95em; white-space: pre;
    overflow-x: auto; width: 100%; box-sizing: border-box; }
.kerascohost img { background: white; max-width: 100%; object-fit: contain; }
[data-jp-theme-light=false] .kerascohost select
  { appearance: auto; background-image: none; color-scheme: dark; }
[data-jp-theme-light=false] .kerascohost img { filter: invert(0.93) hue-rotate(180deg); }

@container (max-width: 620px) {
  .kerascohost-grid { column-gap: 8px; }
  .kerascohost-name, .kerascohost-models .kerascohost-long { grid-column: 1 / -1; }
  .kerascohost-head.kerascohost-name { display: none; }
  .kerascohost-models .kerascohost-long { margin: -2px 0 4px 24px; }
  .kerascohost-models .kerascohost-head.kerascohost-long { display: none; }
  .kerascohost-models { grid-template-columns: minmax(8em, 1fr) repeat(3, max-content); }
  .kerascohost-data
    { grid-template-columns: minmax(5em, 1.9fr) minmax(5em, 1.3fr) minmax(5em, 1fr) 5.2em 4.5em; }
  .kerascohost-factors { grid-template-columns: minmax(6em, 1fr) 5em max-content; }
  .kerascohost-bars { grid-template-columns: minmax(5em, 10em) 1fr; }
}
</style>"""


def grid(kind: str) -> widgets.GridBox:
    """Returns a table of controls; `kind` names its columns in the style."""
    return _styled(widgets.GridBox(layout=widgets.Layout(width="100%")), "grid", kind)


def set_children(box: widgets.Box, children: Iterable[widgets.Widget]) -> None:
    """Sets the children if they have changed: new views of the same ones would lose the focus."""
    new = tuple(children)
    same = len(box.children) == len(new) and all(
        old is other or (isinstance(other, widgets.HTML) and old.value == other.value)
        for old, other in zip(box.children, new, strict=True)
    )
    if not same:
        box.children = new


def row(children: Iterable[widgets.Widget]) -> widgets.HBox:
    """Returns controls side by side, on as many lines as they need."""
    return _styled(widgets.HBox(list(children)), "row")


def text(value: str, *kinds: str) -> widgets.HTML:
    """Returns a text; the kinds are classes of the style: `name`, `long`, `number`."""
    return _styled(widgets.HTML(html.escape(str(value))), *kinds)


def head(value: str, *kinds: str) -> widgets.HTML:
    """Returns the title of a column."""
    made = muted()
    made.value = faint(value)
    return _styled(made, "head", *kinds)


def muted() -> widgets.HTML:
    """Returns an empty control for `faint` text."""
    return widgets.HTML()


def faint(value: str) -> str:
    """Returns an explanation as HTML, in a paler colour than other text."""
    return f"<span class='kerascohost-muted'>{html.escape(value)}</span>"


def table(*kinds: str) -> widgets.HTML:
    """Returns an empty control for the HTML table of a result."""
    return _styled(widgets.HTML(), "table", *kinds)


def number(description: str, layout: widgets.Layout) -> widgets.BoundedIntText:
    """Returns a field for a whole number of at least 1."""
    return widgets.BoundedIntText(min=1, max=10**9, description=description, layout=layout)


def choose(dropdown: widgets.Dropdown, options: list[tuple[str, Choice]], value: Choice) -> None:
    """Sets the options, if they have changed, and the chosen one.

    Args:
        dropdown: The control.
        options: Pairs of the text that is shown and the value that it stands for.
        value: The chosen value.
    """
    if list(dropdown.options) != options:
        dropdown.options = options
    dropdown.value = value
    dropdown.tooltip = dropdown.label  # shows the text where the pane is too narrow for it


def full() -> widgets.Layout:
    """Returns the layout of a control that is as wide as its column."""
    return widgets.Layout(width="100%")


def wide(em: float) -> widgets.Layout:
    """Returns the layout of a control of a fixed width, in em."""
    return widgets.Layout(width=f"{em:.1f}em")


def hidden() -> widgets.Layout:
    """Returns the layout of a control that is not shown yet."""
    return widgets.Layout(width="auto", display="none", align_self="flex-start")


def image() -> widgets.Image:
    """Returns an empty control for a picture."""
    made = widgets.Image(format="png", layout=hidden())
    made.layout.width = f"{WIDTH}px"
    return made


def drawn(draw: Callable[[Axes], Axes | list[Axes]]) -> bytes:
    """Returns a plot as a PNG, always of one size, so that nothing around it moves.

    Args:
        draw: Draws on the `Axes` that it gets.
    """
    figure = Figure(figsize=_SIZE, layout="constrained")
    draw(figure.add_subplot())
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()


def metrics(values: Mapping[str, float]) -> str:
    """Returns metrics on one line."""
    return "".join(f" · {name} {value:.4g}" for name, value in values.items())


def _styled(control: Control, *kinds: str) -> Control:
    for kind in kinds:
        control.add_class(f"kerascohost-{kind}")
    return control
