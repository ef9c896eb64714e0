"""Turns: which members' steps are run next, by which program, and how many of them."""

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
from keras import tree

from kerascohost import backends, errors
from kerascohost.arguments import Layout
from kerascohost.backends import Program, StepKind, StepRange, Tree, eager, observed
from kerascohost.backends.base import Thing
from kerascohost.backends.resident import ResidentArrays
from kerascohost.backends.snapshot import VariableSnapshot
from kerascohost.backends.stacking import NotStackableError, reason
from kerascohost.results.plan import Plan
from kerascohost.results.progress import Progress
from kerascohost.training.member import Member, Run, StepRequest
from kerascohost.training.stacks import ActiveStack, Stacks
from kerascohost.training.timing import WORTH_FIRST_CALLS, WORTH_SECONDS, StepTiming

# The result of a run: logs, predictions or metrics; or the exception that ended it.
Outcome: TypeAlias = Any

# The key of members that share a program: the kind of step, and more; see `_placement`.
_Placement: TypeAlias = tuple[StepKind, bool, bool, str, str | None]

# A turn should last about this long (in seconds): short enough for Stop and the progress bars,
# long enough that the dispatch of a call costs little.
_TURN_SECONDS = 0.5


@dataclasses.dataclass
class Task:
    """A task of a member: to train, to evaluate or to predict.

    Attributes:
        member: The member, prepared for the task.
        run: The member's state machine for the task.
        bar: The progress bar.
    """

    member: Member
    run: Run
    bar: Progress


class Scheduler:
    """Runs tasks side by side, and stores the programs that it made for their members.

    Args:
        layout: `"joined"`, `"stacked"`, `"auto"` or a plan, see `Stacks`.
        devices: As in `Stacks`.

    Attributes:
        stacks: The stacks of the members.
    """

    def __init__(self, layout: Layout | Plan = "joined", devices: Sequence[Thing] = ()) -> None:
        self.stacks = Stacks(layout, devices)
        self._members: dict[str, Member] = {}
        self._programs: dict[_Placement, list[_Program]] = {}
        self._state_bytes: dict[str, tuple[keras.Model | None, int]] = {}

    def run(
        self,
        tasks: Iterable[Task],
        ended: Callable[[Task, Outcome], Iterable[Task]] | None = None,
    ) -> dict[str, Outcome]:
        """Runs turns until every task has ended.

        Args:
            tasks: The tasks to begin with, of members with different names.
            ended: Called with each task that has ended and what it returned, or the exception that
                ended it; the tasks that it returns are added. Without it, the first exception ends
                all tasks.

        Returns:
            The result of each task, by its member's name.
        """
        tasks = list(tasks)
        observed.looked_at([task.member.model for task in tasks], "a cohort works with {}")
        results: dict[str, Outcome] = {}

        def collect(task: Task, outcome: Outcome) -> Iterable[Task]:
            if isinstance(outcome, BaseException):
                raise outcome
            results[task.member.name] = outcome
            return ()

        _Tasks(self, ended or collect).run(tasks)
        return results

    def turn(
        self, requests: dict[str, StepRequest]
    ) -> Iterable[tuple[dict[str, StepRange], dict[str, Outcome]]]:
        """Calls each program that is needed for the requests of the members.

        Yields:
            The steps requested of the program, and its outcomes: for each member its logs, or the
            exception that it raised. Members without an outcome have done nothing yet.
        """
        calls, rest = self.stacks.plan_calls(requests)
        for active, names in calls:
            if active not in self.stacks.active_stacks:
                continue  # dissolved after an earlier call; its members are sorted again next turn
            program = self._stack_program(active, requests[names[0]].kind)
            ranges = self._in_step(program, {name: requests[name] for name in names})
            outcomes = self._call_stack(active, program, ranges)
            self.stacks.mark_done(outcomes)
            yield ranges, outcomes
            if self.stacks.layout == "auto" and active in self.stacks.active_stacks:
                self._time(active, program, ranges)
        for program, names in self._programs_for(rest):
            ranges = self._ranges(program, {name: requests[name] for name in names})
            yield ranges, self._call(program, ranges)

    def release_data(self) -> None:
        """Releases the data of a run that has ended."""
        self.stacks.release_data()
        for program in itertools.chain(*self._programs.values()):
            program.release_data()

    def admit(self, member: Member) -> None:
        """Makes `member` known under its name, perhaps instead of another one."""
        self._members[member.name] = member

    def dismiss(self, member: Member) -> None:
        """Releases a member that has no more tasks, and the programs of such members only."""
        name = member.name
        if self._members.get(name) is member:
            del self._members[name]
        self._state_bytes.pop(name, None)
        self.stacks.dismiss(member)
        for placement, known in list(self._programs.items()):
            for program in known:
                program.signatures.pop(name, None)
            known[:] = [program for program in known if program.signatures]
            if not known:
                del self._programs[placement]

    @staticmethod
    def _stack_program(active: ActiveStack, kind: StepKind) -> "_Program":
        compiled = active.compiled
        if kind not in active.programs:
            active.programs[kind] = _Program(kind, active.members, compiled.program(kind))
        return active.programs[kind]

    def _call_stack(
        self, active: ActiveStack, program: "_Program", ranges: dict[str, StepRange]
    ) -> dict[str, Outcome]:
        try:
            return program(ranges)
        except Exception as error:
            if program.kind == "predict":  # the next turn predicts with one member after another
                active.compiled.predicts = False
                return {}
            if isinstance(error, NotStackableError):  # no step was done; nor will the stack do any
                self.stacks.disband(active, error)
                return {}
            outcomes = self._replay(program.kind, ranges)
            if not any(isinstance(outcome, Exception) for outcome in outcomes.values()):
                # No member fails alone, so the failure is one of the stack's step.
                self.stacks.disband(active, NotStackableError(reason(error)))
            return outcomes

    def _time(self, active: ActiveStack, program: "_Program", ranges: dict[str, StepRange]) -> None:
        """Times a stack's steps against its members' own, if so much training is left.

        Only where steps run no code of the user's: the last member takes a few steps on its own,
        which are undone.
        """
        if active.timing or active.stack.key is None or program.kind != "train":
            return
        taking = [member for member in active.members if member.name in ranges]
        if any(self._members.get(member.name) is not member for member in taking):
            return  # one has ended, and another one may have its name
        left = max(member.steps_left for member in taking)
        seconds_left = left * program.seconds_per_step
        worth = max(WORTH_SECONDS, WORTH_FIRST_CALLS * program.first_seconds)
        if not program.is_timed or seconds_left < worth:
            return
        if not all(step_range.chunk.is_first_shape for step_range in ranges.values()):
            return  # the last batches of an epoch, too few and too small to tell
        member = taking[-1]
        name, taken = member.name, ranges[member.name]
        self.stacks.sync_to_models([name])
        before = VariableSnapshot([member.model])
        own = _Program("train", [member])
        try:
            while not own.is_timed:
                stop = min(taken.stop, taken.start + own.steps_per_turn())
                own({name: StepRange(taken.chunk, taken.start, stop)})
        finally:
            own.release_data()
            before.restore()
        timing = StepTiming(
            program.seconds_per_step,
            own.seconds_per_step * len(ranges),
            own.first_seconds * len(ranges),
        )
        self.stacks.note_timing(active, timing, left)

    def _programs_for(self, requests: dict[str, StepRequest]) -> list[tuple["_Program", list[str]]]:
        """Returns the programs for these requests, each with the members that it serves.

        A program that was made for several members serves each subset of them, so that every
        member's step is traced and compiled once per kind.
        """
        groups: dict[_Placement, list[str]] = {}
        for name, request in requests.items():
            groups.setdefault(self._placement(name, request), []).append(name)
        turn = []
        for placement, names in groups.items():
            signatures = {name: self._signature(name, requests[name]) for name in names}
            known = self._programs.setdefault(placement, [])
            for program in known:
                fitting = [n for n in names if program.signatures.get(n) == signatures[n]]
                if fitting:
                    turn.append((program, fitting))
                    names = [name for name in names if name not in fitting]
            if names:
                known[:] = [program for program in known if not self._is_outdated(program)]
                program = _Program(placement[0], [self._members[name] for name in names])
                program.signatures = {name: signatures[name] for name in names}
                known.append(program)
                turn.append((program, names))
        return turn

    def _placement(self, name: str, request: StepRequest) -> _Placement:
        """Returns a key that is equal for members that share a program."""
        member, backend = self._members[name], backends.get_backend()
        needs_shape = backend.COMPILES_PER_SHAPE or (
            request.kind == "train" and member.samples_per_replica
        )
        apart = bool(needs_shape) and not request.chunk.is_first_shape
        execution = backend.execution(member.model)
        # A program that is not compiled gains nothing from more members, and its failure stops all.
        alone = execution == "eager" or request.kind == "predict" or self._is_heavy(name)
        return (request.kind, apart, request.has_batch_hooks, execution, name if alone else None)

    def _is_heavy(self, name: str) -> bool:
        model = self._members[name].model
        measured, size = self._state_bytes.get(name, (None, 0))
        if measured is not model:
            size = backends.state_bytes(model)
            self._state_bytes[name] = (model, size)
        return size > backends.FUSED_STATE_LIMIT / len(self._members)

    def _signature(self, name: str, request: StepRequest) -> tuple[Hashable, ...]:
        """Returns a key that changes when a program of this member can no longer be used."""
        member = self._members[name]
        return (
            backends.compile_stamp(member.model),
            member.samples_per_replica,
            _structure(request.chunk.data),
            request.chunk.rows is None,
        )

    def _is_outdated(self, program: "_Program") -> bool:
        """Returns whether all its members have been compiled anew since it was made."""
        return all(
            stamp != backends.compile_stamp(self._members[name].model)
            for name, (stamp, *_) in program.signatures.items()
        )

    def _ranges(
        self, program: "_Program", requests: dict[str, StepRequest]
    ) -> dict[str, StepRange]:
        """Returns for each member the steps that it requests, up to the limit of a turn."""
        most = program.steps_per_turn()
        return {name: request.first(most) for name, request in requests.items()}

    def _in_step(
        self, program: "_Program", requests: dict[str, StepRequest]
    ) -> dict[str, StepRange]:
        """Returns equally many steps for each member: the fewest requested, at most a turn's."""
        most = min(request.stop - request.start for request in requests.values())
        most = min(most, program.steps_per_turn())
        return {name: request.first(most) for name, request in requests.items()}

    def _call(self, program: "_Program", ranges: dict[str, StepRange]) -> dict[str, Outcome]:
        try:
            return program(ranges)
        except BaseException as error:
            if not program.has_run:  # perhaps not even traced: the next turn must begin anew
                self._forget(program)
            if not isinstance(error, Exception):
                raise  # an interrupt
            if len(ranges) == 1:
                errors.attributed(error, next(iter(ranges)))
            if errors.is_attributed(error):  # while tracing, before any step was taken
                return {errors.member_of(error): error}
            if program.is_protected:
                return self._replay(program.kind, ranges)
            raise

    def _forget(self, program: "_Program") -> None:
        for known in self._programs.values():
            known[:] = [other for other in known if other is not program]

    def _replay(self, kind: StepKind, ranges: dict[str, StepRange]) -> dict[str, Outcome]:
        """Repeats a call that failed, member by member and step by step.

        The failing member stops before its failing step, the others finish theirs, and the failure
        gets its member's name.

        Returns:
            The members' logs, or the exceptions that they raise on their own.
        """
        outcomes: dict[str, Outcome] = {}
        self.stacks.sync_to_models(ranges)
        for name, step_range in ranges.items():
            try:
                program = _Program(kind, [self._members[name]])
                for i in range(step_range.start, step_range.stop):
                    outcomes |= program({name: StepRange(step_range.chunk, i, i + 1)})
            except Exception as error:
                outcomes[name] = errors.attributed(error, name)
        return outcomes


class _Tasks:
    """The tasks of one `Scheduler.run`, by the names of their members."""

    def __init__(self, scheduler: Scheduler, ended: Callable[[Task, Outcome], Iterable[Task]]):
        self._scheduler = scheduler
        self._ended = ended
        self._active: dict[str, Task] = {}
        self._requests: dict[str, StepRequest] = {}
        self._arriving: deque[Task] = deque()
        self._bars: list[Progress] = []
        self._ending: list[tuple[str, Outcome]] = []
        self._waiting: list[str] = []
        self._resident = ResidentArrays()

    def run(self, tasks: Iterable[Task]) -> None:
        self._arriving.extend(tasks)
        try:
            while self._arriving or self._requests or self._waiting:
                self._begin_all()
                self._resume_waiting()
                for ranges, outcomes in self._scheduler.turn(dict(self._requests)):
                    self._show_models(outcomes)
                    for name, outcome in outcomes.items():
                        self._advance(name, ranges[name], outcome)
                    self._end_all()
        finally:
            self._scheduler.stacks.sync_to_models(self._active)
            self._scheduler.release_data()
            for task in [*self._active.values(), *self._arriving]:
                self._close(task)
            for bar in self._bars:  # together: one that is closed earlier moves the lines of others
                bar.close()

    def _begin_all(self) -> None:
        if self._arriving:
            self._resident.begin_round()
        while self._arriving:
            task = self._arriving.popleft()
            self._scheduler.admit(task.member)
            task.member.resident = self._resident
            self._active[task.member.name] = task
            self._bars.append(task.bar)
            self._resume(task.member.name, None)
            self._end_all()
        if not self._is_settled():
            self._scheduler.stacks.assign([task.member for task in self._active.values()])

    def _is_settled(self) -> bool:
        """Returns whether all members are in stacks, and no code can have compiled one anew."""
        requests = self._requests
        return requests.keys() == self._active.keys() and all(
            task.member.is_stacked and task.member.is_unwatched and not requests[name].must_sync
            for name, task in self._active.items()
        )

    def _show_models(self, outcomes: dict[str, Outcome]) -> None:
        """Stores state in the models that callbacks may read, or whose steps have failed."""
        self._scheduler.stacks.sync_to_models(
            name
            for name, outcome in outcomes.items()
            if self._requests[name].must_sync or isinstance(outcome, Exception)
        )

    def _advance(self, name: str, step_range: StepRange, outcome: Outcome) -> None:
        if isinstance(outcome, Exception):
            self._ending.append((name, outcome))
            return
        steps = step_range.stop - step_range.start
        self._active[name].bar.advance(self._requests[name].kind, steps, outcome)
        self._resume(name, (steps, outcome))

    def _resume(self, name: str, answer: Outcome) -> None:
        try:
            with errors.about(name):
                request = self._active[name].run.send(answer)
            if request is None:
                self._requests.pop(name, None)
                self._waiting.append(name)
                return
            self._requests[name] = request
            self._scheduler.stacks.note_metrics(name, request)
        except StopIteration as end:
            self._ending.append((name, end.value))
        except Exception as error:
            self._ending.append((name, error))

    def _resume_waiting(self) -> None:
        """Asks members that wait for data again, which others may have read by now."""
        waiting, self._waiting = self._waiting, []
        for name in waiting:
            self._resume(name, None)
        if self._waiting and not (self._requests or self._ending or self._arriving):
            # Each waits for another one: for what it trains on, or validates on.
            waiting, self._waiting = self._waiting, []
            for name in waiting:
                self._resume(name, True)
        self._end_all()

    def _end_all(self) -> None:
        self._scheduler.stacks.sync_to_models(name for name, _ in self._ending)
        while self._ending:
            self._end(*self._ending.pop(0))

    def _end(self, name: str, outcome: Outcome) -> None:
        self._requests.pop(name, None)
        task = self._active.pop(name)
        self._scheduler.stacks.release_data_of(name)
        self._close(task)
        self._arriving.extend(self._ended(task, outcome))

    @staticmethod
    def _close(task: Task) -> None:
        task.run.close()
        task.member.close()
        task.bar.set_model(None)  # the bar is kept longer than the model may be


class _Program:
    """A compiled program, with its speed and the signatures of its members.

    Attributes:
        kind: `"train"`, `"test"` or `"predict"`.
        is_protected: Whether a call that fails leaves the members as they were before it.
        first_seconds: The seconds of the first call, which also traces and compiles.
        seconds_per_step: Those of a step of the last call that traced nothing; 0 before one.
        signatures: For each member that it serves, the member's signature when it was made.
    """

    def __init__(self, kind: StepKind, members: list[Member], run: Program | None = None):
        backend = backends.get_backend()
        is_eager = backend.execution(members[0].model) == "eager"
        make = eager.Program if is_eager else backend.Program
        self.kind = kind
        self._members = members
        self.signatures: dict[str, tuple[Hashable, ...]] = {}
        self._run: Program = run or make(kind, members)
        self.is_protected = self._run.is_protected
        self._calls = 0
        self._timed_calls = 0
        self.first_seconds = 0.0
        self.seconds_per_step = 0.0

    def __call__(self, ranges: Mapping[str, StepRange]) -> dict[str, Outcome]:
        traces = self._run.traces
        began = time.perf_counter()
        logs = self._run(ranges)
        seconds = time.perf_counter() - began
        if not self._calls:
            self.first_seconds = seconds
            for member in self._members:
                member.remember_trace(self.kind)
        elif self._run.traces == traces:
            steps = max(step_range.stop - step_range.start for step_range in ranges.values())
            self.seconds_per_step = seconds / steps
            self._timed_calls += 1
        self._calls += 1
        return logs

    def release_data(self) -> None:
        """Releases the data of a run that has ended."""
        self._run.release_data()

    @property
    def has_run(self) -> bool:
        """Returns whether a call has succeeded."""
        return self._calls > 0

    @property
    def is_timed(self) -> bool:
        """Returns whether several calls that traced nothing have been timed."""
        return self._timed_calls > 1

    def steps_per_turn(self) -> int:
        """Returns the number of steps that take about `_TURN_SECONDS`.

        The first call takes one step, as it also traces and compiles, the next ones a few, until
        one has traced nothing and shows how fast they are.
        """
        if self.kind == "predict":
            return 2**31  # predictions are made for a whole chunk at once
        if not self._timed_calls:
            return 1 if self._calls == 0 else 8
        return max(1, int(_TURN_SECONDS / self.seconds_per_step))


def _structure(data: Tree) -> str:
    """Returns a batch's nesting and which leaves are missing: these decide which code runs."""
    return repr(tree.map_structure(lambda leaf: leaf is not None, data))
