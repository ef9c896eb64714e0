"""The contract that every backend fulfils, and the types of what passes through it.

A backend is the module `kerascohost.backends.<name>.program`; it has the names of `Backend`.
Everything that depends on a private Keras or backend name is in this package, each use with a line
that says why.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import keras
import numpy as np
from keras import tree

if TYPE_CHECKING:
    import tensorflow as tf

    from kerascohost.backends.resident import ResidentArray
    from kerascohost.backends.row_order import RowOrder
    from kerascohost.backends.stacking import StackedState

# The three kinds of steps that a model has.
StepKind = Literal["train", "test", "predict"]

# How a model's steps run: many of them in one compiled function, each in a call of a compiled
# function, or not compiled at all.
Execution = Literal["loop", "step", "eager"]

# A nested structure of arrays or tensors, as `keras.tree` takes it: a batch, a model's outputs.
Tree: TypeAlias = Any

# One leaf of it: an array of NumPy or of a backend, or a tensor that is traced. They have no base.
Tensor: TypeAlias = Any

# Whatever Keras's objects refer to, or a program reads or sets. It is looked at by `isinstance` and
# `hasattr`, so that a type would say nothing.
Thing: TypeAlias = Any

# What a step returns: metrics by name, or whatever a model's own step returns.
Logs: TypeAlias = Any

# A global random state: a backend's, Python's or NumPy's. Each has a form of its own and is only
# stored and set again.
RandomState: TypeAlias = Any

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
        data: The structure that a train step takes; each array is `(batches, rows, ...)`. If `rows`
            is given, each is a `ResidentArray` that has the rows of all batches.
        start: The first of the batches to take.
        stop: The batch before which to stop.
        is_first_shape: Whether `data` has the shape of the member's first chunk. The last batch of
            an epoch often has not; programs that compile per shape run it apart.
        is_fixed: Whether the data's type says how many rows a batch has: then `fit` on TensorFlow
            traces with that number.
        rows: The numbers of the rows of each batch, `(batches, rows)`, int32; `None` where `data`
            is the batches themselves.
        on_device: The form of `data` that a program transferred to the device, stored for its next
            calls; `None` before the first.
    """

    data: Tree
    start: int
    stop: int
    is_first_shape: bool
    is_fixed: bool = False
    rows: np.ndarray | None = None
    on_device: Tree = None

    def batch(self, i: int) -> Tree:
        """Returns one of its batches."""
        if self.rows is None:
            return tree.map_structure(lambda a: None if a is None else a[i], self.data)
        rows = self.rows[i]

        def taken(array: "ResidentArray | None") -> Tensor:
            return None if array is None else array.take(rows)

        return tree.map_structure(taken, self.data)


@dataclasses.dataclass
class StepRange:
    """The batches of one member that a call of a program takes: `start` to `stop` of a chunk.

    Attributes:
        chunk: The chunk.
        start: The first of its batches to take.
        stop: The batch before which to stop.
        metrics_reset: Whether the model's metrics have been reset since its last steps.
        metrics_at_zero: Whether they begin at zero instead, and the model's own are not reset.
    """

    chunk: Chunk
    start: int
    stop: int
    metrics_reset: bool = False
    metrics_at_zero: bool = False


class ProgramMember(Protocol):
    """A member, as a program sees it.

    Attributes:
        name: Its name, unique in the program.
        model: Its model.
        samples_per_replica: The number of rows of each replica in a step; 0 with one replica only.
    """

    name: str
    model: keras.Model
    samples_per_replica: int

    def traced(self, kind: StepKind) -> AbstractContextManager[None]:
        """Returns the context in which its steps of this kind are traced."""

    def as_read(self, kind: StepKind) -> AbstractContextManager[None]:
        """Returns `traced` without the member's name on exceptions."""


class Program(Protocol):
    """The steps of one kind of some members, in one compiled function."""

    @property
    def traces(self) -> int:
        """Returns how many times steps have been traced."""

    @property
    def is_protected(self) -> bool:
        """Returns whether a call that fails leaves all members as they were before it."""

    def __call__(self, ranges: Mapping[str, StepRange]) -> dict[str, Logs]:
        """Runs steps of members.

        Args:
            ranges: For each member that has steps to do, the range of its steps.

        Returns:
            The logs of the last step of each of these members, or its outputs when predicting.
        """

    def release_data(self) -> None:
        """Releases the data of a run that has ended."""


# Backends name the arguments alike, but each takes a state of a class of its own.
_MakeProgram: TypeAlias = Callable[..., Program]


class Backend(Protocol):
    """The names that the module of a backend has.

    Attributes:
        SHUFFLES_BY_GLOBAL_STATE: Whether `fit` draws the order of rows from a global random state,
            so that what a program draws after it depends on how many epochs it trained.
        COMPILES_PER_SHAPE: Whether a program is compiled again for every new shape.
        FINALIZES_AFTER_FAILURE: Whether `fit` sets the weights to the optimizer's final ones (such
            as their moving average) also when it fails or is interrupted, as on JAX only.
    """

    SHUFFLES_BY_GLOBAL_STATE: bool
    COMPILES_PER_SHAPE: bool
    FINALIZES_AFTER_FAILURE: bool

    @property
    def COMPILED_FUNCTION(self) -> type | None:  # noqa: N802
        """The class of compiled functions that read variables by references of their own.

        `None` where functions are given what they read; see `variables_read_by`.
        """

    @property
    def Program(self) -> "_MakeProgram":  # noqa: N802
        """The class of programs: `Program(kind, members)`."""

    @property
    def StackProgram(self) -> "_MakeProgram | None":  # noqa: N802
        """The class of programs of a stack: `StackProgram(kind, compiled, state)`.

        All members in a call do equally many steps. `None` where nothing is stacked.
        """

    @property
    def StackedState(self) -> "Callable[..., StackedState] | None":  # noqa: N802
        """The class of the state of a stack, see `stacking`; `None` where nothing is stacked."""

    def build(self, model: keras.Model, batch: Tree) -> bool:
        """Creates the variables that the model, its loss, metrics and optimizer still lack.

        Args:
            model: The model.
            batch: A batch of its data, from which shapes are taken.

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

    def check_devices(self, devices: Sequence[Thing]) -> str | None:
        """Returns why the members of a stack cannot be spread over these devices, or `None`."""

    def row_order(
        self, num_rows: int, batch_size: int, shuffle: bool | str, owns_state: bool = False
    ) -> "RowOrder":
        """Returns the order in which `fit` on this backend visits the rows of an array.

        Args:
            num_rows: The number of rows.
            batch_size: The number of rows in a batch.
            shuffle: As in `fit`, but not `False`.
            owns_state: Whether NumPy's global state is the member's own whenever it is asked for
                the order: then drawn from at that time, between the draws of the member's
                callbacks, as in `fit`.
        """

    def set_to_zero(self, variables: Sequence[keras.Variable]) -> None:
        """Sets variables, each of which is one number, to zero."""

    def random_state(self) -> RandomState:
        """Returns the backend's global random state."""

    def set_random_state(self, state: RandomState) -> None:
        """Sets the backend's global random state to one that `random_state` returned."""

    def runs_functions_eagerly(self) -> bool:
        """Returns whether the backend is set to compile nothing at all, for debugging."""

    def run_functions_eagerly(self, value: bool) -> None:
        """Sets `runs_functions_eagerly`."""

    def is_tracing(self) -> bool:
        """Returns whether this thread traces a function, for which other threads may wait."""

    def is_recording(self) -> bool:
        """Returns whether this thread traces or records what it computes."""

    def variables_read_by(self, function: Callable[..., Tree]) -> Sequence["tf.Variable"]:
        """Returns the backend's variables that a `COMPILED_FUNCTION` reads."""

    def to_device(self, array: np.ndarray) -> Tensor:
        """Returns the array on the device, in the same memory where that is possible."""

    def to_host(self, tensor: Tensor, rows: slice) -> np.ndarray:
        """Returns rows of an array on the device, in the same memory where that is possible."""

    def free_device_bytes(self) -> int | None:
        """Returns the free memory of the GPU in bytes; `None` where it is not known."""

    def device_bytes(self) -> tuple[int, int] | None:
        """Returns the memory in use on the GPU and its peak, in bytes; `None` without a GPU.

        The peak is that since `reset_device_peak`, or since the start where the backend cannot
        reset it.
        """

    def reset_device_peak(self) -> None:
        """Sets the peak to the memory in use now, where the backend can."""


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
    return importlib.import_module(f"kerascohost.backends.{backend}.program")
