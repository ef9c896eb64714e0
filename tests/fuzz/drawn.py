"""Draws cases: models, data and arguments of `fit`, as plain values that can be printed and run."""

import dataclasses
from typing import Any

from hypothesis import strategies as st

import kerascohost  # noqa: F401  # before Keras: it says which backend is missing

# isort: split
import keras

BACKEND = keras.backend.backend()


@dataclasses.dataclass(frozen=True)
class Model:
    """What is built and compiled.

    Attributes:
        form: "sequential", "unbuilt" (Sequential without Input), "functional", "subclassed",
            "own step" (subclassed, with a `train_step`), "recurrent" or "convolution".
        target: "numbers", "labels" or "two" (outputs).
        seed: Of the initial weights.
        dropout: The rate, or None.
        normalized: Whether with BatchNormalization.
        optimizer: The class's name.
        options: The optimizer's options. A learning rate that is a list is a schedule's arguments.
        scaled: Whether in a LossScaleOptimizer.
        compiled: Other arguments of `compile`.
    """

    form: str = "sequential"
    target: str = "numbers"
    seed: int = 0
    dropout: float | None = None
    normalized: bool = False
    optimizer: str = "SGD"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    scaled: bool = False
    compiled: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Data:
    """What it is trained or validated on.

    Attributes:
        kind: "arrays", "float64", "frame", "tf.data", "PyDataset" or "generator".
        rows: Their number.
        seed: Of the numbers.
        batch: Rows in a batch, where the data are batches.
        weighted: Whether with sample weights.
        shuffle: Rows in the buffer of a tf.data shuffle; for a PyDataset: whether it shuffles
            itself at the end of an epoch. 0: no.
        reshuffle: Whether a tf.data shuffle is another one each time.
        repeat: How often, in tf.data and generators; 0: for ever.
        early: Whether tf.data is repeated before it is batched.
        drop: Whether the last, smaller batch is dropped.
    """

    kind: str = "arrays"
    rows: int = 16
    seed: int = 0
    batch: int = 8
    weighted: bool = False
    shuffle: int = 0
    reshuffle: bool = True
    repeat: int = 1
    early: bool = False
    drop: bool = False

    @property
    def is_columns(self) -> bool:
        return self.kind in ("arrays", "float64", "frame")

    @property
    def is_endless(self) -> bool:
        return self.kind in ("tf.data", "generator") and self.repeat == 0


@dataclasses.dataclass(frozen=True)
class Member:
    """A model and its fit.

    Attributes:
        model: The model.
        data: What it is trained on.
        validation: What it is validated on, if anything.
        fit: Other arguments of `fit`.
        callbacks: Their names (see `fits.callback`).
        group_factor: As in `Cohort`.
        replicas: As in `Cohort`.
    """

    model: Model = Model()
    data: Data = Data()
    validation: Data | None = None
    fit: dict[str, Any] = dataclasses.field(default_factory=dict)
    callbacks: tuple[str, ...] = ()
    group_factor: int = 1
    replicas: int = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """Fits, and how they are run together.

    Attributes:
        members: The fits.
        layout: As in `Cohort`.
        routes: How they are run, one after another: "cohort" (`Cohort.fit`), "block" (`cohost()`,
            a seed before each fit) or "one seed" (`cohost()`, one seed, and draws between fits).
    """

    members: tuple[Member, ...] = (Member(), Member())
    layout: str = "joined"
    routes: tuple[str, ...] = ("cohort",)


def _maybe(draw, chance, strategy, otherwise=None):
    """A draw of `strategy` in one of `chance` cases; shrinks to `otherwise`."""
    return draw(strategy) if draw(st.integers(1, chance)) == chance else otherwise


OPTIONS = {
    "gradient_accumulation_steps": st.sampled_from([2, 3]),
    "use_ema": st.just(True),
    "clipnorm": st.sampled_from([0.5, 1.0]),
    "loss_scale_factor": st.sampled_from([8.0, 64.0]),
    "weight_decay": st.sampled_from([0.01, 0.1]),
}


@st.composite
def models(draw, recurrent=True, averaged=True):
    forms = ["sequential", "functional", "subclassed", "unbuilt", "convolution"] * 3
    if recurrent:  # seldom: it takes most of the time to trace
        forms.append("recurrent")
    if BACKEND == "tensorflow":  # on the others a train step of one's own is their own language
        forms += ["own step"] * 2
    form = draw(st.sampled_from(forms))
    targets = ["numbers", "labels", *(["two"] if form in ("functional", "subclassed") else [])]
    target = draw(st.sampled_from(targets))
    if form == "own step":
        target = "numbers"
    options = {"learning_rate": draw(st.sampled_from([0.05, 0.01, [0.05, 3, 0.5]]))}
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        name = draw(st.sampled_from(sorted(OPTIONS)))
        options[name] = draw(OPTIONS[name])
    scaled = _maybe(draw, 8, st.just(True), False)
    if scaled:  # Keras's wrapper does not know its inner optimizer's averages
        options.pop("use_ema", None)
    if form == "recurrent":  # Keras scales no sparse gradients
        options.pop("loss_scale_factor", None)
        scaled = False
    if not averaged:
        options.pop("use_ema", None)
    if "use_ema" in options:
        options["ema_momentum"] = 0.8
        options["ema_overwrite_frequency"] = draw(st.sampled_from([None, 2, 3]))
    compiled = {}
    if executions := draw(st.sampled_from([1, 1, 1, 2, 3, 5])) - 1:
        compiled["steps_per_execution"] = executions + 1
    if _maybe(draw, 12, st.just(True)):
        compiled["run_eagerly"] = True
    if _maybe(draw, 3, st.just(True)):
        compiled["metrics"] = True
    if _maybe(draw, 4, st.just(True)):
        compiled["weighted_metrics"] = True
    return Model(
        form=form,
        target=target,
        dropout=_maybe(draw, 3, st.sampled_from([0.2, 0.5])),
        normalized=_maybe(draw, 4, st.just(True), False),
        optimizer=draw(st.sampled_from(["SGD", "Adam", "RMSprop", "AdamW", "Nadam", "Adagrad"])),
        options=options,
        scaled=scaled,
        compiled=compiled,
    )


ROWS = st.sampled_from([16, 8, 21, 33, 40, 3])
BATCHES = st.sampled_from([8, 5, 4])


@st.composite
def data(draw, seed, kinds):
    kind = draw(st.sampled_from(kinds))
    changes = {}
    if kind == "tf.data":
        changes = {
            "shuffle": draw(st.sampled_from([0, 4, 16])),
            "reshuffle": draw(st.booleans()),
            "repeat": draw(st.sampled_from([1, 2, 0])),
            "early": draw(st.booleans()),
            "drop": draw(st.booleans()),
        }
    elif kind == "PyDataset":
        changes = {"shuffle": draw(st.sampled_from([0, 1]))}
    elif kind == "generator":
        changes = {"repeat": draw(st.sampled_from([0, 0, 4, 1]))}
    rows = draw(ROWS)
    if changes.get("drop"):
        rows = max(rows, 16)  # else nothing is left
    return Data(
        kind=kind,
        rows=rows,
        seed=seed,
        batch=draw(BATCHES),
        weighted=_maybe(draw, 4, st.just(True), False),
        **changes,
    )


KINDS = ["arrays", "arrays", "frame", "float64", "tf.data", "PyDataset", "generator"]
CALLBACKS = [
    "epochs",
    "batches",
    "early stopping",
    "early stopping, restores",
    "plateau",
    "rates",
    "stops at an epoch's begin",
    "stops at an epoch's end",
    "stops at a batch",
    "halves",
    "nan",
]


OF_RATES = ("plateau", "rates")  # they set the learning rate, which a schedule does not let them


@st.composite
def members(draw, seed, model, can_group, can_fail):
    given = draw(data(seed, KINDS))
    fit = {"epochs": draw(st.integers(1, 4))}
    if given.is_columns:
        fit["batch_size"] = draw(st.sampled_from([8, 5, 16, None]))
        if _maybe(draw, 3, st.just(True)):
            fit["validation_split"] = draw(st.sampled_from([0.25, 0.4]))
    if _maybe(draw, 4, st.just(True)):
        fit["initial_epoch"] = draw(st.sampled_from([1, 2, 5]))
    shuffle = draw(st.sampled_from([True, False, "batch"]))
    if shuffle is not True:
        fit["shuffle"] = shuffle
    if given.is_endless or _maybe(draw, 4, st.just(True)):
        fit["steps_per_epoch"] = draw(st.integers(1, 6))
    # Where Keras refuses what was drawn it is the same as apart, which is worth little: seldom.
    may_be_refused = draw(st.integers(1, 8)) == 8
    takes_class_weight = may_be_refused or not (given.weighted or given.kind == "generator")
    if model.target == "labels" and takes_class_weight and _maybe(draw, 3, st.just(True)):
        fit["class_weight"] = {0: 1.0, 1: 3.0, 2: 0.5}
    validation = None
    if "validation_split" not in fit and _maybe(draw, 2, st.just(True)):
        validation = draw(data(seed + 50, KINDS))
    if validation or "validation_split" in fit:
        if _maybe(draw, 3, st.just(True)):
            fit["validation_freq"] = draw(st.sampled_from([2, 3, [1, 3]]))
        if (validation and validation.is_endless) or _maybe(draw, 4, st.just(True)):
            fit["validation_steps"] = draw(st.integers(1, 4))
        validation = _without_races(validation, fit.get("validation_steps"))
        ahead = BACKEND == "tensorflow" and validation and validation.kind == "generator"
        if ahead and "validation_steps" in fit:
            # Each validation goes on where reading ahead for the last one ended: a matter of time.
            validation = dataclasses.replace(validation, kind="PyDataset", repeat=1)
        if (not validation or validation.is_columns) and _maybe(draw, 4, st.just(True)):
            fit["validation_batch_size"] = draw(st.sampled_from([3, 7]))
    has_schedule = isinstance(model.options.get("learning_rate"), list)
    names = [n for n in CALLBACKS if n not in OF_RATES or may_be_refused or not has_schedule]
    callbacks = tuple(draw(st.lists(st.sampled_from(names), max_size=3, unique=True)))
    if can_fail and _maybe(draw, 12, st.just(True)):
        callbacks = (*callbacks, draw(st.sampled_from(["raises at an epoch", "raises at a batch"])))
    factors = {}
    if can_group and given.is_columns and fit["batch_size"] and _maybe(draw, 8, st.just(True)):
        name = draw(st.sampled_from(["group_factor", "replicas"]))
        # Replicas see their own batches only: each normalises, and draws, for itself.
        # (And losses by output are the mean of other parts of the rows.)
        apart = model.normalized or model.dropout or model.target == "two"
        if name == "group_factor" or not apart:
            factors = {name: draw(st.sampled_from([2, 3]))}
            fit["shuffle"] = draw(st.booleans())
    given = _without_races(given, fit.get("steps_per_epoch"))
    if given.kind == "generator" and "gradient_accumulation_steps" in model.options:
        # What Keras's optimizer on TensorFlow does while the data ends is a matter of time, then.
        given = dataclasses.replace(given, repeat=0)
        fit.setdefault("steps_per_epoch", 3)
    return Member(model, given, validation, fit, callbacks, **factors)


def _without_races(given, steps):
    """The data, without a reshuffle that Keras itself may come too early or too late for.

    On TensorFlow it reads batches ahead in a thread, so that where an epoch ends before its data
    some of the next one's are read before `on_epoch_end`, and how many is a matter of time.
    """
    if given and steps and given.kind == "PyDataset":
        return dataclasses.replace(given, shuffle=0)
    return given


@st.composite
def cases(draw):
    layout = draw(st.sampled_from(["joined", "joined", "stacked", "auto"]))
    count = draw(st.sampled_from([2, 2, 2, 1, 3]))
    routes = draw(
        st.sampled_from(
            [
                *[("cohort",)] * 4,
                *[("block",)] * 3,
                *[("one seed",)] * 3,
                ("cohort", "block"),
                ("block", "cohort"),
                ("cohort", "cohort"),
            ]
        )
    )
    # On JAX, Keras's second `fit` gives an array away twice: the average is the weight, then.
    averaged = BACKEND != "jax" or len(routes) == 1
    twins = None
    if layout != "joined" or draw(st.integers(1, 4)) == 4:
        # TensorFlow takes half a minute to vectorise the loop of an LSTM: see test_stacked.
        twins = draw(models(recurrent=layout == "joined", averaged=averaged))
    drawn = []
    for i in range(count):
        model = dataclasses.replace(twins or draw(models(averaged=averaged)), seed=i)
        if twins and draw(st.booleans()):  # a sweep over a float
            rate = draw(st.sampled_from([0.05, 0.02, 0.1]))
            if not isinstance(model.options.get("learning_rate"), list):
                options = {**model.options, "learning_rate": rate}
                model = dataclasses.replace(model, options=options)
        is_first = i == 0
        drawn.append(draw(members(i, model, can_group=True, can_fail=is_first)))
    return Case(tuple(drawn), layout, routes)
