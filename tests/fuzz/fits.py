"""Trains the fits of a case apart and together, and compares all that they leave behind."""

import dataclasses
import gc
import itertools
import re
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers

import kerascohost as kc
from tests.fuzz.drawn import BACKEND, Case, Data, Member, Model
from tests.helpers import compare

# Joined: the same ops on TensorFlow, whose sums may differ in the last bit with where the numbers
# lie in memory; XLA fuses loops differently.
TOLERANCES = {"tensorflow": 1e-6, "jax": 1e-5}
# What larger batches and stacks add up in another order.
REORDERED = 1e-4
SEED = 7

# Keras's own words for what cases do on purpose.
IGNORED = (
    "Your input ran out of data",
    "The data ended before the epoch did",
    "`shuffle=True` was passed, but will be ignored",
    ".*conditioned on metric",
    "Learning rate reduction is conditioned",
    "__array__ implementation doesn't accept a copy keyword",
)
# What docs/concepts/parity.md says of NumPy's numbers after a fit that stops early, on JAX.
WARNS_OF_DRAWS = "The program drew random numbers"


# Models


class Net(keras.Model):
    """A subclassed model of one or two outputs."""

    def __init__(self, hidden: list, heads: list):
        super().__init__()
        self.hidden, self.heads = hidden, heads

    def call(self, x, training=False):
        for layer in self.hidden:
            x = layer(x, training=training) if has_modes(layer) else layer(x)
        outputs = [head(x) for head in self.heads]
        return outputs if len(outputs) > 1 else outputs[0]


def has_modes(layer: layers.Layer) -> bool:
    return isinstance(layer, (layers.Dropout, layers.BatchNormalization))


class OwnStep(Net):
    """A subclassed model with a train step as Keras's guides write it."""

    def train_step(self, data):
        import tensorflow as tf

        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = self.compute_loss(x, y, predicted, weight)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {**self.compute_metrics(x, y, predicted, weight), "twice": loss * 2}


def build(case: Model) -> keras.Model:
    """The compiled model; the same weights each time."""
    keras.utils.set_random_seed(case.seed)
    hidden, heads = _hidden(case), _heads(case)
    if case.form == "unbuilt":
        model = keras.Sequential([*hidden, *heads])
    elif case.form == "subclassed":
        model = Net(hidden, heads)
    elif case.form == "own step":
        model = OwnStep(hidden, heads)
    elif len(heads) == 1 and case.form != "functional":
        model = keras.Sequential([keras.Input((4,)), *hidden, *heads])
    else:
        x = inputs = keras.Input((4,))
        for layer in hidden:
            x = layer(x)
        outputs = {head.name: head(x) for head in heads}
        model = keras.Model(inputs, outputs if len(heads) > 1 else heads[0](x))
    model.compile(optimizer(case), **_compiled(case, model))
    return model


def _hidden(case: Model) -> list:
    first = {
        "recurrent": lambda: [layers.Embedding(6, 3), layers.LSTM(3)],
        "convolution": lambda: [
            layers.Reshape((4, 1)),
            layers.Conv1D(2, 3, activation="tanh"),
            layers.Flatten(),
        ],
    }
    hidden = first.get(case.form, lambda: [layers.Dense(5, "tanh")])()
    if case.normalized:
        hidden.append(layers.BatchNormalization())
    if case.dropout:
        hidden.append(layers.Dropout(case.dropout, seed=case.seed + 3))
    return hidden


def _heads(case: Model) -> list:
    if case.target == "labels":
        return [layers.Dense(3, "softmax")]
    if case.target == "numbers":
        return [layers.Dense(1)]
    return [layers.Dense(1, name="left"), layers.Dense(1, name="right")]


def optimizer(case: Model) -> keras.optimizers.Optimizer:
    options = {"learning_rate": 0.05, **case.options}
    if isinstance(options["learning_rate"], list):
        decay = keras.optimizers.schedules.ExponentialDecay(*options["learning_rate"])
        options["learning_rate"] = decay
    made = getattr(keras.optimizers, case.optimizer)(**options)
    return keras.optimizers.LossScaleOptimizer(made, initial_scale=64.0) if case.scaled else made


def _compiled(case: Model, model: keras.Model) -> dict[str, Any]:
    loss = "sparse_categorical_crossentropy" if case.target == "labels" else "mse"
    metric = "accuracy" if case.target == "labels" else "mae"
    compiled = {"loss": loss, **case.compiled}
    if case.target == "two":
        compiled["loss"] = ["mse", "mae"]
        if case.form == "functional":
            compiled["loss"] = {"left": "mse", "right": "mae"}
    for name in ("metrics", "weighted_metrics"):
        if name in compiled:
            compiled[name] = [metric]
            if case.target == "two":
                compiled[name] = [["mae"], ["mse"]]
                if case.form == "functional":
                    compiled[name] = {"left": ["mae"], "right": ["mse"]}
    return compiled


# Data


def columns(data: Data, model: Model) -> tuple:
    """x, y and weights."""
    random = np.random.default_rng(data.seed)
    dtype = "float64" if data.kind == "float64" else "float32"
    x = random.normal(size=(data.rows, 4)).astype(dtype)
    if model.form == "recurrent":
        x = (np.abs(x) * 2).astype("int32") % 6
    y = (x[:, :1] * 0.5 - x[:, 1:2]).astype(dtype)
    if model.target == "labels":
        y = random.integers(3, size=data.rows)
    if model.target == "two":
        y = {"left": y, "right": y * 2} if model.form == "functional" else (y, y * 2)
    weights = random.random(data.rows).astype("float32") if data.weighted else None
    return x, y, weights


class Batches(keras.utils.PyDataset):
    """Batches of columns, which may be in another order after each epoch."""

    def __init__(self, data: Data, taken):
        super().__init__()
        self.rows, self.size, self.taken, self.shuffles = data.rows, data.batch, taken, data.shuffle
        self.order = np.arange(self.rows)
        self.random = np.random.default_rng(data.seed)

    def __len__(self):
        return -(-self.rows // self.size)

    def __getitem__(self, i):
        return self.taken(self.order[i * self.size : (i + 1) * self.size])

    def on_epoch_end(self):
        if self.shuffles:
            self.order = self.random.permutation(self.rows)


def arguments_of(data: Data, model: Model) -> dict[str, Any]:
    """x, and where they are columns: y and sample_weight."""
    x, y, weights = columns(data, model)
    given = {"x": x, "y": y, "sample_weight": weights}
    if data.kind == "frame":
        given["x"] = pd.DataFrame(x, columns=list("abcd"))
        if model.target == "numbers":
            given["y"] = pd.DataFrame(y, columns=["y"])
    if data.is_columns:
        return {name: value for name, value in given.items() if value is not None}
    whole = (x, y) if weights is None else (x, y, weights)

    def taken(rows):
        return keras.tree.map_structure(lambda column: column[rows], whole)

    if data.kind == "PyDataset":
        return {"x": Batches(data, taken)}
    if data.kind == "generator":
        return {"x": _generator(data, taken)}
    return {"x": _dataset(data, whole)}


def _generator(data: Data, taken):
    times = 0
    while not data.repeat or times < data.repeat:
        times += 1
        for start in range(0, data.rows, data.batch):
            yield taken(np.arange(start, min(start + data.batch, data.rows)))


def _dataset(data: Data, whole):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(whole)
    if data.shuffle:
        # Without a seed of its own it counts the datasets made in the process so far.
        dataset = dataset.shuffle(
            data.shuffle, seed=data.seed + 5, reshuffle_each_iteration=data.reshuffle
        )
    times = data.repeat or None
    if data.early:
        return dataset.repeat(times).batch(data.batch, drop_remainder=data.drop)
    return dataset.batch(data.batch, drop_remainder=data.drop).repeat(times)


# Callbacks


def steps(model: keras.Model) -> int:
    """How many steps the optimizer has taken."""
    return int(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(model.optimizer.iterations)))


class Records(keras.callbacks.Callback):
    """Records what it sees at epochs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def see(self, what, at=None, logs=None, looks=True):
        state = ()
        if looks:
            weights = self.model.weights
            total = float(sum(np.abs(keras.ops.convert_to_numpy(w)).sum() for w in weights))
            state = (steps(self.model), total)
        logs = {key: np.asarray(value).item() for key, value in (logs or {}).items()}
        self.seen.append((what, at, logs, state))

    def on_train_begin(self, logs=None):
        self.see("train begins", logs=logs, looks=False)  # it may not be built yet

    def on_train_end(self, logs=None):
        self.see("train ends", logs=logs)

    def on_epoch_begin(self, epoch, logs=None):
        self.see("epoch begins", epoch, logs, looks=False)

    def on_epoch_end(self, epoch, logs=None):
        self.see("epoch ends", epoch, logs)

    def on_test_begin(self, logs=None):
        self.see("test begins", logs=logs, looks=False)

    def on_test_end(self, logs=None):
        self.see("test ends", logs=logs, looks=False)


class RecordsBatches(Records):
    """Records what it sees at batches, too. On JAX, Keras takes the state away meanwhile."""

    looks = BACKEND != "jax"

    def on_train_batch_begin(self, batch, logs=None):
        self.see("batch begins", batch, logs, looks=False)

    def on_train_batch_end(self, batch, logs=None):
        self.see("batch ends", batch, logs, looks=self.looks)

    def on_test_batch_end(self, batch, logs=None):
        self.see("test batch ends", batch, logs, looks=False)


class Acts(keras.callbacks.Callback):
    """Calls `act(model)` in one hook, at epochs or batches of this number."""

    def __init__(self, act, at):
        super().__init__()
        self.act, self.at = act, at

    def do(self, number, logs=None):
        if number == self.at:
            self.act(self.model)


class AtEpochBegin(Acts):
    """Acts at the begin of an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.do(epoch)


class AtEpochEnd(Acts):
    """Acts at the end of an epoch."""

    def on_epoch_end(self, epoch, logs=None):
        self.do(epoch)


class AtBatchEnd(Acts):
    """Acts at the end of a batch."""

    def on_train_batch_end(self, batch, logs=None):
        self.do(batch)


def _stop(model):
    model.stop_training = True


def _halve(model):
    model.set_weights([weights * np.asarray(0.5, weights.dtype) for weights in model.get_weights()])


def _fail(model):
    raise KeyError("raised by a callback")


def callback(name: str, is_validated: bool) -> keras.callbacks.Callback:
    monitor = "val_loss" if is_validated else "loss"
    return {
        "epochs": Records,
        "batches": RecordsBatches,
        "early stopping": lambda: keras.callbacks.EarlyStopping(monitor, patience=0),
        "early stopping, restores": lambda: keras.callbacks.EarlyStopping(
            monitor, patience=1, min_delta=0.5, restore_best_weights=True
        ),
        "plateau": lambda: keras.callbacks.ReduceLROnPlateau(monitor, patience=1, min_delta=0.5),
        "rates": lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.7),
        "stops at an epoch's begin": lambda: AtEpochBegin(_stop, 1),
        "stops at an epoch's end": lambda: AtEpochEnd(_stop, 1),
        "stops at a batch": lambda: AtBatchEnd(_stop, 1),
        "halves": lambda: AtEpochEnd(_halve, 0),
        "nan": keras.callbacks.TerminateOnNaN,
        "raises at an epoch": lambda: AtEpochEnd(_fail, 1),
        "raises at a batch": lambda: AtBatchEnd(_fail, 1),
    }[name]()


# Trainings


@dataclasses.dataclass
class Outcome:
    """What a training left.

    Attributes:
        trained: The model, and the `History` of the last fit.
        seen: What its callbacks recorded.
        error: What its fit raised.
    """

    trained: compare.Trained
    seen: list = dataclasses.field(default_factory=list)
    error: Exception | None = None


@dataclasses.dataclass
class Training:
    """All outcomes of a case.

    Attributes:
        outcomes: By the members' names.
        draws: Random numbers that the program drew between fits.
        error: What was raised.
        has_warned_of_draws: Whether a warning said that these numbers are others than apart.
    """

    outcomes: dict[str, Outcome]
    draws: list[float] = dataclasses.field(default_factory=list)
    error: Exception | None = None
    has_warned_of_draws: bool = False

    def draw(self):
        self.draws.append(float(np.random.random()))
        self.draws.append(float(keras.ops.convert_to_numpy(keras.random.uniform(()))))


def begin(case: Case) -> Training:
    """The case's models, before any training."""
    models = {f"m{i}": build(member.model) for i, member in enumerate(case.members)}
    history = keras.callbacks.History()
    return Training(
        {name: Outcome(compare.Trained(model, history)) for name, model in models.items()}
    )


def arguments(case: Case, training: Training, alone: bool) -> dict[str, dict[str, Any]]:
    """Each member's arguments of `fit`, made anew."""
    return {
        name: _arguments(member, outcome, alone)
        for member, (name, outcome) in zip(case.members, training.outcomes.items(), strict=True)
    }


def _arguments(member: Member, outcome: Outcome, alone: bool) -> dict[str, Any]:
    fit = {**arguments_of(member.data, member.model), **member.fit, "verbose": 0}
    if alone and fit.get("batch_size"):
        factor = member.group_factor * member.replicas
        if factor > 1:
            fit["batch_size"] *= factor
    if member.validation:
        given = arguments_of(member.validation, member.model)
        fit["validation_data"] = tuple(given.values()) if "y" in given else given["x"]
    is_validated = bool(member.validation or "validation_split" in fit)
    callbacks = [callback(name, is_validated) for name in member.callbacks]
    if callbacks:
        fit["callbacks"] = callbacks
    outcome.seen.extend(one.seen for one in callbacks if isinstance(one, Records))
    return fit


def apart(case: Case) -> Training:
    """Every member by its own `fit`, in turn."""
    training = begin(case)
    for route in case.routes:
        given = arguments(case, training, alone=True)
        for position, (name, outcome) in enumerate(training.outcomes.items()):
            if route != "one seed" or position == 0:
                keras.utils.set_random_seed(SEED)
            try:
                outcome.trained.history = outcome.trained.model.fit(**given[name])
            except Exception as error:
                outcome.error = error
                training.error = training.error or error
            if route == "one seed":
                training.draw()
        if training.error:
            return training
    return training


def together(case: Case) -> Training:
    """All members at once."""
    training = begin(case)
    models = {name: outcome.trained.model for name, outcome in training.outcomes.items()}
    factors = {
        key: {f"m{i}": getattr(member, key) for i, member in enumerate(case.members)}
        for key in ("group_factor", "replicas")
    }
    cohort = None
    try:
        for route in case.routes:
            given = arguments(case, training, alone=False)
            keras.utils.set_random_seed(SEED)
            if route == "cohort":
                cohort = cohort or kc.Cohort(models, layout=case.layout, **factors)
                history = cohort.fit(**_by_argument(given))
            else:
                history = _block(case, training, models, given, route, factors)
            for name, outcome in training.outcomes.items():
                outcome.trained.history = history[name]
    except Exception as error:
        training.error = error
    return training


def _by_argument(given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    by_argument: dict[str, dict[str, Any]] = {}
    for name, fit in given.items():
        for argument, value in fit.items():
            by_argument.setdefault(argument, {})[name] = value
    return by_argument


def _block(case, training, models, given, route, factors) -> dict[str, keras.callbacks.History]:
    histories = {}
    with kc.cohost(layout=case.layout, names=models, **factors):
        for name, model in models.items():
            if route == "block":
                keras.utils.set_random_seed(SEED)
            histories[name] = model.fit(**given[name])
            if route == "one seed":
                training.draw()
    return histories


# Comparing


@dataclasses.dataclass
class Verdict:
    """How a case ended.

    Attributes:
        kind: "same", "failed" (together as apart), "refused", "warned" (that random numbers, and
            what depends on them, are others than apart) or "differs".
        text: What was raised, the reason, or what differs.
    """

    kind: str
    text: str = ""


def verdict(case: Case) -> Verdict:
    """Trains a case apart and together."""
    keras.utils.clear_session(free_memory=False)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("error")
            for text in IGNORED:
                warnings.filterwarnings("ignore", text)
            warnings.filterwarnings("always", WARNS_OF_DRAWS)
            expected, actual = apart(case), together(case)
            actual.has_warned_of_draws = bool(warned)
            if _is_refusal(expected, actual):
                return Verdict("refused", _reason(actual.error))
            try:
                _compare(case, expected, actual)
            except AssertionError:
                if not actual.has_warned_of_draws or actual.error:
                    raise
                return Verdict("warned", WARNS_OF_DRAWS)
        if expected.error:
            return Verdict("failed", _reason(expected.error))
        return Verdict("same")
    except AssertionError as error:
        return Verdict("differs", str(error))
    finally:
        _forget()


def _forget(every: int = 20, cases: Iterator[int] = itertools.count(1)):  # noqa: B008  # counts on
    """Lets go of what was traced and compiled, which would add up, now and then: it takes long."""
    keras.utils.clear_session(free_memory=False)
    if next(cases) % every:
        return
    if BACKEND == "jax":
        import jax

        jax.clear_caches()
    gc.collect()


def _is_refusal(expected: Training, actual: Training) -> bool:
    if not isinstance(actual.error, kc.CohortError) or isinstance(expected.error, kc.CohortError):
        return False
    for name, outcome in actual.outcomes.items():
        taken = steps(outcome.trained.model)
        assert taken == 0, f"{name}: refused after {taken} steps: {actual.error}"
    return True


def _reason(error: Exception) -> str:
    text = re.sub(r"^Member '\w+': ", "", str(error))
    text = f"{type(error).__name__}: {text}"
    return re.sub(r"'[^']*'|\d+", "…", text)[:110]


def _compare(case: Case, expected: Training, actual: Training) -> None:
    if expected.error:
        _compare_failures(case, expected, actual)
        return
    if actual.error:
        raise AssertionError(f"raised {_told(actual.error)}") from actual.error
    _compare_values("draws", expected.draws, actual.draws, 0.0)
    for name, tolerance in _tolerances(case).items():
        one, other = expected.outcomes[name], actual.outcomes[name]
        _compare_values(f"{name}: callbacks' records", one.seen, other.seen, tolerance)
        compare.assert_same({name: one.trained}, {name: other.trained}, tolerance)


def _compare_failures(case: Case, expected: Training, actual: Training) -> None:
    """Compares what was raised, and what callbacks had seen: that of others goes on less far."""
    failed = {name: o.error for name, o in expected.outcomes.items() if o.error}
    types = {type(error) for error in failed.values()}
    assert type(actual.error) in types, f"raised {_told(actual.error)}, apart {expected.error!r}"
    for name, tolerance in _tolerances(case).items():
        one, other = expected.outcomes[name].seen, actual.outcomes[name].seen
        if name != getattr(actual.error, "cohort_member", ""):
            one = [seen[: len(had)] for seen, had in zip(one, other, strict=False)]
        _compare_values(f"{name}: callbacks' records", one, other, tolerance)
        if name in failed and case.routes != ("cohort",):
            return  # a program would not come to the fits after this one


def _tolerances(case: Case) -> dict[str, float]:
    is_reordered = {
        f"m{i}": case.layout != "joined" or member.group_factor * member.replicas > 1
        for i, member in enumerate(case.members)
    }
    return {name: REORDERED if is_ else TOLERANCES[BACKEND] for name, is_ in is_reordered.items()}


def _told(error: Exception | None) -> str:
    return " ".join([repr(error), *getattr(error, "__notes__", ())])


def _compare_values(what: str, expected: Any, actual: Any, tolerance: float) -> None:
    """Compares nested records, numbers to a tolerance."""
    if isinstance(expected, float) and isinstance(actual, float):
        close = np.isclose(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        assert close, f"{what}: {actual} != {expected}"
    elif isinstance(expected, (list, tuple)) and isinstance(actual, (list, tuple)):
        for i, (one, other) in enumerate(zip(expected, actual, strict=False)):
            _compare_values(f"{what}[{i}]", one, other, tolerance)
        assert len(actual) == len(expected), f"{what}: {len(actual)} != {len(expected)} records"
    elif isinstance(expected, dict) and isinstance(actual, dict):
        assert list(actual) == list(expected), f"{what}: {list(actual)} != {list(expected)}"
        for key in expected:
            _compare_values(f"{what}[{key!r}]", expected[key], actual[key], tolerance)
    else:
        assert actual == expected, f"{what}: {actual!r} != {expected!r}"
