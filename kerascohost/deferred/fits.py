"""Calls that wait: deferred fits, and those of functions in turn; and the runner of them all.

It runs them concurrently where they share no objects.
"""

import contextlib
import functools
import itertools
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NamedTuple,
    SupportsIndex,
    TypeAlias,
    TypeVar,
)

import keras

from kerascohost import backends, errors
from kerascohost.arguments import FitArguments, Layout
from kerascohost.backends import StepKind, Tree, adapters
from kerascohost.backends.process_state import ProcessState
from kerascohost.backends.random_states import RandomStates
from kerascohost.deferred import draws
from kerascohost.deferred.calls import Arguments
from kerascohost.errors import CohortError
from kerascohost.results.progress import Progress
from kerascohost.tracing.reads import Snapshot
from kerascohost.training.batches import batches
from kerascohost.training.member import CallbackList, Member, Run, entered_run
from kerascohost.training.scheduler import Scheduler, Task
from kerascohost.training.sharing import stateful

if TYPE_CHECKING:
    from kerascohost.training.workers import Workers

# The values of a `History`'s attributes: `history`, `params`, `epoch` and `model`.
_Recorded: TypeAlias = (
    dict[str, list[float]] | dict[str, int | None] | list[int] | keras.Model | None
)


class DeferredHistoryError(CohortError, AttributeError):
    """An error for a `History` of a deferred fit that is read before the fit has run."""


class DeferredHistory(keras.callbacks.History):
    """A `History` that a deferred `fit` returns; it is filled when the fit has been trained.

    Args:
        train: Trains the fit; called when the `History` is read before that.
    """

    # Keras's `__init__` is not called: the values that it would set are not known yet.
    def __init__(self, train: Callable[[], None]) -> None:
        self._reason = "its `fit` is deferred until the `with` block or the cell ends"
        self._train = train

    def __getattr__(self, name: str) -> _Recorded:
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

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        _ = self.history  # trains: a copy has what the training records
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        epochs = vars(self).get("epoch")
        return "<History, deferred>" if epochs is None else f"<History of {len(epochs)} epochs>"

    def was_not_run(self) -> None:
        """Marks the history as one that stays empty, because the block around the fit failed."""
        self.__dict__.pop("_train", None)
        self._reason = "its `fit` was not run: the block around it failed"

    def fill(self, history: keras.callbacks.History) -> None:
        """Replaces the attributes by those of the `History` that the training recorded."""
        self.__dict__.clear()
        self.__dict__.update(vars(history))


class Footprint(NamedTuple):
    """The objects that a call may change and read, by their identities.

    Attributes:
        changes: Those that it may change; of files and folders, their paths.
        reads: Those of other models that it may read.
    """

    changes: set[Hashable]
    reads: set[Hashable]

    def conflicts_with(self, other: "Footprint") -> bool:
        """Returns whether one changes what the other changes or reads."""
        return not (
            self.changes.isdisjoint(other.changes)
            and self.changes.isdisjoint(other.reads)
            and self.reads.isdisjoint(other.changes)
        )

    def shared_with(self, other: "Footprint") -> set[Hashable]:
        """Returns what one changes and the other changes or reads."""
        both = self.changes & other.changes
        return both | (self.changes & other.reads) | (self.reads & other.changes)


class WaitingCall:
    """One call of a method of a model that waits for other calls, or runs together with them.

    Args:
        model: The model.
        arguments: All arguments of the method, by name.
        entered: Makes a context in which the process is as the method would find it alone.
        is_deferred: Whether the program continues before the call is run, so that it must run with
            the values that it read when it was made.

    Attributes:
        kind: The kind of the steps.
        snapshot: The record of what the steps read.
        name: The member's name.
        label: The name of this call, if its member has several.
        error: The exception that ended it.
        result: What it returned.
        has_begun: Whether it has begun.
        is_prepared: Whether its data have been prepared, so that it keeps random states of its own.
        things: The model, its parts and the arguments that change while they are used.
        footprint: What it may change and read.
    """

    kind: StepKind

    def __init__(
        self,
        model: keras.Model,
        arguments: Arguments,
        entered: Callable[[], contextlib.AbstractContextManager[None]],
        is_deferred: bool = False,
    ):
        self.model = model
        self.snapshot = Snapshot(model, arguments, is_deferred)
        self.arguments: Arguments = self.snapshot.arguments
        self.name = self.label = model.name
        self.error: BaseException | None = None
        self.result: Tree = None
        self.has_begun = self.is_prepared = False
        self.entered = entered
        changing = [thing for value in arguments.values() for thing in stateful(value)]
        self.things = [model, *backends.parts(model), *changing]
        changes = {id(thing) for thing in self.things} | self.snapshot.writes
        self.footprint = Footprint(changes, self.snapshot.reads)

    def begin(self, member: Member, callbacks: CallbackList) -> Run:
        """Prepares the call and returns its run."""
        raise NotImplementedError

    def advanced(self) -> None:
        """Records that the call has begun, and what the model's next call replaces."""
        self.has_begun = True
        self.record()

    def record(self) -> None:
        """Stores what the model's next call replaces."""

    def conflicts_with(self, other: "WaitingCall") -> bool:
        """Returns whether one changes what the other changes or reads, so that one must wait."""
        return self.footprint.conflicts_with(other.footprint)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Restores, within the block, the process's state and the values that the call reads."""
        with self.entered(), self.snapshot.as_read():
            yield

    @property
    def is_restored(self) -> bool:
        """Returns whether `inside` changes what the program refers to."""
        return self.snapshot.differs or self.snapshot.key != ()

    def follow(self, earlier: "WaitingCall") -> None:
        """Prepares to begin where `earlier` ends; only deferred fits do."""

    @functools.cached_property
    def sees_process_state(self) -> bool:
        """Returns whether the process's state can be seen or changed between the call's steps.

        This is so unless only array indexing and Keras's own bookkeeping run there. To change the
        state at each step of each member takes longer than these.
        """
        given = self.arguments
        validation = given.get("validation_data")
        data = [(given["x"], given.get("y"), given.get("sample_weight"))]
        if validation is not None:
            data.append(keras.utils.unpack_x_y_sample_weight(validation))
        return bool(
            given["verbose"]
            or backends.callbacks_in(given["callbacks"])
            or backends.runs_code_between_steps(self.model)
            or not all(map(adapters.are_arrays, data))
        )

    def continues(self, earlier: "WaitingCall") -> None:
        """Takes over from `earlier`, which has ended; only deferred fits do."""

    def draws_after(self, other: "WaitingCall") -> bool:
        """Returns whether the call draws from a random state known only when `other` ends."""
        return False


def check_call(model: keras.Model, arguments: FitArguments) -> None:
    """Raises for a call of `fit` that would fail, as far as that is seen without reading data.

    Raises:
        CohortError: If the model cannot be trained in a cohort, or an argument cannot be.
        ValueError: Keras's, if the lengths of arrays differ.
    """
    Member(model.name, model).check_fit(arguments)
    data = (arguments["x"], arguments["y"], arguments["sample_weight"])
    if not adapters.are_arrays(data):
        return
    lengths = {leaf.shape[0] for leaf in keras.tree.flatten(data) if hasattr(leaf, "shape")}
    if len(lengths) > 1:
        batches(data, backends.get_backend().row_order)


class Evaluation(WaitingCall):
    """One call of `evaluate`; see `WaitingCall`."""

    kind = "test"

    def begin(self, member: Member, callbacks: CallbackList) -> Run:
        """Prepares the evaluation and returns its run."""
        member.prepare_evaluate(self.arguments)
        return member.evaluation(self.arguments, callbacks, self.arguments["return_dict"])


class Prediction(WaitingCall):
    """One call of `predict`; see `WaitingCall`."""

    kind = "predict"

    def begin(self, member: Member, callbacks: CallbackList) -> Run:
        """Prepares the prediction and returns its run."""
        member.prepare_predict(self.arguments)
        return member.prediction(self.arguments, callbacks)


class DeferredFit(WaitingCall):
    """One call of `fit`; see `WaitingCall`.

    Args:
        model: The model.
        arguments: All arguments of `fit`, by name.
        history: The `History` that the caller was given, if any.
        entered: As in `WaitingCall`; by default a context with random states of the fit's own.
        is_deferred: As in `WaitingCall`.

    Attributes:
        validated: The epochs after which it was validated, where that is not after each.
        seconds: The time from the begin of the training to its end, with that of other members'
            steps in between.
        process: The process's state, such as random states, as the fit finds and leaves it.
        called_in: The global random state at the call.
        expected: The global random state after a training of all epochs.
        source: The earlier fit whose last random state this one begins with, if any.
        called_at: The file and line of the call, where the program goes on before the training.
    """

    kind = "train"

    def __init__(
        self,
        model: keras.Model,
        arguments: FitArguments,
        history: DeferredHistory | None = None,
        entered: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
        is_deferred: bool = True,
    ):
        self.process = ProcessState()
        # The snapshot has the configuration.
        super().__init__(model, arguments, entered or self.process.drawing, is_deferred)
        self.history = history
        self.validated: list[int] = []
        self.called_in = self.expected = self.process.random
        self.source: DeferredFit | None = None
        self.seconds = 0.0
        self.called_at = ""
        self._may_end_early = draws.may_end_early(model, arguments)

    def begin(self, member: Member, callbacks: CallbackList) -> Run:
        """Prepares the fit and returns its run."""
        member.prepare_fit(self.arguments)
        self.validated = member.validated
        return self._timed(member.training(callbacks), member)

    def _timed(self, run: Run, member: Member) -> Run:
        began = time.perf_counter()
        member.forget_history()
        try:
            return (yield from run)
        finally:
            self.seconds = time.perf_counter() - began

    def draw_ahead(self, is_built: bool = False) -> None:
        """Moves the global random state to where this fit leaves it if it runs all its epochs.

        The program then draws after the call what it would draw after the training.

        Args:
            is_built: Whether an earlier fit will have built the model.
        """
        self.expected = draws.advance(self.model, self.arguments, is_built)

    def follow(self, earlier: WaitingCall) -> None:
        """Begins with the last random state of `earlier`, if the program left it unchanged."""
        if isinstance(earlier, DeferredFit) and self.called_in == earlier.expected:
            self.source = earlier if earlier.draws else earlier.source

    @property
    def draws(self) -> bool:
        """Returns whether this fit is expected to draw from the global random state."""
        return self.expected != self.called_in

    @property
    def end_is_known(self) -> bool:
        """Returns whether the random state after this fit is known before its training."""
        known = self.source is None or self.source.end_is_known
        return known and not (self.draws and self._may_end_early)

    def draws_after(self, other: WaitingCall) -> bool:
        """Returns whether this fit draws from a random state known only when `other` ends."""
        source = self.source
        return self.draws and source is not None and other is source and not source.end_is_known

    def continues(self, earlier: WaitingCall) -> None:
        """Copies the random state after `earlier`, which has ended, if this fit follows it."""
        if not isinstance(earlier, DeferredFit):
            return
        if earlier is self.source or self.called_in == earlier.called_in == earlier.expected:
            self.process.random = earlier.process.random

    @property
    def random_after(self) -> RandomStates:
        """The global random state after this fit, which has ended."""
        if self.source is not None and self.process.random == self.called_in:
            return self.source.random_after
        return self.process.random

    def warn_of_draws(self, later: RandomStates) -> None:
        """Warns if the program drew other numbers after this fit than it would have drawn alone.

        Args:
            later: The random state at the next call of a fit, or at the end.
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
        """Fills the caller's `History` with what was recorded, also if the training failed."""
        assert self.history is not None, "only fits whose caller goes on are handed over"
        if not self.has_begun:
            self.history.was_not_run()
            return
        self.history.fill(self._recorded)
        if self.model.history is self._recorded:
            self.model.history = self.history

    def record(self) -> None:
        """Stores the model's history, which the model's next fit replaces."""
        self._recorded = self.model.history


AnyCall = TypeVar("AnyCall", bound=WaitingCall)


class DeferredRunner(Generic[AnyCall]):
    """Runs calls together; each begins when no earlier call that it conflicts with is left.

    Args:
        factors: The group factor and the replicas, by the name of each member that has any.
        layout: As in `Cohort`.
        workers: As in `Cohort`: what trains the fits. The other calls are run here.
    """

    def __init__(
        self,
        factors: Mapping[str, tuple[int, ...]] | None = None,
        layout: Layout = "joined",
        workers: "Workers | None" = None,
    ):
        self._factors = {} if factors is None else factors
        self._layout = layout
        self._workers = workers
        self._to_send: list[DeferredFit] = []
        self._scheduler = Scheduler(layout)
        self._members: dict[str, Member] = {}
        self._running: dict[str, AnyCall] = {}
        self._waiting: list[AnyCall] = []
        self._positions = itertools.count()

    def print_plan(self, fits: Iterable[WaitingCall]) -> None:
        """Prints which members were stacked together, unless all of `fits` are silent."""
        if self._workers is not None:
            return  # each of them stacks its own
        verbose = [fit.arguments["verbose"] for fit in fits]
        self._scheduler.stacks.print_plan(self._members.values(), verbose)

    def run(self, fits: Iterable[AnyCall], ended: Callable[[AnyCall], Iterable[AnyCall]]) -> None:
        """Trains `fits`, and those that are added while they run.

        Args:
            fits: The fits to begin with, in the order of the program.
            ended: Called with each fit that has ended, perhaps by an `error`; the fits that it
                returns are added.

        Raises:
            CohortError: Before any training, if a value that one of `fits` reads has changed since
                its call and cannot be restored.
        """
        self._ended = ended
        fits = list(fits)
        for fit in fits:
            fit.snapshot.check(fit.name)
        self._waiting.extend(fits)
        for earlier, fit in itertools.pairwise(self._waiting):
            fit.follow(earlier)
        with contextlib.ExitStack() as started:
            self._scheduler.run(self._next_tasks(), self._on_end)
            while self._to_send:
                from kerascohost.training.workers import opened  # needs what pickles models

                assert self._workers is not None
                started.enter_context(opened(self._workers))
                self._scheduler.run(self._trained_by(self._workers), self._on_end)

    def _trained_by(self, workers: "Workers") -> list[Task]:
        """Has workers train the fits that can be trained now; returns what can be run then."""
        from kerascohost.training.workers import OwnState, WorkersFit  # needs what pickles models

        fits, self._to_send = {fit.name: fit for fit in self._to_send}, []
        members = {name: self._member(fit) for name, fit in fits.items()}
        states = {
            name: OwnState(fit.inside, fit.is_restored, fit.sees_process_state)
            for name, fit in fits.items()
        }
        began = time.perf_counter()
        training = WorkersFit(
            members,
            {name: fit.arguments for name, fit in fits.items()},
            self._layout,
            workers,
            functools.partial(self._bar, fits),
            states,
        )
        try:
            errors_of = training.run_apart()
        finally:
            for name, fit in fits.items():
                if name in training.begun:
                    fit.advanced()
                    fit.validated = members[name].validated
                    fit.seconds = time.perf_counter() - began
        tasks: list[Task] = []
        for name, fit in fits.items():
            fit.error = errors_of.get(name)
            tasks += self._after(self._running.pop(name))
        return tasks

    def dismiss(self, name: str) -> None:
        """Releases the member of this name, and what was compiled for it alone."""
        member = self._members.pop(name, None)
        if member is not None:
            self._scheduler.dismiss(member)

    def drop_after(self, failed: AnyCall) -> None:
        """Drops the fits that wait for one that failed: alone, they would not have been called."""
        self._waiting = [fit for fit in self._waiting if not fit.conflicts_with(failed)]

    def _next_tasks(self) -> list[Task]:
        tasks = []
        while (fit := next(filter(self._can_start, self._waiting), None)) is not None:
            self._waiting.remove(fit)
            try:
                with errors.about(fit.name):
                    if self._workers is not None and isinstance(fit, DeferredFit):
                        self._to_send.append(fit)
                    else:
                        tasks.append(self._task(fit))
            except Exception as error:
                fit.error = error
                self._waiting.extend(self._ended(fit))
            else:
                self._running[fit.name] = fit
        return tasks

    def _can_start(self, fit: AnyCall) -> bool:
        earlier = itertools.takewhile(lambda other: other is not fit, self._waiting)
        before = [*self._running.values(), *earlier]
        return not any(fit.conflicts_with(other) or fit.draws_after(other) for other in before)

    def _member(self, fit: WaitingCall) -> Member:
        member = self._members.get(fit.name)
        if member is None or member.model is not fit.model:
            member = Member(fit.name, fit.model, *self._factors.get(fit.name, ()))
        member.snapshot = fit.snapshot
        self._members[fit.name] = member
        return member

    def _bar(
        self, fits: Mapping[str, DeferredFit], name: str, kind: str, verbose: int | str, _: int
    ) -> Progress:
        """Returns what shows the progress of a fit that workers train."""
        return Progress(fits[name].label, kind, verbose, next(self._positions))

    def _task(self, fit: AnyCall) -> Task:
        member = self._member(fit)
        bar = Progress(fit.label, fit.kind, fit.arguments["verbose"], next(self._positions))
        fit.is_prepared = True
        with fit.inside():
            run = fit.begin(member, [bar])
        run = entered_run(run, member, fit.inside, fit.sees_process_state, fit.advanced)
        return Task(member, run, bar)

    def _on_end(self, task: Task, outcome: Exception | None) -> list[Task]:
        fit = self._running.pop(task.member.name)
        if isinstance(outcome, Exception):
            fit.error = outcome
        else:
            fit.result = outcome
        return self._after(fit)

    def _after(self, fit: AnyCall) -> list[Task]:
        """Ends a call; returns the tasks that can be run now."""
        for later in self._waiting:
            if later.conflicts_with(fit) or later.draws_after(fit):
                later.continues(fit)
        self._waiting.extend(self._ended(fit))
        return self._next_tasks()
