"""The stacks of a cohort: which members are trained by one vectorised step, and which are not."""

import functools
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

from keras import tree

from kerascohost import backends
from kerascohost.backends import Program, StepKind, stacking
from kerascohost.backends.base import Thing
from kerascohost.results.plan import Plan
from kerascohost.training.member import Member, StepRequest

if TYPE_CHECKING:
    from kerascohost.training.scheduler import _Program


class ActiveStack:
    """A stack in use: its members, its state and its programs.

    Attributes:
        stack: The stack.
        members: Its members, in its order.
        state: Its state.
        programs: Its programs by kind; the scheduler's.
        differs: The hyperparameters that its members did not have in common when they came.
    """

    def __init__(self, stack: stacking.Stack, members: Sequence[Member]):
        self.stack = stack
        self.members = list(members)
        models = [member.model for member in members]
        make = backends.get_backend().StackedState
        assert make is not None  # otherwise `cannot_stack` has refused every model
        self.state = make(stack, models)
        self.programs: dict[StepKind, _Program] = {}
        self.differs = list(dict.fromkeys(ref.name for ref in stack.float_refs))
        rates = {float(member.model.optimizer.learning_rate) for member in members}
        if len(rates) > 1:
            self.differs.insert(0, "learning_rate")

    @functools.cached_property
    def counts_rows_by_type(self) -> bool:
        """Returns whether members whose batches are of unlike types need separate calls."""
        return backends.counts_rows_by_type(self.members[0].model)

    def program(self, kind: StepKind) -> Program:
        """Returns a backend's program for steps of this kind."""
        make = backends.get_backend().StackProgram
        assert make is not None  # as above
        return make(kind, self.members, self.stack, self.state)


class Stacks:
    """Sorts the members of a cohort into stacks, where they stay as long as they can be stacked.

    Args:
        layout: `"stacked"`: all that can be stacked is; `"auto"`: where it is expected to be faster
            than joined; `"joined"`: nothing is.
        devices: The devices over which the members of each stack are spread.
    """

    def __init__(self, layout: str, devices: Sequence[Thing] = ()):
        self.layout = layout
        self.devices = devices
        self.active_stacks: list[ActiveStack] = []
        self.reasons: dict[str, str] = {}
        self._active_of: dict[str, ActiveStack] = {}
        self._stamps: dict[str, tuple[Hashable, ...]] = {}
        self._members: dict[str, Member] = {}
        self._static_paths: set[str] = set()
        self._metrics_reset: set[str] = set()

    def assign(self, members: Iterable[Member]) -> None:
        """Sorts members that are new, or have been compiled again, into stacks."""
        if self.layout == "joined":
            return
        fresh = [m for m in members if self._stamps.get(m.name) != _stamp(m)]
        for active in {self._active_of[m.name] for m in fresh if m.name in self._active_of}:
            self._leave(active)
            known = {m.name for m in fresh}  # a name may be used again, for another member
            fresh += [m for m in active.members if m.name not in known and m.name in self._stamps]
        self._members |= {member.name: member for member in fresh}
        self._stamps |= {member.name: _stamp(member) for member in fresh}
        self._place(fresh)

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
        active.state.sync_to_models(active.stack.names, list(self._metrics_reset))
        self.active_stacks.remove(active)
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
        stacks, alone = stacking.alike(models, self._static_paths.__contains__, read)
        self.reasons |= alone
        for stack in stacks:
            stacked = [self._members[name] for name in stack.names]
            slow = self._expected_slow(stacked)
            if slow is not None:
                self.reasons |= dict.fromkeys(stack.names, slow)
                continue
            stack.devices = self.devices
            active = ActiveStack(stack, stacked)
            self.active_stacks.append(active)
            for name in stack.names:
                self.reasons.pop(name, None)
                self._active_of[name] = active

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
            if active is None or request.has_batch_hooks or request.kind == "predict":
                rest[name] = request
            else:
                key = (
                    request.kind == "train" and request.chunk.is_first_shape,
                    request.kind,
                    _shape(request),
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
        self._metrics_reset -= set(names)

    def set_metrics_reset(self, name: str, request: StepRequest) -> None:
        """Notes whether a member has reset its metrics: then those in its row are outdated."""
        if request.metrics_reset:
            self._metrics_reset.add(name)
        else:
            self._metrics_reset.discard(name)

    def release_data(self) -> None:
        """Releases the data of a run that has ended."""
        for active in self.active_stacks:
            for program in active.programs.values():
                program.release_data()

    def sync_to_models(self, names: Iterable[str]) -> None:
        """Stores the values in their stacks in the own variables of these members."""
        by_stack: dict[ActiveStack, list[str]] = {}
        for name in names:
            if name in self._active_of:
                by_stack.setdefault(self._active_of[name], []).append(name)
        for active, members in by_stack.items():
            active.state.sync_to_models(members, list(self._metrics_reset))

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
            print(f"{self.layout}: {self.plan(members).summary}")

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


def _shape(request: StepRequest) -> tuple[Hashable, ...]:
    """Returns what stacked batches have in common: structure, shapes and types of arrays."""
    leaves = [
        None if leaf is None else (tuple(leaf.shape[1:]), str(leaf.dtype), type(leaf))
        for leaf in tree.flatten(request.chunk.data)
    ]
    rows = request.chunk.rows
    taken = None if rows is None else rows.shape[1:]
    return (repr(tree.map_structure(lambda _: 0, request.chunk.data)), taken, *leaves)


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
