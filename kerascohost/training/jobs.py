"""Trainings of some members of a cohort in a worker: another process, which sends what happens."""

import contextlib
import dataclasses
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import keras
import numpy as np

from kerascohost import backends, errors
from kerascohost.arguments import FitArguments, Layout
from kerascohost.backends import Logs, StepKind, Tree, random_states, threads
from kerascohost.backends.process_state import ProcessState
from kerascohost.backends.seeding import Parts
from kerascohost.errors import CohortError
from kerascohost.models.shipping import Received
from kerascohost.results.plan import Plan
from kerascohost.results.progress import Progress
from kerascohost.training import sharing
from kerascohost.training.member import Member, Progressed, entered_run
from kerascohost.training.scheduler import Scheduler, Task

# The name under which a job has what is common to its members; no member is named so.
COMMON = ""

# Steps are told this often, in seconds.
_TELL_SECONDS = 0.1

# What a driver tells a job: to begin when all are ready, to stop a member as `stop_training` does,
# or to end all members after the steps that they are in, as an interrupt does.
Command = Literal["begin", "stop", "interrupt"]


class Event(NamedTuple):
    """Something that happened in a worker.

    Attributes:
        kind: `"ready"`, `"done"` or `"died"` of a job; `"progress"`, `"saved"` or
            `"printed"` of a member.
        member: The member, if it is of one.
        value: More about it.
    """

    kind: Literal["ready", "done", "died", "progress", "saved", "printed"]
    member: str = ""
    value: Any = None  # of each kind another type


Send: TypeAlias = Callable[[Event], None]


@dataclasses.dataclass(frozen=True)
class SyncEvery:
    """The interval at which the state of a member is sent to the driver.

    Attributes:
        epochs: The number of epochs, or `None`.
        seconds: The number of seconds, or `None`.
    """

    epochs: int | None
    seconds: float | None

    @classmethod
    def of(cls, given: int | str) -> "SyncEvery":
        """Returns it from `"epoch"`, a number of epochs, or seconds as in `"30s"`.

        Raises:
            CohortError: If it is none of these.

        Example:

        >>> SyncEvery.of("30s")
        SyncEvery(epochs=None, seconds=30.0)
        """
        if given == "epoch":
            return cls(1, None)
        if errors.is_count(given, least=1) and not isinstance(given, bool):
            return cls(int(given), None)
        if isinstance(given, str) and given.endswith("s"):
            with contextlib.suppress(ValueError):
                if 0 < (seconds := float(given[:-1])) < math.inf:
                    return cls(None, seconds)
        raise CohortError(
            "Expected `sync_every` to be 'epoch', a number of epochs, or seconds as in '30s'. "
            f"Received: sync_every={given!r}."
        )


@dataclasses.dataclass
class Common:
    """The parts of a job that its members have in common.

    Attributes:
        process: The settings and random states with which it begins.
        layout: The layout of the cohort.
        group_factor: The group factors of the cohort, by member.
        replicas: The numbers of replicas of the cohort, by member.
        sync_every: The interval at which members are synchronised.
        own: The states with which members begin that begin in states of their own, by name.
        seen: Those of them between whose steps that state can be seen or changed.
    """

    process: ProcessState
    layout: Layout | Plan
    group_factor: Mapping[str, int]
    replicas: Mapping[str, int]
    sync_every: SyncEvery
    own: dict[str, ProcessState] = dataclasses.field(default_factory=dict)
    seen: frozenset[str] = frozenset()


@dataclasses.dataclass
class Part:
    """The part of a job that is of one member.

    Attributes:
        model: Its model.
        fit: The arguments of its fit.
        resumed: The position from which to go on; `None`: from the start.
        steps: The number of steps that it has been trained before.
    """

    model: keras.Model
    fit: FitArguments
    resumed: Progressed | None = None
    steps: int = 0


@dataclasses.dataclass
class Result:
    """The result of a job.

    Attributes:
        changes: What `Received.changes` returned.
        lost: The attributes that could not be sent back.
        error: The exception that ended it, pickled.
        errors: By member those that ended only it, where members begin in states of their own.
        own: By member the random states at the end of those.
        forms: By member what `Member.traced_forms` returned.
        validated: By member the epochs, counted from 0, after which it was validated.
        random: The random states at the end.
    """

    changes: bytes | None = None
    lost: list[str] = dataclasses.field(default_factory=list)
    error: bytes | None = None
    validated: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    random: Parts | None = None
    errors: dict[str, bytes] = dataclasses.field(default_factory=dict)
    own: dict[str, Parts] = dataclasses.field(default_factory=dict)
    forms: dict[str, dict[StepKind, Hashable]] = dataclasses.field(default_factory=dict)


class Job:
    """The trainings of some members in this process.

    Args:
        data: The members, as `Shipment` made them: a `Part` by name, and the `Common`.
        arrays: Returns the arrays that were sent apart, when they have arrived.
        send: Sends an event to the driver.
    """

    def __init__(self, data: bytes, arrays: Callable[[], Sequence[np.ndarray]], send: Send):
        self._data = data
        self._arrays = arrays
        self.send = send
        self._may_begin = threading.Event()
        self.is_interrupted = False
        self.stopped: set[str] = set()
        self._members: dict[str, Member] = {}
        self._received: Received

    def tell(self, command: Command, member: str = "") -> None:
        """Does what the driver asks for; from any thread.

        Args:
            command: The command.
            member: The member to stop.
        """
        if command == "stop":
            self.stopped.add(member)
            if member in self._members:
                self._members[member].model.stop_training = True
        elif command == "interrupt":
            self.is_interrupted = True
        if command != "stop":
            self._may_begin.set()

    def run(self) -> None:
        """Trains the members; sends events, the last of which has the `Result`."""
        result = Result()
        try:
            with _printed(self.send):
                self._received = Received(self._data, self._arrays())
                common: Common = self._received.parts.pop(COMMON)
                parts: dict[str, Part] = self._received.parts
                with common.process.entered():
                    self._run(common, parts, result)
        except BaseException as error:
            result.error = self._pickled(error)
        self.send(Event("done", value=result))

    def _run(self, common: Common, parts: Mapping[str, Part], result: Result) -> None:
        for name, part in parts.items():
            factors = common.group_factor[name], common.replicas[name]
            member = self._members[name] = Member(name, part.model, *factors)
            try:
                with errors.about(name), _inside(common, name)():
                    member.prepare_fit(_with_history(part), part.resumed)
            except Exception as error:
                self._failed(name, error, common, result)
        if not common.own:
            sharing.check_models({name: part.model for name, part in parts.items()})
        self.send(Event("ready"))
        self._may_begin.wait()
        if self.is_interrupted:
            return
        try:
            self._train(common, parts, result)
        except KeyboardInterrupt:
            pass  # the driver's, which raises it there
        except Exception as error:
            result.error = self._told(error)
        finally:
            result.validated = {name: member.validated for name, member in self._members.items()}
            result.forms = {n: member.traced_forms() for n, member in self._members.items()}
            result.changes, result.lost = self.changes(list(self._members))
            result.random = _random_now()
            for name in common.own:
                with _inside(common, name)():
                    result.own[name] = _random_now()

    def _train(self, common: Common, parts: Mapping[str, Part], result: Result) -> None:
        """Trains the members whose data could be prepared."""
        scheduler = Scheduler(common.layout)
        members = [member for name, member in self._members.items() if name not in result.errors]
        scheduler.stacks.assign(member for member in members if member.model.built)
        tasks = []
        for member in members:
            name = member.name
            bar = _Reporter(self, member, common.sync_every, parts[name].steps)
            run = member.training([bar])
            if name in common.own:
                run = entered_run(run, member, _inside(common, name), name in common.seen)
            tasks.append(Task(member, run, bar))

        def ended(task: Task, outcome: Tree) -> Iterable[Task]:
            if isinstance(outcome, Exception):
                self._failed(task.member.name, outcome, common, result)
            return ()

        scheduler.run(tasks, ended)

    def _failed(self, name: str, error: Exception, common: Common, result: Result) -> None:
        """Ends a member by an error; all of them unless they are fits apart from each other."""
        if not common.own:
            raise error
        result.errors[name] = self._told(error)

    def _told(self, error: Exception) -> bytes:
        """Returns an error as bytes, with its traceback as a note: that stays behind."""
        error.add_note("".join(traceback.format_exception(error)))
        return self._pickled(error)

    def changes(self, names: Sequence[str]) -> tuple[bytes, list[str]]:
        """Returns what these members' training has changed, see `Received.changes`."""
        models = {name: member.model for name, member in self._members.items()}
        return self._received.changes(models, names)

    def _pickled(self, error: BaseException) -> bytes:
        received = getattr(self, "_received", None) or Received.empty()
        try:
            return received.dumps(error)
        except Exception:
            told = CohortError(f"{type(error).__name__}: {error}")
            if errors.is_attributed(error):
                errors.attributed(told, errors.member_of(error))
            return received.dumps(told)


def _inside(common: Common, name: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns what makes a context in which the process is as a member would find it alone."""
    return common.own[name].entered if name in common.own else contextlib.nullcontext


def _random_now() -> Parts:
    return random_states.parts(backends.random_state(), threads.thread_state())


def _with_history(part: Part) -> FitArguments:
    """Returns the arguments of a fit, with a `History` before what is to see its epochs."""
    fit = part.fit
    callbacks = backends.callbacks_in(fit["callbacks"])
    if any(isinstance(callback, keras.callbacks.History) for callback in callbacks):
        return fit
    fresh = keras.callbacks.History()
    fresh.epoch = []
    history = fresh if part.resumed is None else part.model.history
    part.model.history = history
    return {**fit, "callbacks": [*callbacks, history]}


class _Reporter(Progress):
    """Sends the progress of a member to the driver, and its state where that is due.

    Args:
        job: The job.
        member: The member.
        every: The interval at which its state is sent.
        steps: The number of steps that it has been trained before.

    Attributes:
        reads_model: Whether the model's state is read at the end of the present epoch.
    """

    def __init__(self, job: Job, member: Member, every: SyncEvery, steps: int):
        super().__init__(member.name, "train", verbose=0, position=0)
        self._job = job
        self._member = member
        self._every = every
        self._steps = steps
        self._epochs = 0
        self._last_told = self._last_saved = time.monotonic()
        self.reads_model = False
        self._can_save = True

    def _send(self, hook: str, *given: int | Logs) -> None:
        self._job.send(Event("progress", self._member.name, (hook, self._steps, given)))

    def on_train_begin(self, logs: Logs = None) -> None:
        """Sends it, with what the callbacks are told of the training."""
        if self._member.name in self._job.stopped:
            self._member.model.stop_training = True
        self._send("on_train_begin", dict(self.params))

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Sends it, and decides whether the state is due at the end of the epoch."""
        self._send("on_epoch_begin", epoch)
        self._epochs += 1
        if self._every.seconds is not None:
            is_due = time.monotonic() - self._last_saved >= self._every.seconds
        else:
            is_due = self._epochs % (self._every.epochs or 1) == 0
        self.reads_model = is_due and self._can_save and self._member.can_resume

    def advance(self, kind: str, steps: int, logs: Mapping[str, float] | None) -> None:
        """Counts steps, and ends the training after them if the driver is interrupted."""
        if kind == "train":
            self._steps += steps
        now = time.monotonic()
        if now - self._last_told >= _TELL_SECONDS:
            self._last_told = now
            self._send("advance")
        if self._job.is_interrupted:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Sends the epoch's metrics, and the state if it is due."""
        self._send("on_epoch_end", epoch, logs)
        if self.reads_model and self._member.can_resume:
            name = self._member.name
            changes, lost = self._job.changes([name])
            self._can_save = not lost  # otherwise training cannot go on from this state alone
            if self._can_save:
                reached = self._member.progressed(epoch, logs)
                self._job.send(Event("saved", name, (changes, reached, self._steps)))
            self._last_saved = time.monotonic()

    def on_test_begin(self, logs: Logs = None) -> None:
        """Sends it."""
        self._send("on_test_begin")

    def on_test_end(self, logs: Logs = None) -> None:
        """Sends the metrics of a validation."""
        self._send("on_test_end", logs)

    def on_train_end(self, logs: Logs = None) -> None:
        """Sends it."""
        self._send("on_train_end", logs)

    def set_model(self, model: keras.Model | None) -> None:
        """Stores the model; that of a member that has ended is kept until all have."""
        if model is not None:
            super().set_model(model)


class _Printed:
    """A stream that sends the lines that are written to it, with the member whose code runs."""

    encoding = "utf-8"

    def __init__(self, send: Send):
        self._send = send
        self._begun: dict[str, str] = {}

    def write(self, text: str) -> int:
        """Sends whole lines; keeps the rest for the next call."""
        member = errors.running.get()
        *lines, self._begun[member] = (self._begun.get(member, "") + text).split("\n")
        if lines:
            self._send(Event("printed", member, "\n".join(lines)))
        return len(text)

    def flush(self) -> None:
        """Sends what has been begun."""
        for member, text in self._begun.items():
            if text:
                self._send(Event("printed", member, text))
        self._begun.clear()

    def isatty(self) -> bool:
        """Returns `False`: nobody sees bars that are drawn here."""
        return False


@contextlib.contextmanager
def _printed(send: Send) -> Iterator[None]:
    """Sends what is printed within the block. A worker runs nothing else meanwhile."""
    outside = sys.stdout, sys.stderr
    stream: Any = _Printed(send)  # enough of a text file for `print` and warnings
    sys.stdout = sys.stderr = stream
    try:
        yield
    finally:
        sys.stdout, sys.stderr = outside
        stream.flush()
