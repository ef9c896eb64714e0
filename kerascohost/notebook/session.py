"""What the widget shows, as traits, and everything that it does; without a widget library."""

import contextlib
import keyword
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import pandas as pd
import traitlets

from kerascohost import backends, errors
from kerascohost.arguments import CHOSEN_LAYOUTS, MEASURED_LAYOUTS
from kerascohost.backends import threads
from kerascohost.errors import CohortError
from kerascohost.layouts.benchmark import BenchmarkResult, benchmark
from kerascohost.layouts.suggestions import suggest_group_factors
from kerascohost.notebook import data, live, namespace, source
from kerascohost.results.history import CohortHistory
from kerascohost.training.cohort import Cohort

# The most batches in a step that are offered; code can ask for more.
MOST_FACTOR = 16

# Progress and curves are told at most so often (in seconds), and drawing either takes at most this
# share of the time: what is drawn is taken from the training.
_EVERY = 0.25
_SHARE = 0.03

# One at a time: the backends do not support training in several threads at once.
_working = threading.Lock()


class CohostSession(traitlets.HasTraits):
    """Models picked from a namespace, how they are to be trained together, and their training.

    Everything that `CohostWidget` offers is here: set the traits, call `suggest`, `benchmark`,
    `use_layout`, `train` and `stop`. `benchmark` and `train` work in a thread of their own and
    return at once; `wait` waits for it. What goes wrong is raised where it is found before the
    work begins, and stands in `errors` in any case.

    Args:
        variables: The namespace: a dict from names to objects, such as a notebook's `globals()`.
        **traits: Values to begin with.

    Attributes:
        models: The namespace's Keras models by name, as of the last `refresh`.
        selected: The names of those that take part.
        x: For each model the name of its input data; `""` for random data in a benchmark.
        y: For each model the name of its targets; `""` where `x` is a dataset.
        validation: For each model what it is validated on: `()` for nothing, a fraction of its
            training data as `(0.1,)`, or names as `("x_val", "y_val")` or `("dataset",)`.
        batch_size: For each model the samples per batch.
        epochs: For each model how many epochs.
        layout: `"joined"` (sync-bound), `"grouped"`, `"replicated"`, `"stacked"` or `"auto"`.
        group_factor: For each model, how many batches are merged into a step when grouped.
        replicas: For each model, to how many batches it is applied in a step when replicated.
        budget_s: Seconds that a benchmark may take.
        output: The variable that gets the `CohortHistory`.
        work: What was begun last: `"benchmark"` or `"train"`.
        status: `"idle"`, `"benchmarking"`, `"training"` or `"stopping"`.
        progress: For the work that is done: `fraction`, `text`, and when training, by name, each
            model's `fraction`, `epoch` and `metrics`.
        curves: The history so far, as `CohortHistory.frame`; a loss that is NaN stands for a model
            that has ended no epoch.
        result: The last `BenchmarkResult`.
        history: The last training's `CohortHistory`.
        errors: What went wrong, by where: `"models"`, `"data"`, `"layout"`, `"benchmark"`,
            `"train"`.
        message: How the last work ended, in a sentence.
        refreshed: How often the namespace has been looked at.

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
    layout: traitlets.Enum[str] = traitlets.Enum(CHOSEN_LAYOUTS, "joined")
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

    def __init__(self, variables: Mapping[str, Any], **values: Any):
        super().__init__()
        self._variables = variables
        self._data: dict[str, Any] = {}
        self._given: Mapping[str, Any] = {}  # the names that models were picked by
        self._guard = threading.RLock()
        self._thread: threading.Thread | None = None
        self._without: set[str] = set()  # models for which there was no data yet
        self.stops = 0
        self._busy: list[str] = []  # the models that are worked with
        self._cohort: Cohort | None = None
        self._keras_state = threads.thread_state()
        self.refresh()
        for name, value in values.items():
            setattr(self, name, value)

    # What there is to choose from

    @traitlets.validate("selected")
    def _check_names(self, proposal: Any) -> list[str]:
        if not set(proposal.value) <= set(self.models):
            self._given = namespace.chosen(self._variables, proposal.value)
            self.refresh()  # perhaps it was built just now, or goes by another name
        for name in proposal.value:
            if name not in self.models:
                raise CohortError(
                    f"Expected names of models. Received: {name!r}."
                    f"{errors.did_you_mean(name, self.models)}"
                )
        return proposal.value

    def refresh(self) -> None:
        """Looks at the namespace again; models that are still there keep what was chosen."""
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
        """Fills in what has not been chosen yet for a model, or is not there any more."""
        inputs = self.x_options(name)
        if self.x.get(name) not in inputs or (name in self._without and len(inputs) > 1):
            self.x = self.x | {name: inputs[0]}
        (self._without.add if len(inputs) == 1 else self._without.discard)(name)
        targets = self.y_options(name)
        if self.y.get(name) not in targets:
            self.y = self.y | {name: targets[0]}
        validations = self.validation_options(name)
        if self.validation.get(name) not in validations:
            aside = [names for names in validations if _is_put_aside(names)]
            self.validation = self.validation | {name: aside[0] if aside else ()}
        defaults = {"batch_size": 32, "epochs": 5, "group_factor": 1, "replicas": 1}
        for trait, value in defaults.items():
            if name not in getattr(self, trait):
                self.choose(trait, {name: value})

    def choose(self, trait: str, values: Mapping[str, Any]) -> None:
        """Sets what a trait holds for some models, by name; `"factors"`: the chosen layout's."""
        if trait == "factors":
            trait = "replicas" if self.layout == "replicated" else "group_factor"
        setattr(self, trait, getattr(self, trait) | values)

    def x_options(self, name: str) -> list[str]:
        """The names of data that fit a model's inputs, the likeliest first; `""`: random data."""
        return [*data.inputs_for(name, self.models[name], self._data), ""]

    def y_options(self, name: str) -> list[str]:
        """The names of data that fit as targets beside the chosen `x`, the likeliest first."""
        found = data.targets_for(name, self.models[name], self.x.get(name, ""), self._data)
        return found or [""]

    def validation_options(self, name: str) -> list[tuple]:
        """What a model can be validated on: nothing, a fraction, or other data."""
        own = self.x.get(name, "")
        fractions = [] if own == "" or data.is_dataset(self._data[own]) else [(0.1,), (0.2,)]
        others = data.validation_for(name, self.models[name], self._data)
        return [(), *fractions, *(names for names in others if names[0] != own)]

    def described(self, name: str) -> str:
        """A few words about a variable that holds data."""
        return data.described(self._data[name])

    @traitlets.observe("x")
    def _follow_x(self, change: Any) -> None:
        """Targets are those of the inputs."""
        chosen = {
            name: self.y_options(name)[0]
            for name in self.models
            if self.y.get(name) not in self.y_options(name)
            or change.old is traitlets.Undefined
            or change.old.get(name) != self.x.get(name)
        }
        self.y = self.y | chosen

    def rows(self, name: str) -> int | None:
        """How many samples a model is trained on, where that is known."""
        chosen = self._data.get(self.x.get(name, ""))
        return None if chosen is None else data.rows_of(chosen)

    def takes_batch_size(self, name: str) -> bool:
        """Whether batches are made here: datasets make their own."""
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
    def _check_layout(self, proposal: Any) -> str:
        if proposal.value in self.impossible:
            raise traitlets.TraitError(
                f"Expected a layout that is available. Received: layout={proposal.value!r}, "
                f"{self.impossible[proposal.value]}."
            )
        return proposal.value

    @property
    def factors(self) -> dict[str, int]:
        """How many batches each selected model takes in a step of the chosen layout."""
        given = {"grouped": self.group_factor, "replicated": self.replicas}.get(self.layout, {})
        return {name: given.get(name, 1) for name in self.selected}

    @property
    def effective_batch_size(self) -> dict[str, int | None]:
        """The samples in a step of each selected model; `None` where a dataset decides."""
        return {
            name: self.batch_size[name] * factor if self.takes_batch_size(name) else None
            for name, factor in self.factors.items()
        }

    def most_factor(self, name: str) -> int:
        """The largest group factor with which a step still finds its samples."""
        rows = self.rows(name)
        if rows is None or not self.takes_batch_size(name):
            return MOST_FACTOR
        return max(1, min(MOST_FACTOR, rows // self.batch_size[name]))

    def suggest(self) -> None:
        """Fills in group factors that let the models end their epochs together.

        After a benchmark they are those that equalise the models' speeds.
        """
        with self._doing("layout"):
            self._check_selected()
            most = {name: self.most_factor(name) for name in self.selected}
            if self._result_is_of_these():
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
        """Takes up a layout of the last benchmark, with its factors; by default the best one."""
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

    # StepRange

    @property
    def call(self) -> source.Call:
        """What `train` does, as code and as arguments."""
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
        """The Python that does what `train` does."""
        return self.call.python()

    @property
    def cell(self) -> str:
        """The notebook cell that does what `train` does."""
        return self.call.cell()

    def train(self) -> None:
        """Begins to train the selected models.

        Raises:
            CohortError: If something is missing, or other work is being done.
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
            tells = {"progress": told.progress, "curves": told.curves}
            self._start("train", "training", lambda: self._train(cohort, arguments), tells)

    def benchmark(self) -> None:
        """Begins to measure the layouts with the selected models, on their data or random data.

        Raises:
            CohortError: If something is missing, or other work is being done.
        """
        with self._doing("benchmark"):
            self.refresh()
            self._check_selected()
            arguments = self._benchmark_arguments()
            told = live.LiveBenchmark(lambda: self.stops)
            tells = {"progress": told.progress}
            self._start(
                "benchmark", "benchmarking", lambda: self._benchmark(arguments, told), tells
            )

    def stop(self) -> None:
        """Lets the work end after the steps it is in, keeping weights and history.

        A training ends with the validation that is due; called once more, that is cut short, too.
        A benchmark ends before its next fit, and the models are put back.
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
        """What to know before `code` is run now: which of its models are being worked with.

        Returns:
            A sentence; `""` where there is nothing to know.
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
        """Waits until nothing is being done; returns whether that is so after `timeout` seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return self.status == "idle"

    def _train(self, cohort: Cohort, arguments: dict[str, Any]) -> str:
        began = time.perf_counter()
        try:
            cohort.fit(**arguments, verbose=0)
        finally:
            if any(getattr(model, "history", None) for model in cohort.members.values()):
                self._variables[self.output] = cohort.history  # type: ignore[index]
                self._tell_one("history", lambda: cohort.history)
        seconds = time.perf_counter() - began
        how = "Stopped" if self.stops else "Trained"
        return f"{how} after {seconds:.1f} s; the CohortHistory is in `{self.output}`."

    def _benchmark_arguments(self) -> dict[str, Any]:
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

    def _benchmark(self, arguments: dict[str, Any], told: live.LiveBenchmark) -> str:
        try:
            self.set_trait("result", benchmark(**arguments, progress=told))
        except live.StoppedError:
            return "Stopped; the models are as they were."
        return "Measured; the models are as they were."

    def _own_factors(self, factors: Mapping[str, int]) -> dict[str, int]:
        """The user's choice, if one was made."""
        own = {name: factors[name] for name in self.selected}
        return own if any(factor > 1 for factor in own.values()) else {}

    def _start(
        self,
        where: str,
        status: str,
        work: Callable[[], str],
        tells: dict[str, Callable[[], Any]],
    ) -> None:
        if not _working.acquire(blocking=False):
            raise CohortError("Expected one training or benchmark at a time. Received: a second.")
        self.stops = 0
        self._busy = list(self.selected)
        self.set_trait("work", where)
        self._tell_one("message", lambda: "")
        self._tell_one("progress", tells["progress"])
        self._tell_one("status", lambda: status)
        self._thread = threading.Thread(
            target=self._work, args=(where, work, tells), name=f"kerascohost-{status}", daemon=True
        )
        self._thread.start()

    def _work(
        self, where: str, work: Callable[[], str], tells: dict[str, Callable[[], Any]]
    ) -> None:
        """The thread that works, with another one beside it that tells how far it is."""
        ended = threading.Event()
        teller = threading.Thread(target=self._tell, args=(ended, tells), daemon=True)
        teller.start()
        message = ""
        try:
            with threads.as_in_thread(self._keras_state):
                message = work()
        except Exception as error:
            self._fail(where, errors.in_words(error))
        finally:
            ended.set()
            teller.join()
            self._cohort = None
            _working.release()
            self._tell_one("message", lambda: message)
            self._tell_one("status", lambda: "idle")

    def _tell(self, ended: threading.Event, tells: dict[str, Callable[[], Any]]) -> None:
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

    def _tell_one(self, trait: str, tell: Callable[[], Any]) -> None:
        """Tells one trait; who shows it may fail, which is said and does not end the telling."""
        try:
            self._told(trait, tell())
        except Exception as error:
            text = f"The {trait} could not be shown. {type(error).__name__}: {error}"
            self._fail(self.work, text)

    def _told(self, trait: str, value: Any) -> None:
        """Sets a trait where there is something new; frames have no `==` that says so."""
        old = getattr(self, trait)
        is_same = value.equals(old) if isinstance(value, pd.DataFrame) else value == old
        if not is_same:
            self.set_trait(trait, value)

    # Errors

    @contextlib.contextmanager
    def _doing(self, where: str) -> Iterator[None]:
        """One thing at a time; what is refused stands in `errors`."""
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
        """The history must not take the place of something else."""
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


def _is_put_aside(names: tuple) -> bool:
    return bool(names) and isinstance(names[0], str) and data.is_for_validation(names[0])
