"""What every backend offers: the contract, and what passes through it.

Everything that leans on a private Keras or backend name is in this package, each use with a line
that says why. The rest of kerascohost sees these functions and, per backend, the module that
`get_backend` returns, which offers

- `Program(kind, members)`: the members' steps of one kind, traced into one compiled function;
  calling it with `Work` for some or all of them returns their logs. Where its `is_protected` is
  true, a call that fails leaves all of them as they were before it;
- `StackProgram(kind, members, stack, rows)`: the same for a stack, whose state is in `Rows`, see
  `stacking`;
- `cannot_stack(model)`: why this model can be in no stack, or `None`;
- `stacks_badly(model)`: why models like this one are expected to be slower stacked than joined, or
  `None`;
- `SHUFFLES_BY_GLOBAL_STATE`: whether `fit` draws the order of rows from a global random state, so
  that what a program draws after it depends on how many epochs it trained;
- `COMPILES_PER_SHAPE`: whether a program is compiled again for every new shape;
- `FINALIZES_AFTER_FAILURE`: whether `fit` hands its model over (averaged weights taken up) also
  when it fails or is interrupted, as Keras's does on JAX only;
- `build(model, batch)`: creates what a model, its metrics and its optimizer lack;
- `random_state()`, `set_random_state(state)`: the backend's global random state;
- `row_order(...)`: the order in which `fit` on this backend visits the rows of an array;
- `execution(model)`: how the model's steps run: `"loop"`, many of them in one compiled function,
  `"step"`, each in a call of a compiled function, or `"eager"`, not compiled at all;
- `runs_functions_eagerly()`, `run_functions_eagerly(value)`: whether the backend is set to compile
  nothing at all, for debugging;
- `device_bytes()`: the memory in use on the GPU, and the most that was since `reset_device_peak()`
  (ever, where the backend cannot reset it); `None` without a GPU;
- `eager_step(model, kind, batch)`: one step of the last sort;
- `is_recording()`: whether what this thread computes is traced or recorded, and not only done;
- `COMPILED_FUNCTION`: the class of compiled functions that read variables by references of their
  own, or `None`; `variables_read_by(function)`: the backend's variables that such a one reads.
"""

import dataclasses
import importlib
from types import ModuleType
from typing import Any

import keras

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
        usual: Whether `data` has the shape of the member's first chunk. The last batch of an epoch
            often has not; programs that compile per shape run it apart.
        is_fixed: Whether the data's type says how many rows a batch has: then `fit` on TensorFlow
            traces with that number.
        on_device: Where a program keeps its own form of `data`, so that a chunk that is worked
            through in several calls is transferred once.
    """

    data: Any
    start: int
    stop: int
    usual: bool
    is_fixed: bool = False
    on_device: Any = None


@dataclasses.dataclass
class Work:
    """What a program is to do for one member: take the batches `start` to `stop` of a chunk.

    Attributes:
        begins: Whether the model's metrics have been reset since its last steps.
    """

    chunk: Chunk
    start: int
    stop: int
    begins: bool = False


def get_backend() -> ModuleType:
    """The module of this package for the backend that Keras runs on."""
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax", "torch"):
        raise ImportError(
            "kerascohost runs on the Keras backends 'tensorflow', 'jax' and 'torch'. "
            f"Received: KERAS_BACKEND={backend!r}"
        )
    return importlib.import_module(f"kerascohost.backends.{backend}.program")
