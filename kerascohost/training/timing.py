"""Measures whether the members of a stack are trained faster joined, for `layout="auto"`."""

import dataclasses

# A stack is timed against its members joined if so much training is left: in seconds, and in times
# of what its own first call took, as timing traces one member's step and takes about as long.
WORTH_SECONDS = 2.0
WORTH_FIRST_CALLS = 8


@dataclasses.dataclass(frozen=True)
class StepTiming:
    """Seconds of a step of all members of a stack.

    Attributes:
        stacked: Those of the vectorised step.
        joined: Those of the members' own steps: one member's, times their number. TensorFlow may
            run several at the same time, which is not counted on.
        tracing: The seconds to trace the joined steps.
    """

    stacked: float
    joined: float
    tracing: float

    def saves(self, steps_left: int) -> bool:
        """Returns whether so many steps take less time joined, tracing included."""
        return steps_left * (self.stacked - self.joined) > self.tracing

    def __str__(self) -> str:
        stacked, joined = self.stacked * 1e3, self.joined * 1e3
        return f"measured: a step takes {stacked:.3g} ms stacked, {joined:.3g} ms joined"
