"""Models that compute the same from other numbers, trained by one vectorised step."""

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
    stacked_batches,
    unflattened,
)
from kerascohost.backends.stacking.traced_float import TracedFloat, traced_floats

__all__ = [
    "NotStackableError",
    "Stack",
    "StackedState",
    "StepSignature",
    "TracedFloat",
    "alike",
    "finished",
    "logs_by_member",
    "reason",
    "stacked_batches",
    "traced_floats",
    "unflattened",
]
