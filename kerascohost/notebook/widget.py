"""The widget: draws a `CohostSession`, and hands what is clicked on to it."""

import contextlib
import functools
import html
import io
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ipywidgets as widgets
import traitlets
from IPython.core.getipython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure

from kerascohost import plotting
from kerascohost.errors import CohortError
from kerascohost.notebook import namespace
from kerascohost.notebook.session import LAYOUTS, CohostSession

# Inches, and dots per inch: what fits a notebook's cell without being scaled up.
_SIZE, _DPI = (7.0, 3.6), 110

# The outputs below the widget are for readers without a kernel; where the widget itself is shown,
# and this style with it, they would only repeat it.
_STYLE = """<style>
.jp-OutputArea-child:has(.kerascohost) + .jp-OutputArea-child,
.jp-OutputArea-child:has(.kerascohost) + .jp-OutputArea-child + .jp-OutputArea-child
  { display: none; }
.kerascohost { font-size: var(--jp-ui-font-size1); color: var(--jp-ui-font-color1); }
.kerascohost h4 { margin: 0.9em 0 0.2em; font-size: 1em; }
.kerascohost-grid { overflow-x: auto; }
.kerascohost-grid .widget-label
  { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.kerascohost-grid .widget-checkbox .widget-label, .kerascohost-grid .widget-html > .widget-label
  { display: none; }
.kerascohost-grid .widget-html-content { white-space: nowrap; }
.kerascohost table { border-collapse: collapse; }
.kerascohost th, .kerascohost td
  { padding: 0.2em 0.8em 0.2em 0; text-align: left; white-space: nowrap; }
.kerascohost th, .kerascohost-muted { color: var(--jp-ui-font-color2); font-weight: normal; }
.kerascohost-table { overflow-x: auto; }
.kerascohost-table p { white-space: normal; max-width: 56em; }
.kerascohost [role=alert]
  { border-left: 3px solid var(--jp-error-color1); padding: 0.3em 0.8em; max-width: 56em;
    color: var(--jp-error-color1); white-space: pre-wrap; line-height: 1.4; }
.kerascohost textarea { font-family: var(--jp-code-font-family); font-size: 0.95em; }
.kerascohost img { background: white; max-width: 100%; object-fit: contain; }
</style>"""

_ABOUT = {
    "joined": "Every model takes one batch in each step; the fast ones wait for the slow ones. "
    "Each ends exactly as its own fit.",
    "grouped": "A model takes its factor of batches, merged into one, in each step: it trains with "
    "a batch size that many times larger.",
    "replicated": "A model is applied to several batches in each step, with the same weights, and "
    "the loss is their mean: it trains with a batch size that many times larger.",
    "stacked": "Models of one architecture are trained by one vectorised step.",
    "auto": "Stacked where that is faster, sync-bound elsewhere.",
}
_LABELS = {"joined": "sync-bound"}


class CohostWidget(widgets.VBox):
    """Pick models of the notebook, choose how to train them together, benchmark, train, watch.

    All that it shows and does is a `CohostSession`'s, in its attribute `session`; work is done off
    the main thread, so that other cells can run meanwhile. (Leave the models that are trained or
    measured alone until it ends.)

    Args:
        variables: The namespace in which to look for models and data; by default the notebook's.
        session: The session to draw, by default a new one.

    Example:

    >>> CohostWidget({}).session.status
    'idle'
    """

    def __init__(
        self,
        variables: Mapping[str, Any] | None = None,
        session: CohostSession | None = None,
    ):
        self._shell = shell = get_ipython()
        if variables is None:
            variables = shell.user_ns if shell else {}
        self.session = session or CohostSession(variables)
        self._displays: list[Any] = []
        super().__init__(
            [
                widgets.HTML(_STYLE),
                _Models(self.session),
                _Data(self.session),
                _Layout(self.session),
                _Benchmark(self.session),
                _Train(self.session),
                _Code(self.session),
            ],
            layout=widgets.Layout(width="100%"),
        )
        self.add_class("kerascohost")
        self.session.observe(self._publish, "status")
        self._follow = _follower(weakref.ref(self))
        if shell:
            shell.events.register("post_run_cell", self._follow)

    def close(self) -> None:
        """Stops what is running, and no longer follows the notebook."""
        self.session.stop()
        if self._shell:
            self._shell.events.unregister("post_run_cell", self._follow)
            self._shell = None
        super().close()

    def _ipython_display_(self) -> None:
        """The view and, below it, what stays readable without a kernel."""
        display(super()._repr_mimebundle_(), raw=True)
        self._displays = [display({"text/plain": ""}, raw=True, display_id=True) for _ in range(2)]
        self._publish()

    def _publish(self, change: Any = None) -> None:
        """Brings the outputs below the widget up to date, when nothing is running."""
        if not self._displays or self.session.status != "idle":
            return
        parts = [
            result._repr_html_() for result in (self.session.result, self.session.history) if result
        ]
        tables, curves = self._displays
        if parts:
            text = "\n".join(map(repr, filter(None, (self.session.result, self.session.history))))
            tables.update({"text/html": "".join(parts), "text/plain": text}, raw=True)
        if self.session.history is not None:
            picture = _curves(self.session.curves)
            bundle = {"image/png": picture, "text/plain": "Losses by epoch"}
            curves.update(bundle, raw=True)
        elif self.session.result is not None:
            bundle = {"image/png": _bars(self.session.result), "text/plain": "Speed-ups"}
            curves.update(bundle, raw=True)


def _follower(reference: Callable[[], CohostWidget | None]) -> Callable[..., None]:
    """A hook that does not keep its widget alive."""

    def follow(*_: Any) -> None:
        widget = reference()
        if widget is not None:
            widget.session.refresh()

    return follow


class _Part(widgets.VBox):
    """A part of the widget: its title, its controls, and where its errors stand.

    Attributes:
        controls: What cannot be used while the session works.
    """

    title = ""
    where = ""

    def __init__(self, session: CohostSession):
        super().__init__()
        self.session = session
        self.controls: list[Any] = []
        self._quiet = False
        self._error = widgets.HTML()
        title = widgets.HTML(f"<h4>{self.title}</h4>")
        self.children = (title, *self.make(), self._error)
        session.observe(self._show_error, "errors")
        session.observe(self._show, self.shows)
        session.observe(self._show_status, "status")
        self._show()
        self._show_status()

    shows: tuple[str, ...] = ()

    def make(self) -> Iterable[widgets.Widget]:
        """The controls, from top to bottom."""
        raise NotImplementedError

    def update(self) -> None:
        """Brings the controls up to date with the session."""

    def _show(self, change: Any = None) -> None:
        self._quiet = True  # what is set now was not chosen by the user
        try:
            self.update()
        finally:
            self._quiet = False

    def _show_error(self, change: Any) -> None:
        text = html.escape(change.new.get(self.where, ""))
        self._error.value = f'<div role="alert">{text}</div>' if text else ""

    def _show_status(self, change: Any = None) -> None:
        for control in self.controls:
            control.disabled = not self.is_usable(control)

    def is_usable(self, control: Any) -> bool:
        """Whether a control can be used now."""
        return self.session.status == "idle"

    def button(self, text: str, action: Callable[[], Any], **kwargs: Any) -> widgets.Button:
        """A button whose failures stand in the session's `errors`."""

        def clicked(_: Any) -> None:
            with contextlib.suppress(CohortError, traitlets.TraitError):
                action()

        made = widgets.Button(description=text, **{"layout": _auto_width()} | kwargs)
        made.on_click(clicked)
        return made

    def bind(self, control: Any, trait: str, name: str) -> Any:
        """Lets a control set the trait's value for one model."""

        def changed(change: Any) -> None:
            if not self._quiet:
                self.session.choose(trait, {name: change.new})

        control.observe(changed, "value")
        self.controls.append(control)
        return control


class _Models(_Part):
    title = "Models"
    where = "models"
    shows = ("models", "selected", "refreshed")

    def make(self) -> Iterable[widgets.Widget]:
        self._ticks: dict[str, widgets.Checkbox] = {}
        self._grid = _grid("minmax(9em, max-content) repeat(4, max-content)")
        refresh = self.button(
            "Refresh", self.session.refresh, tooltip="Look at the namespace again"
        )
        self.controls.append(refresh)
        return [self._grid, _wrapped([refresh])]

    def update(self) -> None:
        rows = namespace.table(self.session.models)
        cells = [_head(text) for text in ("model", "kind", "parameters", "shapes", "compiled")]
        for name in self.session.models:
            row = rows.loc[name]
            shapes = f"{row['input']} → {row['output']}" if row["input"] else ""
            texts = (row["kind"], row["parameters"], shapes, row["compiled"])
            cells += [self._tick(name), *map(_cell, texts)]
        if not self.session.models:
            text = "There are no Keras models yet. Build and compile one; it appears here."
            cells = [widgets.HTML(f"<span class='kerascohost-muted'>{text}</span>")]
        shown = [getattr(cell, "value", None) for cell in self._grid.children]
        if shown != [getattr(cell, "value", None) for cell in cells] or len(cells) == 1:
            self._grid.children = cells

    def _tick(self, name: str) -> widgets.Checkbox:
        tick = self._ticks.get(name)
        if tick is None:
            tick = widgets.Checkbox(description=name, indent=False, layout=_auto())
            tick.observe(lambda change: self._ticked(name, change.new), "value")
            self._ticks[name] = tick
            self.controls.append(tick)
        compiled = self.session.models[name].compiled
        tick.tooltip = "Tick to take part" if compiled else "Call compile() on it first"
        tick.value = name in self.session.selected
        tick.disabled = not self.is_usable(tick)
        return tick

    def is_usable(self, control: Any) -> bool:
        model = self.session.models.get(getattr(control, "description", ""))
        return super().is_usable(control) and (model is None or model.compiled)

    def _ticked(self, name: str, chosen: bool) -> None:
        if not self._quiet:
            now = {*self.session.selected, name} if chosen else {*self.session.selected} - {name}
            self.session.selected = [name for name in self.session.models if name in now]


class _Data(_Part):
    title = "Data"
    where = "data"
    shows = ("selected", "x", "y", "validation", "batch_size", "epochs", "refreshed")

    def make(self) -> Iterable[widgets.Widget]:
        self._rows: dict[str, dict[str, Any]] = {}
        self._grid = _grid("max-content repeat(3, minmax(8em, 15em)) repeat(2, 5em)")
        return [self._grid]

    def update(self) -> None:
        session = self.session
        for name in session.selected:
            row = self._row(name)
            _choose(row["x"], self._x_options(name), session.x[name])
            _choose(row["y"], self._y_options(name), session.y[name])
            options = [(_validation(names), names) for names in session.validation_options(name)]
            _choose(row["validation"], options, session.validation[name])
            row["batch_size"].value = session.batch_size[name]
            row["epochs"].value = session.epochs[name]
            row["batch_size"].disabled = not self.is_usable(row["batch_size"])
        heads = ("", "x", "y", "validation", "batch size", "epochs")
        cells = [_head(text) for text in heads] if session.selected else []
        for name in session.selected:
            cells += [_cell(name), *self._rows[name].values()]
        if not session.selected:
            cells = [_cell("Tick the models that are to be trained together.", muted=True)]
        _set_children(self._grid, cells)

    def _x_options(self, name: str) -> list[tuple[str, str]]:
        names = self.session.x_options(name)
        return [(f"{x} {self.session.described(x)}" if x else "random data", x) for x in names]

    def _y_options(self, name: str) -> list[tuple[str, str]]:
        names = self.session.y_options(name)
        without = "in the dataset" if self.session.x[name] else "random data"
        return [(f"{y} {self.session.described(y)}" if y else without, y) for y in names]

    def _row(self, name: str) -> dict[str, Any]:
        if name not in self._rows:
            kinds: dict[str, Any] = {
                "x": widgets.Dropdown,
                "y": widgets.Dropdown,
                "validation": widgets.Dropdown,
                "batch_size": _number,
                "epochs": _number,
            }
            self._rows[name] = {
                trait: self.bind(
                    make(description=f"{trait.replace('_', ' ')} of {name}", layout=_full()),
                    trait,
                    name,
                )
                for trait, make in kinds.items()
            }
        return self._rows[name]

    def is_usable(self, control: Any) -> bool:
        fixed = [
            row["batch_size"]
            for name, row in self._rows.items()
            if name in self.session.models and not self.session.takes_batch_size(name)
        ]
        return super().is_usable(control) and control not in fixed


class _Layout(_Part):
    title = "Layout"
    where = "layout"
    shows = (
        "layout",
        "selected",
        "x",
        "batch_size",
        "group_factor",
        "replicas",
        "refreshed",
    )

    def make(self) -> Iterable[widgets.Widget]:
        impossible = self.session.impossible
        self._layouts = {
            name: self.button(
                _LABELS.get(name, name),
                functools.partial(setattr, self.session, "layout", name),
                tooltip=impossible.get(name, _ABOUT[name]),
            )
            for name in LAYOUTS
        }
        self._suggest = self.button(
            "Suggest",
            self.session.suggest,
            tooltip="Factors that let all models end their epochs together; after a benchmark, "
            "factors that make their steps take equally long",
        )
        self.controls += [*self._layouts.values(), self._suggest]
        self._about = widgets.HTML()
        self._factors: dict[str, tuple] = {}
        self._grid = _grid("max-content minmax(8em, 14em) 5em max-content")
        buttons = _wrapped([*self._layouts.values(), self._suggest])
        return [buttons, self._about, self._grid]

    def update(self) -> None:
        session = self.session
        for name, button in self._layouts.items():
            chosen = name == session.layout
            label = _LABELS.get(name, name)
            button.description = f"✓ {label}" if chosen else label
            button.button_style = "primary" if chosen else ""
        reasons = "".join(f"<br>{name}: {why}." for name, why in session.impossible.items())
        self._about.value = (
            f"<span class='kerascohost-muted'>{_ABOUT[session.layout]}{reasons}</span>"
        )
        counts = session.factors
        cells = []
        if session.selected:
            word = "replicas" if session.layout == "replicated" else "group factor"
            cells = [_head(text) for text in ("", word, "", "batch size of a step")]
        for name, size in session.effective_batch_size.items():
            slider, number, text = self._row(name)
            slider.max = number.max = max(session.most_factor(name), counts[name])
            slider.value = number.value = counts[name]
            for control in (slider, number):
                control.disabled = not self.is_usable(control)
            text.value = _effective(size, counts[name], session.batch_size[name])
            cells += [_cell(name), slider, number, text]
        _set_children(self._grid, cells)

    def _row(self, name: str) -> tuple:
        if name not in self._factors:
            slider = widgets.IntSlider(min=1, readout=False, layout=_full())
            number = _number(description=f"factor of {name}", layout=_full())
            for control in (slider, number):
                self.bind(control, "factors", name)
            self._factors[name] = (slider, number, _cell(""))
        return self._factors[name]

    def is_usable(self, control: Any) -> bool:
        usable = super().is_usable(control)
        for name, button in self._layouts.items():
            if control is button:
                return usable and name not in self.session.impossible
        return usable and (
            control is self._suggest or self.session.layout in ("grouped", "replicated")
        )


class _Benchmark(_Part):
    title = "Benchmark"
    where = "benchmark"
    shows = ("result", "progress", "budget_s", "message")

    def make(self) -> Iterable[widgets.Widget]:
        run = self.button("Run benchmark", self.session.benchmark, tooltip="Measure every layout")
        self._budget = _number(description="seconds", layout=widgets.Layout(width="11em"))
        self._budget.observe(self._set_budget, "value")
        self._stop = self.button("Stop benchmark", self.session.stop, disabled=True)
        self._bar = widgets.FloatProgress(max=1.0, layout=_hidden("16em"))
        self._text = widgets.HTML()
        self._table = _table()
        self._picture = _image()
        self._use = self.button("Use this layout", self.session.use_layout, layout=_hidden())
        self._drawn: Any = None
        self.controls += [run, self._budget, self._use, self._stop]
        return [
            _wrapped([run, self._stop, self._budget]),
            _wrapped([self._bar, self._text]),
            self._table,
            self._picture,
            self._use,
        ]

    def update(self) -> None:
        session = self.session
        self._budget.value = round(session.budget_s)
        if session.status != "idle" and session.work == "benchmark":
            self._bar.value = session.progress.get("fraction", 0.0)
            self._text.value = html.escape(session.progress.get("text", ""))
        result = session.result
        if result is not None and result is not self._drawn:
            self._drawn = result
            self._table.value = result._repr_html_()
            self._picture.value = _bars(result)
            self._picture.layout.display = None
            self._use.layout.display = None
            is_none = result.best == "separate"
            self._use.tooltip = "No layout is faster here" if is_none else f"Choose {result.best}"
            self._use.disabled = not self.is_usable(self._use)

    def _show_status(self, change: Any = None) -> None:
        super()._show_status(change)
        if change is None:
            return
        if change.new == "benchmarking":
            self._bar.layout.display = None
            self._text.value = "starting"
        elif change.new == "idle" and self.session.work == "benchmark":
            self._bar.layout.display = "none"
            self._text.value = html.escape(self.session.message)

    def is_usable(self, control: Any) -> bool:
        if control is self._stop:
            return self.session.status == "benchmarking"
        usable = super().is_usable(control)
        if control is self._use:
            result = self.session.result
            return usable and result is not None and result.best != "separate"
        return usable

    def _set_budget(self, change: Any) -> None:
        if not self._quiet:
            self.session.budget_s = float(change.new)


class _Train(_Part):
    title = "Train"
    where = "train"
    shows = ("progress", "curves", "history", "output")

    def make(self) -> Iterable[widgets.Widget]:
        train = self.button("Train", self.session.train, button_style="primary")
        self._stop = self.button(
            "Stop training",
            self.session.stop,
            disabled=True,
            tooltip="Ends after the steps it is in; once more, it does not wait for validation",
        )
        self._output = widgets.Text(
            description="history in", continuous_update=False, layout=widgets.Layout(width="16em")
        )
        self._output.observe(self._set_output, "value")
        self.controls += [train, self._output, self._stop]
        self._bars = widgets.VBox()
        self._lines: dict[str, tuple] = {}
        self._message = widgets.HTML()
        self._picture = _image()
        self._table = _table()
        self._drawn: Any = None
        return [
            _wrapped([train, self._stop, self._output]),
            self._bars,
            self._message,
            self._picture,
            self._table,
        ]

    def update(self) -> None:
        session = self.session
        self._output.value = session.output
        members = session.progress.get("members")
        if members:
            for name, member in members.items():
                bar, text = self._line(name)
                bar.value = member["fraction"]
                metrics = "".join(f" · {key} {v:.4g}" for key, v in member["metrics"].items())
                text.value = html.escape(f"{name}: epoch {member['epoch']}{metrics}")
            lines = [_wrapped(self._lines[name]) for name in members]
            if list(members) != getattr(self, "_shown", None):
                self._shown = list(members)
                self._bars.children = lines
        if session.curves is not self._drawn:
            self._drawn = session.curves
            self._picture.value = _curves(session.curves)
            self._picture.layout.display = None

    def _line(self, name: str) -> tuple:
        if name not in self._lines:
            bar = widgets.FloatProgress(max=1.0, layout=widgets.Layout(width="16em"))
            self._lines[name] = (bar, widgets.HTML())
        return self._lines[name]

    def _show_status(self, change: Any = None) -> None:
        super()._show_status(change)
        if change is None:
            return
        if change.new == "training":
            self._message.value = self._table.value = ""
        elif change.new == "idle" and self.session.work == "train":
            self._message.value = html.escape(self.session.message)
            if self.session.history is not None:
                self._table.value = self.session.history._repr_html_()

    def is_usable(self, control: Any) -> bool:
        if control is self._stop:
            return self.session.status != "idle" and self.session.work == "train"
        return super().is_usable(control)

    def _set_output(self, change: Any) -> None:
        if not self._quiet:
            self.session.output = change.new


class _Code(_Part):
    title = "Code"
    shows = (
        "selected",
        "x",
        "y",
        "validation",
        "batch_size",
        "epochs",
        "layout",
        "group_factor",
        "replicas",
        "output",
    )

    def make(self) -> Iterable[widgets.Widget]:
        self._python, self._cell = (
            widgets.Textarea(description=text, layout=widgets.Layout(width="98%"))
            for text in ("Python", "or a cell")
        )
        about = "This does what Train does. Click into it, select all, copy."
        return [
            widgets.HTML(f"<span class='kerascohost-muted'>{about}</span>"),
            self._python,
            self._cell,
        ]

    def update(self) -> None:
        has_data = self.session.selected and all(self.session.x[n] for n in self.session.selected)
        for area, text in (
            (self._python, self.session.code if has_data else ""),
            (self._cell, self.session.cell if has_data else ""),
        ):
            area.value = text or "Choose models, and data for each."
            area.rows = area.value.count("\n") + 1


def _grid(columns: str) -> widgets.GridBox:
    made = widgets.GridBox(
        layout=widgets.Layout(
            grid_template_columns=columns, grid_gap="2px 14px", align_items="center", width="100%"
        )
    )
    made.add_class("kerascohost-grid")
    return made


def _set_children(box: Any, children: list) -> None:
    """Sets what has changed only: new views of the same controls would lose the focus."""
    same = len(box.children) == len(children) and all(
        old is new or (isinstance(new, widgets.HTML) and old.value == new.value)
        for old, new in zip(box.children, children, strict=True)
    )
    if not same:
        box.children = children


def _head(text: str) -> widgets.HTML:
    return _cell(text, muted=True)


def _cell(text: Any, muted: bool = False) -> widgets.HTML:
    escaped = html.escape(str(text))
    made = widgets.HTML(f"<span class='kerascohost-muted'>{escaped}</span>" if muted else escaped)
    made.layout.margin = "0"
    return made


def _table() -> widgets.HTML:
    made = widgets.HTML()
    made.add_class("kerascohost-table")
    return made


def _number(**kwargs: Any) -> widgets.BoundedIntText:
    return widgets.BoundedIntText(min=1, max=10**9, **kwargs)


def _choose(dropdown: widgets.Dropdown, options: list[tuple[str, Any]], value: Any) -> None:
    if list(dropdown.options) != options:
        dropdown.options = options
    dropdown.value = value


def _validation(names: tuple) -> str:
    if not names:
        return "none"
    return f"last {100 * names[0]:.0f} %" if isinstance(names[0], float) else ", ".join(names)


def _effective(size: int | None, factor: int, batch_size: int) -> str:
    if size is None:
        return f"{factor} of the dataset's" if factor > 1 else "the dataset's"
    return f"{size}" + (f" instead of {batch_size}" if factor > 1 else ", as in its own fit")


def _wrapped(children: Iterable[widgets.Widget]) -> widgets.HBox:
    return widgets.HBox(
        list(children), layout=widgets.Layout(flex_flow="row wrap", align_items="center")
    )


def _auto() -> widgets.Layout:
    return widgets.Layout(width="auto", margin="0")


def _full() -> widgets.Layout:
    return widgets.Layout(width="100%", margin="0")


def _hidden(width: str = "auto") -> widgets.Layout:
    return widgets.Layout(width=width, display="none")


def _image() -> widgets.Image:
    width = f"{_SIZE[0] * 100:.0f}px"
    # Otherwise the box around it would stretch it.
    layout = widgets.Layout(width=width, align_self="flex-start", display="none")
    return widgets.Image(format="png", layout=layout)


def _curves(frame: Any) -> bytes:
    return _drawn(lambda ax: plotting.plot_losses(frame, ax))


def _bars(result: Any) -> bytes:
    return _drawn(result.plot)


def _drawn(draw: Callable[[Any], Any]) -> bytes:
    """A PNG of fixed size, so that nothing around it moves when it is drawn again."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    draw(figure.add_subplot())
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    return picture.getvalue()


def _auto_width() -> widgets.Layout:
    return widgets.Layout(width="auto")
