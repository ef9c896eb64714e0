"""What Keras's models hold and how they compile: private Keras names that several modules use.

Each use has a line that says why the public interface does not do.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.src.backend import compute_output_spec
from keras.src.models.functional import Functional
from keras.src.utils.python_utils import pythonify_logs  # what callbacks' logs go through first

from kerascohost.errors import CohortError


def variables(model: keras.Model) -> list[keras.Variable]:
    """All that training `model` changes: weights, seeds, optimizer variables and metrics."""
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
    """The variables that a training of `model` may change, and what holds each, by identity.

    Left out are those of layers that only `adapt` changes, and the weights of frozen layers, also
    the statistics of a frozen BatchNormalization. Whatever else is not trained (seeds, states,
    counters of a layer's own) may be assigned by a step.

    `_trainable_variables`: the variables that a layer of its own would train if it were not frozen;
    `_non_trainable_variables`: the statistics.
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


def compares_targets(model: keras.Model) -> bool:
    """Whether the model has losses, all of them Keras's own, which compare with targets."""
    losses = [loss for loss in tree.flatten(model.loss) if loss is not None]
    if not losses or overridden(model, "compute_loss"):
        return False
    makers = [loss if hasattr(loss, "__name__") else type(loss) for loss in losses]
    return all(maker is str or is_of_keras(maker) for maker in makers)


def is_of_keras(maker: Any) -> bool:
    """Whether this class or function is Keras's own."""
    return maker.__module__.partition(".")[0] == "keras"


def resets_in_its_own_way(model: keras.Model) -> bool:
    """Whether code of the user's resets a metric, perhaps to what depends on its last value."""
    return bool(overridden(model, "reset_metrics")) or not all(
        is_of_keras(type(metric).reset_state) for metric in with_parts(model.metrics)
    )


def with_parts(metrics: Sequence[Any]) -> list[Any]:
    """Metrics, and those that one of them (`compile`'s metrics) is made of."""
    return [part for m in metrics for part in (m, *with_parts(getattr(m, "metrics", [])))]


def unbuilt_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """The metrics that the model will track once it has seen data.

    `_compile_metrics`, `_user_metrics`, `_user_weighted_metrics`: where `compile` keeps what it was
    given, which only later is among the model's `metrics`.
    """
    metrics = model._compile_metrics
    if metrics is None or metrics.built:
        return []
    given = tree.flatten([metrics._user_metrics, metrics._user_weighted_metrics])
    return [metric for metric in given if isinstance(metric, keras.metrics.Metric)]


def unbuilt_metrics_variables(model: keras.Model) -> list[keras.Variable]:
    """The variables of `unbuilt_metrics(model)`."""
    return [v for metric in unbuilt_metrics(model) for v in metric.variables]


def metrics_not_reset(model: keras.Model) -> list[tuple[keras.Variable, np.ndarray]]:
    """Variables, and their values, that `fit` does not reset before its first epoch.

    On TensorFlow `fit` builds metrics as it traces its first step, and resets what is built. (A
    metric that two models share goes on from where the first one left it.)
    """
    if keras.backend.backend() != "tensorflow":
        return []
    values = [
        (variable, np.array(variable.numpy())) for variable in unbuilt_metrics_variables(model)
    ]
    return [(variable, value) for variable, value in values if value.any()]


def state_bytes(model: keras.Model) -> int:
    """The size of `variables(model)` in bytes."""
    return sum(math.prod(v.shape) * bytes_per_element(v.dtype) for v in variables(model))


def bytes_per_element(dtype: str) -> int:
    """The size of a number of this Keras dtype, in bytes."""
    bits = re.search(r"\d+", dtype)  # of "float32", "bfloat16", "float8_e4m3fn", …; not of "bool"
    return int(bits[0]) // 8 if bits else 1


def distribution(model: keras.Model) -> Any:
    """What distributes the model's training over devices, or `None`.

    `_distribute_strategy`: the public property answers with a default strategy where there is none.
    """
    return getattr(model, "_distribute_strategy", None) or keras.distribution.distribution()


def call_on_symbols(model: keras.Model, inputs: Any) -> None:
    """Calls `model` as in training on `KerasTensor`s, so that nothing is computed or changed.

    `compute_output_spec`: only it goes through every layer's `__call__`; the model's public method
    of that name asks layers for their output shapes where it can.
    """
    compute_output_spec(lambda x: model(x, training=True), inputs)


def compile_stamp(model: keras.Model) -> tuple:
    """Changes whenever `model.compile` is called again.

    `_loss_tracker`: `compile` makes a new one each time, also when it is given the same optimizer.
    """
    optimizer = getattr(model, "optimizer", None)  # a model need not be compiled to predict
    return (optimizer, model._loss_tracker, model.jit_compile, model.run_eagerly)


def check_trainable(model: keras.Model) -> None:
    """Refuses a model of which other variables are trainable than when its optimizer was built.

    On JAX, where `fit` fails for it; on TensorFlow it goes on with those of its first trace.
    `_trainable_variables`: nothing public tells what an optimizer was built for.

    Raises:
        CohortError: With the way out.
    """
    optimizer: Any = getattr(model, "optimizer", None)
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
    """For each trainable variable, whether the optimizer's weight decay includes it.

    `_use_weight_decay`: only it tells, as exclusions are kept by names and by identities.
    """
    optimizer: Any = getattr(model, "optimizer", None)
    if getattr(optimizer, "weight_decay", None) is None or not model.built:
        return ()
    return tuple(map(optimizer._use_weight_decay, model.trainable_variables))


def flat_layers(model: keras.Layer) -> list[keras.Layer]:
    """All layers of a model, those inside of layers too.

    `_flatten_layers`: only it finds them.
    """
    return list(model._flatten_layers())


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """What the model was compiled with, as it was given; nothing for one that only predicts.

    `_compile_config`: the public `get_compile_config` answers with configs, from which functions of
    the user's cannot be made again.
    """
    return dict(model._compile_config.config) if hasattr(model, "_compile_config") else {}


def is_functional(model: keras.Model) -> bool:
    """Whether `model` is a graph of layers, and not of a class of its own.

    `Functional`: the class that `keras.Model(inputs, outputs)` makes has no public name.
    """
    return type(model) is Functional


def is_graph(thing: object) -> bool:
    """Whether `thing` is a graph of layers, perhaps of a class of its own; see `is_functional`."""
    return isinstance(thing, Functional)


def has_own_step(model: keras.Model, kind: str) -> bool:
    """Whether the logs of a step may be anything but the model's metrics."""
    return bool(overridden(model, f"{kind}_step", "compute_metrics", "get_metrics_result"))


def overridden(model: keras.Model, *names: str) -> list[str]:
    """Those of Keras's methods that the model has in a form of its own."""
    return [
        name
        for name in names
        if getattr(type(model), name) is not getattr(keras.Model, name) or name in vars(model)
    ]


def check_logs(logs: Any) -> None:
    """Raises what `fit` raises of a step's logs that it does not take."""
    pythonify_logs(logs)


def first_epoch(model: keras.Model, initial_epoch: int) -> int:
    """`initial_epoch`, unless a callback such as BackupAndRestore has found a later one.

    `_initial_epoch`: the attribute through which `BackupAndRestore` hands its epoch to `fit`.
    """
    return model._initial_epoch or initial_epoch


def builds_before_epochs() -> bool:
    """Whether `fit` builds a model before its first epoch; on TensorFlow it does while it traces.

    There, a `fit` without an epoch left builds nothing and draws no weights.
    """
    return keras.backend.backend() != "tensorflow"


def reads_to_build(model: keras.Model) -> bool:
    """Whether `fit` takes a batch, which it drops, to build the model before its first epoch.

    `_compile_metrics`, `_compile_loss`: what `_symbolic_build` looks at to find out whether it
    needs one.
    """
    if not builds_before_epochs():
        return False
    compiled = [part for part in (model._compile_metrics, model._compile_loss) if part is not None]
    return not (is_built(model) and all(part.built for part in compiled))


def is_built(model: keras.Model) -> bool:
    """Whether the model and all layers in it are built; `_flatten_layers`: only it finds them."""
    return all(layer.built for layer in model._flatten_layers())


def reads_to_predict(model: keras.Model) -> bool:
    """Whether `predict` takes a batch, which it drops, to build the model before it begins.

    On JAX it looks at that.
    """
    return keras.backend.backend() == "jax" and not is_built(model)


def seed_counts(model: keras.Model) -> dict[int, Any]:
    """How far the model's seed generators have come, where `step_without_data` will ask for it."""
    if keras.backend.backend() != "tensorflow" or model.run_eagerly or model.jit_compile:
        return {}
    return {id(seed): seed.numpy() for seed in _seeds(model)}


def _seeds(model: keras.Model) -> list[keras.Variable]:
    return [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]


def step_without_data(model: keras.Model, counted: dict[int, Any], steps: int) -> None:
    """Does what a step of `fit` on TensorFlow does while it finds out that the data has ended.

    Its one compiled function asks for a batch and, as nothing in them depends on it, decays the
    weights, moves on what the optimizer keeps beside its slots (Nadam's product) and counts the
    iteration and the draws of the seed generators. (With XLA, eagerly, and with several steps per
    execution, the batch comes first. What an optimizer that accumulates gradients comes to do is a
    matter of time: here, nothing.) Only steps that all draw equally often can be counted on.

    `_apply_weight_decay`, `_backend_update_step`: the public `apply` does a whole step.

    Args:
        model: The model.
        counted: The `seed_counts` before the epoch.
        steps: The number of steps since.
    """
    skipped = model.run_eagerly or model.jit_compile or model.steps_per_execution > 1
    if keras.backend.backend() != "tensorflow" or skipped or not model.trainable_variables:
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


def logs_without_steps(model: keras.Model, before: Any) -> Any:
    """The logs of an epoch that found no data: `fit` looks at those of the epoch `before` again."""
    if keras.backend.backend() == "jax" or has_own_step(model, "train"):
        return before
    return model.get_metrics_result()


def symbolic_build(model: keras.Model, batch: object) -> bool:
    """Creates the variables of a model, its loss, metrics and optimizer from one batch.

    `_symbolic_build`: what `fit` itself calls on JAX and torch; the public `build` knows nothing of
    losses, metrics and optimizers.

    Returns:
        Whether the batch was needed.
    """
    needed = reads_to_build(model)
    model._symbolic_build(data_batch=batch)
    return needed


def callbacks_in(given: Any) -> list[Any]:
    """The callbacks in what `fit` takes for them: a list, one, a `CallbackList`, or nothing."""
    if isinstance(given, keras.callbacks.CallbackList):
        return list(given.callbacks)
    return tree.flatten(given) if given else []


def parts(model: keras.Model) -> list:
    """The objects through which a fit of `model` and one of another model can meet.

    `_flatten_layers`: only it finds layers inside layers. Layers that never have weights (as the
    `InputLayer` that two models begin with) may be shared freely.
    """
    layers = [layer for layer in model._flatten_layers() if layer.variables or not layer.built]
    optimizer = getattr(model, "optimizer", None)
    metrics = unbuilt_metrics(model)
    optimizers = [] if optimizer is None else [optimizer]
    return [*layers, *variables(model), *metrics, *unbuilt_metrics_variables(model), *optimizers]


def flat_results(model: keras.Model, logs: dict) -> object:
    """`logs` as `evaluate` returns them without `return_dict`.

    `_flatten_metrics_in_order`: the order is the order of the model's metrics, known only there.
    """
    return model._flatten_metrics_in_order(logs)
