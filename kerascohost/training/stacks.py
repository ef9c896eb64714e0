"""The stacks of a cohort: which members are trained by one vectorised step, and which are not."""

import functools
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import keras
from keras import tree

from kerascohost import backends
from kerascohost.arguments import Layout
from kerascohost.backends import Chunk, StepKind, Tree, stacking
from kerascohost.backends.base import Thing
from kerascohost.backends.stacking import CompiledStack, compiled_stacks
from kerascohost.results.plan import Plan
from kerascohost.training.member import Member, StepRequest
from kerascohost.training.timing import StepTiming

if TYPE_CHECKING:
    from kerascohost.training.scheduler import _Program


class ActiveStack:
    """A stack in use: its members, its state and its programs.

    Attributes:
        stack: The stack.
        members: Its members, in its order.
        programs: Its programs by kind; the scheduler's.
        differs: The hyperparameters that its members did not have in common when they came.
        timing: What was measured of its steps, for `layout="auto"`.
    """

    def __init__(self, stack: stacking.Stack, members: Sequence[Member]):
        self.stack = stack
        self.members = list(members)
        self.programs: dict[StepKind, _Program] = {}
        self.timing: StepTiming | None = None
        self._compiled: CompiledStack | None = None
        self._is_lent = False
        self.differs = list(dict.fromkeys(ref.name for ref in stack.float_refs))
        rates = {float(member.model.optimizer.learning_rate) for member in members}
        if len(rates) > 1:
            self.differs.insert(0, "learning_rate")

    @functools.cached_property
    def counts_rows_by_type(self) -> bool:
        """Returns whether members whose batches are of unlike types need separate calls."""
        return backends.counts_rows_by_type(self.members[0].model)

    @property
    def compiled(self) -> CompiledStack:
        """Its compiled stack: borrowed when it is first asked for in a run, until `release`."""
        if self._compiled is None or not self._is_lent:
            before = self._compiled
            self._compiled = compiled_stacks.lent(self.stack, self.members, before)
            self._is_lent = True
            if self._compiled is not before:
                self.programs.clear()
        return self._compiled

    def serves(self, request: StepRequest) -> bool:
        """Returns whether it runs the steps that one of its members requests."""
        is_possible = request.kind != "predict" or self.compiled.predicts
        return is_possible and not request.has_batch_hooks

    def sync_to_models(self, names: Sequence[str], begun: Sequence[str]) -> None:
        """Stores the rows of these members in their own variables, see `StackedState`."""
        if self._is_lent:
            self.compiled.state.sync_to_models(names, begun)

    def reset_metrics(self, names: Iterable[str]) -> None:
        """Resets the own metrics of these members."""
        members = dict(zip(self.stack.names, self.members, strict=True))
        for name in names:
            backends.reset_metrics(members[name].model)

    def release(self) -> None:
        """Releases the data of a run that has ended, and what is compiled for other stacks."""
        for program in self.programs.values():
            program.release_data()
        if self._compiled is not None and self._is_lent and self._compiled.state.is_current:
            self._is_lent = False
            compiled_stacks.give_back(self._compiled)


class Stacks:
    """Sorts the members of a cohort into stacks, where they stay as long as they can be stacked.

    Args:
        layout: `"stacked"`: all that can be stacked is; `"auto"`: where it is expected or measured
            to be faster than joined; `"joined"`: nothing is; a plan: what is stacked in it.
        devices: The devices over which the members of each stack are spread.
    """

    def __init__(self, layout: Layout | Plan, devices: Sequence[Thing] = ()):
        self.layout = layout
        self.devices = devices
        self._timings: dict[Hashable, StepTiming] = {}
        self._wave_of: dict[str, int] = {}
        self.active_stacks: list[ActiveStack] = []
        self.reasons: dict[str, str] = {}
        self._active_of: dict[str, ActiveStack] = {}
        self._stamps: dict[str, tuple[Hashable, ...]] = {}
        self._members: dict[str, Member] = {}
        self._static_paths: set[str] = set()
        # The members whose metrics begin anew with their next steps; of these, those whose own
        # are not reset yet.
        self._begun: set[str] = set()
        self._unreset: set[str] = set()
        # Of each member the data of its last chunk, and the shape of batches of it.
        self._shapes: dict[str, tuple[Tree, tuple[Hashable, ...]]] = {}

    def assign(self, members: Iterable[Member]) -> None:
        """Sorts members that are new, or have been compiled again, into stacks."""
        if self.layout == "joined":
            return
        members = list(members)
        fresh = [m for m in members if self._stamps.get(m.name) != _stamp(m)]
        for active in {self._active_of[m.name] for m in fresh if m.name in self._active_of}:
            self._leave(active)
            known = {m.name for m in fresh}  # a name may be used again, for another member
            fresh += [m for m in active.members if m.name not in known and m.name in self._stamps]
        self._members |= {member.name: member for member in fresh}
        self._stamps |= {member.name: _stamp(member) for member in fresh}
        self._place(fresh)
        for member in members:
            member.is_stacked = member.name in self._active_of

    def dismiss(self, member: Member) -> None:
        """Releases a member that has no more tasks, and its stack with the last member of it."""
        if self._members.get(member.name) is not member:
            return
        del self._members[member.name], self._stamps[member.name]
        self.reasons.pop(member.name, None)
        active = self._active_of.get(member.name)
        if active is not None and self._members.keys().isdisjoint(active.stack.names):
            self._leave(active)

    def _leave(self, active: ActiveStack) -> None:
        self.sync_to_models(active.stack.names)
        active.release()
        self.active_stacks.remove(active)
        for member in active.members:
            member.is_stacked = False
        for name in active.stack.names:
            del self._active_of[name]

    def _place(self, members: Sequence[Member]) -> None:
        models = {}
        for member in members:
            obstacle = _obstacle(member)
            if obstacle is None:
                models[member.name] = member.model
            else:
                self.reasons[member.name] = obstacle
        read = {m.name: m.snapshot for m in members if m.snapshot is not None}
        stacks = []
        for group in self._may_stack(models):
            found, alone = stacking.alike(group, self._static_paths.__contains__, read)
            stacks += found
            self.reasons |= alone
        for stack in stacks:
            stacked = [self._members[name] for name in stack.names]
            timing = None if stack.key is None else self._timings.get(stack.key)
            slow = self._expected_slow(stacked)
            if timing is not None and timing.joined < timing.stacked:
                slow = str(timing)
            if slow is not None:
                self.reasons |= dict.fromkeys(stack.names, slow)
                continue
            stack.devices = self.devices
            active = ActiveStack(stack, stacked)
            active.timing = timing
            self.active_stacks.append(active)
            for name in stack.names:
                self.reasons.pop(name, None)
                self._active_of[name] = active

    def _may_stack(self, models: dict[str, keras.Model]) -> list[dict[str, keras.Model]]:
        """Returns the models in groups of which stacks may be made: those of a wave, of a plan."""
        groups: dict[tuple[int | None, ...], dict[str, keras.Model]] = {}
        for name, model in models.items():
            number = self.layout.stack_of(name) if isinstance(self.layout, Plan) else 0
            if number is None:
                self.reasons[name] = "is joined in the plan that was given"
            else:
                groups.setdefault((number, self._wave_of.get(name)), {})[name] = model
        return list(groups.values())

    def set_waves(self, waves: Sequence[Sequence[str]]) -> None:
        """Has members stacked only with members that train at the same time."""
        wave_of = {name: i for i, wave in enumerate(waves) for name in wave}
        if wave_of != self._wave_of and self._stamps:  # sorted anew
            for active in list(self.active_stacks):
                self._leave(active)
            self._stamps.clear()
        self._wave_of = wave_of

    def note_timing(self, active: ActiveStack, timing: StepTiming, steps_left: int) -> None:
        """Takes up what was measured of a stack; dissolves it if joined steps save time.

        Later stacks of the same signature are placed accordingly.
        """
        active.timing = timing
        self._timings[active.stack.key] = timing
        if timing.saves(steps_left):
            self._leave(active)
            self.reasons |= dict.fromkeys(active.stack.names, str(timing))

    def _expected_slow(self, members: Sequence[Member]) -> str | None:
        if self.layout != "auto":
            return None
        return backends.get_backend().stacks_badly(members[0].model)

    def disband(self, active: ActiveStack, error: stacking.NotStackableError) -> None:
        """Dissolves a stack whose step could not be traced.

        If traced floats may be the cause, its members are sorted again, by the values of these.
        """
        names = active.stack.names
        self._leave(active)
        refused = {ref.path for ref in active.stack.float_refs if ref.refused}
        self.reasons |= dict.fromkeys(names, f"cannot be vectorised: {error}")
        if active.stack.float_refs and not error.is_final:
            # Members with the same floats may still be stacked.
            self._static_paths |= refused or {ref.path for ref in active.stack.float_refs}
            known = dict(self.reasons)
            self._place([self._members[name] for name in names if name in self._members])
            if not refused:  # the floats were perhaps not the cause
                self.reasons |= {n: known[n] for n in names if n not in self._active_of}

    def plan_calls(
        self, requests: dict[str, StepRequest]
    ) -> tuple[list[tuple[ActiveStack, list[str]]], dict[str, StepRequest]]:
        """Returns the calls that stacks should make now, and the other members' requests.

        Members of a stack are called together if they request steps of one kind with batches of one
        shape (and type, where metrics depend on it). Other steps than those of training on full
        batches, such as validations, are done first, so that all members reach their next full
        batches together.
        """
        groups: dict[ActiveStack, dict[tuple[Hashable, ...], list[str]]] = {}
        rest: dict[str, StepRequest] = {}
        for name, request in requests.items():
            active = self._active_of.get(name)
            if active is None or not active.serves(request):
                rest[name] = request
            else:
                key = (
                    request.kind == "train" and request.chunk.is_first_shape,
                    request.kind,
                    self._shape(name, request.chunk),
                    request.chunk.is_fixed and active.counts_rows_by_type,
                )
                groups.setdefault(active, {}).setdefault(key, []).append(name)
        calls = []
        for active, by_key in groups.items():
            first = [key for key in by_key if not key[0]] or list(by_key)
            calls += [(active, by_key[key]) for key in first]
        self.sync_to_models(rest)
        return calls, rest

    def mark_done(self, names: Iterable[str]) -> None:
        """Notes that the requests of these members are done."""
        self._begun.difference_update(names)
        self._unreset.difference_update(names)

    def note_metrics(self, name: str, request: StepRequest) -> None:
        """Notes whether a member's metrics begin anew: then those in its row are outdated."""
        self.mark_done([name])
        if request.metrics_reset or request.metrics_at_zero:
            self._begun.add(name)
        if request.metrics_at_zero:
            self._unreset.add(name)

    def _shape(self, name: str, chunk: Chunk) -> tuple[Hashable, ...]:
        """Returns `_shape_of` the batches of a member, which mostly are of the arrays of before."""
        data, shape = self._shapes.get(name, (None, ()))
        if data is not chunk.data:
            shape = _shape_of(chunk.data)
            self._shapes[name] = (chunk.data, shape)
        return (*shape, None if chunk.rows is None else chunk.rows.shape[1:])

    def release_data_of(self, name: str) -> None:
        """Releases the data of a member whose task has ended."""
        self._shapes.pop(name, None)

    def release_data(self) -> None:
        """Releases the data of a run that has ended."""
        self._shapes.clear()
        for active in self.active_stacks:
            active.release()

    def sync_to_models(self, names: Iterable[str]) -> None:
        """Stores the values in their stacks in the own variables of these members."""
        by_stack: dict[ActiveStack, list[str]] = {}
        for name in names:
            if name in self._active_of:
                by_stack.setdefault(self._active_of[name], []).append(name)
        for active, members in by_stack.items():
            active.sync_to_models(members, list(self._begun))
            if not self._unreset.isdisjoint(members):
                active.reset_metrics(self._unreset.intersection(members))
                self._unreset.difference_update(members)

    def plan(self, members: Iterable[Member]) -> Plan:
        """Returns the placement of these members, with reasons."""
        return Plan([self._row(member) for member in members])

    def print_plan(self, members: Iterable[Member], verbose: Iterable[int | str]) -> None:
        """Prints the plan in a line, unless nothing is to be stacked or all members are silent.

        Args:
            members: The members.
            verbose: The `verbose` of each `fit`.
        """
        if self.layout != "joined" and any(value != 0 for value in verbose):
            name = "plan" if isinstance(self.layout, Plan) else self.layout
            print(f"{name}: {self.plan(members).summary}")

    def _row(self, member: Member) -> dict[str, str | int | None]:
        active = self._active_of.get(member.name)
        told = {"member": member.name, "batch_size": member.samples_per_step}
        if active is None:
            known = self.layout == "joined" or member.name in self._stamps
            unknown = "" if known else "not built yet: known after the first `fit`"
            return told | {
                "layout": "joined",
                "reason": self.reasons.get(member.name, unknown),
            }
        return told | {
            "layout": "stacked",
            "stack": self.active_stacks.index(active) + 1,
            "measured": "" if active.timing is None else str(active.timing),
            "differs": ", ".join(active.differs),
        }


def _stamp(member: Member) -> tuple[Hashable, ...]:
    """Returns what changes when a member's step signature may have changed."""
    model = member.model
    size = len(backends.variables(model))  # grows when the optimizer and the metrics are built
    return (
        model,
        member.samples_per_replica,
        size,
        member.finds_otherwise,
        *backends.compile_stamp(model),
    )


def _shape_of(data: Tree) -> tuple[Hashable, ...]:
    """Returns what stacked batches have in common: structure, shapes and types of arrays."""
    leaves = [
        None if leaf is None else (tuple(leaf.shape[1:]), str(leaf.dtype), type(leaf))
        for leaf in tree.flatten(data)
    ]
    return (repr(tree.map_structure(lambda _: 0, data)), *leaves)


def _obstacle(member: Member) -> str | None:
    """Returns why this member can be in no stack, whatever the others are, or `None`."""
    if not member.model.compiled:
        return "is not compiled"  # it can still predict
    backend = backends.get_backend()
    why = backend.cannot_stack(member.model)
    if why is not None:
        return why
    if backend.execution(member.model) == "eager":
        return "runs eagerly"
    if member.finds_otherwise:
        return "goes on with what it was first traced with, which has changed since"
    if not member.model.trainable_variables:
        return "has no weights to train"
    if member.samples_per_replica:
        return "is applied several times in a step (`replicas`)"
    if backends.state_bytes(member.model) > backends.STACKED_STATE_LIMIT:
        return "is so large that a step costs far more than its dispatch"
    return None
