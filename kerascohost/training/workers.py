"""The training of a cohort by workers: other processes, each of which trains some members.

An engine that starts processes and sends them bytes is a `Workers`. All else is done here: which
member goes where, what is shown, and what is done when a worker dies.
"""

import contextlib
import dataclasses
import math
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import keras
import numpy as np
from keras import tree
from tqdm.auto import tqdm

from kerascohost import backends
from kerascohost.arguments import FitArguments, Layout
from kerascohost.backends import random_states, threads
from kerascohost.backends.base import Thing
from kerascohost.backends.process_state import ProcessState
from kerascohost.backends.seeding import Parts
from kerascohost.data import Shared
from kerascohost.errors import CohortError, about
from kerascohost.models import shipping
from kerascohost.models.shipping import Shipment
from kerascohost.results.plan import Plan
from kerascohost.results.progress import Progress
from kerascohost.training import sharing
from kerascohost.training.jobs import COMMON, Command, Common, Event, Part, Result, SyncEvery
from kerascohost.training.member import Member, Progressed

# What an engine returns for an array: by it a worker finds the array.
Reference: TypeAlias = Any

# The arguments of a fit that are data.
_DATA = ("x", "y", "sample_weight", "validation_data")

# Commands and interrupts are looked for this often, in seconds.
_POLL_SECONDS = 0.2

# An estimate of the time of a step on one core: this long, and so long for each weight and row.
_STEP_SECONDS = 2e-4
_WEIGHT_SECONDS = 1e-9


class Workers(Protocol):
    """An engine that runs jobs in other processes: what `Cohort` needs of it.

    It is a context, in which the processes run.

    Attributes:
        num_workers: The number of processes.
        sync_every: The interval at which each member's state is sent here.
        max_failures: The number of times that members whose worker has died are trained on.
        is_open: Whether the processes run.
    """

    num_workers: int
    sync_every: int | str
    max_failures: int

    @property
    def is_open(self) -> bool:
        """Returns whether the processes run."""

    def __enter__(self) -> "Workers":
        """Starts the processes."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the processes."""

    def put(self, array: np.ndarray) -> Reference:
        """Stores an array where all workers find it; returns a reference to it."""

    def idle(self) -> list[int]:
        """Returns the numbers of the workers that are ready for a job."""

    def start(self, worker: int, job: bytes, arrays: Sequence[Reference]) -> None:
        """Starts a `Job` in a worker."""

    def tell(self, worker: int, command: Command, member: str = "") -> None:
        """Calls `Job.tell` in a worker."""

    def events(self, timeout: float) -> list[tuple[int, Event]]:
        """Returns what has happened, with the number of the worker.

        A worker that has died is replaced; the event `"died"` says so, with the reason.

        Args:
            timeout: The number of seconds to wait for a first event.
        """

    def restart(self) -> None:
        """Ends all jobs at once, by replacing all workers."""


@dataclasses.dataclass
class _Assigned:
    """A job that is given to a worker, or waits for one.

    Attributes:
        names: Its members.
        deaths: How often a worker has died with it.
        shipment: What was sent to the worker.
        is_prepared: Whether all its members can be trained.
    """

    names: list[str]
    deaths: int = 0
    shipment: Shipment | None = None
    is_prepared: bool = False


@dataclasses.dataclass
class OwnState:
    """The state of the process in which a member's fit is to run, apart from those of others.

    Attributes:
        inside: Makes a context with that state, which is stored at its end.
        is_restored: Whether the context changes what the program refers to, so that the member is
            sent alone.
        is_seen: Whether it can be seen or changed between the steps.
    """

    inside: Callable[[], contextlib.AbstractContextManager[None]]
    is_restored: bool
    is_seen: bool


@contextlib.contextmanager
def opened(workers: Workers) -> Iterator[None]:
    """Runs the workers' processes within the block, if they do not run yet."""
    with contextlib.nullcontext() if workers.is_open else workers:
        yield


class WorkersFit:
    """The training of members by workers.

    Args:
        members: The members.
        arguments: The arguments of each member's fit.
        layout: The layout of the cohort.
        workers: The engine.
        progress: Makes the object that shows a member's progress, as in `Cohort`.
        states: For fits of a program that are apart from each other: by member, its state.

    Attributes:
        begun: The members that have begun, as far as their models here have been changed.
    """

    def __init__(
        self,
        members: Mapping[str, Member],
        arguments: Mapping[str, FitArguments],
        layout: Layout | Plan,
        workers: Workers,
        progress: Callable[[str, str, int | str, int], Progress],
        states: Mapping[str, OwnState] | None = None,
    ):
        self._members = members
        self._models = {name: member.model for name, member in members.items()}
        self._arguments = arguments
        self._layout = layout
        self._workers = workers
        self._progress = progress
        self._process = ProcessState()
        self._every = SyncEvery.of(workers.sync_every)
        self._arrays: dict[int, int] = {}
        self._data: list[np.ndarray] = []
        self._references: list[Reference] = []
        self._bars = {name: self._bar(name) for name in members}
        self._shown = dict.fromkeys(members, 0)  # steps
        self._shown_epoch = dict.fromkeys(members, -1)
        self._saved: dict[str, tuple[Progressed, int]] = {}
        self._stopped: set[str] = set()
        self._changed: dict[int, str] = {}
        self._waiting: deque[_Assigned] = deque()
        self._running: dict[int, _Assigned] = {}
        self._unprepared = 0
        self._is_ending = False
        self._errors: list[BaseException] = []
        self._states = states or {}
        self._errors_of: dict[str, BaseException] = {}
        self._alone: set[str] = set()  # those for which what the program refers to is changed
        self.begun: set[str] = set()
        self._random: tuple[int, Parts] | None = None

    def _bar(self, name: str) -> Progress:
        position = list(self._members).index(name)
        return self._progress(name, "train", self._arguments[name]["verbose"], position)

    def run(self) -> None:
        """Trains all members; each model ends as if it had been trained here.

        Raises:
            CohortError: If a member cannot be trained by workers, or is not trained to its end as
                its workers have died too often.
            Exception: What the training of a member has raised.
        """
        for name, member in self._members.items():
            with about(name):
                member.check_fit(self._arguments[name])
                if member.recall_for_elsewhere(self._arguments[name]) and len(self._members) > 1:
                    raise CohortError(
                        "Expected what the steps of a model read to be as it was when they were "
                        "first traced, where several models are sent to workers. Received: it has "
                        "changed. To train with it as it is now, `compile` the model again; to "
                        "train as before, train this model in a cohort of its own."
                    )
        sharing.check_models(self._models)
        self._train({name: self._check_sendable(name) for name in self._models})

    def run_apart(self) -> dict[str, BaseException]:
        """Trains all members, each in its own state; a failure ends no other one.

        Returns:
            By member the exception that ended its fit, for those that failed.
        """
        sent = {}
        for name in list(self._members):
            try:
                with about(name):
                    self._members[name].check_fit(self._arguments[name])
                    state = self._states[name]
                    with state.inside():
                        is_restored = self._members[name].recall_for_elsewhere(
                            self._arguments[name]
                        )
                        sent[name] = self._check_sendable(name)
                    if is_restored or state.is_restored:
                        self._alone.add(name)
            except Exception as error:
                self._errors_of[name] = error
                del self._models[name]
        if self._models:
            self._train(sent)
        return self._errors_of

    def _train(self, sent: Mapping[str, Sequence[Thing]]) -> None:
        """Trains the members, each of which refers to these objects, which may be changed."""
        groups, units = self._groups(sent)
        for model in self._models.values():
            model.stop_training = False
        with opened(self._workers):
            self._run(groups, units)

    def _run(self, groups: Sequence[Sequence[str]], units: Mapping[str, Sequence[str]]) -> None:
        own = {name: _cost(model, self._arguments[name]) for name, model in self._models.items()}
        costs = {first: sum(own[name] for name in names) for first, names in units.items()}
        order = list(self._members)
        alone = self._alone & units.keys()
        groups = [[name for name in names if name not in alone] for names in groups]
        placed = balanced(filter(None, groups), costs, self._workers.num_workers)
        for firsts in [*placed, *([name] for name in units if name in alone)]:
            names = [name for first in firsts for name in units[first]]
            self._waiting.append(_Assigned(sorted(names, key=order.index)))
        self._unprepared = len(self._waiting)
        self._ship_all()
        try:
            try:
                self._turn_until_done()
            except KeyboardInterrupt:
                self._end_all()
                self._turn_until_done()
                raise
        except BaseException:
            if self._running:
                self._workers.restart()
            raise
        finally:
            for bar in self._bars.values():
                bar.set_model(None)
                bar.close()
        self._leave_random_state()
        if self._errors:
            raise self._errors[0]

    def _ship_all(self) -> None:
        """Makes what is sent of all jobs, before the first of them starts."""
        for job in self._waiting:
            self._ship(job)

    def _ship(self, job: _Assigned) -> None:
        counts = {name: self._members[name].group_factor for name in job.names}
        replicas = {name: self._members[name].replicas for name in job.names}
        own, seen = {}, frozenset(n for n in self._states if self._states[n].is_seen)
        with contextlib.ExitStack() as entered:
            for name in job.names if self._states else ():
                with self._states[name].inside():
                    own[name] = ProcessState()
                if self._states[name].is_restored:  # then it is sent alone
                    entered.enter_context(self._states[name].inside())
            for name in job.names:
                entered.enter_context(self._members[name].as_read("train"))
            common = Common(self._process, self._layout, counts, replicas, self._every, own, seen)
            self._ship_with(job, common)

    def _ship_with(self, job: _Assigned, common: Common) -> None:
        parts: dict[str, Common | Part] = {COMMON: common}
        for name in job.names:
            resumed, steps = self._saved.get(name, (None, 0))
            parts[name] = Part(self._models[name], self._arguments[name], resumed, steps)
        models = [self._models[name] for name in job.names]
        data = {name: [self._arguments[name].get(key) for key in _DATA] for name in job.names}
        job.shipment = Shipment(parts, models, data, self._array)

    def _array(self, array: np.ndarray, is_data: bool) -> int | None:
        """Returns the number of an array that is sent apart, once for all workers.

        These can only be read there, so others than those of the data are not sent apart.
        """
        if array.dtype.hasobject or not (is_data or id(array) in self._arrays):
            return None
        if id(array) not in self._arrays:
            self._arrays[id(array)] = len(self._data)
            self._data.append(array)
            self._references.append(self._workers.put(array))
        return self._arrays[id(array)]

    def _groups(
        self, sent: Mapping[str, Sequence[Thing]]
    ) -> tuple[list[list[str]], dict[str, list[str]]]:
        """Returns which members should go to one worker, and which must.

        Args:
            sent: By member the objects that may be changed, see `_check_sendable`.

        Returns:
            The groups that should, as they are of one signature: the first member of each unit. The
            units that must, as they change one object: by its first member, all its members.
        """
        owner: dict[int, str] = {}
        pairs = []
        for name, model in self._models.items():
            fit = self._arguments[name]
            callbacks = backends.callbacks_in(fit["callbacks"])
            of_callbacks = {id(t) for t in shipping.check(name, {"callbacks": callbacks}, model)}
            for thing in sent[name]:
                if _must_stay_one(thing, id(thing) in of_callbacks):
                    pairs.append([owner.setdefault(id(thing), name), name])
        united = _united([*([name] for name in self._models), *pairs])
        units = {names[0]: names for names in united}
        groups: dict[Hashable, list[str]] = {}
        for first in units:
            key = _signature(self._models[first], self._arguments[first])
            groups.setdefault(first if self._layout == "joined" else key, []).append(first)
        return list(groups.values()), units

    def _check_sendable(self, name: str) -> list[Thing]:
        """Returns what of a member may be changed; raises an error if something cannot be sent."""
        model = self._models[name]
        return shipping.check(name, {"model": model, **self._arguments[name]}, model)

    def _turn_until_done(self) -> None:
        while self._waiting or self._running:
            for worker in self._workers.idle():
                if self._waiting and worker not in self._running:
                    self._start(worker, self._waiting.popleft())
            for worker, event in self._workers.events(_POLL_SECONDS):
                self._on_event(worker, event)
            self._pass_on_stops()

    def _start(self, worker: int, job: _Assigned) -> None:
        assert job.shipment is not None
        self._running[worker] = job
        self._workers.start(worker, job.shipment.data, self._references)

    def _pass_on_stops(self) -> None:
        """Stops members whose model's `stop_training` was set here."""
        for worker, job in self._running.items():
            for name in job.names:
                if self._models[name].stop_training and name not in self._stopped:
                    self._stopped.add(name)
                    self._workers.tell(worker, "stop", name)

    def _end_all(self) -> None:
        """Ends all members after the steps that they are in."""
        self._is_ending = True
        self._waiting.clear()
        for worker in self._running:
            self._workers.tell(worker, "interrupt")

    def _on_event(self, worker: int, event: Event) -> None:
        job = self._running.get(worker)
        if job is None:
            return
        if event.kind == "progress":
            self._show(event.member, *event.value)
        elif event.kind == "printed":
            lines = event.value.split("\n")
            told = f"{event.member}: " if event.member else ""
            tqdm.write("\n".join(told + line for line in lines))
        elif event.kind == "saved":
            changes, reached, steps = event.value
            self._pass_on_stops()  # before the attribute is that of the worker
            self._merge(job, changes, [event.member])
            self._saved[event.member] = reached, steps
        elif event.kind == "ready":
            self._on_ready(worker, job)
        elif event.kind == "done":
            self._on_done(worker, job, event.value)
        elif event.kind == "died":
            self._on_death(worker, job, event.value)

    def _on_ready(self, worker: int, job: _Assigned) -> None:
        """Begins a job, those of a cohort when all of them can be trained."""
        if self._states:
            job.is_prepared = True
            self._workers.tell(worker, "begin")
        elif not job.is_prepared:
            job.is_prepared = True
            self._unprepared -= 1
            if not self._unprepared:
                for other in self._running:
                    self._workers.tell(other, "begin")
        elif not self._unprepared:
            self._workers.tell(worker, "begin")

    def _on_done(self, worker: int, job: _Assigned, result: Result) -> None:
        assert job.shipment is not None
        del self._running[worker]
        if result.changes is not None:
            self._merge(job, result.changes, job.names)
        for name, pickled in result.errors.items():
            self._errors_of[name], _ = job.shipment.loads(pickled, self._data)
        for name, parts in result.own.items():
            with self._states[name].inside():
                _set_random(parts)
        if result.error is not None:
            error, _ = job.shipment.loads(result.error, self._data)
            self._fail(job, error)
        for name, forms in result.forms.items():
            self._members[name].remember_elsewhere(forms)
        for name in job.names:
            self._members[name].validated = result.validated.get(name, [])
        for lost in dict.fromkeys(result.lost):
            if lost.partition(".")[0] not in vars(keras.callbacks):
                warnings.warn(f"`{lost}` stays as it was: it cannot be sent back.", stacklevel=2)
        first = min(list(self._members).index(name) for name in job.names)
        if result.random is not None and (self._random is None or first < self._random[0]):
            self._random = first, result.random

    def _on_death(self, worker: int, job: _Assigned, reason: str) -> None:
        del self._running[worker]
        job.deaths += 1
        if self._is_ending:
            return
        if job.deaths > self._workers.max_failures:
            epochs = {n: self._saved[n][0].epoch for n in job.names if n in self._saved}
            error = CohortError(
                f"Expected a worker to train {', '.join(job.names)} to the end. Received: "
                f"{job.deaths} workers that died ({reason}). Their models are in the state of "
                f"the last synchronisation: {epochs or 'as before the training'}. Members that "
                "need more memory than a worker has need fewer members at once, or "
                "`resources_per_worker`."
            )
            self._fail(job, error, ends_all=not job.is_prepared)
            return
        warnings.warn(
            f"A worker died; {', '.join(job.names)} are trained on by another one, from the last "
            "synchronisation.",
            stacklevel=2,
        )
        for name in job.names:
            if name not in self._saved:
                self._shown[name], self._shown_epoch[name] = 0, -1
        self._ship(job)
        self._waiting.appendleft(job)

    def _fail(self, job: _Assigned, error: BaseException, ends_all: bool = True) -> None:
        """Ends the members of a job by an error, and those of a cohort with them."""
        if self._states:
            self._errors_of |= dict.fromkeys(job.names, error)
            return
        self._errors.append(error)
        if ends_all and not self._is_ending:
            self._end_all()

    def _merge(self, job: _Assigned, changes: bytes, names: Sequence[str]) -> None:
        """Sets what a worker has changed, in the objects themselves."""
        assert job.shipment is not None
        self.begun.update(n for n in names if getattr(self._bars[n], "params", None) is not None)
        key = ", ".join(job.names)
        for thing in job.shipment.merge(changes, self._data):
            if type(thing).__module__.partition(".")[0] == "keras":
                continue  # what Keras's own objects of two models share, no training changes
            other = self._changed.setdefault(id(thing), key)
            if other != key:
                warnings.warn(
                    f"A {type(thing).__name__} was changed by members of two workers: {other}; "
                    f"{key}. It has the changes of the last one only.",
                    stacklevel=2,
                )

    def _show(self, name: str, hook: str, steps: int, given: tuple[Any, ...]) -> None:
        """Shows in a member's bar what a worker has told, but nothing twice."""
        bar = self._bars[name]
        epoch = given[0] if hook in ("on_epoch_begin", "on_epoch_end") else None
        if epoch is not None and epoch <= self._shown_epoch[name]:
            return
        if hook == "on_train_begin":
            if getattr(bar, "params", None) is not None:  # begun anew, as a worker has died
                bar.close()
                bar = self._bars[name] = self._bar(name)
            bar.set_params(given[0])
            bar.set_model(self._models[name])
            given = ()
        if steps > self._shown[name]:
            bar.advance("train", steps - self._shown[name], None)
            self._shown[name] = steps
        if hook != "advance":
            getattr(bar, hook)(*given)
        if hook == "on_epoch_end" and epoch is not None:
            self._shown_epoch[name] = epoch

    def _leave_random_state(self) -> None:
        """Leaves the random states of this process where the first member's training left them."""
        if self._random is not None and not self._states:
            _set_random(self._random[1])


def _set_random(parts: Parts) -> None:
    """Sets the random states of this process and thread."""
    backends.set_random_state(random_states.joined(parts))
    threads.set_seeds(threads.thread_state(), parts["keras"])


def _must_stay_one(thing: Thing, is_of_callbacks: bool) -> bool:
    """Returns whether members that both refer to an object must be trained by one worker.

    Training changes it, so that each worker would change a copy of its own.
    """
    if isinstance(thing, keras.Layer):
        return not thing.built  # it may still get weights
    if isinstance(thing, (keras.Model, keras.Variable, keras.metrics.Metric, Shared)):
        return True
    if not is_of_callbacks or isinstance(thing, np.ndarray):
        return False
    if isinstance(thing, (list, dict, set, deque, np.random.Generator, np.random.RandomState)):
        return type(thing).__module__.partition(".")[0] != "keras"
    library = type(thing).__module__.partition(".")[0]
    return library in ("__main__", "__mp_main__") or isinstance(thing, keras.callbacks.Callback)


def _united(groups: Iterable[Sequence[str]]) -> list[list[str]]:
    """Returns the groups, with those that have a member in common as one."""
    united: list[list[str]] = []
    for group in groups:
        touching = [known for known in united if not set(known).isdisjoint(group)]
        joined = list(dict.fromkeys([*(n for known in touching for n in known), *group]))
        united = [known for known in united if known not in touching] + [joined]
    return united


def balanced(
    groups: Iterable[Sequence[str]], costs: Mapping[str, float], num_workers: int
) -> list[list[str]]:
    """Returns the members for each worker, so that all have about as much to do.

    A group stays together unless it costs more than a worker's share; then it is cut into as few
    parts as that takes. The dearest are placed first, each where least is to be done.

    Args:
        groups: The members that should be together.
        costs: The estimated cost of each member.
        num_workers: The number of workers.

    Example:

    >>> balanced([["a", "b", "c", "d"], ["e"]], dict.fromkeys("abcde", 1.0), 2)
    [['a', 'b', 'e'], ['c', 'd']]
    """
    share = sum(costs.values()) / num_workers
    parts: list[Sequence[str]] = []
    for group in groups:
        cost = sum(costs[name] for name in group)
        count = min(len(group), max(1, math.ceil(cost / share - 0.25))) if share else 1
        size = math.ceil(len(group) / count)
        parts += [group[i : i + size] for i in range(0, len(group), size)]
    loads = [0.0] * num_workers
    placed: list[list[str]] = [[] for _ in loads]
    for part in sorted(parts, key=lambda names: -sum(costs[name] for name in names)):
        least = loads.index(min(loads))
        placed[least] += part
        loads[least] += sum(costs[name] for name in part)
    return [names for names in placed if names]


def _cost(model: keras.Model, fit: FitArguments) -> float:
    """Returns an estimate of the seconds of a training; only its ratio to others matters."""
    weights = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    rows = fit["batch_size"] or 32
    steps = fit["steps_per_epoch"]
    if steps is None:
        lengths = [len(leaf) for leaf in tree.flatten(fit["x"])[:1] if hasattr(leaf, "__len__")]
        steps = math.ceil(lengths[0] / rows) if lengths else 100
    epochs = max(0, fit["epochs"] - fit["initial_epoch"])
    return epochs * steps * (_STEP_SECONDS + _WEIGHT_SECONDS * weights * rows)


def _signature(model: keras.Model, fit: FitArguments) -> Hashable:
    """Returns a key that is equal for models that are likely to be one stack."""
    optimizer = getattr(model, "optimizer", None)
    return (
        type(model),
        tuple((tuple(variable.shape), str(variable.dtype)) for variable in model.variables),
        tuple(type(layer) for layer in backends.flat_layers(model)),
        type(optimizer),
        fit["batch_size"],
    )
