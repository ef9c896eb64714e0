"""Studies of Optuna, with the Keras models that their trials train run together."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from kerascohost.arguments import Layout
from kerascohost.deferred import calls
from kerascohost.deferred.functions import Calls, Job, check_options
from kerascohost.environment import extra
from kerascohost.errors import CohortError, is_count
from kerascohost.patching import patched
from kerascohost.results.progress import TotalProgress

if TYPE_CHECKING:
    from kerascohost.training.workers import Workers

with extra("optuna"):
    import optuna

Objective = Callable[["optuna.Trial"], float | Sequence[float]]
_Callback = Callable[["optuna.Study", "optuna.trial.FrozenTrial"], None]


def optimize(
    study: "optuna.Study",
    objective: Objective,
    n_trials: int | None,
    at_once: int = 16,
    layout: Layout = "auto",
    timeout: float | None = None,
    catch: type[Exception] | Iterable[type[Exception]] = (),
    callbacks: Iterable[_Callback] | None = None,
    verbose: int | str = "auto",
    workers: "Workers | None" = None,
) -> None:
    """Optimizes as `study.optimize` does, with several trials under way that train together.

    The objective runs as written, once for each trial, in a thread of its own. No two run at the
    same time: a trial goes on until it needs `fit`, `evaluate` or `predict` of a model, and waits
    there. What all of them wait for is run as one cohort, each model's part exactly as if alone.
    Callbacks that prune end their own trial only, from within its `fit`.

    As with `n_jobs` of `study.optimize`, a trial's parameters are chosen before those that are
    under way have ended. Samplers that learn from results should know: `TPESampler` by
    `constant_liar=True`. All trials under way train their epochs at the same pace, so a
    `MedianPruner`, which compares with trials that have ended, hardly prunes among them;
    `SuccessiveHalvingPruner` and `HyperbandPruner` do.

    A trial begins in the random state in which the one before will end, as far as that can be
    known; unlike a function of `kerascohost.map` it is never called again. With a seed set in the
    objective (`keras.utils.set_random_seed`) it ends as it would alone.

    Args:
        study: The `optuna.Study`.
        objective: The function of a trial that trains and returns a value or values.
        n_trials: The number of trials, or `None` for no limit but `timeout` and `study.stop`.
        at_once: The number of trials under way: a positive integer. Default 16.
        layout: As in `kerascohost.Cohort`: `"auto"` (default), `"joined"` or `"stacked"`.
        timeout: The seconds after which no more trials begin. Default `None`: no limit.
        catch: As in `study.optimize`: exceptions that fail their trial, but do not end the search.
        callbacks: As in `study.optimize`: called with the study and each trial that has ended. In
            them and in the objective, `study.stop()` lets no more trials begin; those under way
            finish.
        verbose: 0: silence; 1: one progress bar for all trials, with the best value so far; 2: a
            line per trial; `"auto"` (default): each `fit` shows what it asks for, or with more than
            8 trials as 1.
        workers: As in `kerascohost.map`: what trains the models of the trials, whose callbacks
            must be such as can be sent to them; those that prune have the study, and are refused.
            Default `None`: all are trained here.

    Raises:
        CohortError: If an option cannot be, or in an objective of the same study.
        Exception: What the objective raised first, if it is not in `catch`. No more trials begin
            then; those under way finish.

    Example:

    >>> import keras, numpy as np, optuna
    >>> x, y = np.ones((64, 4)), np.zeros((64, 1))
    >>> def objective(trial):
    ...     keras.utils.set_random_seed(trial.number)
    ...     net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ...     net.compile(keras.optimizers.SGD(trial.suggest_float("rate", 0.001, 0.1)), "mse")
    ...     return net.fit(x, y, epochs=2, verbose=0).history["loss"][-1]
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    >>> optimize(study, objective, n_trials=4, verbose=0)
    >>> len(study.trials)
    4
    """
    check_options(layout, at_once, verbose, workers)
    if n_trials is not None and not is_count(n_trials, least=0):
        raise CohortError(
            f"Expected `n_trials` to be a number of trials or None. Received: {n_trials!r}."
        )
    caught, called = _checked(study, timeout, catch, callbacks)
    calls.train_deferred("trials run together")
    _Search(study, objective, n_trials, timeout, caught, called).run(
        layout, at_once, verbose, workers
    )


def _checked(
    study: "optuna.Study",
    timeout: float | None,
    catch: type[Exception] | Iterable[type[Exception]],
    callbacks: Iterable[_Callback] | None,
) -> tuple[tuple[type[Exception], ...], list[_Callback]]:
    """Returns the exceptions to catch and the callbacks.

    Raises:
        CohortError: If one of the arguments cannot be.
    """
    # Optuna's own check sees the thread of a trial only, and each trial here has another one.
    if getattr(getattr(study, "_thread_local", None), "in_optimize_loop", False):
        raise CohortError(
            "Expected no search of a study in an objective or callback of the same study, as with "
            "`study.optimize`. Received: the study of this trial; make another study."
        )
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not is_number:
        raise CohortError(
            f"Expected `timeout` to be a number of seconds or None. Received: {timeout!r}."
        )
    caught = tuple(catch) if isinstance(catch, Iterable) else (catch,)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in caught):
        raise CohortError(
            f"Expected `catch` to be a class of exceptions or several. Received: {catch!r}."
        )
    given = () if callbacks is None else callbacks
    called = list(given) if isinstance(given, Iterable) else []
    if not isinstance(given, Iterable) or not all(map(callable, called)):
        raise CohortError(
            "Expected `callbacks` to be a list of functions of a study and a trial, or None. "
            f"Received: {callbacks!r}."
        )
    return caught, called


class _Search:
    """A search, whose trials run in turn; each adds the next one when it begins."""

    def __init__(
        self,
        study: "optuna.Study",
        objective: Objective,
        n_trials: int | None,
        timeout: float | None,
        catch: tuple[type[Exception], ...],
        callbacks: list[_Callback],
    ):
        self._study = study
        self._objective = objective
        self._n_trials = n_trials
        self._until = None if timeout is None else time.monotonic() + timeout
        self._catch = catch
        self._callbacks = callbacks
        self._functions: list[Callable[[], bool]] = []
        self._names: list[str] = []
        self._is_stopped = False

    def run(
        self, layout: Layout, at_once: int, verbose: int | str, workers: "Workers | None"
    ) -> None:
        """Runs all trials."""
        errors: list[BaseException] = []
        with TotalProgress(verbose, self._n_trials, "trials") as progress:

            def ended(job: Job[bool]) -> None:
                if job.error is not None:
                    errors.append(job.error)
                if job.error is not None or job.result:
                    progress.ended(job.told, best=self._best())

            self._add()
            Calls(
                self._functions,
                self._names,
                layout,
                at_once,
                progress.of_fits,
                verbose != 0,
                ended,
                repeats=False,
                workers=workers,
            ).run()
        if errors:
            raise errors[0]

    def _add(self) -> None:
        """Adds another trial, if there is to be one."""
        number = len(self._functions)
        if not self._is_over and (self._n_trials is None or number < self._n_trials):
            self._names.append(f"trial[{number}]")
            self._functions.append(self._run_trial)

    def _run_trial(self) -> bool:
        """Runs a trial in turn; returns whether the search was not over before."""
        if self._is_over:
            return False
        self._add()
        try:
            # Optuna's own mark is lost when the next trial begins.
            with patched(self._study, "stop", self._noted):
                self._study.optimize(
                    self._objective, n_trials=1, catch=self._catch, callbacks=self._callbacks
                )
        except BaseException:
            self._is_stopped = True
            raise
        return True

    def _noted(self, stop: Callable[[], None]) -> Callable[[], None]:
        """Returns a `study.stop` that also ends this search."""

        def noted() -> None:
            stop()
            self._is_stopped = True

        return noted

    @property
    def _is_over(self) -> bool:
        """Returns whether no more trials are to begin."""
        return self._is_stopped or (self._until is not None and time.monotonic() >= self._until)

    def _best(self) -> float | None:
        """Returns the best value so far, if there is a single one."""
        try:
            return self._study.best_value
        except (ValueError, RuntimeError):  # no trial has ended well; several objectives
            return None
