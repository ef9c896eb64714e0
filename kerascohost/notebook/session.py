"""Actions on the choices: train, benchmark, suggest; without a widget library."""

import contextlib
import itertools
import keyword
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import traitlets

from kerascohost import errors
from kerascohost.arguments import MEASURED_LAYOUTS, Argument
from kerascohost.errors import CohortError
from kerascohost.layouts.benchmark import benchmark
from kerascohost.layouts.result import BenchmarkResult
from kerascohost.layouts.suggestions import suggest_group_factors
from kerascohost.models.cloning import clones
from kerascohost.notebook import data, live, namespace
from kerascohost.notebook.choices import Choices
from kerascohost.notebook.namespace import Value, Variables
from kerascohost.notebook.worker import Tells, Worker
from kerascohost.results.history import CohortHistory
from kerascohost.training.cohort import Cohort

# So many trainings before the last one are kept, to compare with.
_EARLIER = 2


class CohostSession(Choices):
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
            name each with `fraction`, `epoch`, `state`, `note` and `metrics`.
        curves: The history so far: by member and metric (`"loss"`, `"val_loss"`) a list of pairs
            of the epoch, from 1 on, and the value, `None` for NaN; of long ones every n-th.
        earlier: The curves of the trainings before, the last one first.
        result: The last `BenchmarkResult`.
        history: The last training's `CohortHistory`.
        errors: Error texts by what was asked for: `"models"`, `"copies"`, `"layout"`,
            `"benchmark"`, `"train"`.
        members_trained: The `members` of `progress` of the last training.
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

    budget_s = traitlets.Float(20.0, min=1.0)
    work = traitlets.Unicode(read_only=True)
    status = traitlets.Unicode("idle", read_only=True)
    progress = traitlets.Dict(read_only=True)
    curves = traitlets.Dict(read_only=True)
    earlier: "traitlets.List[live.Curves]" = traitlets.List(read_only=True)
    result = traitlets.Instance(BenchmarkResult, allow_none=True, read_only=True)
    history = traitlets.Instance(CohortHistory, allow_none=True, read_only=True)
    errors = traitlets.Dict(read_only=True)
    message = traitlets.Unicode(read_only=True)

    def __init__(self, variables: Variables, **values: Value):
        self.stops = 0
        self.members_trained: dict[str, live.MemberProgress] = {}
        self._busy: list[str] = []  # the models in training or measurement
        self._cohort: Cohort | None = None
        self._measuring: Argument = None  # the choices of the benchmark that runs
        self._measured: Argument = None  # those of the last result
        self._worker = Worker(self, self._fail)  # before the first `refresh`, which uses it
        super().__init__(variables, **values)

    def refresh(self) -> None:
        """Reads the namespace again; choices for models that are still there remain."""
        self._worker.follow_main_thread()
        super().refresh()

    # Copies

    def copies(
        self, name: str, n: int, learning_rates: Sequence[float] = (), into: str = ""
    ) -> None:
        """Makes copies of a model, by `kerascohost.clones`, and selects them in its place.

        Args:
            name: The model.
            n: The number of copies.
            learning_rates: A learning rate for each of them; by default, that of the model.
            into: The variable for the list of the copies, by default named after the model, with
                a number if that is taken.

        Raises:
            CohortError: If there is no such model, it cannot be copied, the variable is taken, or
                while a training or benchmark runs.
        """
        with self._doing("copies"):
            self.refresh()
            if name not in self.models:
                raise CohortError(
                    f"Expected the name of one of the models: {', '.join(self.models)}. "
                    f"Received: {name!r}.{errors.did_you_mean(name, self.models)}"
                )
            into = into or self._free_name(name)
            self._check_free(into)
            if not errors.is_count(n, least=2):
                raise CohortError(f"Expected two copies or more. Received: n={n!r}.")
            rates = {"learning_rate": list(learning_rates)} if learning_rates else {}
            self._variables[into] = clones(self.models[name], n, seed=0, **rates)  # type: ignore[index]  # a notebook's can
            given = "".join(f", {key}={values}" for key, values in rates.items())
            self._made[into] = f"{into} = kc.clones({name}, {n}, seed=0{given})"
            self.refresh()
            new = [f"{into}[{i}]" for i in range(n)]
            for trait in ("x", "y", "validation", "batch_size", "epochs", "callbacks"):
                self.choose(trait, dict.fromkeys(new, getattr(self, trait)[name]))
            self.selected = [one for one in self.selected if one != name] + new

    def _free_name(self, name: str) -> str:
        """Returns a variable for copies of a model: those made before may have been trained."""
        stem = re.sub(r"\W+", "_", name).strip("_") + "_copies"
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        return next(one for one in itertools.chain([stem], numbered) if one not in self._variables)

    def _check_free(self, name: str) -> None:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise CohortError(f"Expected a variable's name for the copies. Received: {name!r}.")
        if name in self._variables:
            raise CohortError(
                f"Expected a name for the copies that is free. Received: {name!r}, which holds a "
                f"{type(self._variables[name]).__name__}."
            )

    # Layouts

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
        return self.result is not None and self.result.step_times.keys() == set(self.selected)

    @traitlets.observe("progress")
    def _remember_members(self, change: traitlets.Bunch) -> None:
        """Keeps what the last training has shown of its members, when a benchmark follows it."""
        self.members_trained = change.new.get("members", self.members_trained)

    @property
    def result_is_old(self) -> bool:
        """Is true if what was measured is no longer what is chosen."""
        return self.result is not None and self._measured != self._to_measure()

    def _to_measure(self) -> Argument:
        """Returns the choices on which the speed depends."""
        chosen = {
            trait: {name: getattr(self, trait).get(name) for name in self.selected}
            for trait in ("x", "y", "batch_size")
        }
        return chosen, {name: id(self.models[name]) for name in self.selected}

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
            tells = {"progress": told.progress, "curves": told.curves}
            if self.curves:
                self.set_trait("earlier", [self.curves, *self.earlier][:_EARLIER])
                self.set_trait("curves", {})
            self._start("train", "training", lambda: self._train(cohort, arguments, told), tells)

    def benchmark(self) -> None:
        """Starts to measure the layouts with the selected models, on their data or random data.

        Raises:
            CohortError: If something is missing, or a training or benchmark runs already.
        """
        with self._doing("benchmark"):
            self.refresh()
            self._check_selected()
            self._check_chosen_names()
            arguments = self._benchmark_arguments()
            self._measuring = self._to_measure()
            told = live.LiveBenchmark(lambda: self.stops)
            tells = {"progress": told.progress}
            self._start(
                "benchmark", "benchmarking", lambda: self._benchmark(arguments, told), tells
            )

    def stop(self) -> None:
        """Stops the training or benchmark.

        A training ends after its current steps and the validation that is due, with its weights and
        history; a second call ends the validation too. A benchmark ends before its next fit,
        restores the models, and leaves the result that it has so far.
        """
        with self._guard:
            if self.status == "idle":
                return
            self.stops += 1
            self.set_trait("status", "stopping")
            cohort = self._cohort  # the thread forgets it when it has ended
            if cohort is not None:
                cohort.stop()
                for model in cohort.members.values() if self.stops > 1 else ():
                    model.stop_evaluating = True

    def caution(self, code: str) -> str:
        """Returns a warning if `code` names a model that is being trained or measured.

        Returns:
            A sentence, or `""`.
        """
        words = set(re.findall(r"\w+", code)) if self.status != "idle" else set()
        busy = dict.fromkeys(namespace.group_of(name) or name for name in self._busy)
        named = [name for name in busy if name in words]
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
        self._worker.wait(timeout)
        return self.status == "idle"

    def _train(
        self, cohort: Cohort, arguments: dict[str, Argument], told: live.LiveTraining
    ) -> str:
        began = time.perf_counter()
        try:
            cohort.fit(**arguments, verbose=0)
        except Exception as error:
            told.fail(error)
            raise
        finally:
            self._cohort = None
            if any(getattr(model, "history", None) for model in cohort.members.values()):
                self._variables[self.output] = cohort.history  # type: ignore[index]  # a notebook's can
                self._worker.tell("history", lambda: cohort.history)
        seconds = time.perf_counter() - began
        how = "Stopped" if self.stops else "Trained"
        return f"{how} after {seconds:.1f} s; the CohortHistory is in `{self.output}`."

    def _benchmark_arguments(self) -> dict[str, Argument]:
        values = {
            trait: {
                name: data.value_of(getattr(self, trait).get(name, ""), self._data)
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
            result = benchmark(**arguments, progress=told, so_far=self._keep)
            self._keep(result)
        except live.StoppedError:
            return "Stopped; what was known then is shown, and the models are as they were."
        return "Measured; the models are as they were."

    def _keep(self, result: BenchmarkResult) -> None:
        """Shows a result, which may be only a part."""
        self._measured = self._measuring
        self._worker.tell("result", lambda: result)

    def _own_factors(self, factors: Mapping[str, int]) -> dict[str, int]:
        """Returns the factors of the selected models if the user has set one, else `{}`."""
        own = {name: factors[name] for name in self.selected}
        return own if any(factor > 1 for factor in own.values()) else {}

    def _start(self, work: str, status: str, action: Callable[[], str], tells: Tells) -> None:
        self.stops = 0
        self._busy = list(self.selected)
        self._worker.start(work, status, action, tells)

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
                self._fail(where, errors.in_words(error))
                raise

    def set_choice(self, trait: str, values: Mapping[str, Argument]) -> None:
        """Does as `choose`; an error is in `errors` too."""
        with self._doing("models"):
            self.choose(trait, values)

    def tell_error(self, where: str, text: str) -> None:
        """Adds a text to `errors`."""
        self._fail(where, text)

    def _fail(self, where: str, text: str) -> None:
        self.set_trait("errors", self.errors | {where: text})
