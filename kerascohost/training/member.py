"""One model together with the fit asked of it, as a state machine.

Arguments of `fit` that are used here:

- `epochs`, `initial_epoch`: the epochs to train; `epochs` is passed to callbacks in their `params`.
- `callbacks`: called as `fit` calls them; classes in place of instances are refused.
- `verbose`: checked if it is a string, and passed to callbacks in their `params`.
- `validation_split`: checked; takes `validation_data` from the end of the arrays if none is given.
- `validation_data`: built as batches for the validation; arrays are checked like `x` and `y`.
- `validation_batch_size`, `validation_steps`: of these batches; the default of the first is
  `batch_size`, times the group factor and the replicas.
- `validation_freq`: checked if there is validation data; the epochs after which to validate.
- `x`, `y`: checked against the inputs and the loss of the model; `x` may not be `None`.
- `batch_size`, `epochs`, `initial_epoch`, `steps_per_epoch`: refused if they are not counts.

`x`, `y`, `sample_weight`, `class_weight`, `batch_size`, `shuffle` and `steps_per_epoch` are passed
to `batches`.
"""

import contextlib
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import tree

from kerascohost import backends, errors
from kerascohost.arguments import (
    Argument,
    Callbacks,
    Data,
    EvaluateArguments,
    FitArguments,
    PredictArguments,
)
from kerascohost.backends import Chunk, Logs, StepKind, StepRange, Tensor, Tree, adapters
from kerascohost.backends.resident import ResidentArrays
from kerascohost.backends.threads import OwnSeeds
from kerascohost.tracing import reads
from kerascohost.tracing.reads import Snapshot
from kerascohost.training.batches import ArrayBatches, StreamBatches, batches

_BATCH_HOOKS = {
    "train": ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end"),
    "test": ("on_test_batch_begin", "on_test_batch_end"),
    "predict": ("on_predict_batch_begin", "on_predict_batch_end"),
}

# What callbacks set to end the steps of each kind.
_STOPS = {"train": "stop_training", "test": "stop_evaluating", "predict": "stop_predicting"}


@dataclasses.dataclass
class StepRequest:
    """Steps that a member requests next.

    Attributes:
        kind: `"train"`, `"test"` or `"predict"`.
        chunk: Where its batches are.
        start: The first batch of the chunk to take.
        stop: The batch before which to stop, as the chunk ends or hooks are to be called there.
        has_batch_hooks: Whether hooks of callbacks are called between steps of its training.
        metrics_reset: Whether the model's metrics have been reset since its last steps.
        metrics_at_zero: Whether they begin at zero instead, and the model's own are not reset.
        must_sync: Whether code may read or change the model after these steps, so that its own
            variables must have their new values.
    """

    kind: StepKind
    chunk: Chunk
    start: int
    stop: int
    has_batch_hooks: bool
    metrics_reset: bool = False
    metrics_at_zero: bool = False
    must_sync: bool = True

    def first(self, most: int) -> StepRange:
        """Returns the steps requested, or the first `most` of them."""
        stop = min(self.stop, self.start + most)
        return StepRange(self.chunk, self.start, stop, self.metrics_reset, self.metrics_at_zero)


@dataclasses.dataclass(frozen=True)
class Progressed:
    """The position in a training at the end of one of its epochs, from which it can be resumed.

    Attributes:
        epoch: The epoch to go on with.
        epochs: The number of epochs that have been trained.
        read_to_build: Whether a batch was read to build the model before the first of them.
        validated: As in `Member`.
        logs: The logs of the last epoch.
    """

    epoch: int
    epochs: int
    read_to_build: bool
    validated: tuple[int, ...]
    logs: Logs


Batches = ArrayBatches | StreamBatches

# The form of batches that have not been looked at.
_UNKNOWN = "unknown"

# Yields requests, receives how many steps were done and the logs of the last one.
Run = Generator[StepRequest | None, tuple[int, Logs], Tree]

CallbackList: TypeAlias = list[keras.callbacks.Callback]


class Member:
    """One model of a cohort.

    A member does what `keras.Model.fit` does, but for the steps: instead of running them it yields
    a `StepRequest` and is sent the outcome. It touches only its own model and its own callbacks.

    Args:
        name: Its unique name in the cohort.
        model: The compiled `keras.Model`.
        group_factor: How many batches are merged into one step.
        replicas: How many times the model is applied in one step.

    Attributes:
        snapshot: The record of the values that its steps are traced with, if its fit is deferred.
        finds_otherwise: Whether its steps are traced with earlier values of something that has
            changed since.
        samples_per_replica: The number of rows of each replica in a step; 0 with one replica only.
        samples_per_step: The number of rows of a full step; `None` before a batch is known.
        validated: The epochs, counted from 0, after which the model was validated.
        resident: The arrays that stay on the device in the present run, if any may.
        is_stacked: Whether its steps are those of a stack, which has its metrics; set from outside.
        is_stopped: Returns whether the fit was stopped from outside before it began here.
    """

    def __init__(self, name: str, model: keras.Model, group_factor: int = 1, replicas: int = 1):
        self.name = name
        self.model = model
        self.group_factor = group_factor
        self.replicas = replicas
        self.snapshot: Snapshot | None = None
        self.finds_otherwise = False
        self._seeds: OwnSeeds | None = None
        self._forms: dict[StepKind, Hashable] = {}
        self.samples_per_replica = 0
        self.samples_per_step: int | None = None
        self.validated: list[int] = []
        self._group = group_factor * replicas
        self._fit: FitArguments
        self._epochs = 0
        self._epochs_left = 0
        self._train: Any = None
        self._validation: Any = None
        self._evaluated: Any = None
        self._predicted: Any = None
        self._random: adapters.OwnRandom | contextlib.nullcontext[None] = contextlib.nullcontext()
        self._has_unbuilt_metrics = False
        self._last_logs: Logs = {}
        self.resident: ResidentArrays | None = None
        self.is_stacked = False
        self.is_stopped: Callable[[], bool] = lambda: False
        self._watched: dict[StepKind, bool] = {}
        self._are_sums: bool | None = None
        self._metrics_at_zero = False
        self._resumed: Progressed | None = None
        self._epochs_trained = 0
        self._read_to_build = False

    def check_fit(self, fit: FitArguments) -> None:
        """Raises for a model or arguments that cannot be trained, as far as no data is read.

        Raises:
            CohortError: If they cannot.
        """
        check_trainable_here(self.model)
        _check_arguments(fit)

    def prepare_fit(self, fit: FitArguments, resumed: Progressed | None = None) -> None:
        """Prepares a fit: stores its arguments, reads a first batch and builds the model from it.

        Args:
            fit: The arguments.
            resumed: The position from which to go on with a training that has begun elsewhere, and
                whose state the model and the callbacks have. Default `None`: it begins here.

        Raises:
            CohortError: If the model or the data cannot be trained as asked.
        """
        self.check_fit(fit)
        self._resumed = resumed
        self._epochs_trained = 0
        self._begin()
        with self._as_if_alone(fit["callbacks"], fit["x"], fit["validation_data"]):
            self._prepare_fit(fit)

    def _begin(self) -> None:
        """Forgets what is known of the model during one task only."""
        self.is_stacked = False
        self._watched, self._are_sums = {}, None

    def _prepare_fit(self, fit: FitArguments) -> None:
        data, validation = _divided(fit)
        self.validated = []
        self._last_logs = {}
        self._fit, self._epochs = fit, _capped(fit["epochs"])
        self._train = self._batches(
            data,
            fit["batch_size"],
            fit["steps_per_epoch"],
            fit["shuffle"],
            fit["class_weight"],
            group=self._group,
        )
        self._has_unbuilt_metrics = backends.builds_metrics_late(self.model)
        first = None
        has_epochs = backends.first_epoch(self.model, fit["initial_epoch"]) < self._epochs
        if has_epochs or backends.builds_before_epochs():
            first = self._build(self._train)
        self._prepare_validation(validation)
        self._recall_traces({"train": self._train, "test": self._validation})
        self.samples_per_step = self._train.rows_per_step
        if self.samples_per_step is None and first is not None:
            self.samples_per_step = _rows(first)
        if self.replicas > 1:
            self.samples_per_replica = self._rows_per_replica(self._train)

    def _prepare_validation(self, data: Tree) -> None:
        """Prepares the validation data; if reading it runs the user's code, only when it is due."""
        self._validation = None
        if data is None:
            return
        fit = self._fit
        size = fit["validation_batch_size"] or fit["batch_size"]
        if self._group > 1 and not fit["validation_batch_size"]:
            size = (fit["batch_size"] or 32) * self._group
        data = keras.utils.unpack_x_y_sample_weight(data)
        make = functools.partial(self._batches, data, size, fit["validation_steps"])
        if adapters.runs_python(data[0]):
            self._validation = make
            return
        with errors.concerning("validation_data"):
            self._validation = make()
            if isinstance(self._validation, ArrayBatches):
                self._check_batch(self._validation.peek(), "test")

    @contextlib.contextmanager
    def traced(self, kind: StepKind) -> Iterator[None]:
        """Returns a context in which steps of this kind are traced with the values to be read.

        These are the values that they read when they were first traced, or else those at the call
        of a deferred fit. Exceptions get this member's name.
        """
        with errors.about(self.name), self.as_read(kind):
            yield

    @contextlib.contextmanager
    def as_read(self, kind: StepKind) -> Iterator[None]:
        """Returns a context with the values and the seeds that steps of this kind must read."""
        found = reads.remembered(self.model, kind) if self._is_traced else None
        found = found or self.snapshot
        with contextlib.ExitStack() as entered:
            if self.snapshot is not None:
                entered.enter_context(self.snapshot.surroundings())
            if found is not None:
                entered.enter_context(found.as_read())
            if self._seeds is not None:
                entered.enter_context(self._seeds.given())
            yield

    @property
    def _is_traced(self) -> bool:
        return backends.get_backend().execution(self.model) != "eager"

    def remember_trace(self, kind: StepKind) -> None:
        """Stores the values that steps of this kind, which have just been traced, have read."""
        if not self._is_traced or reads.remembered(self.model, kind) is not None:
            return
        with self.as_read(kind):
            known = reads.remember(self.model, kind, self._forms.get(kind))
        known.check(
            self.name, self._forms.get(kind)
        )  # later traces of this fit, for batches of other shapes, must read the same values

    def _recall_traces(self, batches: Mapping[StepKind, Tree]) -> None:
        """Prepares the values that steps must read, and the seeds that they draw.

        Args:
            batches: The data of the steps, by their kind.

        Raises:
            CohortError: If a value that they were first traced with has changed and cannot be
                restored.
        """
        self._forms = {kind: getattr(data, "form", None) for kind, data in batches.items()}
        found = {}
        if self._is_traced:
            known = {kind: reads.remembered(self.model, kind) for kind in batches}
            found = {kind: one for kind, one in known.items() if one is not None}
        self.finds_otherwise = False
        for kind, one in found.items():
            one.check(self.name, self._forms[kind])
            self.finds_otherwise |= one.differs
        if self._is_traced and "train" in batches:
            backends.check_trainable(self.model)
        read = self.snapshot or next(iter(found.values()), None) or reads.StepReads(self.model)
        if read.draws_seeds:
            self._seeds = self._seeds or OwnSeeds()
            self._seeds.begin()

    def traced_forms(self) -> dict[StepKind, Hashable]:
        """Returns the form of the batches of the last fit, by each kind of steps that is traced."""
        kinds = [kind for kind in self._forms if reads.remembered(self.model, kind) is not None]
        return {kind: self._forms[kind] for kind in kinds}

    def recall_for_elsewhere(self, fit: FitArguments) -> bool:
        """Prepares the values that the steps of a fit must read which another process traces.

        Returns:
            Whether `as_read` changes what the program refers to.

        Raises:
            CohortError: If a value that they were first traced with has changed and cannot be
                restored.
        """
        if not self._is_traced:
            return False
        train, test = (reads.remembered(self.model, kind) for kind in ("train", "test"))
        if train is not None:
            form = None
            if adapters.are_arrays((fit["x"], fit["y"], fit["sample_weight"])):
                data, _ = _divided(fit)
                given = data, fit["batch_size"], fit["steps_per_epoch"], False
                form = getattr(self._batches(*given, group=self._group), "form", None)
            train.check(self.name, form)
        if test is not None and (fit["validation_split"] or fit["validation_data"] is not None):
            test.check(self.name, _UNKNOWN)  # only one set of values is sent: nothing may differ
        return train is not None and train.differs

    def remember_elsewhere(self, forms: Mapping[StepKind, Hashable]) -> None:
        """Stores the values that steps have read which another process has traced.

        Args:
            forms: What `traced_forms` returned there.
        """
        self._forms = dict(forms)
        for kind in forms:
            self.remember_trace(kind)

    def forget_history(self) -> None:
        """Gives the model an empty `History`, as before the first epoch of a training."""
        history = keras.callbacks.History()
        history.epoch = []
        self.model.history = history

    def prepare_evaluate(self, evaluate: EvaluateArguments) -> None:
        """Prepares an evaluation, as `prepare_fit` prepares a fit."""
        check_trainable_here(self.model)
        _check_arguments(evaluate)
        data = (evaluate["x"], evaluate["y"], evaluate["sample_weight"])
        self._begin()
        with self._as_if_alone(evaluate["callbacks"], evaluate["x"]):
            self._evaluated = self._batches(data, evaluate["batch_size"], evaluate["steps"])
            self._has_unbuilt_metrics = backends.builds_metrics_late(self.model)
            self._build(self._evaluated, "test")
            self._recall_traces({"test": self._evaluated})

    def prepare_predict(self, predict: PredictArguments) -> None:
        """Prepares a prediction, as `prepare_fit` prepares a fit."""
        _check_arguments(predict)
        data = (predict["x"], None, None)
        with self._as_if_alone(predict["callbacks"], predict["x"]):
            batches = self._batches(data, predict["batch_size"], predict["steps"])
            self._predicted = batches
            first = None
            if backends.reads_to_predict(self.model):
                first = batches.read_to_build()
                batches.reset()
            if first is None:
                first = batches.peek(whole=not self.model.built)
            self._check_shapes(first)
            if not self.model.built:
                with keras.StatelessScope():  # as `predict`: a call may change variables
                    self.model(keras.utils.unpack_x_y_sample_weight(first)[0])
            self._recall_traces({"predict": batches})

    def _batches(self, data: tuple[Data, ...], *args: Argument, **kwargs: Argument) -> Batches:
        kwargs["steps_per_execution"] = self.model.steps_per_execution
        is_own = isinstance(self._random, adapters.OwnRandom)
        row_order = functools.partial(backends.get_backend().row_order, owns_state=is_own)
        return batches(data, row_order, *args, **kwargs)

    def _as_if_alone(
        self, callbacks: Callbacks, *data: Data
    ) -> adapters.OwnRandom | contextlib.nullcontext[None]:
        """Returns a context in which code that may draw has random states of the member's own."""
        needed = any(adapters.runs_python(_inputs_of(one)) for one in data)
        needed = needed or reads.may_draw(self.model, backends.callbacks_in(callbacks))
        self._random = adapters.OwnRandom() if needed else contextlib.nullcontext()
        return self._random

    def _drawing(self, run: Run) -> Run:
        """Runs `run` in the context that `_as_if_alone` returned."""
        answer: Any = None
        try:
            while True:
                try:
                    with self._random:
                        request = run.send(answer)
                except StopIteration as end:
                    return end.value
                answer = yield request
        finally:
            run.close()

    def _build(self, batches: Batches, kind: StepKind = "train") -> Tree:
        """Builds the model from its first batch; returns it, or `None` where it is not known yet.

        A batch is read and dropped where `fit` does so before its first epoch. As in `fit`, the
        data is reset only after the building: a dataset that prefetches reads on until then.
        """
        first = batches.read_to_build() if backends.reads_to_build(self.model) else None
        is_read = self._read_to_build = first is not None
        if not is_read:
            batches.reset()
            first = batches.peek()
        if first is not None:
            self._check_batch(first, kind)
        backends.get_backend().build(self.model, first)
        if is_read:
            batches.reset()
        return first

    def _check_batch(self, batch: Tree, kind: StepKind) -> None:
        if backends.overridden(self.model, f"{kind}_step"):
            return  # what it makes of a batch is not known
        _, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None and backends.compares_targets(self.model):
            raise errors.CohortError("Expected `y`, the targets of its loss. Received: y=None.")
        self._check_shapes(batch)

    def _check_shapes(self, batch: Tree) -> None:
        """Raises an error if a batch does not have the shapes that the model expects."""
        wanted = getattr(self.model, "inputs", None)
        if not wanted or batch is None:
            return
        x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        given = tree.flatten(x)
        if any(leaf is None for leaf in given):
            return  # an optional input is missing, which `compute_output_spec` cannot check
        inputs = [each.name for each in wanted]
        is_named = not isinstance(x, Mapping) or not set(inputs).isdisjoint(x)
        if is_named and len(given) == len(wanted) and all(map(_fits, given, wanted)):
            return
        if isinstance(x, (list, tuple)) and len(given) > len(wanted):
            raise errors.CohortError(
                f"Expected `x` to be data for {len(wanted)} input(s). "
                f"Received: {len(given)} arrays.{_BY_MEMBER}"
            )
        specs = tree.map_structure(_symbolic, x)
        try:
            self.model.compute_output_spec(specs)  # may still fit: Keras adds or drops an axis of 1
        except Exception as error:
            if is_named:
                raise
            raise errors.CohortError(
                f"Expected the keys of `x` to be names of members, of which this is {self.name!r}, "
                f"or of its inputs: {', '.join(map(repr, inputs))}. "
                f"Received: {', '.join(map(repr, x)) or 'no keys'}."
            ) from error

    def _rows_per_replica(self, batches: Batches) -> int:
        if backends.has_own_step(self.model, "train"):
            raise errors.CohortError(
                "Expected `replicas=1` for a model with its own `train_step`: what it does with a "
                f"batch is not known. Received: replicas={self.replicas}. "
                f"`group_factor={self.replicas}` trains it on as many samples per step."
            )
        rows = batches.rows_per_step or _rows(batches.peek(whole=True))
        if rows % self.replicas:
            raise errors.CohortError(
                f"Expected batches that can be split into {self.replicas} replicas of one size. "
                f"Received: a batch of {rows} samples."
            )
        return rows // self.replicas

    @property
    def steps_left(self) -> int:
        """The steps of its fit that are still to come, if nothing stops it; 0 if not known."""
        if self._train is None or not self._train.steps_per_epoch:
            return 0
        return self._epochs_left * self._train.steps_per_epoch - self._train.steps_taken

    def training(self, callbacks: CallbackList) -> Run:
        """Returns a run that trains as `fit` does, with `callbacks` added to the fit's own."""
        return self._drawing(self._training(callbacks))

    def _training(self, callbacks: CallbackList) -> Run:
        model, fit, epochs = self.model, self._fit, self._epochs
        dispatch = self._callback_list(
            [*backends.callbacks_in(fit["callbacks"]), *callbacks], fit, epochs
        )
        limit = _step_limit(model, dispatch, "train")
        training_logs = self._begin_or_resume(dispatch)
        first = backends.first_epoch(model, fit["initial_epoch"])
        if self._resumed is not None:
            first = epochs if model.stop_training else self._resumed.epoch
        finished = False
        try:
            for epoch in range(first, epochs):
                self._epochs_left = epochs - epoch
                self._reset_metrics(self._is_watched("train", self._train, dispatch))
                dispatch.on_epoch_begin(epoch)
                training_logs = yield from self._trained_epoch(epoch, dispatch, limit)
                self._epochs_trained += 1
                is_watched = self._is_watched("train", self._train, dispatch)
                _tell_epoch_end(dispatch, epoch, training_logs, is_watched)
                if model.stop_training:
                    break
            finished = True
        finally:
            if epochs > 0 and (finished or backends.get_backend().FINALIZES_AFTER_FAILURE):
                _finalize(model)
        dispatch.on_train_end(training_logs)

    def _begin_or_resume(self, dispatch: keras.callbacks.CallbackList) -> Logs:
        """Begins the training, or resumes one; returns the logs of its last epoch."""
        for data in (self._train, self._validation):
            if isinstance(data, StreamBatches):
                data.begin()
        if self._resumed is None:
            self.model.stop_training = False
            dispatch.on_train_begin()
            self.model.stop_training |= self.is_stopped()
            return None
        # The callbacks have begun elsewhere; their list counts its own begins and ends.
        callbacks, dispatch.callbacks = dispatch.callbacks, []
        dispatch.on_train_begin()
        dispatch.callbacks = callbacks
        self._train.skip(self._resumed.epochs, self._resumed.read_to_build)
        self._epochs_trained = self._resumed.epochs
        self._read_to_build = self._resumed.read_to_build
        self.validated = list(self._resumed.validated)
        return self._resumed.logs

    def progressed(self, epoch: int, logs: Logs) -> Progressed:
        """Returns the position at the end of an epoch, for `prepare_fit` in another process.

        Args:
            epoch: The epoch.
            logs: Its logs.
        """
        return Progressed(
            epoch + 1, self._epochs_trained, self._read_to_build, tuple(self.validated), logs
        )

    @property
    def can_resume(self) -> bool:
        """Returns whether the training could be resumed from the end of an epoch.

        If not, it depends on more than the state of the model and the callbacks: on data that has
        been read, or on random numbers that code of the user's draws from a global state.
        """
        data = [self._train, *([] if self._validation is None else [self._validation])]
        return (
            all(isinstance(batches, ArrayBatches) for batches in data)
            and not isinstance(self._random, adapters.OwnRandom)
            and self._seeds is None
        )

    def _reset_metrics(self, is_watched: bool) -> None:
        """Resets the metrics as `fit` does, in a first step only those that are built before it.

        Those of a stack that nobody looks at are set to zero there, for all members at once.

        Args:
            is_watched: Whether code may look at the model before the next steps.
        """
        self._metrics_at_zero = False
        if self._has_unbuilt_metrics:
            backends.reset_built_metrics(self.model)
        elif self.is_stacked and not is_watched and self._resets_to_zero():
            self._metrics_at_zero = True
        else:
            backends.reset_metrics(self.model)
        self._has_unbuilt_metrics = False

    def _resets_to_zero(self) -> bool:
        if self._are_sums is None:
            self._are_sums = backends.resets_to_zero(self.model)
        return self._are_sums

    @property
    def is_unwatched(self) -> bool:
        """Returns whether no code looks at the model between steps of the kinds so far."""
        return bool(self._watched) and not any(self._watched.values())

    def _is_watched(
        self, kind: StepKind, batches: Batches, dispatch: keras.callbacks.CallbackList
    ) -> bool:
        """Returns whether code may look at the model between steps of this kind."""
        known = self._watched.get(kind)
        if known is None:
            known = _is_watched(self.model, dispatch, batches)
            if not backends.builds_metrics_late(self.model):  # otherwise not all are known yet
                self._watched[kind] = known
        return known

    def _trained_epoch(
        self, epoch: int, dispatch: keras.callbacks.CallbackList, limit: int | None
    ) -> Run:
        """Runs one epoch and the validation that is due after it; returns the logs of both."""
        logs = dict((yield from self._epoch("train", self._train, dispatch, limit)))
        if self._validation is not None and _is_due(epoch, self._fit["validation_freq"]):
            if not isinstance(self._validation, Batches):
                self._validation = self._validation()
            val_logs = yield from self._evaluating(self._validation, dispatch)
            logs |= {f"val_{name}": value for name, value in val_logs.items()}
            self.validated.append(epoch)
        return logs

    def _evaluating(self, batches: Batches, dispatch: keras.callbacks.CallbackList) -> Run:
        """Evaluates as `evaluate` does; returns the logs as floats."""
        if batches is not self._evaluated and backends.reads_to_build(self.model):
            batches.read_to_build()
        batches.reset()
        self.model.stop_evaluating = False
        dispatch.on_test_begin()
        self._reset_metrics(self._is_watched("test", batches, dispatch))
        limit = _step_limit(self.model, dispatch, "test")
        logs = _as_floats((yield from self._epoch("test", batches, dispatch, limit)))
        dispatch.on_test_end(logs)
        return logs

    def evaluation(
        self,
        evaluate: EvaluateArguments,
        callbacks: CallbackList,
        return_dict: bool,
    ) -> Run:
        """Returns a run that evaluates, with the result of `evaluate`."""
        return self._drawing(self._evaluation(evaluate, callbacks, return_dict))

    def _evaluation(
        self,
        evaluate: EvaluateArguments,
        callbacks: CallbackList,
        return_dict: bool,
    ) -> Run:
        dispatch = self._plain_dispatch(evaluate, callbacks, self._evaluated)
        logs = yield from self._evaluating(self._evaluated, dispatch)
        return logs if return_dict else backends.flat_results(self.model, logs)

    def prediction(self, predict: PredictArguments, callbacks: CallbackList) -> Run:
        """Returns a run that predicts, with the result of `predict`."""
        return self._drawing(self._prediction(predict, callbacks))

    def _prediction(self, predict: PredictArguments, callbacks: CallbackList) -> Run:
        batches = self._predicted
        dispatch = self._plain_dispatch(predict, callbacks, batches)
        self.model.stop_predicting = False
        dispatch.on_predict_begin()
        limit = _step_limit(self.model, dispatch, "predict")
        concatenated = backends.get_backend().concatenated
        parts: list[Tree] = []
        seen = 0  # the parts that callbacks have seen

        def take(outputs: Tree) -> None:
            parts.append(tree.map_structure(_rows_in_order, outputs))

        def told() -> Logs:
            nonlocal seen
            fresh, seen = parts[seen:], len(parts)
            return {"outputs": tree.map_structure(lambda *rows: concatenated(rows), *fresh)}

        yield from self._steps("predict", batches, dispatch, limit, take, told)
        dispatch.on_predict_end()
        return tree.map_structure(lambda *rows: concatenated(rows), *parts)

    def _epoch(
        self,
        kind: StepKind,
        batches: Batches,
        dispatch: keras.callbacks.CallbackList,
        limit: int | None,
    ) -> Run:
        """Runs the steps of one epoch; returns its logs, as `fit` passes them to `on_epoch_end`."""
        if getattr(
            self.model, _STOPS[kind]
        ):  # if set already, the epoch ends after its first execution
            limit = self.model.steps_per_execution
        must_sync = self._is_watched(kind, batches, dispatch)
        may_run_out = kind == "train" and isinstance(batches, StreamBatches)
        counted = backends.seed_counts(self.model) if may_run_out else {}
        logs: Logs = {}

        def take(outcome: Logs) -> None:
            nonlocal logs
            logs = outcome
            if not isinstance(logs, dict):
                backends.check_logs(logs)

        run = self._steps(kind, batches, dispatch, limit, take, lambda: logs, must_sync)
        steps, is_stopped = yield from run
        if is_stopped:
            return self._metrics_or(logs, kind)
        if kind == "train" and not steps and self._last_logs:
            logs = backends.logs_without_steps(self.model, self._last_logs)
        if batches.ran_out and steps:
            rows, is_weighted = batches.fixed_rows, batches.are_weighted
            backends.step_without_data(self.model, kind, counted, steps, rows, is_weighted)
            if not backends.has_own_step(self.model, kind):
                logs = self.model.get_metrics_result()
        if kind == "train":
            self._last_logs = logs
        return self._metrics_or(logs, kind)

    def _steps(
        self,
        kind: StepKind,
        batches: Batches,
        dispatch: keras.callbacks.CallbackList,
        limit: int | None,
        take: Callable[[Tree], None],
        told: Callable[[], Logs],
        must_sync: bool = True,
    ) -> Generator[StepRequest | None, tuple[int, Tree], tuple[int, bool]]:
        """Requests the steps of one pass over the data, and calls the hooks of batches.

        Hooks are called before and after each `steps_per_execution` steps, wherever chunks and
        turns end.

        Args:
            kind: The kind of the steps.
            batches: Their data.
            dispatch: The callbacks.
            limit: The number of steps between hooks; `None` if there are no hooks.
            take: Called with the outcome of each request.
            told: Returns the logs to pass to the hook after an execution.
            must_sync: As in `StepRequest`.

        Returns:
            The number of steps done, and whether the model's `stop_...` attribute ended them.
        """
        on_begin = getattr(dispatch, f"on_{kind}_batch_begin")
        on_end = getattr(dispatch, f"on_{kind}_batch_end")
        is_prediction = kind == "predict"  # which has no metrics, and a program of its own
        step = 0
        # Batch hooks are the user's code, and an eager step takes its batch from memory.
        resident = self.resident if self._is_traced and not limit else None
        chunks = batches.epoch(limit, resident, _may_change_data(dispatch))
        while (chunk := (yield from self._next(batches, chunks))) is not None:
            position = chunk.start
            while position < chunk.stop:
                if limit and step % limit == 0:
                    on_begin(step)
                until = chunk.stop
                if limit:
                    until = min(until, position + limit - step % limit)
                done, outcome = yield StepRequest(
                    kind,
                    chunk,
                    position,
                    until,
                    has_batch_hooks=bool(limit) and not is_prediction,
                    metrics_reset=step == 0 and not (is_prediction or self._metrics_at_zero),
                    metrics_at_zero=step == 0 and not is_prediction and self._metrics_at_zero,
                    must_sync=must_sync,
                )
                position, step = position + done, step + done
                batches.steps_taken = step
                take(outcome)
                if limit and step % limit:
                    continue
                if limit:
                    on_end(step - 1, told())
                if getattr(self.model, _STOPS[kind]):
                    return step, True
        if limit and step % limit:
            on_end(step + limit - step % limit - 1, told())
        if limit and batches.ran_out and backends.reads_after_hooks():
            on_begin(limit * math.ceil(step / limit))
        return step, False

    @staticmethod
    def _next(
        batches: Batches, chunks: Iterator[Chunk]
    ) -> Generator[None, bool | None, Chunk | None]:
        """Returns the next chunk, or `None`.

        Yields `None` as long as others must read first, or until it is answered that it may go on.
        """
        may_go_on: bool | None = False
        while batches.must_wait and not may_go_on:
            may_go_on = yield None
        return next(chunks, None)

    def _metrics_or(self, logs: Logs, kind: StepKind) -> Tree:
        """Returns the metrics, or the last step's logs if the model's own step makes other ones."""
        if not backends.has_own_step(self.model, kind):
            return logs
        metrics = self.model.get_metrics_result()
        return metrics if isinstance(logs, dict) and logs.keys() == metrics.keys() else logs

    def _callback_list(
        self, callbacks: CallbackList, fit: FitArguments, epochs: int
    ) -> keras.callbacks.CallbackList:
        return keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
            model=self.model,
            verbose=fit["verbose"],
            epochs=epochs,
            steps=self._train.steps_per_epoch,
        )

    def _plain_dispatch(
        self,
        asked: EvaluateArguments | PredictArguments,
        callbacks: CallbackList,
        batches: Batches,
    ) -> keras.callbacks.CallbackList:
        return keras.callbacks.CallbackList(
            [*backends.callbacks_in(asked["callbacks"]), *callbacks],
            model=self.model,
            verbose=asked["verbose"],
            epochs=1,
            steps=batches.steps_per_epoch,
        )

    def close(self) -> None:
        """Ends the use of the data, and releases it."""
        if self._train is not None:
            self._train.advance_global_rng()
        if isinstance(self._random, adapters.OwnRandom):
            self._random.advance_global_rng()
        self._random = contextlib.nullcontext()
        if self._seeds is not None:
            self._seeds.advance_global_rng()
        vars(self).pop("_fit", None)
        for data in (self._train, self._validation, self._evaluated, self._predicted):
            if isinstance(data, StreamBatches):
                data.close()
        self._train = self._validation = self._evaluated = self._predicted = None
        self.resident = None


def entered_run(
    run: Run,
    member: Member,
    inside: Callable[[], contextlib.AbstractContextManager[None]],
    is_seen: bool,
    advanced: Callable[[], None] = lambda: None,
) -> Run:
    """Runs `run` with a state of the process of its own where it may matter; yields its requests.

    Args:
        run: The run.
        member: Its member, which is closed at the end.
        inside: Makes a context in which the process is as the run would find it alone.
        is_seen: Whether that can be seen or changed between the steps. If not, `inside` is used at
            the end only.
        advanced: Called after each part of the run.

    Returns:
        The run's result.
    """
    answer: Any = None  # the first value sent to a generator must be `None`
    between = inside if is_seen else contextlib.nullcontext
    try:
        while True:
            try:
                with between():
                    request = run.send(answer)
            except StopIteration as end:
                return end.value
            advanced()
            answer = yield request
    finally:
        with inside():
            run.close()
            member.close()
        advanced()


def _divided(fit: FitArguments) -> tuple[tuple[Data, Data, Data], Data]:
    """Returns the data `(x, y, sample_weight)` to train on, and the validation data, if any."""
    data, validation = (fit["x"], fit["y"], fit["sample_weight"]), fit["validation_data"]
    if fit["validation_split"] and validation is None:
        return adapters.split_validation(data, fit["validation_split"])
    return data, validation


def check_trainable_here(model: keras.Model) -> None:
    """Raises an error if a cohort would train the model otherwise than its own `fit` does.

    Raises:
        CohortError: If it would; the message says why.
    """
    if not model.compiled:
        raise errors.CohortError("You must call `compile()` before using the model in a cohort.")
    distribution = backends.distribution(model)
    if distribution is not None:
        raise errors.CohortError(
            "Expected a model that is trained on one device. Received: one distributed by a "
            f"{type(distribution).__name__}."
        )
    own = backends.overridden(model, "fit", "make_train_function", "evaluate", "make_test_function")
    if own:
        raise errors.CohortError(
            f"Expected a model trained by Keras's own `fit`. Received: {type(model).__name__} with "
            f"its own `{own[0]}`, which a cohort would not call. A `train_step` of its own is fine."
        )


_BY_MEMBER = " For a value by member, give a dict from their names."
_COUNTS = ("batch_size", "epochs", "initial_epoch", "steps", "steps_per_epoch")
_NEEDED_COUNTS = ("epochs", "initial_epoch")


def check_callbacks(callbacks: Callbacks) -> None:
    """Raises an error for what is no callbacks.

    Raises:
        CohortError: If it is none; the message says what it is.
    """
    for callback in backends.callbacks_in(callbacks):
        if isinstance(callback, type):
            name = callback.__name__
            raise errors.CohortError(
                f"Expected callbacks. Received: the class {name}, not {name}()."
            )
        if not hasattr(callback, "set_model"):
            raise errors.CohortError(
                "Expected `callbacks` to be a list of `keras.callbacks.Callback`. "
                f"Received: {callback!r}."
            )


def _check_arguments(given: Mapping[str, Argument]) -> None:
    """Raises an error for values that Keras would refuse only later, or not at all."""
    if given["x"] is None:
        raise errors.CohortError("Expected `x`, the data. Received: x=None.")
    verbose = given["verbose"]
    if isinstance(verbose, str) and verbose != "auto":
        raise errors.CohortError(
            f"Expected `verbose` to be 0, 1, 2 or 'auto'. Received: verbose={verbose!r}."
        )
    check_callbacks(given["callbacks"])
    for key in _COUNTS:
        value = given.get(key)
        may_be_none = value is None and (key not in _NEEDED_COUNTS or key not in given)
        if not may_be_none and not errors.is_count(value):
            hint = _BY_MEMBER if isinstance(value, (list, tuple)) else ""
            raise errors.CohortError(
                f"Expected `{key}` to be an integer that is not negative. "
                f"Received: {key}={value!r}.{hint}"
            )
    split = given.get("validation_split")
    if split and given["validation_data"] is None and not _is_fraction(split):
        raise errors.CohortError(
            "Expected `validation_split` to be from 0 to less than 1. "
            f"Received: validation_split={split!r}."
        )
    frequency = given.get("validation_freq", 1)
    is_validated = bool(split) or given.get("validation_data") is not None
    if is_validated and not _is_frequency(frequency):
        raise errors.CohortError(
            "Expected `validation_freq` to be an integer of at least 1, or a list of epochs. "
            f"Received: validation_freq={frequency!r}."
        )


def _is_fraction(value: Argument) -> bool:
    try:
        return bool(0 <= value < 1)
    except (TypeError, ValueError):
        return False


def _is_frequency(value: Argument) -> bool:
    # `fit` takes no other types, and finds that out when the first validation is due.
    return isinstance(value, list) or (isinstance(value, int) and value >= 1)


def _step_limit(
    model: keras.Model, dispatch: keras.callbacks.CallbackList, kind: StepKind
) -> int | None:
    """Returns the number of steps between calls of batch hooks; `None` without such hooks."""
    if not any(_looks_at_batches(callback, kind) for callback in dispatch.callbacks):
        return None
    return model.steps_per_execution


def _looks_at_batches(callback: keras.callbacks.Callback, kind: StepKind) -> bool:
    savers = (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore)
    if type(callback) in savers and callback.save_freq == "epoch":
        return False  # their batch hook only counts batches for an integer `save_freq`
    return any(
        hook in vars(callback)
        or getattr(type(callback), hook) is not getattr(keras.callbacks.Callback, hook)
        for hook in _BATCH_HOOKS[kind]
    )


def _is_watched(
    model: keras.Model, dispatch: keras.callbacks.CallbackList, batches: Batches
) -> bool:
    """Returns whether code may read more than logs between steps, or at the end of training."""
    optimizer = model.optimizer
    wrapped = getattr(optimizer, "inner_optimizer", None)
    return (
        any(getattr(one, "use_ema", False) for one in (optimizer, wrapped))
        or backends.resets_in_its_own_way(model)
        or backends.has_own_step(model, "train")
        or backends.has_own_step(model, "test")
        or isinstance(batches, StreamBatches)  # reading them may run the user's code
        or not all(map(_is_ours, dispatch.callbacks))
    )


def _tell_epoch_end(
    dispatch: keras.callbacks.CallbackList, epoch: int, logs: Logs, is_watched: bool
) -> None:
    """Calls `on_epoch_end` as a `CallbackList` does, whose way to convert numbers takes longer."""
    is_plain = all(isinstance(value, float | np.floating) for value in logs.values())
    if is_watched or not is_plain:
        dispatch.on_epoch_end(epoch, logs)
        return
    logs = _as_floats(logs)
    for callback in dispatch.callbacks:
        callback.on_epoch_end(epoch, logs)


def _is_ours(callback: keras.callbacks.Callback) -> bool:
    if getattr(callback, "reads_model", False):
        return False
    ours = type(callback).__module__.partition(".")[0] == __name__.partition(".")[0]
    return ours or type(callback) is keras.callbacks.History


# Callbacks of Keras that call functions of the user's.
_CALL_FUNCTIONS = (keras.callbacks.LambdaCallback, keras.callbacks.LearningRateScheduler)


def _may_change_data(dispatch: keras.callbacks.CallbackList) -> bool:
    """Returns whether callbacks may change arrays in place: those that run code of the user's."""
    return any(
        isinstance(callback, _CALL_FUNCTIONS)
        or not (_is_ours(callback) or backends.is_of_keras(type(callback)))
        for callback in dispatch.callbacks
    )


def _finalize(model: keras.Model) -> None:
    """Sets the weights to the optimizer's final ones, such as their moving average."""
    if isinstance(model.optimizer, keras.optimizers.Optimizer):
        model.optimizer.finalize_variable_values(model.trainable_variables)


def _capped(epochs: int) -> int:
    most = keras.config.max_epochs()
    if most and most < epochs:
        warnings.warn(f"Limiting epochs to {most}", stacklevel=3)
        return most
    return epochs


def _is_due(epoch: int, validation_freq: int | list[int]) -> bool:
    """Returns whether validation follows this epoch: every n-th, or those listed, from 1."""
    if isinstance(validation_freq, int):
        return (epoch + 1) % validation_freq == 0
    return (epoch + 1) in validation_freq


def _as_floats(logs: Logs) -> dict[str, Tree]:
    """Returns logs with scalars as Python floats and nested ones flattened, as in `evaluate`."""
    plain: dict[str, Tree] = {}
    for name, value in sorted((logs or {}).items()):
        if isinstance(value, dict):
            plain |= _as_floats(value)
        else:
            try:
                plain[name] = float(value)
            except (TypeError, ValueError):
                plain[name] = value
    return plain


def _inputs_of(data: Tree) -> Tree:
    """Returns the inputs in a `validation_data`, which may be a tuple."""
    return keras.utils.unpack_x_y_sample_weight(data)[0] if isinstance(data, tuple) else data


def _rows(batch: Tree) -> int:
    return next(leaf.shape[0] for leaf in tree.flatten(batch) if leaf is not None)


def _fits(given: Tensor, wanted: keras.KerasTensor) -> bool:
    return len(given.shape) == len(wanted.shape) and all(
        size in (None, have) for have, size in zip(given.shape, wanted.shape, strict=True)
    )


def _symbolic(array: Tensor) -> Tree:
    if array is None:
        return None
    is_text = isinstance(array, np.ndarray) and array.dtype.kind in "OSU"
    dtype = "string" if is_text else keras.backend.standardize_dtype(array.dtype)
    return keras.KerasTensor(array.shape, dtype)


def _rows_in_order(outputs: Tree) -> np.ndarray:
    """Returns outputs of several steps, `(steps, batch, ...)`, as a NumPy array `(rows, ...)`."""
    outputs = keras.ops.convert_to_numpy(outputs)
    return outputs.reshape((outputs.shape[0] * outputs.shape[1], *outputs.shape[2:]))
