"""Copies of a model, with initial weights and hyperparameters of their own."""

import inspect
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set

import keras
import numpy as np
from keras import tree

from kerascohost import backends, errors
from kerascohost.arguments import Argument
from kerascohost.backends import seeding
from kerascohost.errors import CohortError


def clones(
    model: keras.Model | Callable[..., keras.Model],
    n: int,
    seed: int | None = None,
    **overrides: Sequence[Argument],
) -> list[keras.Model]:
    """Makes compiled copies of a model, each with fresh initial weights, for ensembles and sweeps.

    Clone `i` of a `seed` is always the same model, however many are made. Layers that are frozen
    (`trainable=False`) or adapted to data (`Normalization`) keep their weights; the optimizers
    begin anew.

    Args:
        model: A compiled `keras.Model` that can be made from its config; or a function that builds
            one, which is then called `n` times.
        n: An integer of at least 1, the number of clones.
        seed: An integer that makes the initial weights and the random numbers of the layers
            (`Dropout`) reproducible. Default `None`: other ones at each call.
        **overrides: For each hyperparameter a sequence of `n` values. It is named as in the config
            of the optimizer (`learning_rate`, `weight_decay`, …), the loss (`label_smoothing`) or,
            for all layers that have it, the layers (`rate`, `units`) and their regularizers (`l2`).
            A function that builds models is called with those of them that it has arguments for.

    Returns:
        A list of the clones: `keras.Model`s named after the model or the function, with a number.

    Raises:
        CohortError: If `n` is not a positive integer, a sequence does not have `n` values, the
            model is not compiled or cannot be copied, nothing in it has the name of an override, or
            a function returns one model twice.

    Example:

    >>> import keras
    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    >>> net.compile("adam", loss="mse")
    >>> [round(float(c.optimizer.learning_rate), 4)
    ...     for c in clones(net, 3, seed=0, learning_rate=[1e-2, 1e-3, 1e-4])]
    [0.01, 0.001, 0.0001]
    """
    _check_overrides(n, overrides)
    in_order = {name: list(values) for name, values in overrides.items()}
    made: list[keras.Model] = []
    for i, sequence in enumerate(_seed_sequence(seed).spawn(n)):
        own = {name: values[i] for name, values in in_order.items()}
        seeds = _Seeds(sequence)
        if isinstance(model, keras.Model):
            clone = _copy(model, own, seeds)
        else:
            clone = _built(model, own, seeds)
            if any(clone is other for other in made):
                raise CohortError(
                    "Expected a function that builds a new model at each call. Received: "
                    f"{clone.name!r} twice. To copy a model, give it itself: kc.clones(model, n)."
                )
        made.append(clone)
    for i, clone in enumerate(made):  # only now, as a function may return a model of the user's
        clone.name = f"{_name(model, clone)}_{i}"
    return made


def _name(model: keras.Model | Callable[..., keras.Model], clone: keras.Model) -> str:
    """Returns the name of the model or the function, else that of the clone."""
    if isinstance(model, keras.Model):
        return model.name
    name = getattr(model, "__name__", "")
    if name == "<lambda>":
        return clone.name
    # TensorFlow makes scopes of the names of models, in which it allows no other characters.
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip("_.-") or clone.name


def _seed_sequence(seed: int | None) -> np.random.SeedSequence:
    try:
        return np.random.SeedSequence(seed)
    except (TypeError, ValueError) as error:
        raise CohortError(
            "Expected `seed` to be an integer that is not negative, or None. "
            f"Received: seed={seed!r}."
        ) from error


def _check_overrides(n: int, overrides: Mapping[str, Sequence[Argument]]) -> None:
    if not isinstance(n, int) or n < 1:
        raise CohortError(f"Expected `n` to be a positive integer. Received: n={n!r}")
    for name, values in overrides.items():
        is_sequence = hasattr(values, "__len__") and not isinstance(values, (str, Mapping, Set))
        if not is_sequence or len(values) != n:
            raise CohortError(
                f"Expected `{name}` to be a sequence of {n} values, one for each clone. "
                f"Received: {name}={values!r}"
            )


# Common abbreviations of names, for the hint in an error.
_SHORT = {"lr": "learning_rate", "wd": "weight_decay", "dropout": "rate"}


class _Seeds:
    """An unlimited sequence of seeds, the same ones for the same `sequence`."""

    def __init__(self, sequence: np.random.SeedSequence):
        self._random = np.random.default_rng(sequence)

    def __next__(self) -> int:
        return int(self._random.integers(2**31 - 1))


def _built(
    build: Callable[..., keras.Model], own: dict[str, Argument], seeds: _Seeds
) -> keras.Model:
    """Returns a model from the user's function, which is called under random states of its own."""
    known = inspect.signature(build).parameters
    accepts_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
    given = {name: value for name, value in own.items() if accepts_all or name in known}
    before = backends.random_state()
    try:
        with seeding.unrecorded():
            keras.utils.set_random_seed(next(seeds))
        model = build(**given)
    finally:
        backends.set_random_state(before)
    if not isinstance(model, keras.Model) or not model.compiled:
        raise CohortError(f"Expected a function that returns a compiled model. Received: {model!r}")
    rest = {name: value for name, value in own.items() if name not in given}
    return _copy(model, rest, seeds) if rest else model


def _copy(model: keras.Model, own: dict[str, Argument], seeds: _Seeds) -> keras.Model:
    if not model.compiled:
        raise CohortError("Expected a compiled model. Received: one without `compile()`.")
    names = set(own)
    config = {**backends.compile_arguments(model)}
    config["optimizer"] = _optimizer(config["optimizer"], own, names)
    for part in ("loss", "metrics", "weighted_metrics"):
        config[part] = tree.map_structure(lambda p: _fresh(p, own, names), config[part])
    before = random.getstate()
    with seeding.unrecorded():
        random.seed(next(seeds))  # Keras draws from it the seeds that are in no config
        try:
            copy = _layers(model, own, names, seeds)
        finally:
            random.setstate(before)
    if names:
        known = sorted({*_names(model), *model.optimizer.get_config()})
        name = names.pop()
        raise CohortError(
            "Expected a name from the config of the model's optimizer, loss or layers. "
            f"Received: {name!r}.{errors.did_you_mean(_SHORT.get(name, name), known)}"
        )
    copy.compile(**config)
    decayed = backends.decayed(model)
    if not all(decayed) and copy.built:
        pairs = zip(copy.trainable_variables, decayed, strict=True)
        copy.optimizer.exclude_from_weight_decay([v for v, is_decayed in pairs if not is_decayed])
    return copy


def _optimizer(
    optimizer: keras.optimizers.Optimizer, own: dict[str, Argument], names: set[str]
) -> keras.optimizers.Optimizer:
    """Returns a new optimizer, with the overrides that its config has names for."""
    config = optimizer.get_config()
    found = names & config.keys()
    names -= found
    return type(optimizer).from_config(config | {name: own[name] for name in found})


def _fresh(part: Argument, own: dict[str, Argument], names: set[str]) -> Argument:
    """Returns a copy of a loss or a metric, and anything else, such as a name, as it is."""
    if not isinstance(part, (keras.losses.Loss, keras.metrics.Metric)):
        return part
    config = part.get_config()
    found = set(own) & config.keys() - {"name", "dtype"}
    names -= found
    return type(part).from_config(config | {name: own[name] for name in found})


def _layers(
    model: keras.Model, own: dict[str, Argument], names: set[str], seeds: _Seeds
) -> keras.Model:
    """Returns a new model, made from the configs of the layers."""
    pending = set(names)  # what the optimizer or the loss has not taken

    def anew(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.InputLayer):
            return layer.__class__.from_config(layer.get_config())
        config = _changed(layer.get_config(), {n: own[n] for n in pending}, names, seeds)
        return layer.__class__.from_config(config)

    try:
        if isinstance(model, keras.Sequential) or backends.is_functional(model):
            copy = keras.models.clone_model(model, clone_function=anew)
        else:
            copy = anew(model)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise CohortError(
            f"Expected a model that can be made from its config. Received: {model!r}, which cannot "
            f"({error}). Give a function that builds it: kc.clones(build, ...)."
        ) from error
    _keep_what_is_not_initial(model, copy)
    return copy


def _changed(
    config: Argument, own: dict[str, Argument], names: set[str], seeds: _Seeds
) -> Argument:
    """Returns a layer's config, and all configs in it, with the overrides and with new seeds."""
    if isinstance(config, Mapping):
        changed = {}
        for key, value in config.items():
            if key == "seed" and (value is None or isinstance(value, int)):
                changed[key] = next(seeds)
            elif key in own and not isinstance(value, (Mapping, str)):
                changed[key] = own[key]
                names.discard(key)
            else:
                changed[key] = _changed(value, own, names, seeds)
        return changed
    if isinstance(config, (list, tuple)):
        return type(config)(_changed(item, own, names, seeds) for item in config)
    return config


def _names(model: keras.Model) -> Iterator[str]:
    for layer in model.layers:
        yield from layer.get_config()


def _keep_what_is_not_initial(model: keras.Model, copy: keras.Model) -> None:
    """Copies the weights that have no initial values: those of frozen and of adapted layers."""
    pairs = zip(backends.flat_layers(model), backends.flat_layers(copy), strict=True)
    for layer, its_copy in list(pairs)[1:]:  # the first is the model itself
        its_copy.trainable = layer.trainable
        kept = not layer.trainable or hasattr(layer, "adapt")
        if not kept or not layer.built or not layer.variables:
            continue
        if not its_copy.built:
            its_copy.build_from_config(layer.get_build_config())
        stored: dict[str, Argument] = {}
        layer.save_own_variables(stored)
        if stored:
            its_copy.load_own_variables(stored)
