"""An executor of `concurrent.futures` whose functions train together."""

import concurrent.futures
import ctypes
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from kerascohost.arguments import Layout
from kerascohost.deferred.functions import Calls, Job, check_options, name_of

P = ParamSpec("P")
T = TypeVar("T")

# So long after the last `submit` the first functions begin: a loop that submits is over by then.
_GATHERING_SECONDS = 0.05


class Executor(concurrent.futures.Executor):
    """Runs functions in turn, with what they train run together, as `kerascohost.map` does.

    Whatever takes an executor of `concurrent.futures` can be given this one. Functions begin
    shortly after they have been submitted, or when one of `at_once` has ended, in the order of
    `submit`. Each runs as if after the one before, see `kerascohost.map`, so a future has its
    result when those submitted before have theirs. The functions run in threads of their own; what
    exists once in a process, such as the random state, is theirs while they run, so the thread that
    submitted them should do nothing but wait for the results.

    An interrupt that leaves the `with` block ends the functions under way, each with its models
    after a whole step.

    Args:
        layout: As in `Cohort`: `"auto"` (default), `"joined"` or `"stacked"`.
        at_once: The number of functions under way: a positive integer. Default 16.
        verbose: 0: silence (default); `"auto"`: each `fit` shows what it asks for.

    Raises:
        CohortError: If `layout`, `at_once` or `verbose` cannot be.

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

    def __init__(self, layout: Layout = "auto", at_once: int = 16, verbose: int | str = 0) -> None:
        check_options(layout, at_once, verbose)
        self._functions: list[Callable[[], Any]] = []
        self._names: list[str] = []
        self._futures: list[concurrent.futures.Future[Any]] = []
        self._options = layout, at_once, None if verbose == "auto" else verbose
        self._changed = threading.Condition()
        self._last_submit = 0.0
        self._is_shut = False
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
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def call() -> T | None:
            if future.running() or future.set_running_or_notify_cancel():
                return fn(*args, **kwargs)
            return None

        with self._changed:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._functions.append(call)
            self._names.append(f"{name_of(fn)}[{len(self._names)}]")
            self._futures.append(future)
            self._last_submit = time.monotonic()
            if self._thread is None:
                # Here, as it records the state of the process and of this thread.
                calls = Calls(self._functions, self._names, *self._options, self._on_end)
                self._thread = threading.Thread(target=self._work, args=(calls,), daemon=True)
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
                for future in self._futures:
                    future.cancel()
            self._changed.notify()
        if wait and self._thread is not None:
            self._thread.join()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if isinstance(error, KeyboardInterrupt):
            self.shutdown(wait=False, cancel_futures=True)
            if self._thread is not None and self._thread.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
                )
        return super().__exit__(kind, error, traceback)

    def _on_end(self, job: Job[Any]) -> None:
        future = self._futures[job.number]
        if future.cancelled():
            return
        if job.error is None:
            future.set_result(job.result)
        else:
            future.set_exception(job.error)

    def _work(self, calls: Calls[Any]) -> None:
        try:
            while self._is_given(calls):
                calls.run()
        except BaseException as error:
            with self._changed:
                self._is_shut = True
            for future in self._futures:
                if not future.done() and not future.cancel():
                    future.set_exception(error)
            if not isinstance(error, KeyboardInterrupt):
                raise

    def _is_given(self, calls: Calls[Any]) -> bool:
        """Waits for functions; returns whether there are any, or `False` after `shutdown`."""
        with self._changed:
            while calls.are_done:
                if self._is_shut:
                    return False
                self._changed.wait()
            while (rest := self._last_submit + _GATHERING_SECONDS - time.monotonic()) > 0:
                if self._is_shut:
                    break
                self._changed.wait(rest)
            return True
