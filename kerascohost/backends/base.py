"""What every backend offers: the contract, and what passes through it.

A backend is the module `kerascohost.backends.<name>.program`; it has the names of `Backend`.
Everything that leans on a private Keras or backend name is in this package, each use with a line
that says why.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import keras
import numpy as np

if TYPE_CHECKING:
    from kerascohost.backends.stacking import StackedState

# The three kinds of steps that a model has.
StepKind = Literal["train", "test", "predict"]

# How a model's steps run: many of them in one compiled function, each in a call of a compiled
# function, or not compiled at all.
Execution = Literal["loop", "step", "eager"]

# A nested structure of arrays or tensors, as `keras.tree` takes it: a batch, a model's outputs.
Tree: TypeAlias = Any

# What a step returns: metrics by name, or whatever a model's own step returns.
Logs: TypeAlias = Any

# Members with more state than this in all (in bytes) run one after another instead of fused: their
# steps are far heavier than their dispatch, so fusing gains nothing, and the copy that protects the
# state of the members when a step fails would cost time and memory.
FUSED_STATE_LIMIT = 64 * 2**20

# A member with more state than this (in bytes) is not stacked, for the same reason.
STACKED_STATE_LIMIT = 16 * 2**20

# On a CPU, steps of models with more weights than this are not faster stacked than joined: the
# products of their matrices keep the cores busy (2 cores; MLPs of 8 thousand to 1 million weights).
STACKED_WEIGHTS_LIMIT = 200_000


@dataclasses.dataclass
class Chunk:
    """Consecutive batches of one shape, stacked.

    Attributes:
        data: The structure that a train step takes; each array is `(batches, rows, ...)`.
        start: The first of the batches to take.
        stop: The batch before which to stop.
        is_first_shape: Whether `data` has the shape of the member's first chunk. The last batch of
            an epoch often has not; programs that compile per shape run it apart.
        is_fixed: Whether the data's type says how many rows a batch has: then `fit` on TensorFlow
            traces with that number.
        on_device: Where a program keeps its own form of `data`, so that a chunk that is worked
            through in several calls is transferred once.
    """

    data: Tree
    start: int
    stop: int
    is_first_shape: bool
    is_fixed: bool = False
    on_device: Any = None


@dataclasses.dataclass
class StepRange:
    """What a program is to do for one member: take the batches `start` to `stop` of a chunk.

    Attributes:
        metrics_reset: Whether the model's metrics have been reset since its last steps.
    """

    chunk: Chunk
    start: int
    stop: int
    metrics_reset: bool = False


class ProgramMember(Protocol):
    """What a program must know of a member.

    Attributes:
        name: Its name, unique in the program.
        model: Its model.
        samples_per_replica: The rows of each of its replicas in a step; 0: it has only one.
    """

    name: str
    model: keras.Model
    samples_per_replica: int

    def traced(self, kind: StepKind) -> AbstractContextManager[None]:
        """Returns the context in which its steps of this kind are traced."""

    def as_read(self, kind: StepKind) -> AbstractContextManager[None]:
        """Returns `traced` without the member's name on exceptions."""


class Program(Protocol):
    """The steps of one kind of some members, in one compiled function.

    Attributes:
        is_protected: Whether a call that fails leaves all members as they were before it.
    """

    @property
    def is_protected(self) -> bool: ...

    def __call__(self, ranges: Mapping[str, StepRange]) -> dict[str, Logs]:
        """Runs the steps asked for, by member; returns the members' logs, or their predictions."""

    def release_data(self) -> None:
        """Lets go of the data of a run that has ended."""


class RowOrder(Protocol):
    """The rows of each coming epoch, in the order in which `fit` would visit them."""

    def __call__(self) -> np.ndarray:
        """Returns the order of the next epoch."""

    def consume_build_draw(self) -> None:
        """Draws what `fit` draws when it takes a first batch to build a model, and drops it."""

    def advance_global_rng(self) -> None:
        """Leaves the global random state where `fit` would, unless it was moved meanwhile."""


_MakeProgram: TypeAlias = Callable[..., Program]


class Backend(Protocol):
    """What the module of a backend offers.

    Attributes:
        SHUFFLES_BY_GLOBAL_STATE: Whether `fit` draws the order of rows from a global random state,
            so that what a program draws after it depends on how many epochs it trained.
        COMPILES_PER_SHAPE: Whether a program is compiled again for every new shape.
        FINALIZES_AFTER_FAILURE: Whether `fit` hands its model over (averaged weights taken up) also
            when it fails or is interrupted, as Keras's does on JAX only.
        COMPILED_FUNCTION: The class of compiled functions that read variables by references of
            their own, or `None`; see `variables_read_by`.
        Program: `Program(kind, members)`, a `Program`.
        StackProgram: `StackProgram(kind, members, stack, state)`: a `Program` of a stack, all of
            whose members do equally many steps; `None` where nothing is stacked.
        StackedState: The state of a stack, see `stacking`.
    """

    SHUFFLES_BY_GLOBAL_STATE: bool
    COMPILES_PER_SHAPE: bool
    FINALIZES_AFTER_FAILURE: bool

    @property
    def COMPILED_FUNCTION(self) -> type | None: ...  # noqa: N802

    @property
    def Program(self) -> "_MakeProgram": ...  # noqa: N802

    @property
    def StackProgram(self) -> "_MakeProgram | None": ...  # noqa: N802

    @property
    def StackedState(self) -> "Callable[..., StackedState] | None": ...  # noqa: N802

    def build(self, model: keras.Model, batch: Tree) -> bool:
        """Creates the variables that the model, its loss, metrics and optimizer still lack.

        Returns:
            Whether `fit` would have taken a batch for this before its first epoch.
        """

    def execution(self, model: keras.Model) -> Execution:
        """Returns how the model's steps run."""

    def eager_step(self, model: keras.Model, kind: StepKind, batch: Tree) -> Logs:
        """Runs one step that is not compiled; returns its logs."""

    def concatenated(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the outputs of several batches as one array."""

    def cannot_stack(self, model: keras.Model) -> str | None:
        """Returns why this model can be in no stack, or `None`."""

    def stacks_badly(self, model: keras.Model) -> str | None:
        """Returns why models like this one are expected to be slower stacked, or `None`."""

    def row_order(self, num_rows: int, batch_size: int, shuffle: bool | str) -> RowOrder:
        """Returns the order in which `fit` on this backend visits the rows of an array."""

    def random_state(self) -> Any:
        """Returns the backend's global random state."""

    def set_random_state(self, state: Any) -> None:
        """Goes back to what `random_state` returned."""

    def runs_functions_eagerly(self) -> bool:
        """Returns whether the backend is set to compile nothing at all, for debugging."""

    def run_functions_eagerly(self, value: bool) -> None:
        """Sets `runs_functions_eagerly`."""

    def is_recording(self) -> bool:
        """Returns whether what this thread computes is traced or recorded, and not only done."""

    def variables_read_by(self, function: Any) -> list[Any]:
        """Returns the backend's variables that a `COMPILED_FUNCTION` reads."""

    def device_bytes(self) -> tuple[int, int] | None:
        """Returns the memory in use on the GPU and its peak, in bytes; `None` without a GPU.

        The peak is that since `reset_device_peak`; ever, where the backend cannot reset it.
        """

    def reset_device_peak(self) -> None:
        """Makes the memory in use now the peak, where the backend can."""


def get_backend() -> Backend:
    """Returns the module of the backend that Keras runs on.

    Raises:
        ImportError: If kerascohost does not know the backend.
    """
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax", "torch"):
        raise ImportError(
            "kerascohost runs on the Keras backends 'tensorflow', 'jax' and 'torch'. "
            f"Received: KERAS_BACKEND={backend!r}"
        )
    module: Any = importlib.import_module(f"kerascohost.backends.{backend}.program")
    return module
