"""Models that compute the same from other numbers, trained by one vectorised step."""

from kerascohost.backends.stacking.compiled import CompiledStack, compiled_stacks
from kerascohost.backends.stacking.signature import (
    NotStackableError,
    Stack,
    StepSignature,
    alike,
    reason,
)
from kerascohost.backends.stacking.state import (
    StackedState,
    finished,
    logs_by_member,
    outputs_by_member,
    stacked_batches,
    unflattened,
)
from kerascohost.backends.stacking.traced_float import TracedFloat, traced_floats

__all__ = [
    "CompiledStack",
    "NotStackableError",
    "Stack",
    "StackedState",
    "StepSignature",
    "TracedFloat",
    "alike",
    "compiled_stacks",
    "finished",
    "logs_by_member",
    "outputs_by_member",
    "reason",
    "stacked_batches",
    "traced_floats",
    "unflattened",
]
