"""The state of the widget, as traits, and all its actions; without a widget library."""

import contextlib
import keyword
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import keras
import pandas as pd
import traitlets

from kerascohost import backends, errors
from kerascohost.arguments import CHOSEN_LAYOUTS, MEASURED_LAYOUTS, Argument, Data
from kerascohost.backends import threads
from kerascohost.errors import CohortError
from kerascohost.layouts.benchmark import benchmark
from kerascohost.layouts.result import BenchmarkResult
from kerascohost.layouts.suggestions import suggest_group_factors
from kerascohost.notebook import data, live, namespace, source
from kerascohost.notebook.namespace import Value, Variables
from kerascohost.results.history import CohortHistory
from kerascohost.training.cohort import Cohort

# The largest factor that the widget offers; there is no limit in code.
MOST_FACTOR = 16

# Progress and curves are updated at most this often (in seconds), and drawing either takes at most
# this share of the time, as it slows down the training.
_EVERY = 0.25
_SHARE = 0.03

# Held by the one training or benchmark that runs: the backends do not support training in several
# threads at once.
_running = threading.Lock()

# The value of a trait that the thread beside a training or benchmark updates.
_Told: TypeAlias = (
    str | live.TrainingProgress | live.BenchmarkProgress | pd.DataFrame | CohortHistory
)

# Functions that return the current values of traits, by the names of the traits.
_Tells: TypeAlias = Mapping[str, Callable[[], _Told]]


class CohostSession(traitlets.HasTraits):
    """A choice of models from a namespace, of their data and layout, and their training.

    It has everything that `CohostWidget` offers: set the traits, call `suggest`, `benchmark`,
    `use_layout`, `train` and `stop`. `benchmark` and `train` start a thread and return at once;
    `wait` waits for its end. An error that is found before the thread starts is raised; every error
    is also in the trait `errors`.

    Args:
        variables: The namespace: a dict from names to objects, such as a notebook's `globals()`.
        **values: Initial values of traits.

    Attributes:
        models: The namespace's Keras models by name, as of the last `refresh`.
        selected: The names of the members.
        x: The name of each model's input data; `""` for random data in a benchmark.
        y: The name of each model's targets; `""` where `x` is a dataset.
        validation: The validation data of each model: `()` for none, a fraction of its training
            data as `(0.1,)`, or names as `("x_val", "y_val")` or `("dataset",)`.
        batch_size: The samples per batch of each model.
        epochs: The number of epochs of each model.
        layout: `"joined"` (sync-bound), `"grouped"`, `"replicated"`, `"stacked"` or `"auto"`.
        group_factor: The number of each model's batches that are merged into a step when grouped.
        replicas: The number of batches that each model is applied to in a step when replicated.
        budget_s: Seconds that a benchmark may take.
        output: The variable that gets the `CohortHistory`.
        work: The last thing that was started: `"benchmark"` or `"train"`.
        status: `"idle"`, `"benchmarking"`, `"training"` or `"stopping"`.
        progress: A dict with `fraction`, from 0 to 1, and `text`; of a training also `members`, by
            name each with `fraction`, `epoch` and `metrics`.
        curves: The history so far, as `CohortHistory.frame`. A model that has ended no epoch has
            one row, with a loss of NaN.
        result: The last `BenchmarkResult`.
        history: The last training's `CohortHistory`.
        errors: Error texts by the part of the widget that they belong to: `"models"`, `"data"`,
            `"layout"`, `"benchmark"`, `"train"`.
        message: A sentence on how the last training or benchmark ended.
        refreshed: The number of calls of `refresh`.

    Example:

    >>> import keras, numpy as np
    >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> net.compile("adam", "mse")
    >>> variables = {"net": net, "x": np.ones((64, 4)), "y": np.zeros((64, 1))}
    >>> session = CohostSession(variables, selected=["net"])
    >>> session.epochs = {"net": 3}
    >>> session.train()
    >>> session.wait()
    True
    >>> len(variables["history"]["net"].epoch)
    3
    """

    models = traitlets.Dict()
    selected = traitlets.List(traitlets.Unicode())
    x = traitlets.Dict()
    y = traitlets.Dict()
    validation = traitlets.Dict()
    batch_size = traitlets.Dict()
    epochs = traitlets.Dict()
    layout: "traitlets.Enum[str]" = traitlets.Enum(CHOSEN_LAYOUTS, "joined")
    group_factor = traitlets.Dict()
    replicas = traitlets.Dict()
    budget_s = traitlets.Float(20.0, min=1.0)
    output = traitlets.Unicode("history")
    work = traitlets.Unicode(read_only=True)
    status = traitlets.Unicode("idle", read_only=True)
    progress = traitlets.Dict(read_only=True)
    curves = traitlets.Instance(pd.DataFrame, allow_none=True, read_only=True)
    result = traitlets.Instance(BenchmarkResult, allow_none=True, read_only=True)
    history = traitlets.Instance(CohortHistory, allow_none=True, read_only=True)
    errors = traitlets.Dict(read_only=True)
    message = traitlets.Unicode(read_only=True)
    refreshed = traitlets.Int(read_only=True)

    def __init__(self, variables: Variables, **values: Value):
        super().__init__()
        self._variables = variables
        self._data: dict[str, Data] = {}
        self._given: Mapping[str, keras.Model] = {}  # by the names that the user selected
        self._guard = threading.RLock()
        self._thread: threading.Thread | None = None
        self._without: set[str] = set()  # models without fitting data at the last refresh
        self.stops = 0
        self._busy: list[str] = []  # the models in training or measurement
        self._cohort: Cohort | None = None
        self._keras_state = threads.thread_state()
        self.refresh()
        for name, value in values.items():
            setattr(self, name, value)

    # Models and data

    @traitlets.validate("selected")
    def _check_names(self, proposal: traitlets.Bunch) -> list[str]:
        if not set(proposal.value) <= set(self.models):
            self._given = namespace.chosen(self._variables, proposal.value)
            self.refresh()  # the model may be new, or listed by another name
        for name in proposal.value:
            if name not in self.models:
                raise CohortError(
                    f"Expected names of models. Received: {name!r}."
                    f"{errors.did_you_mean(name, self.models)}"
                )
        return proposal.value

    def refresh(self) -> None:
        """Reads the namespace again; choices for models that are still there remain."""
        if threading.current_thread() is threading.main_thread():
            self._keras_state = threads.thread_state()
        with self._guard:
            self._data = data.data_in(self._variables)
            self.models = namespace.models_in(self._variables, self._given)
            self.selected = [name for name in self.selected if name in self.models]
            for name in self.models:
                self._choose_for(name)
            self.set_trait("refreshed", self.refreshed + 1)

    def _choose_for(self, name: str) -> None:
        """Sets a model's choices where there are none yet, or their data is gone."""
        inputs = self.x_options(name)
        if self.x.get(name) not in inputs or (name in self._without and len(inputs) > 1):
            self.x = self.x | {name: inputs[0]}
        (self._without.add if len(inputs) == 1 else self._without.discard)(name)
        targets = self.y_options(name)
        if self.y.get(name) not in targets:
            self.y = self.y | {name: targets[0]}
        validations = self.validation_options(name)
        if self.validation.get(name) not in validations:
            aside = [names for names in validations if _is_for_validation(names)]
            self.validation = self.validation | {name: aside[0] if aside else ()}
        defaults = {"batch_size": 32, "epochs": 5, "group_factor": 1, "replicas": 1}
        for trait, value in defaults.items():
            if name not in getattr(self, trait):
                self.choose(trait, {name: value})

    def choose(self, trait: str, values: Mapping[str, Argument]) -> None:
        """Sets a trait for some models.

        Args:
            trait: A trait that is a dict by model; or `"factors"`, which is `"replicas"` in the
                layout "replicated" and `"group_factor"` in others.
            values: The new values by model.
        """
        if trait == "factors":
            trait = "replicas" if self.layout == "replicated" else "group_factor"
        setattr(self, trait, getattr(self, trait) | values)

    def x_options(self, name: str) -> list[str]:
        """Returns names of data that fit a model's inputs, the likeliest first, then `""`."""
        return [*data.inputs_for(name, self.models[name], self._data), ""]

    def y_options(self, name: str) -> list[str]:
        """Returns names of targets for the chosen `x`, the likeliest first; `[""]` for none."""
        found = data.targets_for(name, self.models[name], self.x.get(name, ""), self._data)
        return found or [""]

    def validation_options(self, name: str) -> list[data.Validation]:
        """Returns the validation data to choose from: none, a fraction of `x`, or other data."""
        own = self.x.get(name, "")
        fractions: list[data.Validation] = (
            [] if own == "" or data.is_dataset(self._data[own]) else [(0.1,), (0.2,)]
        )
        others = data.validation_for(name, self.models[name], self._data)
        return [(), *fractions, *(names for names in others if names[0] != own)]

    def described(self, name: str) -> str:
        """Returns the shape of a variable's data, or the class of a dataset."""
        return data.described(self._data[name])

    @traitlets.observe("x")
    def _follow_x(self, change: traitlets.Bunch) -> None:
        """Chooses new targets for models whose inputs have changed."""
        chosen = {
            name: self.y_options(name)[0]
            for name in self.models
            if self.y.get(name) not in self.y_options(name)
            or change.old is traitlets.Undefined
            or change.old.get(name) != self.x.get(name)
        }
        self.y = self.y | chosen

    def rows(self, name: str) -> int | None:
        """Returns the number of samples that a model is trained on; `None` if unknown."""
        chosen = self._data.get(self.x.get(name, ""))
        return None if chosen is None else data.rows_of(chosen)

    def takes_batch_size(self, name: str) -> bool:
        """Returns whether the model's data has a batch size to choose, unlike a dataset."""
        chosen = self._data.get(self.x.get(name, ""))
        return chosen is None or not data.is_dataset(chosen)

    # Layouts

    @property
    def impossible(self) -> dict[str, str]:
        """The layouts that cannot be chosen, with the reason."""
        if backends.get_backend().StackProgram is not None:
            return {}
        return dict.fromkeys(("stacked", "auto"), "steps are not compiled on this backend")

    @traitlets.validate("layout")
    def _check_layout(self, proposal: traitlets.Bunch) -> str:
        if proposal.value in self.impossible:
            raise traitlets.TraitError(
                f"Expected a layout that is available. Received: layout={proposal.value!r}, "
                f"{self.impossible[proposal.value]}."
            )
        return proposal.value

    @property
    def factors(self) -> dict[str, int]:
        """The number of batches of each selected model in a step of the chosen layout."""
        given = {"grouped": self.group_factor, "replicated": self.replicas}.get(self.layout, {})
        return {name: given.get(name, 1) for name in self.selected}

    @property
    def effective_batch_size(self) -> dict[str, int | None]:
        """The number of samples of each selected model in a step; `None` for a dataset."""
        return {
            name: self.batch_size[name] * factor if self.takes_batch_size(name) else None
            for name, factor in self.factors.items()
        }

    def most_factor(self, name: str) -> int:
        """Returns the largest factor for which the model has samples, at most `MOST_FACTOR`."""
        rows = self.rows(name)
        if rows is None or not self.takes_batch_size(name):
            return MOST_FACTOR
        return max(1, min(MOST_FACTOR, rows // self.batch_size[name]))

    def suggest(self) -> None:
        """Sets factors with which the models end their epochs together.

        After a benchmark of the selected models, sets factors with which their steps take equally
        long.

        Raises:
            CohortError: If no model is selected, if a size of data is unknown and there is no
                benchmark, or while a training or benchmark runs.
        """
        with self._doing("layout"):
            self._check_selected()
            most = {name: self.most_factor(name) for name in self.selected}
            if self.result is not None and self._result_is_of_these():
                found = suggest_group_factors(self.result, "speed", 1)
            else:
                found = suggest_group_factors(self._steps_of_an_epoch())
            chosen = {name: min(found[name], most[name]) for name in self.selected}
            if self.layout != "replicated":
                self.layout = "grouped"
            self.choose("factors", chosen)

    def _steps_of_an_epoch(self) -> dict[str, int]:
        steps = {}
        for name in self.selected:
            rows = self.rows(name)
            if rows is None:
                raise CohortError(
                    f"Expected data of a known size for {name!r}. Received: "
                    f"{self.x.get(name) or 'random data'}; run the benchmark, then suggestions "
                    "come from measured speeds."
                )
            steps[name] = math.ceil(rows / self.batch_size[name])
        return steps

    def _result_is_of_these(self) -> bool:
        return self.result is not None and set(self.result.members["member"]) == set(self.selected)

    def use_layout(self, layout: str | None = None) -> None:
        """Chooses a layout of the last benchmark, with its factors.

        Args:
            layout: The layout, by default the best one.

        Raises:
            CohortError: If there is no such layout, or while a training or benchmark runs.
        """
        with self._doing("benchmark"):
            if self.result is None:
                raise CohortError("Expected a benchmark to choose from. Received: none was run.")
            layout = layout or self.result.best
            if layout == "separate":
                raise CohortError(
                    "Expected a layout that is faster than separate training. Received: none is."
                )
            rows = self.result.members[self.result.members["layout"] == layout]
            if rows.empty:
                measured = ", ".join(self.result.members["layout"].unique())
                raise CohortError(
                    f"Expected a layout that was measured: {measured}. Received: {layout!r}."
                )
            counts = dict(zip(rows["member"], rows["batches"].astype(int), strict=True))
            self.layout = layout
            if layout in ("grouped", "replicated"):
                self.choose("factors", counts)

    # Training and benchmarks

    @property
    def call(self) -> source.Call:
        """The call that `train` makes, as code and as arguments."""
        own = {
            name: source.Fit(
                x=self.x[name],
                y=self.y.get(name, ""),
                validation=tuple(self.validation.get(name, ())),
                batch_size=self.batch_size[name] if self.takes_batch_size(name) else None,
                epochs=self.epochs[name],
            )
            for name in self.selected
        }
        return source.Call(own, self.layout, self.factors, self.output)

    @property
    def code(self) -> str:
        """Python code that does the same as `train`."""
        return self.call.python()

    @property
    def cell(self) -> str:
        """A notebook cell that does the same as `train`."""
        return self.call.cell()

    def train(self) -> None:
        """Starts to train the selected models.

        Raises:
            CohortError: If something is missing, or a training or benchmark runs already.
        """
        with self._doing("train"):
            self.refresh()
            self._check_selected()
            self._check_data()
            self._check_output()
            call = self.call
            arguments = call.fit_arguments(self._variables)
            models = {name: self.models[name] for name in self.selected}
            cohort = Cohort(models, **call.cohort_arguments())
            told = live.LiveTraining(self.selected, lambda: self.stops)
            cohort.progress = lambda name, *_: live.LiveProgress(name, told)
            self._cohort = cohort
            tells: _Tells = {"progress": told.progress, "curves": told.curves}
            self._start("train", "training", lambda: self._train(cohort, arguments), tells)

    def benchmark(self) -> None:
        """Starts to measure the layouts with the selected models, on their data or random data.

        Raises:
            CohortError: If something is missing, or a training or benchmark runs already.
        """
        with self._doing("benchmark"):
            self.refresh()
            self._check_selected()
            arguments = self._benchmark_arguments()
            told = live.LiveBenchmark(lambda: self.stops)
            tells: _Tells = {"progress": told.progress}
            self._start(
                "benchmark", "benchmarking", lambda: self._benchmark(arguments, told), tells
            )

    def stop(self) -> None:
        """Stops the training or benchmark.

        A training ends after its current steps and the validation that is due, with its weights and
        history; a second call ends the validation too. A benchmark ends before its next fit, and
        restores the models.
        """
        with self._guard:
            if self.status == "idle":
                return
            self.stops += 1
            self.set_trait("status", "stopping")
            if self._cohort is not None:
                self._cohort.stop()
                for model in self._cohort.members.values() if self.stops > 1 else ():
                    model.stop_evaluating = True

    def caution(self, code: str) -> str:
        """Returns a warning if `code` names a model that is being trained or measured.

        Returns:
            A sentence, or `""`.
        """
        words = set(re.findall(r"\w+", code)) if self.status != "idle" else set()
        named = [name for name in self._busy if name in words]
        if not named:
            return ""
        are = f"{' and '.join(named)} {'is' if len(named) == 1 else 'are'} being"
        if self.work == "benchmark":
            return f"{are} measured: the weights are not yours until the benchmark has ended."
        return f"{are} trained: what uses a model now sees it in between."

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end of the training or benchmark.

        Args:
            timeout: The most seconds to wait, by default without limit.

        Returns:
            Whether the session is idle.
        """
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return self.status == "idle"

    def _train(self, cohort: Cohort, arguments: dict[str, Argument]) -> str:
        began = time.perf_counter()
        try:
            cohort.fit(**arguments, verbose=0)
        finally:
            if any(getattr(model, "history", None) for model in cohort.members.values()):
                self._variables[self.output] = cohort.history  # type: ignore[index]  # a notebook's can
                self._tell_one("history", lambda: cohort.history)
        seconds = time.perf_counter() - began
        how = "Stopped" if self.stops else "Trained"
        return f"{how} after {seconds:.1f} s; the CohortHistory is in `{self.output}`."

    def _benchmark_arguments(self) -> dict[str, Argument]:
        values = {
            trait: {
                name: self._variables.get(getattr(self, trait).get(name) or "")
                for name in self.selected
            }
            for trait in ("x", "y")
        }
        return {
            "models": {name: self.models[name] for name in self.selected},
            **values,
            "batch_size": {name: self.batch_size[name] for name in self.selected},
            "layouts": [layout for layout in MEASURED_LAYOUTS if layout not in self.impossible],
            "group_factor": self._own_factors(self.group_factor) or "auto",
            "replicas": self._own_factors(self.replicas) or 2,
            "budget_s": self.budget_s,
        }

    def _benchmark(self, arguments: dict[str, Argument], told: live.LiveBenchmark) -> str:
        try:
            self.set_trait("result", benchmark(**arguments, progress=told))
        except live.StoppedError:
            return "Stopped; the models are as they were."
        return "Measured; the models are as they were."

    def _own_factors(self, factors: Mapping[str, int]) -> dict[str, int]:
        """Returns the factors of the selected models if the user has set one, else `{}`."""
        own = {name: factors[name] for name in self.selected}
        return own if any(factor > 1 for factor in own.values()) else {}

    def _start(self, where: str, status: str, action: Callable[[], str], tells: _Tells) -> None:
        """Starts a training or benchmark in a thread.

        Args:
            where: The part of the widget that shows its errors.
            status: The status while it runs.
            action: Does it; returns a sentence on how it ended.
            tells: The traits to update meanwhile.
        """
        if not _running.acquire(blocking=False):
            raise CohortError("Expected one training or benchmark at a time. Received: a second.")
        self.stops = 0
        self._busy = list(self.selected)
        self.set_trait("work", where)
        self._tell_one("message", lambda: "")
        self._tell_one("progress", tells["progress"])
        self._tell_one("status", lambda: status)
        self._thread = threading.Thread(
            target=self._run, args=(where, action, tells), name=f"kerascohost-{status}", daemon=True
        )
        self._thread.start()

    def _run(self, where: str, action: Callable[[], str], tells: _Tells) -> None:
        """Runs `action` in this thread, and `_tell` in another one meanwhile."""
        ended = threading.Event()
        teller = threading.Thread(target=self._tell, args=(ended, tells), daemon=True)
        teller.start()
        message = ""
        try:
            with threads.as_in_thread(self._keras_state):
                message = action()
        except Exception as error:
            self._fail(where, errors.in_words(error))
        finally:
            ended.set()
            teller.join()
            self._cohort = None
            _running.release()
            self._tell_one("message", lambda: message)
            self._tell_one("status", lambda: "idle")

    def _tell(self, ended: threading.Event, tells: _Tells) -> None:
        """Updates traits until the event, and once more after it."""
        due = dict.fromkeys(tells, 0.0)
        while not ended.wait(_EVERY):
            for trait, tell in tells.items():
                began = time.perf_counter()
                if began >= due[trait]:
                    self._tell_one(trait, tell)
                    now = time.perf_counter()
                    due[trait] = now + (now - began) / _SHARE
        for trait, tell in tells.items():
            self._tell_one(trait, tell)

    def _tell_one(self, trait: str, tell: Callable[[], _Told]) -> None:
        """Updates one trait; an exception of an observer is added to `errors` and not raised."""
        try:
            self._told(trait, tell())
        except Exception as error:
            text = f"The {trait} could not be shown. {type(error).__name__}: {error}"
            self._fail(self.work, text)

    def _told(self, trait: str, value: _Told) -> None:
        """Sets a trait if its value is new."""
        old = getattr(self, trait)  # if a frame, `==` would compare cell by cell
        is_same = value.equals(old) if isinstance(value, pd.DataFrame) else value == old
        if not is_same:
            self.set_trait(trait, value)

    # Errors

    @contextlib.contextmanager
    def _doing(self, where: str) -> Iterator[None]:
        """Raises if a training or benchmark runs; adds exceptions of the block to `errors`."""
        with self._guard:
            try:
                if self.status != "idle":
                    raise CohortError(
                        f"Expected to be idle. Received: {self.status}; stop it first."
                    )
                self.set_trait("errors", {})
                yield
            except traitlets.TraitError as error:
                self._fail(where, str(error))
                raise
            except (ValueError, TypeError) as error:
                self._fail(getattr(error, "where", where), errors.in_words(error))
                raise

    def _fail(self, where: str, text: str) -> None:
        self.set_trait("errors", self.errors | {where: text})

    def _check_selected(self) -> None:
        if not self.selected:
            there_are = ", ".join(self.models) or "none; build and compile a keras.Model first"
            raise _about("models", f"Expected models to take part. There are: {there_are}.")
        for name in self.selected:
            if not self.models[name].compiled:
                raise _about(
                    "models", f"Member {name!r}: you must call `compile()` before training it."
                )

    def _check_data(self) -> None:
        for name in self.selected:
            if self.x.get(name, "") == "":
                shape = getattr(self.models[name], "input_shape", "its inputs")
                raise _about(
                    "data",
                    f"Member {name!r}: expected data to train on. Received: none; nothing in the "
                    f"namespace is chosen that fits {shape}.",
                )
            for trait in ("x", "y"):
                chosen = getattr(self, trait).get(name, "")
                if chosen and chosen not in self._data:
                    raise _about(
                        "data",
                        f"Member {name!r}: expected the name of data as {trait}. Received: "
                        f"{chosen!r}.{errors.did_you_mean(chosen, self._data)}",
                    )

    def _check_output(self) -> None:
        """Raises if the history would replace another object."""
        name = self.output
        there = self._variables.get(name)
        if not name.isidentifier() or keyword.iskeyword(name):
            raise CohortError(f"Expected a variable's name for the history. Received: {name!r}.")
        if there is not None and not isinstance(there, (CohortHistory, keras.callbacks.History)):
            raise CohortError(
                f"Expected a name for the history that is free. Received: {name!r}, which holds a "
                f"{type(there).__name__}."
            )


def _about(where: str, text: str) -> CohortError:
    error = CohortError(text)
    error.where = where  # type: ignore[attr-defined]  # read by `_doing`
    return error


def _is_for_validation(names: data.Validation) -> bool:
    return bool(names) and isinstance(names[0], str) and data.is_for_validation(names[0])
