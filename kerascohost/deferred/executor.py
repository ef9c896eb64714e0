"""An executor of `concurrent.futures` whose functions train together."""

import concurrent.futures
import functools
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from kerascohost.arguments import Layout
from kerascohost.deferred import calls
from kerascohost.deferred.functions import Calls, Job, check_options, name_of
from kerascohost.deferred.turns import interrupt, is_in_turn
from kerascohost.errors import CohortError

if TYPE_CHECKING:
    from kerascohost.training.workers import Workers

P = ParamSpec("P")
T = TypeVar("T")

# So long after the last `submit` the first functions begin: a loop that submits is over by then.
_GATHERING_SECONDS = 0.05


class _Future(concurrent.futures.Future[T]):
    """A future that a function in turn cannot wait for: the other one runs in no turn meanwhile."""

    def result(self, timeout: float | None = None) -> T:
        self._check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check()
        return super().exception(timeout)

    def _check(self) -> None:
        if is_in_turn() and not self.done():
            raise CohortError(
                "Expected a future to be waited for outside of the executor's functions. Received: "
                "one that is not done, in a function that runs in turn. Pass its result on after "
                "it is done, or make one function of both."
            )


def _called(future: "_Future[T]", function: Callable[[], T]) -> "_Future[T]":
    """Calls a function at once; returns its future."""
    future.set_running_or_notify_cancel()
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
    return future


class Executor(concurrent.futures.Executor):
    """Runs functions in turn, with what they train run together, as `kerascohost.map` does.

    Whatever takes an executor of `concurrent.futures` can be given this one. Functions begin
    shortly after they have been submitted, or when one of `at_once` has ended, in the order of
    `submit`. Each runs as if after the one before, see `kerascohost.map`, so a future has its
    result when those submitted before have theirs. The functions run in threads of their own; what
    exists once in a process, such as the random state, is theirs while they run, so the thread that
    submitted them should do nothing but wait for the results. One that is made in a function in
    turn calls each function at its `submit`.

    An interrupt that leaves the `with` block ends the functions under way, each with its models
    after a whole step.

    Args:
        layout: As in `Cohort`: `"auto"` (default), `"joined"` or `"stacked"`.
        at_once: The number of functions under way: a positive integer. Default 16.
        verbose: 0 (default), 1 or 2: what each `fit` shows, see `Cohort.fit`; `"auto"`: what it
            asks for.
        workers: As in `kerascohost.map`. Default `None`: all are trained here.

    Raises:
        CohortError: If `layout`, `at_once`, `verbose` or `workers` cannot be.

    Example:

    >>> import keras, numpy as np
    >>> x, y = np.ones((64, 4)), np.zeros((64, 1))
    >>> def train(seed):
    ...     keras.utils.set_random_seed(seed)
    ...     net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ...     net.compile("adam", loss="mse")
    ...     return net.fit(x, y, epochs=2, verbose=0).epoch
    >>> with Executor() as executor:
    ...     futures = [executor.submit(train, seed) for seed in range(3)]
    >>> [future.result() for future in futures]
    [[0, 1], [0, 1], [0, 1]]
    """

    def __init__(
        self,
        layout: Layout = "auto",
        at_once: int = 16,
        verbose: int | str = 0,
        workers: "Workers | None" = None,
    ) -> None:
        check_options(layout, at_once, verbose, workers)
        self._functions: list[Callable[[], Any]] = []
        self._names: list[str] = []
        self._futures: dict[int, concurrent.futures.Future[Any]] = {}  # of those not ended
        shown = None if verbose == "auto" else verbose
        self._options = layout, at_once, shown, verbose != 0
        self._workers = workers
        self._calls: Calls[Any] | None = None
        self._changed = threading.Condition()
        self._last_submit = 0.0
        self._is_shut = False
        # Its thread would wait for that of a function in turn in which it is, and that one for it.
        self._is_inner = is_in_turn()
        self._thread: threading.Thread | None = None

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Adds a function to those that run in turn.

        Args:
            fn: The function.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            A `concurrent.futures.Future` of its result.

        Raises:
            RuntimeError: If the executor has been shut down, or was interrupted.

        Example:

        >>> with Executor() as executor:
        ...     executor.submit(max, 1, 2).result()
        2
        """
        calls.train_deferred("a function is submitted")
        future: _Future[T] = _Future()
        if self._is_inner:
            return _called(future, functools.partial(fn, *args, **kwargs))

        def call() -> T | None:
            if number not in self._futures:  # cancelled when it was called before
                return None
            if future.running() or future.set_running_or_notify_cancel():
                return fn(*args, **kwargs)
            del self._futures[number]
            return None

        with self._changed:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            number = len(self._functions)
            if self._calls is None:
                self._calls = Calls(
                    self._functions,
                    self._names,
                    *self._options,
                    self._on_end,
                    workers=self._workers,
                )
            elif self._thread is None:
                self._calls.begin_anew()
            self._futures[number] = future
            self._names.append(f"{name_of(fn)}[{number}]")
            self._functions.append(call)  # last: the thread looks at it without the lock
            self._last_submit = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, args=(self._calls,))
                self._thread.start()
            self._changed.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the executor when all functions have ended.

        Args:
            wait: A boolean, whether to return only then. Default `True`.
            cancel_futures: A boolean, whether functions that have not begun are cancelled. Default
                `False`.

        Example:

        >>> executor = Executor()
        >>> future = executor.submit(max, 1, 2)
        >>> executor.shutdown()
        >>> future.done()
        True
        """
        with self._changed:
            self._is_shut = True
            if cancel_futures:
                for future in list(self._futures.values()):
                    future.cancel()
            self._changed.notify()
            thread = self._thread
        if wait and thread is not None:
            thread.join()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if isinstance(error, KeyboardInterrupt):
            self.shutdown(wait=False, cancel_futures=True)
            thread = self._thread
            if thread is not None:
                interrupt(thread)
        return super().__exit__(kind, error, traceback)

    def _on_end(self, job: Job[Any]) -> None:
        self._functions[job.number] = _ended  # releases the arguments
        future = self._futures.pop(job.number, None)
        if future is None:  # cancelled
            return
        if job.error is None:
            future.set_result(job.result)
        else:
            future.set_exception(job.error)

    def _work(self, own: Calls[Any]) -> None:
        try:
            while self._is_given(own):
                own.run()
        except BaseException as error:
            with self._changed:
                self._is_shut = True
                self._thread = None
            for future in list(self._futures.values()):
                if future.cancel():
                    future.set_running_or_notify_cancel()
                else:
                    future.set_exception(error)
            if not isinstance(error, KeyboardInterrupt):
                raise

    def _is_given(self, own: Calls[Any]) -> bool:
        """Returns whether there are functions to run, when they have been gathered."""
        with self._changed:
            if own.are_done:
                self._thread = None  # the next `submit` starts another one
                return False
            while (rest := self._last_submit + _GATHERING_SECONDS - time.monotonic()) > 0:
                if self._is_shut:
                    break
                self._changed.wait(rest)
            return True


def _ended() -> None:
    """Stands for a function that has ended."""
