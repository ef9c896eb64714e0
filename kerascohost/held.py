"""Fits that are held: what they would draw, what they share, and how they are trained together."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from kerascohost import errors, programs
from kerascohost.cohort import keep_state
from kerascohost.errors import CohortError
from kerascohost.member import Member, Run
from kerascohost.plan import Plan
from kerascohost.progress import Progress
from kerascohost.scheduler import Scheduler, Task


class HeldHistoryError(CohortError, AttributeError):
    """The `History` of a held fit is read before the fit has run."""


class HeldHistory(keras.callbacks.History):
    """What a held `fit` returns: a `History` that is filled when the fit has been trained.

    Args:
        train: Trains the fit; called when somebody reads the `History`.
    """

    # Without Keras's `__init__`: what it would set is not known yet.
    def __init__(self, train: Callable[[], None]) -> None:
        self._reason = "its `fit` is held until the `with` block or the cell ends"
        self._train = train

    def __getattr__(self, name: str) -> Any:
        if name in ("history", "epoch", "params", "model", "_model"):
            if "_train" in vars(self):
                self._train()
            if name in vars(self):
                return vars(self)[name]
            reason = vars(self).get("_reason")
            raise HeldHistoryError(
                f"Expected `{name}` to be read after the training. Received: a History that is "
                f"still empty, as {reason}."
            )
        raise AttributeError(f"'History' object has no attribute {name!r}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        _ = self.history  # a copy is one of what the training records
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        epochs = vars(self).get("epoch")
        return "<History, held>" if epochs is None else f"<History of {len(epochs)} epochs>"

    def was_not_run(self) -> None:
        """Says why this will stay empty."""
        self.__dict__.pop("_train", None)
        self._reason = "its `fit` was not run: the block around it failed"

    def fill(self, history: keras.callbacks.History) -> None:
        """Takes over what the training recorded."""
        self.__dict__.clear()
        self.__dict__.update(vars(history))


class HeldFit:
    """One call of `fit` that waits for others, or is trained beside them.

    Args:
        model: The model.
        arguments: All arguments of `fit`, by name.
        history: What the caller was given for a `History`, if anything.
        entered: Makes a context in which the process is as the fit would find it alone; by default
            one with its own random numbers.

    Attributes:
        name: The member's name.
        label: The name of this fit, if its member has several.
        error: The exception that ended the training.
        seconds: From the training's begin to its end, the others' part in it included.
    """

    def __init__(
        self,
        model: keras.Model,
        arguments: dict[str, Any],
        history: HeldHistory | None = None,
        entered: Callable[[], contextlib.AbstractContextManager] | None = None,
    ):
        self.model = model
        self.arguments = arguments
        self.history: Any = history
        self.name = self.label = model.name
        self.error: BaseException | None = None
        self.has_begun = False
        self.validated: list[int] = []
        self.seconds = 0.0
        self.called_in = self.random = programs.random_state()
        self.entered = entered or self._own_random_state
        stateful = [thing for value in arguments.values() for thing in keep_state(value)]
        self._changes = {id(thing) for thing in [model, *programs.parts(model), *stateful]}

    def meets(self, other: "HeldFit") -> bool:
        """Whether the two change the same things, so that one must wait for the other."""
        return not self._changes.isdisjoint(other._changes)

    def continues(self, earlier: "HeldFit") -> None:
        """Draws on where `earlier` stopped, unless the program set a random state in between."""
        if self.called_in == earlier.called_in:
            self.random = earlier.random

    @contextlib.contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Lets the block draw the random numbers that this fit would draw if it were alone."""
        outside = programs.random_state()
        programs.set_random_state(self.random)
        try:
            yield
        finally:
            self.random = programs.random_state()
            programs.set_random_state(outside)

    def hand_over(self) -> None:
        """Gives the caller's `History` what was recorded, as much as there is."""
        if not self.has_begun:
            self.history.was_not_run()
            return
        self.history.fill(self._recorded)
        if self.model.history is self._recorded:
            self.model.history = self.history

    def record(self) -> None:
        """Keeps the model's history, which its next fit replaces."""
        self._recorded = self.model.history


class Together:
    """Trains fits together, each from when nothing that it meets is left before it.

    Args:
        factors: The group factor and the replicas of each member that has any, by name.
        layout: As in `Cohort`.
    """

    def __init__(
        self, factors: Mapping[str, tuple[int, ...]] | None = None, layout: str = "joined"
    ):
        self._factors = {} if factors is None else factors
        self._scheduler = Scheduler(layout)
        self._members: dict[str, Member] = {}
        self._running: dict[str, HeldFit] = {}
        self._waiting: list[HeldFit] = []
        self._positions = itertools.count()

    @property
    def plan(self) -> Plan:
        """Which member was stacked with which, and why others were joined."""
        return self._scheduler.stacks.plan(self._members.values())

    def run(self, fits: Iterable[HeldFit], ended: Callable[[HeldFit], Iterable[HeldFit]]) -> None:
        """Trains `fits`, and those that join in.

        Args:
            fits: The fits to begin with, in the order of the program.
            ended: Called with each fit that has ended, perhaps by an `error`; what it returns joins
                in.
        """
        self._ended = ended
        self._waiting.extend(fits)
        self._scheduler.run(self._next_tasks(), self._on_end)

    def forsake(self, failed: HeldFit) -> None:
        """Begins none of the fits that wait for one which has failed: alone they would not be."""
        self._waiting = [fit for fit in self._waiting if not fit.meets(failed)]

    def _next_tasks(self) -> list[Task]:
        tasks = []
        while (fit := next(filter(self._can_start, self._waiting), None)) is not None:
            self._waiting.remove(fit)
            try:
                with errors.about(fit.name):
                    tasks.append(self._task(fit))
            except Exception as error:
                fit.error = error
                self._waiting.extend(self._ended(fit))
            else:
                self._running[fit.name] = fit
        return tasks

    def _can_start(self, fit: HeldFit) -> bool:
        earlier = itertools.takewhile(lambda other: other is not fit, self._waiting)
        return not any(map(fit.meets, [*self._running.values(), *earlier]))

    def _task(self, fit: HeldFit) -> Task:
        member = self._members.get(fit.name)
        if member is None or member.model is not fit.model:
            member = Member(fit.name, fit.model, *self._factors.get(fit.name, ()))
        self._members[fit.name] = member
        with fit.entered():
            member.prepare_fit(fit.arguments)
        fit.validated = member.validated
        bar = Progress(fit.label, "train", fit.arguments["verbose"], next(self._positions))
        return Task(member, _entered(fit, member, member.training([bar])), bar)

    def _on_end(self, task: Task, outcome: Any) -> list[Task]:
        fit = self._running.pop(task.member.name)
        if isinstance(outcome, Exception):
            fit.error = outcome
        for later in filter(fit.meets, self._waiting):
            later.continues(fit)
        self._waiting.extend(self._ended(fit))
        return self._next_tasks()


def _entered(fit: HeldFit, member: Member, run: Run) -> Run:
    """`run`, finding the process as it would have found it alone."""
    answer: Any = None
    began = time.perf_counter()
    member.forget_history()
    fit.has_begun = True
    try:
        while True:
            try:
                with fit.entered():
                    want = run.send(answer)
            except StopIteration as end:
                return end.value
            fit.record()
            answer = yield want
    finally:
        with fit.entered():
            run.close()
            member.close()
        fit.record()
        fit.seconds = time.perf_counter() - began
