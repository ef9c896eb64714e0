"""Private Keras names that several modules use: the state of models, and how they compile.

Each use has a line that says why the public interface is not enough.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
from keras import tree
from keras.src.backend import compute_output_spec
from keras.src.models.functional import Functional
from keras.src.trainers.compile_utils import CompileMetrics  # what `compile` makes of metrics
from keras.src.utils.python_utils import pythonify_logs  # what callbacks' logs go through first

from kerascohost.arguments import Callbacks
from kerascohost.backends.base import Logs, StepKind, Tree, get_backend
from kerascohost.errors import CohortError

if TYPE_CHECKING:
    import tensorflow as tf

    _Distribution: TypeAlias = (
        keras.distribution.DataParallel | keras.distribution.ModelParallel | tf.distribute.Strategy
    )


def variables(model: keras.Model) -> list[keras.Variable]:
    """Returns all that training `model` changes: weights, seeds, optimizer variables, metrics."""
    optimizer = getattr(model, "optimizer", None)
    found = [
        *model.variables,
        *model.metrics_variables,
        *(optimizer.variables if optimizer else []),
    ]
    return list({id(variable): variable for variable in found}.values())


# Layers of Keras's own whose variables `adapt` alone changes.
_ADAPTED = (
    keras.layers.Discretization,
    keras.layers.Normalization,
    keras.layers.StringLookup,
    keras.layers.IntegerLookup,
    keras.layers.TextVectorization,
)


def changed_variables(model: keras.Model) -> dict[int, tuple[str, keras.Variable]]:
    """Returns the variables that a training of `model` may change.

    Left out are those of layers that only `adapt` changes, the weights of frozen layers, and the
    statistics of a frozen BatchNormalization. Other variables that are not trained (seeds, states,
    counters of a user's layer) are included, as a step may assign them.

    `_trainable_variables`: the variables that a layer would train if it were not frozen;
    `_non_trainable_variables`: the statistics.

    Returns:
        By the `id` of each variable: a phrase that says what it belongs to, and the variable.
    """
    found = {id(v): ("of the model", v) for v in variables(model)}
    for layer in flat_layers(model):
        steady: list[keras.Variable] = []
        if type(layer) in _ADAPTED:
            steady = layer.variables
        elif not layer.trainable:
            steady = list(layer._trainable_variables)
            if type(layer) is keras.layers.BatchNormalization:
                steady += layer._non_trainable_variables
        for variable in [*layer._trainable_variables, *layer._non_trainable_variables]:
            found[id(variable)] = (f"of the layer {layer.name!r}", variable)
        for variable in steady:
            found.pop(id(variable), None)
    for metric in with_parts(model.metrics):
        found |= {id(v): (f"of the metric {metric.name!r}", v) for v in metric.variables}
    return found


def changed_by_steps(model: keras.Model, kind: StepKind) -> set[int]:
    """Returns the `id`s of what steps of this kind may change, see `with_values`.

    Without training, these are the metrics of a test, and what layers of the user's and those that
    are stateful hold themselves, but for weights.

    `_non_trainable_variables`: as in `changed_variables`; `_seed_generators`: no list is public.
    """
    changed = [variable for _, variable in changed_variables(model).values()]
    if kind == "train" or has_own_step(model, kind):
        return with_values(changed)
    found = list(model.metrics_variables) if kind == "test" else []
    for layer in flat_layers(model):
        if not is_of_keras(type(layer)) or getattr(layer, "stateful", False):
            found += layer._non_trainable_variables
            found += [generator.state for generator in layer._seed_generators]
    return with_values(changed) & with_values(found)


def with_values(variables: Sequence[keras.Variable]) -> set[int]:
    """Returns the `id`s of variables, and of the backend's that TensorFlow's functions read.

    `_value`: the backend's variable.
    """
    values = [v._value for v in variables] if get_backend().COMPILED_FUNCTION is not None else []
    return {*map(id, variables), *map(id, values)}


def compares_targets(model: keras.Model) -> bool:
    """Returns whether the model has losses, all of them Keras's own, which compare with targets."""
    losses = [loss for loss in tree.flatten(model.loss) if loss is not None]
    if not losses or overridden(model, "compute_loss"):
        return False
    makers = [loss if hasattr(loss, "__name__") else type(loss) for loss in losses]
    return all(maker is str or is_of_keras(maker) for maker in makers)


def is_of_keras(maker: type | FunctionType) -> bool:
    """Returns whether this class or function is Keras's own."""
    return maker.__module__.partition(".")[0] == "keras"


def resets_in_its_own_way(model: keras.Model) -> bool:
    """Returns whether the user's code resets a metric, perhaps depending on its last value."""
    return bool(overridden(model, "reset_metrics")) or not all(
        is_of_keras(type(metric).reset_state) for metric in with_parts(model.metrics)
    )


def with_parts(metrics: Sequence[keras.metrics.Metric]) -> list[keras.metrics.Metric]:
    """Returns metrics, and those that one of them (`compile`'s metrics) is made of."""
    return [part for m in metrics for part in (m, *with_parts(getattr(m, "metrics", [])))]


def unbuilt_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Returns the metrics that the model will track once it has seen data.

    `_compile_metrics`, `_user_metrics`, `_user_weighted_metrics`: where `compile` stores what it
    was given, which is among the model's `metrics` only later.
    """
    metrics = model._compile_metrics
    if metrics is None or metrics.built:
        return []
    given = tree.flatten([metrics._user_metrics, metrics._user_weighted_metrics])
    return [metric for metric in given if isinstance(metric, keras.metrics.Metric)]


def runs_code_between_steps(model: keras.Model) -> bool:
    """Returns whether code that is not Keras's may run for the model between its compiled steps."""
    metrics = with_parts([*model.metrics, *unbuilt_metrics(model)])
    parts = [model, *metrics, getattr(model, "optimizer", None)]
    is_own = all(part is None or is_of_keras(type(part)) for part in parts)
    return not is_own or bool(overridden(model, "reset_metrics", "get_metrics_result"))


def unbuilt_metrics_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of `unbuilt_metrics(model)`."""
    return [v for metric in unbuilt_metrics(model) for v in metric.variables]


def builds_metrics_late(model: keras.Model) -> bool:
    """Returns whether `fit` builds the metrics given to `compile` in its first step only.

    It does so on TensorFlow, as it traces that step. (So a metric that two models share goes on in
    the first epoch from the value that the first one left.)
    """
    metrics = model._compile_metrics
    return keras.backend.backend() == "tensorflow" and metrics is not None and not metrics.built


def reset_built_metrics(model: keras.Model) -> None:
    """Resets the metrics as if those given to `compile` were not built, see `builds_metrics_late`.

    `_compile_metrics`: no public attribute has the metrics as one, and says whether they are built.
    """
    metrics = model._compile_metrics
    metrics.built = False
    try:
        model.reset_metrics()
    finally:
        metrics.built = True


def reset_metrics(model: keras.Model) -> None:
    """Resets the model's metrics as its `reset_metrics`: Keras's sums and means by one call.

    `assign` converts and checks each value, which with many small models takes longer than a step.
    """
    if not resets_to_zero(model):
        model.reset_metrics()
        return
    parts = with_parts(model.metrics)
    get_backend().set_to_zero([variable for part in parts for variable in part.variables])


def resets_to_zero(model: keras.Model) -> bool:
    """Returns whether to reset the model's metrics is to set their variables to zero."""
    parts = with_parts(model.metrics)
    return not overridden(model, "reset_metrics") and all(map(_is_sum, parts))


def _is_sum(metric: keras.metrics.Metric) -> bool:
    """Returns whether resetting the metric sets its variables, which are numbers, to zero.

    A `CompileMetrics` resets the metrics that it is made of, which are among the parts, too.
    """
    if "reset_state" in vars(metric):
        return False
    kinds = (keras.metrics.Mean, keras.metrics.Sum, CompileMetrics)
    kind = next((kind for kind in kinds if isinstance(metric, kind)), None)
    return kind is not None and type(metric).reset_state is kind.reset_state


def state_bytes(model: keras.Model) -> int:
    """Returns the size of `variables(model)` in bytes."""
    return sum(math.prod(v.shape) * bytes_per_element(v.dtype) for v in variables(model))


def bytes_per_element(dtype: str) -> int:
    """Returns the size of a number of this Keras dtype, in bytes."""
    bits = re.search(r"\d+", dtype)  # of "float32", "bfloat16", "float8_e4m3fn", …; not of "bool"
    return int(bits[0]) // 8 if bits else 1


def distribution(model: keras.Model) -> "_Distribution | None":
    """Returns what distributes the model's training over devices, or `None`.

    `_distribute_strategy`: the public property returns a default strategy where there is none.
    """
    return getattr(model, "_distribute_strategy", None) or keras.distribution.distribution()


def call_on_symbols(model: keras.Model, inputs: Tree) -> None:
    """Calls `model` as in training on `KerasTensor`s, so that nothing is computed or changed.

    `compute_output_spec`: only it goes through every layer's `__call__`; the model's public method
    of that name asks layers for their output shapes where it can.

    Args:
        model: The model.
        inputs: Its inputs, as `KerasTensor`s.
    """
    compute_output_spec(lambda x: model(x, training=True), inputs)


def compile_stamp(
    model: keras.Model,
) -> tuple[keras.optimizers.Optimizer | None, keras.metrics.Metric, bool, bool]:
    """Returns a tuple that differs after each call of `model.compile`.

    `_loss_tracker`: `compile` makes a new one each time, also when it is given the same optimizer.
    """
    optimizer = getattr(model, "optimizer", None)  # a model need not be compiled to predict
    return (optimizer, model._loss_tracker, model.jit_compile, model.run_eagerly)


def check_trainable(model: keras.Model) -> None:
    """Raises if other variables are trainable than when the model's optimizer was built.

    Only on JAX, where `fit` fails then; on TensorFlow `fit` still trains those of its first trace.
    `_trainable_variables`: no public attribute has the variables that an optimizer was built for.

    Raises:
        CohortError: If so; the message says what to do.
    """
    optimizer = getattr(model, "optimizer", None)
    if keras.backend.backend() != "jax" or not getattr(optimizer, "built", False):
        return
    known = getattr(optimizer, "_trainable_variables", None)
    trainable = model.trainable_variables
    if known is not None and list(map(id, known)) != list(map(id, trainable)):
        raise CohortError(
            f"Expected the {len(known)} trainable variables that the optimizer was built for. "
            f"Received: {len(trainable)}, as a `trainable` was changed since. `compile` the model "
            "again, with a new optimizer."
        )


def decayed(model: keras.Model) -> tuple[bool, ...]:
    """Returns for each trainable variable whether the optimizer's weight decay includes it.

    `_use_weight_decay`: only it tells, as exclusions are stored by names and by identities.

    Returns:
        The flags in the order of `model.trainable_variables`; none without weight decay.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or getattr(optimizer, "weight_decay", None) is None or not model.built:
        return ()
    return tuple(map(optimizer._use_weight_decay, model.trainable_variables))


# Convolutions over images, volumes and films.
IMAGE_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3D,
    keras.layers.Conv3DTranspose,
    keras.layers.ConvLSTM1D,
    keras.layers.ConvLSTM2D,
    keras.layers.ConvLSTM3D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)

# These, and those over sequences.
CONVOLUTIONS = (
    *IMAGE_CONVOLUTIONS,
    keras.layers.Conv1D,
    keras.layers.Conv1DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.SeparableConv1D,
)


def flat_layers(model: keras.Layer) -> list[keras.Layer]:
    """Returns all layers of a model, also those inside layers.

    `_flatten_layers`: only it finds them.
    """
    return list(model._flatten_layers())


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns the arguments of `compile` as they were given; none for a model that only predicts.

    `_compile_config`: the public `get_compile_config` returns configs, from which the user's
    functions cannot be made again.
    """
    return dict(model._compile_config.config) if hasattr(model, "_compile_config") else {}


def is_functional(model: keras.Model) -> bool:
    """Returns whether `model` is a graph of layers, and not of a subclass.

    `Functional`: the class that `keras.Model(inputs, outputs)` makes has no public name.
    """
    return type(model) is Functional


def is_graph(thing: object) -> bool:
    """Returns whether `thing` is a graph of layers, also of a subclass; see `is_functional`."""
    return isinstance(thing, Functional)


def has_own_step(model: keras.Model, kind: StepKind) -> bool:
    """Returns whether the logs of a step may be something else than the model's metrics."""
    return bool(overridden(model, f"{kind}_step", "compute_metrics", "get_metrics_result"))


def overridden(model: keras.Model, *names: str) -> list[str]:
    """Returns which of these methods the model has replaced, in its class or on itself."""
    return [
        name
        for name in names
        if getattr(type(model), name) is not getattr(keras.Model, name) or name in vars(model)
    ]


def check_logs(logs: Logs) -> None:
    """Raises what `fit` raises if it does not accept a step's logs."""
    pythonify_logs(logs)


def first_epoch(model: keras.Model, initial_epoch: int) -> int:
    """Returns the epoch to begin with: that of a callback such as BackupAndRestore, if any.

    `_initial_epoch`: the attribute through which `BackupAndRestore` passes its epoch to `fit`.

    Args:
        model: The model.
        initial_epoch: The argument of `fit`, returned where no callback has set an epoch.
    """
    return model._initial_epoch or initial_epoch


def builds_before_epochs() -> bool:
    """Returns whether `fit` builds a model before its first epoch.

    On TensorFlow it builds as it traces: a `fit` with no epoch left builds and draws no weights.
    """
    return keras.backend.backend() != "tensorflow"


def reads_after_hooks() -> bool:
    """Returns whether `fit` calls `on_train_batch_begin` before it looks for the batch.

    Where data of unknown length ends, the hook is then also called for the batch that is missing.
    """
    return keras.backend.backend() != "torch"


def reads_to_build(model: keras.Model) -> bool:
    """Returns whether `fit` takes a batch, which it drops, to build before its first epoch.

    `_compile_metrics`, `_compile_loss`: by these `_symbolic_build` decides whether it needs one.
    """
    if not builds_before_epochs():
        return False
    compiled = [part for part in (model._compile_metrics, model._compile_loss) if part is not None]
    return not (is_built(model) and all(part.built for part in compiled))


def is_built(model: keras.Model) -> bool:
    """Returns whether the model and all its layers are built; `_flatten_layers` finds them."""
    return all(layer.built for layer in model._flatten_layers())


def reads_to_predict(model: keras.Model) -> bool:
    """Returns whether `predict` takes a batch, which it drops, to build the model: on JAX only."""
    return keras.backend.backend() == "jax" and not is_built(model)


def seed_counts(model: keras.Model) -> dict[int, np.ndarray]:
    """Returns the states of the model's seed generators by `id`, for `step_without_data`.

    Empty where that function does not need them.
    """
    if keras.backend.backend() != "tensorflow" or model.run_eagerly or model.jit_compile:
        return {}
    return {id(seed): seed.numpy() for seed in _seeds(model)}


def _seeds(model: keras.Model) -> list[keras.Variable]:
    return [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]


def step_without_data(
    model: keras.Model,
    kind: StepKind,
    counted: dict[int, np.ndarray],
    steps: int,
    rows: int | None,
    is_weighted: bool,
) -> None:
    """Does what a step of `fit` on TensorFlow does while it finds out that the data has ended.

    Parts of its compiled function do not depend on the batch, and run although there is none: it
    decays the weights, updates the scalars of the optimizer (Nadam's product), and counts the
    iteration, the draws of the seed generators, and rows in mean metrics. (With XLA, eagerly, and
    with several steps per execution, the batch is read first and nothing else runs. With gradient
    accumulation it depends on timing; here nothing of the optimizer runs.) Draws are right only if
    all steps draw equally often.

    `_apply_weight_decay`, `_backend_update_step`: the public `apply` does a whole step.

    Args:
        model: The model.
        kind: Whether it is trained or tested.
        counted: The `seed_counts` before the epoch.
        steps: The number of steps since.
        rows: The rows of each batch, if the data's type says them.
        is_weighted: Whether the batches have weights.
    """
    skipped = model.run_eagerly or model.jit_compile or model.steps_per_execution > 1
    if keras.backend.backend() != "tensorflow" or skipped:
        return
    for metric in _counting_without_data(model, kind, rows, is_weighted):
        metric.count.assign_add(rows or 1)
    if kind != "train" or not model.trainable_variables:
        return
    optimizer = model.optimizer
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if optimizer is not None and not scales and not optimizer.gradient_accumulation_steps:
        optimizer._apply_weight_decay(model.trainable_variables)
        optimizer._backend_update_step([], [], optimizer.learning_rate)
        optimizer.iterations.assign_add(1)
    for seed in _seeds(model):
        drawn = seed.numpy() - counted.get(id(seed), seed.numpy())
        seed.assign_add(drawn // steps)


def counts_rows_by_type(model: keras.Model) -> bool:
    """Returns whether metrics of the model depend on whether the data's type says a batch's rows.

    `_compile_loss`: its metrics of single outputs count a batch as one row if it does not.
    """
    return model._compile_loss is not None and bool(model._compile_loss.metrics)


def _counting_without_data(
    model: keras.Model, kind: StepKind, rows: int | None, is_weighted: bool
) -> Iterator[keras.metrics.Mean]:
    """Yields the metrics whose number of rows does not depend on a batch.

    `_compile_loss`, whose metrics count each batch as one row where its rows are not known;
    `_loss_tracker`; `_flat_metrics` and `_flat_weighted_metrics` of `_compile_metrics`, as those
    that are weighted count weights.
    """
    if model._compile_loss is not None:
        yield from model._compile_loss.metrics
    if rows is None or has_own_step(model, kind):
        return
    yield model._loss_tracker
    compiled = model._compile_metrics
    if compiled is None or not compiled.built:
        return
    listed = [*compiled._flat_metrics, *([] if is_weighted else compiled._flat_weighted_metrics)]
    for metric in itertools.chain(*(one.metrics for one in listed if one is not None)):
        if isinstance(metric, keras.metrics.Mean):
            yield metric


def logs_without_steps(model: keras.Model, before: Logs) -> Logs:
    """Returns the logs of an epoch that found no data.

    Args:
        model: The model.
        before: The logs of the epoch before, which `fit` on JAX reports again.
    """
    if keras.backend.backend() == "jax" or has_own_step(model, "train"):
        return before
    return model.get_metrics_result()


def symbolic_build(model: keras.Model, batch: Tree) -> bool:
    """Creates the variables of a model, its loss, metrics and optimizer from one batch.

    `_symbolic_build`: `fit` itself calls it on JAX and torch; the public `build` leaves out losses,
    metrics and optimizers.

    Returns:
        Whether the batch was needed.
    """
    needed = reads_to_build(model)
    model._symbolic_build(data_batch=batch)
    return needed


def callbacks_in(given: Callbacks) -> list[keras.callbacks.Callback]:
    """Returns the callbacks in the argument of `fit`: a list, one, a `CallbackList`, or `None`."""
    if isinstance(given, keras.callbacks.CallbackList):
        return list(given.callbacks)
    return tree.flatten(given) if given else []


def parts(
    model: keras.Model,
) -> list[keras.Layer | keras.Variable | keras.metrics.Metric | keras.optimizers.Optimizer]:
    """Returns the objects by which a fit of `model` depends on fits of models that share them.

    Layers that never have weights (as the `InputLayer` that two models begin with) are left out.
    `_flatten_layers`: only it finds layers inside layers.
    """
    layers = [layer for layer in model._flatten_layers() if layer.variables or not layer.built]
    optimizer = getattr(model, "optimizer", None)
    metrics = unbuilt_metrics(model)
    optimizers = [] if optimizer is None else [optimizer]
    return [*layers, *variables(model), *metrics, *unbuilt_metrics_variables(model), *optimizers]


def flat_results(model: keras.Model, logs: dict[str, float]) -> float | list[float]:
    """Returns `logs` as `evaluate` does without `return_dict`: a list, or one number alone.

    `_flatten_metrics_in_order`: the order is the order of the model's metrics, known only there.
    """
    return model._flatten_metrics_in_order(logs)
