"""The stacks of a cohort: which members are trained by one vectorised step, and which are not."""

from collections.abc import Iterable, Sequence
from typing import Any

from keras import tree

from kerascohost import backends
from kerascohost.backends import stacking
from kerascohost.results.plan import Plan
from kerascohost.training.member import Member, Want


class Seat:
    """A stack at work: its members, its state, and whom it can serve.

    Attributes:
        stack: The stack.
        members: Its members, in its order.
        rows: Its state.
        programs: Its programs by kind; the scheduler's.
        differs: The hyperparameters that its members did not have in common when they came.
    """

    def __init__(self, stack: stacking.Stack, members: Sequence[Member]):
        self.stack = stack
        self.members = list(members)
        self.rows = backends.get_backend().Rows(stack, [member.model for member in members])
        self.programs: dict[str, Any] = {}
        self.differs = list(dict.fromkeys(slot.name for slot in stack.slots))
        rates = {float(member.model.optimizer.learning_rate) for member in members}
        if len(rates) > 1:
            self.differs.insert(0, "learning_rate")

    def program(self, kind: str) -> Any:
        """A backend's program for steps of this kind."""
        make = backends.get_backend().StackProgram
        return make(kind, self.members, self.stack, self.rows)


class Stacks:
    """Sorts the members of a cohort into stacks, and keeps them there while they can be.

    Args:
        layout: `"stacked"`: all that can be stacked is; `"auto"`: where it is expected to be faster
            than joined; `"joined"`: nothing is.
    """

    def __init__(self, layout: str):
        self.layout = layout
        self.seats: list[Seat] = []
        self.reasons: dict[str, str] = {}
        self._seat_of: dict[str, Seat] = {}
        self._stamps: dict[str, tuple] = {}
        self._members: dict[str, Member] = {}
        self._solid: set[str] = set()
        self._begun: set[str] = set()

    def arrange(self, members: Iterable[Member]) -> None:
        """Finds a place for those members that have none, or that have been compiled anew."""
        if self.layout == "joined":
            return
        fresh = [m for m in members if self._stamps.get(m.name) != _stamp(m)]
        for seat in {self._seat_of[m.name] for m in fresh if m.name in self._seat_of}:
            self._leave(seat)
            known = {m.name for m in fresh}  # a name may be used again, for another member
            fresh += [m for m in seat.members if m.name not in known]
        self._members |= {member.name: member for member in fresh}
        self._stamps |= {member.name: _stamp(member) for member in fresh}
        self._place(fresh)

    def _leave(self, seat: Seat) -> None:
        seat.rows.bring_home(seat.stack.names, list(self._begun))
        self.seats.remove(seat)
        for name in seat.stack.names:
            del self._seat_of[name]

    def _place(self, members: Sequence[Member]) -> None:
        models = {}
        for member in members:
            obstacle = _obstacle(member)
            if obstacle is None:
                models[member.name] = member.model
            else:
                self.reasons[member.name] = obstacle
        read = {m.name: m.snapshot for m in members if m.snapshot is not None}
        stacks, alone = stacking.alike(models, self._solid.__contains__, read)
        self.reasons |= alone
        for stack in stacks:
            seated = [self._members[name] for name in stack.names]
            slow = self._expected_slow(seated)
            if slow is not None:
                self.reasons |= dict.fromkeys(stack.names, slow)
                continue
            seat = Seat(stack, seated)
            self.seats.append(seat)
            for name in stack.names:
                self.reasons.pop(name, None)
                self._seat_of[name] = seat

    def _expected_slow(self, members: Sequence[Member]) -> str | None:
        if self.layout != "auto":
            return None
        return backends.get_backend().stacks_badly(members[0].model)

    def dissolve(self, seat: Seat, error: stacking.NotStackableError) -> None:
        """Gives up a stack whose step could not be traced, or a lifted float that was the cause."""
        names = seat.stack.names
        self._leave(seat)
        refused = {slot.path for slot in seat.stack.slots if slot.refused}
        self.reasons |= dict.fromkeys(names, f"cannot be vectorised: {error}")
        if seat.stack.slots and not error.is_final:
            # Members with the same floats may still be stacked.
            self._solid |= refused or {slot.path for slot in seat.stack.slots}
            known = dict(self.reasons)
            self._place([self._members[name] for name in names])
            if not refused:  # the floats were perhaps not the cause
                self.reasons |= {n: known[n] for n in names if n not in self._seat_of}

    def split(self, wants: dict[str, Want]) -> tuple[list[tuple[Seat, list[str]]], dict[str, Want]]:
        """The calls that stacks should make now, and the wants of all members that are in none.

        Members of a stack are served together if they want steps of one kind with batches of one
        shape. What few of them want, such as a last partial batch or a validation, is done first:
        so all come to their full batches together again.
        """
        groups: dict[Seat, dict[tuple, list[str]]] = {}
        rest: dict[str, Want] = {}
        for name, want in wants.items():
            seat = self._seat_of.get(name)
            if seat is None or want.limited or want.kind == "predict":
                rest[name] = want
            else:
                key = (want.kind == "train" and want.chunk.usual, want.kind, _shape(want))
                groups.setdefault(seat, {}).setdefault(key, []).append(name)
        calls = []
        for seat, by_key in groups.items():
            first = [key for key in by_key if not key[0]] or list(by_key)
            calls += [(seat, by_key[key]) for key in first]
        self.bring_home(rest)
        return calls, rest

    def served(self, names: Iterable[str]) -> None:
        """Notes that these members have done what they wanted."""
        self._begun -= set(names)

    def note(self, name: str, want: Want) -> None:
        """Notes what a member wants: if it begins, the metrics in its row are not to be kept."""
        if want.begins:
            self._begun.add(name)
        else:
            self._begun.discard(name)

    def let_go(self) -> None:
        """Lets go of the data of a run that has ended."""
        for seat in self.seats:
            for program in seat.programs.values():
                program.let_go()

    def bring_home(self, names: Iterable[str]) -> None:
        """Gives these members their own variables back."""
        by_seat: dict[Seat, list[str]] = {}
        for name in names:
            if name in self._seat_of:
                by_seat.setdefault(self._seat_of[name], []).append(name)
        for seat, seated in by_seat.items():
            seat.rows.bring_home(seated, list(self._begun))

    def plan(self, members: Iterable[Member]) -> Plan:
        """Where these members are, and why."""
        return Plan([self._row(member) for member in members])

    def _row(self, member: Member) -> dict[str, Any]:
        seat = self._seat_of.get(member.name)
        told = {"member": member.name, "batch_size": member.samples_per_step}
        if seat is None:
            known = self.layout == "joined" or member.name in self._stamps
            unknown = "" if known else "not built yet: known after the first `fit`"
            return told | {
                "layout": "joined",
                "reason": self.reasons.get(member.name, unknown),
            }
        return told | {
            "layout": "stacked",
            "stack": self.seats.index(seat) + 1,
            "differs": ", ".join(seat.differs),
        }


def _stamp(member: Member) -> tuple:
    """Changes when a member may have become another one's twin, or is none any more."""
    model = member.model
    size = len(backends.variables(model))  # grows when the optimizer and the metrics are built
    return (model, member.piece, size, member.finds_otherwise, *backends.compile_stamp(model))


def _shape(want: Want) -> tuple:
    """What batches share that are stacked: their structure, their arrays' shapes and types."""
    leaves = [
        None if leaf is None else (tuple(leaf.shape[1:]), str(leaf.dtype), type(leaf))
        for leaf in tree.flatten(want.chunk.data)
    ]
    return (repr(tree.map_structure(lambda _: 0, want.chunk.data)), *leaves)


def _obstacle(member: Member) -> str | None:
    """Why this member can be in no stack, whatever the others are."""
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
    if member.piece:
        return "is applied several times in a step (`replicas`)"
    if backends.state_bytes(member.model) > backends.STACKED_STATE_LIMIT:
        return "is so large that a step costs far more than its dispatch"
    return None
