"""Deferred fits run concurrently; each starts once no earlier fit shares objects with it."""

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras

from kerascohost import backends, errors
from kerascohost.arguments import FitArguments
from kerascohost.backends.process_state import ProcessState
from kerascohost.deferred import draws
from kerascohost.errors import CohortError
from kerascohost.results.plan import Plan
from kerascohost.results.progress import Progress
from kerascohost.tracing.reads import Snapshot
from kerascohost.training.member import Member, Run
from kerascohost.training.scheduler import Scheduler, Task
from kerascohost.training.sharing import stateful


class DeferredHistoryError(CohortError, AttributeError):
    """The `History` of a deferred fit is read before the fit has run."""


class DeferredHistory(keras.callbacks.History):
    """What a deferred `fit` returns: a `History` that is filled when the fit has been trained.

    Args:
        train: Trains the fit; called when somebody reads the `History`.
    """

    # Without Keras's `__init__`: what it would set is not known yet.
    def __init__(self, train: Callable[[], None]) -> None:
        self._reason = "its `fit` is deferred until the `with` block or the cell ends"
        self._train = train

    def __getattr__(self, name: str) -> Any:
        if name in ("history", "epoch", "params", "model", "_model"):
            if "_train" in vars(self):
                self._train()
            if name in vars(self):
                return vars(self)[name]
            reason = vars(self).get("_reason")
            raise DeferredHistoryError(
                f"Expected `{name}` to be read after the training. Received: a History that is "
                f"still empty, as {reason}."
            )
        raise AttributeError(f"'History' object has no attribute {name!r}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        _ = self.history  # a copy is one of what the training records
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        epochs = vars(self).get("epoch")
        return "<History, deferred>" if epochs is None else f"<History of {len(epochs)} epochs>"

    def was_not_run(self) -> None:
        """Says why this will stay empty."""
        self.__dict__.pop("_train", None)
        self._reason = "its `fit` was not run: the block around it failed"

    def fill(self, history: keras.callbacks.History) -> None:
        """Takes over what the training recorded."""
        self.__dict__.clear()
        self.__dict__.update(vars(history))


class DeferredFit:
    """One call of `fit` that waits for others, or is trained beside them.

    Args:
        model: The model.
        arguments: All arguments of `fit`, by name.
        history: What the caller was given for a `History`, if anything.
        entered: Makes a context in which the process is as the fit would find it alone; by default
            one with its own random numbers.
        is_deferred: Whether the program goes on before the fit is trained, so that it must be
            trained with what its call read.

    Attributes:
        name: The member's name.
        label: The name of this fit, if its member has several.
        error: The exception that ended the training.
        seconds: From the training's begin to its end, the others' part in it included.
    """

    def __init__(
        self,
        model: keras.Model,
        arguments: FitArguments,
        history: DeferredHistory | None = None,
        entered: Callable[[], contextlib.AbstractContextManager] | None = None,
        is_deferred: bool = True,
    ):
        self.model = model
        self.snapshot = Snapshot(model, arguments, is_deferred)
        self.arguments = self.snapshot.arguments
        self.history: Any = history
        self.name = self.label = model.name
        self.error: BaseException | None = None
        self.has_begun = False
        self.validated: list[int] = []
        self.seconds = 0.0
        self.process = ProcessState()
        self.called_in = self.expected = self.process.random
        self._source: DeferredFit | None = None
        self._may_end_early = draws.may_end_early(model, arguments)
        self.entered = entered or self.process.drawing  # the snapshot has the configuration
        changing = [thing for value in arguments.values() for thing in stateful(value)]
        things = [model, *backends.parts(model), *changing]
        self._changes = {id(thing) for thing in things} | self.snapshot.writes

    def conflicts_with(self, other: "DeferredFit") -> bool:
        """Whether one changes what the other changes or reads, so that one must wait."""
        return not (
            self._changes.isdisjoint(other._changes)
            and self._changes.isdisjoint(other.snapshot.reads)
            and self.snapshot.reads.isdisjoint(other._changes)
        )

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Lets the block find the process, and what the fit reads of it, as the fit would alone."""
        with self.entered(), self.snapshot.as_read():
            yield

    def draw_ahead(self, is_built: bool = False) -> None:
        """Moves the global random state to where this fit will leave it if it runs all its epochs.

        So the program draws, after the call, what it would draw after the training.

        Args:
            is_built: Whether an earlier fit will have built the model.
        """
        self.expected = draws.advance(self.model, self.arguments, is_built)

    def follow(self, earlier: "DeferredFit") -> None:
        """Draws on where `earlier` stops, unless the program drew or set a seed in between."""
        if self.called_in == earlier.expected:
            self._source = earlier if earlier.draws else earlier._source

    @property
    def draws(self) -> bool:
        """Whether this fit draws from the global random state, as far as can be foreseen."""
        return self.expected != self.called_in

    @property
    def _end_is_known(self) -> bool:
        known = self._source is None or self._source._end_is_known
        return known and not (self.draws and self._may_end_early)

    def draws_after(self, other: "DeferredFit") -> bool:
        """Whether this fit shuffles on from where `other` ends, which nobody knows before."""
        return self.draws and other is self._source and not other._end_is_known

    def continues(self, earlier: "DeferredFit") -> None:
        """Takes up the random state that `earlier`, which has ended, left behind."""
        if earlier is self._source or self.called_in == earlier.called_in == earlier.expected:
            self.process.random = earlier.process.random

    @property
    def random_after(self) -> bytes:
        """The random state that the program finds after this fit, which has ended."""
        if self._source is not None and self.process.random == self.called_in:
            return self._source.random_after
        return self.process.random

    def warn_of_draws(self, later: bytes) -> None:
        """Warns if the program drew numbers after this fit which it would not have drawn alone.

        Args:
            later: The random state in which the program was found next.
        """
        ended = self.process.random
        ended_elsewhere = self.draws and self.has_begun and ended != self.expected
        if ended_elsewhere and backends.is_drawn_from(self.expected, later, ended):
            warnings.warn(
                f"The program drew random numbers, as new layers do for their weights, after the "
                f"`fit` of {self.label!r} as if it had run all its epochs, but it ended after "
                f"{len(self._recorded.epoch)} of {self.arguments['epochs']}. Set a seed after it "
                "(`keras.utils.set_random_seed`), or draw before it.",
                stacklevel=5,
            )

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


class DeferredRunner:
    """Trains fits together, each as soon as no earlier one is left that it conflicts with.

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
        self._running: dict[str, DeferredFit] = {}
        self._waiting: list[DeferredFit] = []
        self._positions = itertools.count()

    @property
    def plan(self) -> Plan:
        """Which member was stacked with which, and why others were joined."""
        return self._scheduler.stacks.plan(self._members.values())

    def run(
        self, fits: Iterable[DeferredFit], ended: Callable[[DeferredFit], Iterable[DeferredFit]]
    ) -> None:
        """Trains `fits`, and those that join in.

        Args:
            fits: The fits to begin with, in the order of the program.
            ended: Called with each fit that has ended, perhaps by an `error`; what it returns joins
                in.

        Raises:
            CohortError: Before anything is trained, if what one of `fits` reads is not as it was at
                its call, and cannot be restored.
        """
        self._ended = ended
        fits = list(fits)
        for fit in fits:
            fit.snapshot.check(fit.name)
        self._waiting.extend(fits)
        for earlier, fit in itertools.pairwise(self._waiting):
            fit.follow(earlier)
        self._scheduler.run(self._next_tasks(), self._on_end)

    def drop_after(self, failed: DeferredFit) -> None:
        """Begins none of the fits that wait for one which has failed: alone they would not be."""
        self._waiting = [fit for fit in self._waiting if not fit.conflicts_with(failed)]

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

    def _can_start(self, fit: DeferredFit) -> bool:
        earlier = itertools.takewhile(lambda other: other is not fit, self._waiting)
        before = [*self._running.values(), *earlier]
        return not any(fit.conflicts_with(other) or fit.draws_after(other) for other in before)

    def _task(self, fit: DeferredFit) -> Task:
        member = self._members.get(fit.name)
        if member is None or member.model is not fit.model:
            member = Member(fit.name, fit.model, *self._factors.get(fit.name, ()))
        member.snapshot = fit.snapshot
        self._members[fit.name] = member
        with fit.inside():
            member.prepare_fit(fit.arguments)
        fit.validated = member.validated
        bar = Progress(fit.label, "train", fit.arguments["verbose"], next(self._positions))
        return Task(member, _entered(fit, member, member.training([bar])), bar)

    def _on_end(self, task: Task, outcome: Any) -> list[Task]:
        fit = self._running.pop(task.member.name)
        if isinstance(outcome, Exception):
            fit.error = outcome
        for later in self._waiting:
            if later.conflicts_with(fit) or later.draws_after(fit):
                later.continues(fit)
        self._waiting.extend(self._ended(fit))
        return self._next_tasks()


def _entered(fit: DeferredFit, member: Member, run: Run) -> Run:
    """`run`, finding the process as it would have found it alone."""
    answer: Any = None
    began = time.perf_counter()
    member.forget_history()
    fit.has_begun = True
    try:
        while True:
            try:
                with fit.inside():
                    request = run.send(answer)
            except StopIteration as end:
                return end.value
            fit.record()
            answer = yield request
    finally:
        with fit.inside():
            run.close()
            member.close()
        fit.record()
        fit.seconds = time.perf_counter() - began
