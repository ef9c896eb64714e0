"""Random numbers of programs with deferred fits, drawn in the order of the program."""

import itertools
import math
import types
from collections.abc import Iterator

import keras

from kerascohost import backends, errors
from kerascohost.arguments import FitArguments
from kerascohost.backends import adapters
from kerascohost.backends.random_states import RandomStates
from kerascohost.backends.row_order import RowOrder
from kerascohost.tracing.reads import names_of


def advance(model: keras.Model, arguments: FitArguments, is_built: bool = False) -> RandomStates:
    """Moves the global random state to where a training of all epochs would leave it.

    This covers shuffled arrays, where `fit` shuffles by a global state (NumPy's on JAX, torch's on
    torch), and the shuffled batches of a `PyDataset` (by Python's state).

    Args:
        model: The model.
        arguments: All arguments of its `fit`.
        is_built: Whether an earlier fit, which is deferred too, will have built the model.

    Returns:
        The new state, see `backends.random_state`.
    """
    order, steps = _order(arguments) if _are_valid(arguments) else (None, 0)
    if order is not None:
        if backends.reads_to_build(model) and not is_built:
            order.consume_build_draw()
        epochs = arguments["epochs"] - arguments["initial_epoch"]
        per_epoch = arguments["steps_per_epoch"] or 0
        executions = math.ceil(per_epoch / model.steps_per_execution)  # `fit` runs whole ones
        passes, last = _passes(epochs, steps, executions * model.steps_per_execution)
        for _ in range(passes):
            order()
        order.advance_global_rng(last if last < steps else None)
    return backends.random_state()


def _order(arguments: FitArguments) -> tuple[RowOrder | None, int]:
    """Returns what draws the order of each pass over the data, and the steps in a pass.

    The first is `None` if nothing is drawn, or if it is not known what is drawn.
    """
    backend = backends.get_backend()
    x, y, weights = arguments["x"], arguments["y"], arguments["sample_weight"]
    shuffle = arguments["shuffle"]
    if shuffle and isinstance(x, keras.utils.PyDataset):
        return adapters.batch_order(x), x.num_batches or 0
    if shuffle and backend.SHUFFLES_BY_GLOBAL_STATE and adapters.are_arrays((x, y, weights)):
        split, validation = arguments["validation_split"], arguments["validation_data"]
        rows = adapters.num_rows((x, y, weights), split, validation)
        size = arguments["batch_size"] or 32
        return backend.row_order(rows, size, shuffle), -(-rows // size)
    return None, 0


def _are_valid(arguments: FitArguments) -> bool:
    """Returns whether a training could begin with these; if not, it will raise itself."""
    counts = [arguments["epochs"], arguments["initial_epoch"]]
    optional = [arguments["batch_size"], arguments["steps_per_epoch"]]
    return (
        arguments["x"] is not None
        and all(map(errors.is_count, counts))
        and all(value is None or errors.is_count(value, least=1) for value in optional)
    )


def _passes(epochs: int, steps: int, steps_per_epoch: int) -> tuple[int, int]:
    """Returns how many times the rows are shuffled, and how many steps the last time serves.

    With `steps_per_epoch` an epoch may begin in the middle of a pass over the rows.
    """
    if not steps_per_epoch:
        return max(0, epochs), steps
    passes, position = 0, steps
    for _ in range(epochs):
        if position >= steps:
            passes, position = passes + 1, 0
        position += steps_per_epoch
    return passes, position


def may_end_early(model: keras.Model, arguments: FitArguments) -> bool:
    """Returns whether a callback, or the model, has code that can end a training early."""
    return any(
        not {"stop_training", "_initial_epoch"}.isdisjoint(names_of(code).attributes)
        for thing in [*backends.callbacks_in(arguments["callbacks"]), model]
        for code in _own_code(thing)
    )


def _own_code(thing: keras.callbacks.Callback | keras.Model) -> Iterator[types.CodeType]:
    """Yields the code of an object's methods, without those of Keras's base classes.

    For a callback, also that of functions in its attributes.
    """
    bases = (keras.callbacks.Callback, *keras.Model.__mro__, keras.Sequential)
    kinds = [kind for kind in type(thing).__mro__ if kind not in bases]
    own = list(vars(thing).values()) if isinstance(thing, keras.callbacks.Callback) else []
    for value in itertools.chain(own, *(vars(kind).values() for kind in kinds)):
        function = getattr(value, "__func__", value)
        if isinstance(function, types.FunctionType):
            yield function.__code__
