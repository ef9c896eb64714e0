"""Searches of KerasTuner, with the models that their trials train run together."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import keras

from kerascohost.arguments import Layout
from kerascohost.backends.threads import clearing_own_state
from kerascohost.deferred import calls
from kerascohost.deferred.functions import Calls, Job, check_options
from kerascohost.environment import extra
from kerascohost.errors import CohortError
from kerascohost.patching import patched
from kerascohost.results.progress import TotalProgress

if TYPE_CHECKING:
    from kerascohost.training.workers import Workers

with extra("tuner"):
    import keras_tuner

    # The module whose `TunerCallback` each trial adds to its fits; there is no public way to it.
    from keras_tuner.src.engine import tuner_utils

    if keras.backend.backend() == "tensorflow":
        import tensorboard  # noqa: F401  # there every trial imports it

# An argument of `fit`, or of the tuner's own `run_trial`.
Argument: TypeAlias = Any


def search(
    tuner: "keras_tuner.Tuner",
    *fit_args: Argument,
    at_once: int = 8,
    layout: Layout = "auto",
    workers: "Workers | None" = None,
    **fit_kwargs: Argument,
) -> None:
    """Searches as `tuner.search` does, with several trials under way that train together.

    The tuner, its oracle and its hypermodel are used as they are. Each trial runs as written, in a
    thread of its own. No two run at the same time: a trial goes on until it needs `fit`, `evaluate`
    or `predict` of a model, and waits there. What all of them wait for is run as one cohort, each
    model's part exactly as if alone. Checkpoints, `tuner.reload` and `overwrite=False` are as
    usual; trials that were under way when a search was interrupted are run again.

    `RandomSearch` and `GridSearch` with a seed make the trials that `tuner.search` makes, and with
    `layout="joined"` the same scores, if models are built with a seed. What learns from results,
    as `BayesianOptimization`, chooses the hyperparameters of a trial before those under way have
    ended, as in KerasTuner's own distributed search. Where `HyperModel.fit` or `run_trial` is
    your own, the first trial runs alone, since the tuner learns only then which hyperparameters
    are registered there.

    A trial begins in the random state in which the one before will end, as far as that can be
    known. `keras.backend.clear_session`, which tuners call before each trial, clears the state of
    that trial only.

    Args:
        tuner: A `keras_tuner` tuner, in one process.
        *fit_args: As in `tuner.search`.
        at_once: The number of trials under way: a positive integer. Default 8.
        layout: As in `kerascohost.Cohort`: `"auto"` (default), `"joined"` or `"stacked"`.
        workers: As in `kerascohost.map`: what trains the models of the trials. Default `None`: all
            are trained here.
        **fit_kwargs: As in `tuner.search`. With `verbose` 0 nothing is shown, with 1 one progress
            bar for all trials, with the best score so far, and with 2 a line per trial; with
            `"auto"` (default) the bar, or up to 8 trials what the tuner and each `fit` show.

    Raises:
        CohortError: If an option cannot be, or the tuner is a worker of a distributed search.
        Exception: What ended the search: errors of the tuner itself, and too many trials that
            failed. No more trials begin then; those under way finish.

    Example:

    >>> import keras, keras_tuner, numpy as np, tempfile
    >>> x, y = np.ones((64, 4)), np.zeros((64, 1))
    >>> def build(hp):
    ...     keras.utils.set_random_seed(0)
    ...     net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ...     net.compile(keras.optimizers.SGD(hp.Float("rate", 0.001, 0.1)), "mse")
    ...     return net
    >>> tuner = keras_tuner.RandomSearch(
    ...     build, "val_loss", max_trials=3, seed=1, directory=tempfile.mkdtemp())
    >>> search(tuner, x, y, validation_data=(x, y), epochs=2, verbose=0)
    >>> len(tuner.oracle.trials)
    3
    """
    verbose = fit_kwargs.get("verbose", "auto")
    check_options(layout, at_once, verbose, workers)
    oracle = getattr(tuner, "oracle", None)
    if not isinstance(oracle, keras_tuner.Oracle):
        raise CohortError(
            f"Expected a tuner of KerasTuner with an oracle in this process. Received: {tuner!r}."
        )
    calls.train_deferred("trials run together")
    shown = oracle.verbose
    with TotalProgress(verbose, oracle.max_trials, "trials") as progress:
        oracle.verbose = verbose if progress.of_fits is None else 0
        tuner.on_search_begin()
        try:
            _Search(tuner, at_once, fit_args, fit_kwargs).run(
                layout, progress, verbose != 0, workers
            )
        finally:
            oracle.verbose = fit_kwargs.get("verbose", shown)
    tuner.on_search_end()


class _Epochs(tuner_utils.TunerCallback):
    """A callback of a tuner without hooks of batches, which would be called after every step."""

    on_batch_begin = keras.callbacks.Callback.on_batch_begin
    on_batch_end = keras.callbacks.Callback.on_batch_end


class _Search:
    """A search, whose trials run in turn; each lets the next ones begin when it ends."""

    def __init__(
        self,
        tuner: "keras_tuner.Tuner",
        at_once: int,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
    ):
        self._tuner = tuner
        self._at_once = at_once
        self._args = args
        self._kwargs = kwargs
        # Names that the oracle knows trials under way by. The same in each search, so that trials
        # of an interrupted one are found.
        self._free = [f"{tuner.tuner_id}-{i}" for i in reversed(range(at_once))]
        self._functions: list[Callable[[], None]] = []
        self._names: list[str] = []
        self._is_over = False
        own = (type(tuner).run_trial, type(getattr(tuner, "hypermodel", None)))
        self._registers_late = any(
            thing.__module__.partition(".")[0] != "keras_tuner"
            for thing in (own[0], getattr(own[1], "fit", own[0]))
        )
        self._has_batch_hooks = any(
            getattr(type(tuner), hook, None) is not getattr(keras_tuner.Tuner, hook)
            for hook in ("on_batch_begin", "on_batch_end")
        )

    def run(
        self, layout: Layout, progress: TotalProgress, tells: bool, workers: "Workers | None"
    ) -> None:
        """Runs all trials."""
        errors: list[BaseException] = []

        def ended(job: Job[None]) -> None:
            self._functions[job.number] = _ended  # releases the trial's callbacks
            if job.error is not None:
                errors.append(job.error)
            progress.ended(job.told, best=self._best())

        self._add()
        Calls(
            self._functions,
            self._names,
            layout,
            self._at_once,
            progress.of_fits,
            tells,
            ended,
            repeats=False,
            workers=workers,
        ).run()
        if errors:
            raise errors[0]

    def _add(self) -> None:
        """Adds trials until as many are under way as may be, or the oracle has none now."""
        oracle = self._tuner.oracle
        while self._free and not self._is_over:
            is_alone = len(self._free) == self._at_once
            if self._registers_late and not oracle.end_order and not is_alone:
                return
            self._tuner.pre_create_trial()
            trial = oracle.create_trial(self._free[-1])
            if trial.status == "STOPPED":
                self._is_over = True
            elif trial.status != "IDLE":
                name = self._free.pop()
                self._names.append(f"trial[{trial.trial_id}]")
                self._functions.append(functools.partial(self._run_trial, trial, name))
            elif not is_alone:
                return

    def _run_trial(self, trial: "keras_tuner.engine.trial.Trial", name: str) -> None:
        """Runs a trial in turn."""
        with ExitStack() as stack:
            stack.enter_context(clearing_own_state())
            if not self._has_batch_hooks:
                stack.enter_context(patched(tuner_utils, "TunerCallback", lambda usual: _Epochs))
            try:
                self._tuner.on_trial_begin(trial)
                # What `search` calls between the two hooks; it has no public name.
                self._tuner._try_run_and_update_trial(  # noqa: SLF001
                    trial, *self._args, **self._kwargs
                )
                self._tuner.on_trial_end(trial)
                self._free.append(name)
                self._add()
            except BaseException:
                self._is_over = True
                raise

    def _best(self) -> float | None:
        """Returns the best score so far, if a trial has one."""
        best = self._tuner.oracle.get_best_trials(1)
        return best[0].score if best else None


def _ended() -> None:
    """Stands for a trial that has ended."""
