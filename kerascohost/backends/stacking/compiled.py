"""Compiled stacks, lent to one run after another: models of one signature are traced once.

A stack's programs compute with the values in its state, not with the models that these came from.
So another stack of equally many models of the same signature, of another cohort or of the next
round of a search, goes on with programs that are compiled already.
"""

import threading
from collections.abc import Hashable, Sequence

import keras

from kerascohost.backends.base import Program, ProgramMember, StepKind, get_backend
from kerascohost.backends.stacking.signature import Stack
from kerascohost.backends.stacking.state import StackedState, log_keys

# So many compiled stacks, and so many bytes of state, are stored for cohorts that may come.
_MOST_STORED = 16
_MOST_BYTES = 256 * 2**20


class CompiledStack:
    """The state of a stack and its programs, for any members of its signature.

    Attributes:
        stack: The stack that it is lent to.
        members: That stack's members, in its order.
        state: The state.
        predicts: Whether it also predicts; not if its steps of prediction cannot be vectorised.
        is_lent: Whether a stack uses it now.
    """

    def __init__(self, stack: Stack, members: Sequence[ProgramMember]):
        make = get_backend().StackedState
        assert make is not None  # otherwise `cannot_stack` has refused every model
        self.state: StackedState = make(stack, [member.model for member in members])
        self.predicts = True
        self.is_lent = False
        self._key = _key(stack)
        self._programs: dict[StepKind, Program] = {}
        self.lend(stack, members)

    def lend(self, stack: Stack, members: Sequence[ProgramMember]) -> None:
        """Has it compute for these members from now on."""
        self.is_lent = True
        self.stack, self.members = stack, list(members)
        self.state.adopt(stack)
        self._log_keys: list[dict[str, str]] | None = None

    @property
    def is_reusable(self) -> bool:
        """Returns whether others than its first members may use it."""
        return self._key is not None

    def fits(self, stack: Stack) -> bool:
        """Returns whether its programs compute what those of `stack` would."""
        return self.is_reusable and self._key == _key(stack)

    def forget(self) -> None:
        """Releases the members; what is compiled is kept."""
        self.is_lent = False
        self.state.forget()
        del self.stack, self.members

    @property
    def models(self) -> list[keras.Model]:
        """The models of its members; the first is the prototype."""
        return [member.model for member in self.members]

    @property
    def log_keys(self) -> list[dict[str, str]]:
        """For each row the keys of its logs by those of the prototype's, where they differ."""
        if self._log_keys is None:  # asked for after a step, when all metrics are built
            self._log_keys = log_keys(self.models)
        return self._log_keys

    def program(self, kind: StepKind) -> Program:
        """Returns the program for steps of this kind."""
        if kind not in self._programs:
            make = get_backend().StackProgram
            assert make is not None  # as above
            self._programs[kind] = make(kind, self, self.state)
        return self._programs[kind]


def _key(stack: Stack) -> Hashable | None:
    return None if stack.key is None else (stack.key, *map(str, stack.devices))


class CompiledStacks:
    """Compiled stacks that no run uses now: those last used, within bounds."""

    def __init__(self) -> None:
        self._stored: list[CompiledStack] = []
        self._lock = threading.Lock()

    def lent(
        self, stack: Stack, members: Sequence[ProgramMember], last: CompiledStack | None
    ) -> CompiledStack:
        """Returns a compiled stack for `stack`, which has it for itself until `give_back`.

        Args:
            stack: The stack.
            members: Its members, in its order.
            last: The one that it had before, which is preferred.
        """
        with self._lock:
            fitting = [one for one in self._stored if one.fits(stack)]
            known = [last] if last is not None and not last.is_lent else fitting
            if not known:
                return CompiledStack(stack, members)
            self._stored = [one for one in self._stored if one is not known[0]]
            known[0].lend(stack, members)
            return known[0]

    def give_back(self, compiled: CompiledStack) -> None:
        """Stores a compiled stack for others, if its signature may come again."""
        with self._lock:
            compiled.forget()
            if not compiled.is_reusable:
                return
            self._stored = [*self._stored, compiled][-_MOST_STORED:]
            while sum(one.state.num_bytes for one in self._stored) > _MOST_BYTES:
                del self._stored[0]


compiled_stacks = CompiledStacks()
