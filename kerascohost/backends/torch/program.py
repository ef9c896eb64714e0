"""Steps on torch, where programs run eagerly."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Never

import keras
import numpy as np
import torch
from keras import tree
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

from kerascohost.backends import symbolic_build
from kerascohost.backends.base import Execution, Logs, StepKind, Thing, Tree
from kerascohost.backends.eager import Program as Program
from kerascohost.backends.row_order import RowOrder

COMPILED_FUNCTION = None
COMPILES_PER_SHAPE = False
SHUFFLES_BY_GLOBAL_STATE = True  # torch's generator
FINALIZES_AFTER_FAILURE = False
concatenated = np.concatenate  # of outputs: `predict` refuses other shapes, too
StackProgram = StackedState = None


def build(model: keras.Model, batch: Tree) -> bool:
    """Creates the variables that the model, its loss, metrics and optimizer still lack.

    Returns:
        Whether `fit` would have taken a batch for this before its first epoch.
    """
    return symbolic_build(model, batch)


def execution(model: keras.Model) -> Execution:
    """Returns `"eager"`; a model's own `torch.compile` setting is followed inside its step."""
    return "eager"


def eager_step(model: keras.Model, kind: StepKind, batch: Tree) -> Logs:
    """Runs one step through the model's own step function; returns the step's logs."""
    model.train(kind == "train")  # torch layers inside the model read this, as in `fit`
    getattr(model, f"make_{kind}_function")()
    convert = keras.ops.convert_to_tensor
    batch = tree.map_structure(lambda a: None if a is None else convert(a), batch)
    return getattr(model, f"{kind}_function")([batch])


def runs_functions_eagerly() -> bool:
    """Returns `False`: kerascohost compiles nothing here that could be run as plain Python."""
    return False


def run_functions_eagerly(value: bool) -> None:
    """Does nothing, see `runs_functions_eagerly`."""


def check_devices(devices: Sequence[Thing]) -> str | None:
    """Returns why the members of a stack cannot be spread over these devices: they never can."""
    return (
        f"Expected `devices` on JAX only, as torch stacks nothing. "
        f"Received: {len(devices)} devices."
    )


def set_to_zero(variables: Sequence[keras.Variable]) -> None:
    """Sets variables, each of which is one number, to zero."""
    for variable in variables:
        variable.assign(0)


def random_state() -> np.ndarray:
    """Returns the state of torch's global generator."""
    return torch.random.get_rng_state().numpy()


def set_random_state(state: np.ndarray) -> None:
    """Sets torch's global generator to a state that `random_state` returned."""
    torch.random.set_rng_state(torch.from_numpy(state))


def row_order(
    num_rows: int, batch_size: int, shuffle: bool | str, owns_state: bool = False
) -> RowOrder:
    """Returns the rows of each coming epoch in the order in which `fit` would visit them.

    `fit` on torch shuffles with torch's global generator, through samplers of a `DataLoader` that
    draw from it too; the same ones are used here. (A validation's `DataLoader` also draws from it
    in `fit`, but not here: with a validation, the order differs from the second epoch on.)
    """
    return _TorchOrder(num_rows, batch_size, shuffle)


class _TorchOrder(RowOrder):
    def __init__(self, num_rows: int, batch_size: int, shuffle: bool | str):
        self._begun = self._own = self._at_epoch = torch.random.get_rng_state()
        self._sampler = functools.partial(_sampler, num_rows, batch_size, shuffle)
        self._rows = torch.arange(num_rows)
        super().__init__(self._visit)

    def __call__(self) -> np.ndarray:
        self._at_epoch = self._own
        with self._own_state():
            return super().__call__()

    def consume_build_draw(self) -> None:
        with self._own_state():
            super().consume_build_draw()

    def advance_global_rng(self, batches: int | None = None) -> None:
        if batches is not None:
            self._own = self._at_epoch
            with self._own_state():
                self.draw_again(batches)
        if torch.equal(self._begun, torch.random.get_rng_state()):
            torch.random.set_rng_state(self._own)

    def _visit(self) -> Iterator[np.ndarray]:
        rows: Tree = self._rows  # a tensor has a dataset's methods
        loader: DataLoader[torch.Tensor] = DataLoader(rows, batch_sampler=self._sampler())
        yield from (batch.numpy() for batch in loader)
        iter(loader)  # `fit` makes the iterator of the next epoch here, which draws a seed

    @contextlib.contextmanager
    def _own_state(self) -> Iterator[None]:
        outside = torch.random.get_rng_state()
        try:
            torch.random.set_rng_state(self._own)
            yield
            self._own = torch.random.get_rng_state()
        finally:
            torch.random.set_rng_state(outside)


def _sampler(num_rows: int, batch_size: int, shuffle: bool | str) -> Sampler[list[int]]:
    if shuffle == "batch":
        return _ShuffledBatches(BatchSampler(range(num_rows), batch_size, drop_last=False))
    return BatchSampler(RandomSampler(range(num_rows)), batch_size, drop_last=False)


class _ShuffledBatches(Sampler[list[int]]):
    """Batches in order, the rows of each batch shuffled."""

    def __init__(self, batches: BatchSampler):
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield [batch[i] for i in torch.randperm(len(batch))]


def is_tracing() -> bool:
    """Returns `False`: steps run eagerly."""
    return False


def is_recording() -> bool:
    """Returns whether gradients are off in this thread: no training can run then."""
    return not torch.is_grad_enabled()


def to_device(array: np.ndarray) -> torch.Tensor:
    """Returns the array as a tensor of its own."""
    return keras.ops.convert_to_tensor(array)


def to_host(tensor: torch.Tensor, rows: slice) -> np.ndarray:
    """Returns rows of a tensor."""
    return keras.ops.convert_to_numpy(tensor[rows])


def free_device_bytes() -> int | None:
    """Returns the free memory of the GPU in bytes; `None` without a GPU."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def device_bytes() -> tuple[int, int] | None:
    """Returns the memory in use on the GPU and its peak, in bytes; `None` without a GPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


def reset_device_peak() -> None:
    """Sets the peak to the memory in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def cannot_stack(model: keras.Model) -> str:
    """Returns the reason why nothing is stacked: steps run eagerly, each by itself."""
    return "steps are not compiled on torch"


def stacks_badly(model: keras.Model) -> None:
    """Returns `None`: nothing is stacked here."""


def variables_read_by(function: Callable[..., Tree]) -> list[Never]:
    """Returns an empty list: no function here reads variables by references of its own."""
    return []
