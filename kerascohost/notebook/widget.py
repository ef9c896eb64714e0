"""The widget: its panels in a cell of the notebook, with the hooks and outputs that it adds."""

import weakref
from collections.abc import Callable

import ipywidgets as widgets
import traitlets
from IPython.core.getipython import get_ipython
from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult
from IPython.display import DisplayHandle, display

from kerascohost.notebook import controls
from kerascohost.notebook.namespace import Variables
from kerascohost.notebook.panels import panels_of
from kerascohost.notebook.session import CohostSession


class CohostWidget(widgets.VBox):
    """A widget to select models of the notebook, choose their layout, benchmark and train them.

    It shows and calls a `CohostSession`, its attribute `session`. Trainings and benchmarks run in a
    thread of their own, so that other cells can run meanwhile. Do not use the models that are
    trained or measured until it ends; a cell that names one prints a warning.

    Args:
        variables: The namespace in which to look for models and data; by default the notebook's.
        session: The session to draw, by default a new one.

    Example:

    >>> CohostWidget({}).session.status
    'idle'
    """

    def __init__(
        self,
        variables: Variables | None = None,
        session: CohostSession | None = None,
    ):
        self._shell = get_ipython()
        if variables is None:
            variables = self._shell.user_ns if self._shell else {}
        self.session = session or CohostSession(variables)
        self._displays: list[DisplayHandle] = []
        self._panels = panels_of(self.session)
        super().__init__(
            [widgets.HTML(controls.STYLE), *self._panels],
            layout=widgets.Layout(width="100%"),
        )
        self.add_class("kerascohost")
        self.session.observe(self._publish, "status")
        self._hooks = _hooks(weakref.ref(self.session))
        if self._shell:
            for event, hook in self._hooks.items():
                self._shell.events.register(event, hook)

    def close(self) -> None:
        """Stops the training or benchmark, and removes the widget's hooks from the notebook."""
        self.session.stop()
        if self._shell:
            for event, hook in self._hooks.items():
                self._shell.events.unregister(event, hook)
        self._shell = None
        super().close()

    def _ipython_display_(self) -> None:
        """Displays the widget and, below it, outputs that are readable without a kernel."""
        display(super()._repr_mimebundle_(), raw=True)
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
        for panel in (self._panels.benchmark, self._panels.train):
            if panel.picture.value:
                png = bytes(panel.picture.value)  # Jupyter would save a memoryview as a list
                bundle = {"image/png": png, "text/plain": panel.title}
                picture.update(bundle, metadata={"image/png": {"width": controls.WIDTH}}, raw=True)


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
