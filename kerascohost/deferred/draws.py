"""Random numbers around deferred fits: the program and its fits draw them in the order written."""

import itertools
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from kerascohost import backends, errors
from kerascohost.backends import adapters
from kerascohost.tracing.reads import names_of


def advance(model: keras.Model, arguments: Mapping[str, Any], is_built: bool = False) -> bytes:
    """Moves the global random state to where a training of all its epochs would leave it.

    Followed are shuffled arrays, where `fit` shuffles by the global state (on JAX by NumPy's, on
    torch by its own), and the shuffled batches of a `PyDataset` (by Python's).

    Args:
        model: The model.
        arguments: All arguments of its `fit`.
        is_built: Whether it will have been built before this `fit`, by one that is deferred, too.

    Returns:
        The state, see `backends.random_state`.
    """
    order, steps = _order(arguments) if _are_valid(arguments) else (None, 0)
    if order is not None:
        if backends.reads_to_build(model) and not is_built:
            order.consume_build_draw()
        epochs = arguments["epochs"] - arguments["initial_epoch"]
        per_epoch = arguments["steps_per_epoch"] or 0
        executions = math.ceil(per_epoch / model.steps_per_execution)  # `fit` runs whole ones
        for _ in range(_passes(epochs, steps, executions * model.steps_per_execution)):
            order()
        order.advance_global_rng()
    return backends.random_state()


def _order(arguments: Mapping[str, Any]) -> tuple[Any, int]:
    """What draws the order of each pass over the data, if that can be followed; steps in a pass."""
    backend = backends.get_backend()
    x, y, weights = (arguments[key] for key in ("x", "y", "sample_weight"))
    shuffle = arguments["shuffle"]
    if shuffle and isinstance(x, keras.utils.PyDataset):
        return adapters.batch_order(x), x.num_batches or 0
    if shuffle and backend.SHUFFLES_BY_GLOBAL_STATE and adapters.are_arrays((x, y, weights)):
        rows = adapters.num_rows(x, arguments["validation_split"], arguments["validation_data"])
        size = arguments["batch_size"] or 32
        return backend.row_order(rows, size, shuffle), -(-rows // size)
    return None, 0


def _are_valid(arguments: Mapping[str, Any]) -> bool:
    """Whether a training could begin with these; if not, it will say so itself."""
    counts = [arguments[key] for key in ("epochs", "initial_epoch")]
    optional = [arguments[key] for key in ("batch_size", "steps_per_epoch")]
    return (
        arguments["x"] is not None
        and all(map(errors.is_count, counts))
        and all(value is None or errors.is_count(value, least=1) for value in optional)
    )


def _passes(epochs: int, steps: int, steps_per_epoch: int) -> int:
    """How many times the rows are shuffled: with `steps_per_epoch` an epoch goes on in a pass."""
    if not steps_per_epoch:
        return max(0, epochs)
    passes, position = 0, steps
    for _ in range(epochs):
        if position >= steps:
            passes, position = passes + 1, 0
        position += steps_per_epoch
    return passes


def may_end_early(model: keras.Model, arguments: Mapping[str, Any]) -> bool:
    """Whether a callback, or the model itself, mentions what ends a training before its epochs."""
    return any(
        not {"stop_training", "_initial_epoch"}.isdisjoint(names_of(code).attributes)
        for thing in [*backends.callbacks_in(arguments["callbacks"]), model]
        for code in _own_code(thing)
    )


def _own_code(thing: Any) -> Iterator[types.CodeType]:
    """The code of an object's methods, and of functions that it holds; not of Keras's bases."""
    bases = (keras.callbacks.Callback, *keras.Model.__mro__, keras.Sequential)
    kinds = [kind for kind in type(thing).__mro__ if kind not in bases]
    held = list(vars(thing).values()) if isinstance(thing, keras.callbacks.Callback) else []
    for value in itertools.chain(held, *(vars(kind).values() for kind in kinds)):
        function = getattr(value, "__func__", value)
        if isinstance(function, types.FunctionType):
            yield function.__code__
