"""The widget: a session in a cell of the notebook, with the hooks and outputs that it adds."""

import contextlib
import io
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypedDict

import anywidget
import traitlets
from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure

from kerascohost.arguments import Argument
from kerascohost.errors import CohortError, in_words
from kerascohost.layouts.result import BenchmarkResult
from kerascohost.notebook import live, view
from kerascohost.notebook.namespace import Variables
from kerascohost.notebook.session import CohostSession
from kerascohost.results.history import CohortHistory

# Plain JavaScript, which needs no build step: one module of three files.
_STATIC = Path(__file__).parent / "static"
_MODULE = "\n".join(
    (_STATIC / f"{name}.js").read_text("utf-8") for name in ("dom", "charts", "widget")
)

# The traits of a session that each part of the widget shows.
_PAGE = (
    *("models", "selected", "refreshed", "x", "y", "validation", "batch_size", "epochs"),
    *("layout", "group_factor", "replicas", "callbacks", "output", "budget_s", "result"),
)
_LIVE = ("status", "work", "progress", "message", "errors")
_CURVES = ("curves", "earlier")

# The width of the picture below the widget, in pixels.
_WIDTH = 640


# Representations of an output by MIME type, or what belongs to them.
Bundle: TypeAlias = dict[str, Argument]


class Message(TypedDict, total=False):
    """A request from the browser: what to do, with what, and its number among those of its view."""

    do: str
    view: str
    number: int
    names: list[str]
    trait: str
    input: int
    value: Argument
    rates: list[float]


class CohostWidget(anywidget.AnyWidget):
    """A widget to select models of the notebook, choose their layout, benchmark and train them.

    It shows and calls a `CohostSession`, its attribute `session`. Trainings and benchmarks run in a
    thread of their own, so that other cells can run meanwhile. Do not use the models that are
    trained or measured until it ends; a cell that names one prints a warning.

    Args:
        variables: The namespace in which to look for models and data; by default the notebook's.
        session: The session to draw, by default a new one.

    Raises:
        CohortError: If one of these is of another type.

    Example:

    >>> CohostWidget({}).session.status
    'idle'
    """

    _esm = _MODULE
    _css = (_STATIC / "widget.css").read_text("utf-8")

    page = traitlets.Dict().tag(sync=True)
    live = traitlets.Dict().tag(sync=True)
    curves = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        variables: Variables | None = None,
        session: CohostSession | None = None,
    ):
        if session is not None and not isinstance(session, CohostSession):
            raise CohortError(
                f"Expected `session` to be a `CohostSession` or None. Received: {session!r}."
            )
        self._shell = get_ipython()
        if variables is None:
            variables = self._shell.user_ns if self._shell else {}
        self.session = session or CohostSession(variables)
        self._displays: list[DisplayHandle] = []
        self._is_busy = False  # while several choices are made: they are drawn once
        self._answered: dict[str, int] = {}  # by view, the number of its last request
        super().__init__()
        self.on_msg(self._asked)
        for traits, draw in (
            (_PAGE, self._draw_page), (_LIVE, self._draw_live), (_CURVES, self._draw_curves),
        ):  # fmt: skip
            self.session.observe(lambda _, draw=draw: self._drawn(draw), traits)
            draw()
        self.session.observe(self._publish, "status")
        self._hooks = _hooks(weakref.ref(self.session))
        if self._shell:
            for event, hook in self._hooks.items():
                self._shell.events.register(event, hook)

    def close(self) -> None:
        """Stops the training or benchmark, and removes the widget's hooks from the notebook."""
        if not hasattr(self, "_hooks"):  # called by `__del__` of a widget that was refused
            return
        self.session.stop()
        if self._shell:
            for event, hook in self._hooks.items():
                self._shell.events.unregister(event, hook)
        self._shell = None
        super().close()

    # What the browser shows

    def _drawn(self, draw: Callable[[], None]) -> None:
        if not self._is_busy:
            draw()

    def _draw_page(self) -> None:
        self.page = {**view.page(self.session), "answered": dict(self._answered)}

    def _draw_live(self) -> None:
        self.live = dict(view.live(self.session))

    def _draw_curves(self) -> None:
        self.curves = dict(view.curves(self.session))

    # What the browser asks for

    def _asked(self, _: anywidget.AnyWidget, message: Message, buffers: list[bytes]) -> None:
        """Does what a click or a choice asks for; errors are shown beside its control."""
        self._is_busy = True
        try:
            with contextlib.suppress(CohortError, traitlets.TraitError):  # in the session's errors
                getattr(self, f"_do_{message['do']}")(message)
        except Exception as error:
            self.session.tell_error(message.get("trait", "models"), in_words(error))
        finally:
            self._is_busy = False
            if "view" in message:
                self._answered[message["view"]] = message["number"]
            for draw in (self._draw_page, self._draw_live):
                draw()

    def _do_select(self, message: Message) -> None:
        now, names = set(self.session.selected), set(message["names"])
        now = now | names if message["value"] else now - names
        self.session.selected = [name for name in self.session.models if name in now]

    def _do_choose(self, message: Message) -> None:
        value = message["value"]
        value = tuple(value) if isinstance(value, list) else value
        self.session.set_choice(message["trait"], dict.fromkeys(message["names"], value))

    def _do_input(self, message: Message) -> None:
        for name in message["names"]:
            self.session.choose_input(name, message["input"], message["value"])

    def _do_set(self, message: Message) -> None:
        setattr(self.session, message["trait"], message["value"])

    def _do_copies(self, message: Message) -> None:
        rates = message["rates"]
        self.session.copies(message["names"][0], len(rates) or message["value"], rates)

    def _do_use(self, message: Message) -> None:
        self.session.use_layout(message["value"])

    def _do_csv(self, message: Message) -> None:
        history = self.session.history
        text = "" if history is None else history.frame.to_csv(index=False)
        self.send({"csv": text or live.frame(self.session.curves).to_csv(index=False)})

    def _do_refresh(self, message: Message) -> None:
        self.session.refresh()

    def _do_suggest(self, message: Message) -> None:
        self.session.suggest()

    def _do_train(self, message: Message) -> None:
        self.session.train()

    def _do_benchmark(self, message: Message) -> None:
        self.session.benchmark()

    def _do_stop(self, message: Message) -> None:
        self.session.stop()

    # What a reader without a kernel sees

    def _repr_mimebundle_(self, **kwargs: Argument) -> tuple[Bundle, Bundle] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            count = len(self.session.models)
            bundle[0]["text/plain"] = (
                f"The widget of kerascohost, with {count} model{'s' * (count != 1)}: run this cell "
                "to use it."
            )
        return bundle

    def _ipython_display_(self) -> None:
        """Displays the widget and, below it, outputs that are readable without a kernel."""
        bundle = self._repr_mimebundle_()
        if bundle is not None:
            display(bundle[0], metadata=bundle[1], raw=True)
        self._displays = [display({"text/plain": ""}, raw=True, display_id=True) for _ in range(2)]
        self._publish()

    def _publish(self, change: traitlets.Bunch | None = None) -> None:
        """Updates the outputs below the widget, unless a training or benchmark runs."""
        session = self.session
        shown = [found for found in (session.result, session.history) if found is not None]
        if not self._displays or session.status != "idle" or not shown:
            return
        tables, picture = self._displays
        bundle: dict[str, str | bytes] = {
            "text/html": "".join(found._repr_html_() for found in shown),
            "text/plain": "\n".join(map(repr, shown)),
        }
        tables.update(bundle, raw=True)
        last = session.history if session.work == "train" and session.history else shown[-1]
        bundle = {"image/png": _picture(last), "text/plain": "The curves, or the speed-ups."}
        picture.update(bundle, metadata={"image/png": {"width": _WIDTH}}, raw=True)


def _picture(shown: CohortHistory | BenchmarkResult) -> bytes:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    shown.plot(figure.add_subplot())
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=180)
    return picture.getvalue()


def _hooks(reference: Callable[[], CohostSession | None]) -> dict[str, Callable[..., None]]:
    """Returns functions to call before and after each cell, by IPython's event.

    Args:
        reference: A weak reference to the session, so that the functions do not keep it alive.
    """

    def caution(info: ExecutionInfo) -> None:
        session = reference()
        text = session.caution(info.raw_cell or "") if session is not None else ""
        if text:
            print(f"Caution: {text}")

    def follow(*_: ExecutionResult) -> None:
        session = reference()
        if session is not None:
            session.refresh()

    return {"pre_run_cell": caution, "post_run_cell": follow}
