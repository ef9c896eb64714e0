"""The panels of the widget: each draws a part of a `CohostSession`, and sets or calls it."""

import contextlib
import functools
import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import ipywidgets as widgets
import keras
import pandas as pd
import traitlets

from kerascohost.arguments import CHOSEN_LAYOUTS
from kerascohost.errors import CohortError
from kerascohost.layouts.result import BenchmarkResult
from kerascohost.notebook import controls, namespace
from kerascohost.notebook.data import Validation
from kerascohost.notebook.live import MemberProgress
from kerascohost.notebook.session import CohostSession
from kerascohost.results import plotting

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
_LABELS = {"joined": "joined (sync-bound)"}

_BEFORE_BENCHMARK = "Trains your models in each layout in turn, then restores them."
_WHILE_BENCHMARK = (
    "The models' weights are not yours meanwhile: leave these models alone until it ends."
)
_WHILE_TRAINING = "Other cells can be run meanwhile; leave these models alone until it ends."


class _Panel(widgets.VBox):
    """A part of the widget: its title, its controls and its errors.

    Attributes:
        title: Its title.
        where: The key of its errors in the session's `errors`.
        shows: The session's traits that it shows.
        controls: The controls that are disabled while a training or benchmark runs.
    """

    title = ""
    where = ""
    shows: tuple[str, ...] = ()

    def __init__(self, session: CohostSession):
        super().__init__()
        self.add_class("kerascohost-part")
        self.session = session
        self.controls: list[widgets.Widget] = []
        self._quiet = False
        self._error = widgets.HTML()
        self.title_row = controls.row([widgets.HTML(f"<h4>{self.title}</h4>")])
        first, *rest = self.make()
        self.children = (self.title_row, first, self._error, *rest)
        session.observe(self._show_error, "errors")
        session.observe(self._show, self.shows)
        session.observe(self._show_status, "status")
        self._show()
        self._show_status()

    def make(self) -> Iterable[widgets.Widget]:
        """Returns the controls, from top to bottom; errors are shown below the first."""
        raise NotImplementedError

    def update(self) -> None:
        """Updates the controls from the session."""

    def _show(self, change: traitlets.Bunch | None = None) -> None:
        self._quiet = True  # the values that are set now come from the session, not from the user
        try:
            with self._drawing():
                self.update()
        finally:
            self._quiet = False

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """Shows an exception of the block as an error, so that the other parts are still drawn."""
        try:
            yield
        except Exception as error:
            self._alert(f"This could not be drawn. {type(error).__name__}: {error}")

    def _show_error(self, change: traitlets.Bunch) -> None:
        self._alert(change.new.get(self.where, ""))

    def _alert(self, text: str) -> None:
        self._error.value = f'<div role="alert">{html.escape(text)}</div>' if text else ""

    def _show_status(self, change: traitlets.Bunch | None = None) -> None:
        for control in self.controls:
            control.disabled = not self.is_usable(control)

    def is_usable(self, control: widgets.Widget) -> bool:
        """Returns whether a control can be used now."""
        return self.session.status == "idle"

    @property
    def is_working(self) -> bool:
        """Returns whether a training or benchmark that this part has started is running."""
        return self.session.status != "idle" and self.session.work == self.where

    def button(
        self, text: str, action: Callable[[], None], **kwargs: str | widgets.Layout
    ) -> widgets.Button:
        """Returns a button.

        Args:
            text: Its label.
            action: Called by a click; the session adds its errors to `errors`.
            **kwargs: Further arguments of `ipywidgets.Button`.
        """

        def clicked(_: widgets.Button) -> None:
            with contextlib.suppress(CohortError, traitlets.TraitError):
                action()

        layout = {"layout": widgets.Layout(width="auto")}
        made = widgets.Button(description=text, **layout | kwargs)
        made.on_click(clicked)
        self.controls.append(made)
        return made

    def bind(self, control: controls.Control, trait: str, name: str = "") -> controls.Control:
        """Returns the control after making it set a trait of the session.

        Args:
            control: The control.
            trait: The trait.
            name: The model for which it is set; `""`: the trait is not a dict by model.
        """

        def changed(change: traitlets.Bunch) -> None:
            if self._quiet:
                return
            if name:
                self.session.choose(trait, {name: change.new})
            else:
                setattr(self.session, trait, change.new)

        control.observe(changed, "value")
        self.controls.append(control)
        return control


class _Models(_Panel):
    title = "Models"
    where = "models"
    shows = ("models", "selected", "refreshed")

    def make(self) -> Iterable[widgets.Widget]:
        self._ticks: dict[str, widgets.Checkbox] = {}
        self._grid = controls.grid("models")
        refresh = self.button(
            "Refresh", self.session.refresh, tooltip="Look at the namespace again"
        )
        self.title_row.children += (refresh,)
        self._none = controls.muted()
        return [self._grid, self._none]

    def update(self) -> None:
        models = self.session.models
        text = "There are no Keras models yet. Build and compile one; it appears here."
        self._none.value = "" if models else controls.faint(text)
        controls.set_children(self._grid, self._cells(models) if models else ())

    def _cells(self, models: Mapping[str, keras.Model]) -> Iterable[widgets.Widget]:
        columns = {"kind": (), "parameters": ("number",), "shapes": (), "compiled": ("long",)}
        yield controls.head("model")
        yield from (controls.head(column, *kinds) for column, kinds in columns.items())
        for name, row in namespace.table(models).iterrows():
            shapes = f"{row['input']} → {row['output']}" if row["input"] else ""
            yield self._tick(str(name))
            for column, kinds in columns.items():
                yield controls.text(shapes if column == "shapes" else row[column], *kinds)

    def _tick(self, name: str) -> widgets.Checkbox:
        tick = self._ticks.get(name)
        if tick is None:
            tick = widgets.Checkbox(description=name, indent=False, layout=controls.full())
            tick.observe(lambda change: self._ticked(name, change.new), "value")
            self._ticks[name] = tick
            self.controls.append(tick)
        compiled = self.session.models[name].compiled
        tick.tooltip = "Tick to take part" if compiled else "Call compile() on it first"
        tick.value = name in self.session.selected
        tick.disabled = not self.is_usable(tick)
        return tick

    def is_usable(self, control: widgets.Widget) -> bool:
        model = self.session.models.get(getattr(control, "description", ""))
        return super().is_usable(control) and (model is None or model.compiled)

    def _ticked(self, name: str, chosen: bool) -> None:
        if not self._quiet:
            now = {*self.session.selected, name} if chosen else {*self.session.selected} - {name}
            self.session.selected = [name for name in self.session.models if name in now]


class _Data(_Panel):
    title = "Data"
    where = "data"
    shows = ("selected", "x", "y", "validation", "batch_size", "epochs", "refreshed")

    def make(self) -> Iterable[widgets.Widget]:
        self._rows: dict[str, dict[str, widgets.Widget]] = {}
        self._grid = controls.grid("data")
        self._none = controls.muted()
        return [self._grid, self._none]

    def update(self) -> None:
        session = self.session
        for name in session.selected:
            row = self._row(name)
            controls.choose(row["x"], self._x_options(name), session.x[name])
            controls.choose(row["y"], self._y_options(name), session.y[name])
            options = [(_validation(names), names) for names in session.validation_options(name)]
            controls.choose(row["validation"], options, session.validation[name])
            row["batch_size"].value = session.batch_size[name]
            row["epochs"].value = session.epochs[name]
            row["batch_size"].disabled = not self.is_usable(row["batch_size"])
        cells: list[widgets.Widget] = []
        if session.selected:
            heads = ("x", "y", "validation", "batch size", "epochs")
            cells = [controls.head("", "name"), *map(controls.head, heads)]
        for name in session.selected:
            cells += [controls.text(name, "name"), *self._rows[name].values()]
        controls.set_children(self._grid, cells)
        text = "Tick the models that are to be trained together."
        self._none.value = "" if session.selected else controls.faint(text)

    def _x_options(self, name: str) -> list[tuple[str, str]]:
        names = self.session.x_options(name)
        return [(f"{x} {self.session.described(x)}" if x else "random data", x) for x in names]

    def _y_options(self, name: str) -> list[tuple[str, str]]:
        names = self.session.y_options(name)
        without = "in the dataset" if self.session.x[name] else "random data"
        return [(f"{y} {self.session.described(y)}" if y else without, y) for y in names]

    def _row(self, name: str) -> dict[str, widgets.Widget]:
        if name not in self._rows:
            kinds: dict[str, Callable[..., widgets.Widget]] = {
                "x": widgets.Dropdown,
                "y": widgets.Dropdown,
                "validation": widgets.Dropdown,
                "batch_size": controls.number,
                "epochs": controls.number,
            }
            self._rows[name] = {
                trait: self.bind(
                    make(
                        description=f"{trait.replace('_', ' ')} of {name}", layout=controls.full()
                    ),
                    trait,
                    name,
                )
                for trait, make in kinds.items()
            }
        return self._rows[name]

    def is_usable(self, control: widgets.Widget) -> bool:
        fixed = [
            row["batch_size"]
            for name, row in self._rows.items()
            if name in self.session.models and not self.session.takes_batch_size(name)
        ]
        return super().is_usable(control) and control not in fixed


class _FactorRow(NamedTuple):
    """The controls for the factor of one model."""

    slider: widgets.IntSlider
    number: widgets.BoundedIntText
    batch_size: widgets.HTML


class _Layout(_Panel):
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
        self._layouts: dict[str, widgets.Button] = {
            name: self._choice(name) for name in CHOSEN_LAYOUTS
        }
        suggest = self.button(
            "Suggest factors",
            self.session.suggest,
            tooltip="Factors that let all models end their epochs together; after a benchmark, "
            "factors that make their steps take equally long",
        )
        self._about = controls.muted()
        self._factors: dict[str, _FactorRow] = {}
        self._grid = controls.grid("factors")
        buttons = controls.row(self._layouts.values())
        return [buttons, self._about, self._grid, controls.row([suggest])]

    def _choice(self, name: str) -> widgets.Button:
        label = _LABELS.get(name, name)
        return self.button(
            label,
            functools.partial(setattr, self.session, "layout", name),
            tooltip=self.session.impossible.get(name, _ABOUT.get(name, "")),
            # Wide enough for the tick, so that nothing moves when it appears.
            layout=controls.wide(0.55 * len(label) + 3),
        )

    def update(self) -> None:
        session = self.session
        for name, button in self._layouts.items():
            chosen = name == session.layout
            label = _LABELS.get(name, name)
            button.description = f"✓ {label}" if chosen else label
            button.button_style = "primary" if chosen else ""
        about = controls.faint(_ABOUT.get(session.layout, ""))
        self._about.value = "<br>".join([about, *_reasons(session.impossible)])
        counts = session.factors
        cells: list[widgets.Widget] = []
        if session.selected:
            word = "replicas" if session.layout == "replicated" else "group factor"
            cells = [controls.head("", "name")]
            cells += [controls.head(text) for text in (word, "", "batch size of a step")]
        for name, size in session.effective_batch_size.items():
            slider, number, text = self._row(name)
            slider.max = number.max = max(session.most_factor(name), counts[name])
            slider.value = number.value = counts[name]
            for control in (slider, number):
                control.disabled = not self.is_usable(control)
            text.value = _effective(size, counts[name], session.batch_size[name])
            cells += [controls.text(name, "name"), slider, number, text]
        controls.set_children(self._grid, cells)

    def _row(self, name: str) -> _FactorRow:
        if name not in self._factors:
            slider = widgets.IntSlider(min=1, readout=False, layout=controls.full())
            number = controls.number(description=f"factor of {name}", layout=controls.full())
            for control in (slider, number):
                self.bind(control, "factors", name)
            self._factors[name] = _FactorRow(slider, number, controls.text(""))
        return self._factors[name]

    def is_usable(self, control: widgets.Widget) -> bool:
        usable = super().is_usable(control)
        for name, button in self._layouts.items():
            if control is button:
                return usable and name not in self.session.impossible
        is_factor = any(control in row for row in self._factors.values())
        return usable and (not is_factor or self.session.layout in ("grouped", "replicated"))


class _Benchmark(_Panel):
    title = "Benchmark"
    where = "benchmark"
    shows = ("result", "progress", "budget_s", "message")

    def make(self) -> Iterable[widgets.Widget]:
        session = self.session
        run = self.button("Run benchmark", session.benchmark, tooltip="Measure every layout")
        self._stop = self.button("Stop benchmark", session.stop)
        self._budget = controls.number(description="seconds", layout=widgets.Layout(width="auto"))
        self._budget.add_class("kerascohost-seconds")
        self.bind(self._budget, "budget_s")
        self._bar = widgets.FloatProgress(max=1.0, layout=controls.wide(10))
        self._text = widgets.HTML()
        self._table = controls.table("measured")
        self.picture = controls.image()
        self._use, self._use_exact = (
            self.button("Use this layout", action, layout=controls.hidden())
            for action in (session.use_layout, self._take_exact)
        )
        self._drawn: BenchmarkResult | None = None
        return [
            controls.row([run, self._stop, self._budget, self._bar]),
            self._text,
            self._table,
            controls.row([self._use, self._use_exact]),
            self.picture,
        ]

    def update(self) -> None:
        session = self.session
        self._budget.value = round(session.budget_s)
        self._bar.layout.visibility = "visible" if self.is_working else "hidden"
        if self.is_working:
            self._bar.value = session.progress.get("fraction", 0.0)
            lines = [session.progress.get("text", "starting"), _WHILE_BENCHMARK]
        elif session.work == self.where and session.message:
            lines = [session.message, ""]
        else:
            lines = ["", _BEFORE_BENCHMARK]
        said, explained = lines
        breaks = "<br>" if said and explained else ""
        self._text.value = html.escape(said) + breaks + controls.faint(explained)
        if session.result is not None and session.result is not self._drawn:
            self._drawn = session.result
            self._show_result(session.result)

    def _show_result(self, result: BenchmarkResult) -> None:
        self._table.value = result._repr_html_()
        self.picture.value = controls.drawn(result.plot)
        self.picture.layout.display = None
        self._use.layout.display = None
        is_none = result.best == "separate"
        self._use.tooltip = "No layout is faster here" if is_none else f"Choose {result.best}"
        exact = result.best_exact
        is_other = exact not in (result.best, "separate")
        self._use_exact.description = f"Use {exact}, which changes nothing"
        self._use_exact.layout.display = None if is_other else "none"
        for button in (self._use, self._use_exact):
            button.disabled = not self.is_usable(button)

    def _take_exact(self) -> None:
        if self.session.result is not None:
            self.session.use_layout(self.session.result.best_exact)

    def _show_status(self, change: traitlets.Bunch | None = None) -> None:
        super()._show_status(change)
        self._show()

    def is_usable(self, control: widgets.Widget) -> bool:
        if control is self._stop:
            return self.is_working and self.session.status != "stopping"
        usable = super().is_usable(control)
        if control is self._use:
            result = self.session.result
            return usable and result is not None and result.best != "separate"
        return usable


class _MemberRow(NamedTuple):
    """The controls that show the progress of one member."""

    name: widgets.HTML
    bar: widgets.FloatProgress
    text: widgets.HTML


class _Train(_Panel):
    title = "Train"
    where = "train"
    shows = ("progress", "curves", "history", "output", "message")

    def make(self) -> Iterable[widgets.Widget]:
        train = self.button("Train", self.session.train, button_style="primary")
        self._stop = self.button(
            "Stop training",
            self.session.stop,
            tooltip="Ends after the steps it is in; once more, it does not wait for validation",
        )
        self._output = widgets.Text(
            description="history in", continuous_update=False, layout=controls.wide(16)
        )
        self.bind(self._output, "output")
        self._bars = controls.grid("bars")
        self._lines: dict[str, _MemberRow] = {}
        self._message = widgets.HTML()
        self.picture = controls.image()
        self._table = controls.table()
        self._drawn: pd.DataFrame | None = None
        return [
            controls.row([train, self._stop, self._output]),
            self._message,
            self._bars,
            self.picture,
            self._table,
        ]

    def update(self) -> None:
        session = self.session
        self._output.value = session.output
        if self.is_working:
            self._message.value = controls.faint(_WHILE_TRAINING)
        elif session.work == self.where:
            self._message.value = html.escape(session.message)
        self._show_members(session.progress.get("members", {}))
        curves = session.curves
        if curves is not None and curves is not self._drawn and curves["value"].notna().any():
            self._drawn = curves
            self.picture.value = controls.drawn(lambda ax: plotting.plot_losses(curves, ax))
            self.picture.layout.display = None

    def _show_members(self, members: Mapping[str, MemberProgress]) -> None:
        cells: list[widgets.Widget] = []
        for name, member in members.items():
            if name not in self._lines:
                bar = widgets.FloatProgress(max=1.0, layout=controls.full())
                self._lines[name] = _MemberRow(
                    controls.text(name, "name"), bar, controls.text("", "long")
                )
            _, bar, text = self._lines[name]
            bar.value = member["fraction"]
            shown = f"epoch {member['epoch']}{controls.metrics(member['metrics'])}"
            text.value = html.escape(shown)
            cells += self._lines[name]
        if cells:
            controls.set_children(self._bars, cells)

    def _show_status(self, change: traitlets.Bunch | None = None) -> None:
        super()._show_status(change)
        self._show()
        if self.is_working:
            self._table.add_class("kerascohost-past")  # of the last training, until this one ends
        elif self.session.history is not None:
            self._table.remove_class("kerascohost-past")
            with self._drawing():
                self._table.value = self.session.history._repr_html_()

    def is_usable(self, control: widgets.Widget) -> bool:
        return self.is_working if control is self._stop else super().is_usable(control)


class _Code(_Panel):
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
        self.add_class("kerascohost-code")
        self._python, self._cell = (
            widgets.Textarea(description=text, layout=controls.full())
            for text in ("Python", "or a cell")
        )
        about = controls.muted()
        about.value = controls.faint("This does what Train does. Click into it, select all, copy.")
        return [about, self._python, self._cell]

    def update(self) -> None:
        session = self.session
        has_data = session.selected and all(session.x[name] for name in session.selected)
        for area, text in (
            (self._python, session.code if has_data else ""),
            (self._cell, session.cell if has_data else ""),
        ):
            area.value = text or "Choose models, and data for each."
            area.rows = area.value.count("\n") + 1


class Panels(NamedTuple):
    """The panels of a session, from top to bottom."""

    models: _Models
    data: _Data
    layout: _Layout
    benchmark: _Benchmark
    train: _Train
    code: _Code


def panels_of(session: CohostSession) -> Panels:
    """Returns new panels that draw a session."""
    return Panels(
        _Models(session),
        _Data(session),
        _Layout(session),
        _Benchmark(session),
        _Train(session),
        _Code(session),
    )


def _reasons(impossible: Mapping[str, str]) -> list[str]:
    """Returns a line for each reason, with all layouts that it makes impossible."""
    layouts: dict[str, list[str]] = {}
    for name, reason in impossible.items():
        layouts.setdefault(reason, []).append(name)
    return [controls.faint(f"{', '.join(names)}: {why}.") for why, names in layouts.items()]


def _validation(names: Validation) -> str:
    if not names:
        return "none"
    return (
        f"last {100 * names[0]:.0f} %"
        if isinstance(names[0], float)
        else ", ".join(map(str, names))
    )


def _effective(size: int | None, factor: int, batch_size: int) -> str:
    if size is None:
        return f"{factor} of the dataset's" if factor > 1 else "the dataset's"
    return f"{size}" + (f" instead of {batch_size}" if factor > 1 else ", as in its own fit")
