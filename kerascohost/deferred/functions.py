"""Functions that train, called in turn, each as if after the one before: `map`, `together`.

As all begin before the first has ended, each begins with the random state in which the one before
is expected to end. This is compared when that one has ended: a function that has drawn from a wrong
state is called again.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import keras

from kerascohost import backends, errors
from kerascohost.arguments import Layout, check_layout, check_workers
from kerascohost.backends import random_states, seeding, threads
from kerascohost.backends.seeding import Parts
from kerascohost.backends.snapshot import ModelSnapshot
from kerascohost.deferred import calls
from kerascohost.deferred.fits import DeferredFit, WaitingCall
from kerascohost.deferred.turns import Turn, Turns, TurnState
from kerascohost.errors import CohortError, is_count
from kerascohost.results.progress import TotalProgress

if TYPE_CHECKING:
    from kerascohost.training.workers import Workers

T = TypeVar("T")


class _Dropped(BaseException):
    """Ends a function that is to be called again; no handler of `Exception` catches it."""


class Begin:
    """The state in which a function begins: random states, and what Keras keeps per thread."""

    def __init__(self, parts: Parts, settings: threads.State):
        self.parts = parts
        self.settings = threads.copied_settings(settings)
        threads.set_seeds(self.settings, parts["keras"])

    @classmethod
    def now(cls) -> "Begin":
        """Returns the present state of the process and of the calling thread."""
        return cls(_parts(), threads.thread_state())


def _parts() -> Parts:
    """Returns the present random states of the process and of the calling thread."""
    return random_states.parts(backends.random_state(), threads.thread_state())


class Job(Turn[T]):
    """A call of a function, in turn.

    Args:
        number: Its position.
        function: The function, with its arguments.
        name: As in `Turn`.
        begin: The state that it begins with.
        verbose: As in `Turn`.
        repeats: As in `Calls`.
        state: As in `Turn`; by default that of the process.

    Attributes:
        expected: The state in which it is expected to end, once it has waited for the first time;
            `None` if that is not known, and the function may be called again.
        is_sure: Whether it is known to begin with the right state.
        is_dropped: Whether its result does not count, as it is to be called again.
    """

    INTERRUPTS_ALL = True

    def __init__(
        self,
        number: int,
        function: Callable[[], T],
        name: str,
        begin: Begin,
        verbose: int | str | None,
        repeats: bool = True,
        state: TurnState | None = None,
    ):
        self.expected: Begin | None = None
        self._repeats = repeats
        self.is_sure = self.is_dropped = False
        self._begin = begin.parts
        self._seeding = seeding.Seeding(begin.parts, _parts)
        self._snapshots: dict[int, ModelSnapshot] = {}
        self._has_waited = False
        state = TurnState() if state is None else state
        state.process.random = random_states.joined(begin.parts)
        super().__init__(self._watched(function), name, state, number, begin.settings, verbose)

    def _watched(self, function: Callable[[], T]) -> Callable[[], T]:
        def call() -> T:
            with self._seeding.recorded():
                return function()

        return call

    def _about_to_wait(self, call: WaitingCall) -> None:
        if self._has_waited:
            return
        self._has_waited = True
        before = backends.random_state()
        if isinstance(call, DeferredFit):
            call.draw_ahead()
        is_known = not isinstance(call, DeferredFit) or call.end_is_known or self.seeds_itself
        if is_known or not self._repeats:
            self.expected = Begin.now()
        backends.set_random_state(before)

    @property
    def may_go_on(self) -> bool:
        """Returns whether the functions before it have ended, and it began as they end."""
        return self.is_sure

    @property
    def seeds_itself(self) -> bool:
        """Returns whether the function has set all random states before it drew from them."""
        return self._seeding.own.issuperset(self._begin)

    @property
    def told(self) -> str:
        """A line that says how the function has ended."""
        return f"{self.name}: {'ended' if self.error is None else repr(self.error)}"

    @property
    def end(self) -> Begin:
        """The state in which the function is now: it waits or has ended."""
        parts = random_states.parts(self.state.process.random, self.keras_state)
        return Begin(parts, self.keras_state)

    def about_to_run(self, call: WaitingCall) -> None:
        """Stores the model's state if the function may have to be called again."""
        if not (self.is_sure or self.seeds_itself):
            self._store(call.model)

    def _store(self, model: keras.Model) -> None:
        """Stores a model's state, which `undo` restores."""
        if id(model) not in self._snapshots:
            self._snapshots[id(model)] = ModelSnapshot([model])

    def settle(self) -> None:
        """Keeps what the function trains, as it is not called again."""
        self.is_sure = True
        self._snapshots.clear()

    def undo(self) -> None:
        """Restores the models that the function has trained, as it is to be called again."""
        random = backends.random_state()
        for snapshot in self._snapshots.values():
            snapshot.restore()
        backends.set_random_state(random)

    def follows(self, ended: Parts) -> bool:
        """Makes the function one that begins where the one before has ended, if it is not too late.

        Args:
            ended: The random states at the end of the one before.

        Returns:
            Whether it is; it is not if the function has drawn from another state.
        """
        now = random_states.parts(self.state.process.random, self.keras_state)
        others = {s for s in ended if ended[s] != self._begin[s]} - self._seeding.own
        # While it trains, its draws are not in the states of the process yet.
        trains = self.call is not None and self.call.is_prepared
        drawn = {s for s in others if now[s] != self._begin[s]} | (others & self._seeding.drawn)
        if drawn or (others and trains):
            return False
        for source in others:
            now[source] = self._begin[source] = ended[source]
        self.state.process.random = random_states.joined(now)
        if "keras" in others:
            threads.set_seeds(self.keras_state, now["keras"])
        return True


class Calls(Generic[T]):
    """Calls of functions in turn.

    Args:
        functions: The functions, with their arguments.
        names: The name of each.
        layout: As in `map`.
        at_once: As in `map`.
        verbose: What replaces the `verbose` of their fits, or `None`.
        tells: Whether a line says which function waits for another one.
        ended: Called with each call whose result counts, in their order.
        repeats: Whether a function that began in a wrong random state is called again. If not, it
            counts as it is: for functions that do more than to train, such as a trial of a study.
        workers: As in `map`.
    """

    def __init__(
        self,
        functions: Sequence[Callable[[], T]],
        names: list[str],
        layout: Layout,
        at_once: int,
        verbose: int | str | None,
        tells: bool,
        ended: Callable[[Job[T]], None],
        repeats: bool = True,
        workers: "Workers | None" = None,
    ):
        self._repeats = repeats
        self._tells = tells
        self._functions = functions
        self._names = names
        self._verbose = verbose
        self._ended = ended
        self._jobs: dict[int, Job[T]] = {}  # those begun whose results are not known to count
        self._counted = 0  # the functions whose results count
        self._last = Begin.now()  # the state in which the last of these has ended
        self._warning = ""
        self._is_in_turn = False  # whether each begins when the one before has ended
        self._is_stopped = False
        self._keras_state = threads.thread_state()
        self._turns: Turns[Job[T]] = Turns(
            self._next_job, self._on_end, layout, at_once, self._may_run, workers
        )

    def run(self) -> None:
        """Calls all functions, and leaves the process as the last one does."""
        self._turns.run()
        if self._warning:
            told, self._warning = self._warning, ""
            warnings.warn(told, stacklevel=4)

    @property
    def uncounted(self) -> list[Job[T]]:
        """The calls that have begun and whose results are not known to count."""
        return list(self._jobs.values())

    def begin_anew(self) -> None:
        """Stores the present state of the process and this thread for the next function."""
        self._last = Begin.now()
        self._keras_state = threads.thread_state()

    @property
    def are_done(self) -> bool:
        """Returns whether the results of all functions count."""
        return self._counted == len(self._functions)

    def stop(self) -> None:
        """Begins no more functions, and ends those whose results do not count."""
        self._is_stopped = True
        for job in list(self._jobs.values()):
            self._drop(job)
        self._leave_state()

    def _next_job(self) -> Job[T] | None:
        if self._is_stopped:
            return None
        number = next(
            (n for n in range(self._counted, len(self._functions)) if n not in self._jobs), None
        )
        if number is None:
            return None
        begin = self._begin_of(number)
        if begin is None:
            return None
        job = self._made(number, begin)
        if number == self._counted:
            job.settle()
        job.is_sure = job.is_sure or not self._repeats
        job.tells = self._tells
        self._jobs[number] = job
        return job

    def _made(self, number: int, begin: Begin) -> Job[T]:
        function, name = self._functions[number], self._names[number]
        return Job(number, function, name, begin, self._verbose, self._repeats)

    def _begin_of(self, number: int) -> Begin | None:
        """Returns the state that a function begins with; `None` if it has to wait for that."""
        if number == self._counted:
            return self._last
        before = self._jobs[number - 1]
        if before.has_ended and not before.is_dropped:
            return before.end
        return None if self._is_in_turn or before.is_dropped else before.expected

    def _may_run(self, job: Job[T]) -> bool:
        """Returns whether no function before it is yet to be called again."""
        return all(n in self._jobs for n in range(self._counted, job.number))

    def _on_end(self, job: Job[T]) -> None:
        if job.is_dropped:
            job.undo()
            del self._jobs[job.number]
        while (first := self._jobs.get(self._counted)) is not None and first.has_ended:
            del self._jobs[self._counted]
            self._count(first)

    def _count(self, job: Job[T]) -> None:
        job.settle()
        self._counted += 1
        self._last = job.end
        if self.are_done:  # before the result is known, so that who waits for it finds this state
            self._leave_state()
        self._ended(job)
        later = self._jobs.get(self._counted)
        if later is None or later.is_dropped:
            return
        if not self._repeats or self._follows(later, job):
            later.settle()
        else:
            self._redo(later, job)

    def _leave_state(self) -> None:
        """Sets the state of the process and of this thread to that in which the last one ends."""
        backends.set_random_state(random_states.joined(self._last.parts))
        threads.set_settings(self._keras_state, self._last.settings)

    def _follows(self, later: Job[T], before: Job[T]) -> bool:
        """Returns whether a function begins where the one before has ended."""
        return later.follows(self._last.parts)

    def _redo(self, later: Job[T], job: Job[T]) -> None:
        """Has the functions under way called again, each when the one before has ended."""
        if not self._is_in_turn:
            self._is_in_turn = True
            self._warning = (
                f"{later.name} drew random numbers before it was known in which random state "
                f"{job.name} ends, so from there on functions were called one after another. To "
                "train them together, begin each with `keras.utils.set_random_seed`."
            )
        for other in list(self._jobs.values()):
            if not other.seeds_itself:
                self._drop(other)

    def _drop(self, job: Job[T]) -> None:
        """Ends a function whose result does not count."""
        job.is_dropped = True
        if job.has_ended:
            job.undo()
            self._turns.forget(job)
            del self._jobs[job.number]
        else:
            self._turns.end(job, _Dropped())


def together(
    functions: Iterable[Callable[[], T]],
    layout: Layout = "auto",
    at_once: int = 16,
    verbose: int | str = "auto",
    workers: "Workers | None" = None,
) -> list[T]:
    """Calls functions one after another as written, with what they train run together.

    This is `kerascohost.map` for unlike functions, which says how they are called.

    Args:
        functions: The functions, called without arguments.
        layout: As in `map`. Default `"auto"`.
        at_once: As in `map`. Default 16.
        verbose: As in `map`. Default `"auto"`.
        workers: As in `map`. Default `None`.

    Returns:
        A list of what the functions return, in their order.

    Raises:
        Exception: As in `map`.

    Example:

    >>> import keras, numpy as np
    >>> x, y = np.ones((64, 4)), np.zeros((64, 1))
    >>> def small():
    ...     keras.utils.set_random_seed(0)
    ...     net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ...     net.compile("adam", loss="mse")
    ...     return net.fit(x, y, epochs=2, verbose=0).epoch
    >>> def large():
    ...     keras.utils.set_random_seed(1)
    ...     net = keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(64), keras.layers.Dense(1)])
    ...     net.compile("adam", loss="mse")
    ...     return net.fit(x, y, epochs=3, verbose=0).epoch
    >>> together([small, large])
    [[0, 1], [0, 1, 2]]
    """
    functions = list(functions)
    for function in functions:
        if not callable(function):
            raise CohortError(f"Expected functions without arguments. Received: {function!r}.")
    return _called(functions, [name_of(f) for f in functions], layout, at_once, verbose, workers)


def map(  # used as `kc.map`, as is the `map` of executors
    function: Callable[..., T],
    *iterables: Iterable[Any],
    layout: Layout = "auto",
    at_once: int = 16,
    verbose: int | str = "auto",
    workers: "Workers | None" = None,
) -> list[T]:
    """Calls `function` with the items of `iterables`, with what the calls train run together.

    Each call runs as written, in a thread of its own. No two run at the same time: a call goes on
    until it needs `fit`, `evaluate` or `predict` of a model, and waits there. What all of them wait
    for is run as one cohort, each model's part exactly as if alone. A call sees ordinary results:
    it may compare scores, stop early, save, plot.

    The results, and the random state left behind, are those of `list(map(function, *iterables))`,
    if the calls share nothing that they change. A model, optimizer or callback that one of them
    trains and another one trains, reads or changes is noticed: the later call waits for the end of
    the earlier one. Other shared objects, such as a global list, are not noticed. A call may be
    ended (its `finally` clauses run) and made again if it draws random numbers without having set a
    seed, since its random state is that in which the one before ends; models that it has trained
    are restored first. Calls that begin with `keras.utils.set_random_seed` are never made again.
    What a call changes in the process otherwise, such as the working directory, is seen by that
    call only.

    Args:
        function: The function.
        *iterables: The arguments, as in the built-in `map`: the calls end with the shortest one.
            As in the `map` of executors, they are read before the first call.
        layout: As in `Cohort`: `"auto"` (default), `"joined"` or `"stacked"`. With `"joined"` each
            result is that of the plain loop to the bit; stacks train to floating-point tolerance.
        at_once: The number of calls under way: a positive integer. Default 16. Their data and
            models are in memory together.
        verbose: 0: silence; 1: one progress bar for all calls; 2: a line per call; `"auto"`
            (default): each `fit` shows what it asks for, or with more than 8 calls as 1.
        workers: `kerascohost.RayWorkers`, which train what the calls wait for in `fit`; the calls
            themselves, `evaluate` and `predict` run here. A call goes on when all those that
            wait with it have been trained. Default `None`: all are trained here.

    Returns:
        A list of what the calls return, in their order.

    Raises:
        CohortError: If `layout` or `at_once` cannot be; or in a call, if a later one has used
            already what it is about to use.
        Exception: What the first call that failed raised, with a note that names it. The other
            calls finish first.

    Example:

    >>> import keras, numpy as np
    >>> x, y = np.ones((64, 4)), np.zeros((64, 1))
    >>> def train(seed, units):
    ...     keras.utils.set_random_seed(seed)
    ...     net = keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(1)])
    ...     net.compile("adam", loss="mse")
    ...     net.fit(x, y, epochs=2, verbose=0)
    ...     return net.evaluate(x, y, verbose=0)
    >>> losses = map(train, range(3), [4, 4, 8])
    >>> len(losses)
    3
    """
    if not callable(function):
        raise CohortError(f"Expected a function. Received: {function!r}.")
    if not iterables:
        raise CohortError("Expected at least one iterable of arguments. Received: none.")
    functions = [functools.partial(function, *given) for given in zip(*iterables, strict=False)]
    names = [name_of(function)] * len(functions)
    return _called(functions, names, layout, at_once, verbose, workers)


def _called(
    functions: Sequence[Callable[[], T]],
    names: list[str],
    layout: Layout,
    at_once: int,
    verbose: int | str,
    workers: "Workers | None",
) -> list[T]:
    """Calls the functions in turn; returns their results or raises the first exception."""
    check_options(layout, at_once, verbose, workers)
    calls.train_deferred("functions are called in turn")
    names = [f"{name}[{i}]" for i, name in enumerate(names)]
    jobs: list[Job[T]] = []
    with TotalProgress(verbose, len(functions), "functions") as progress:

        def ended(job: Job[T]) -> None:
            jobs.append(job)
            progress.ended(job.told)

        shown = progress.of_fits
        under_way: Calls[T] = Calls(
            functions, names, layout, at_once, shown, verbose != 0, ended, workers=workers
        )
        try:
            under_way.run()
        except BaseException as ended_all:  # an interrupt, perhaps after failures not told yet
            ends = {job.name: job.error for job in [*jobs, *under_way.uncounted]}
            failures = {n: end for n, end in ends.items() if isinstance(end, Exception)}
            errors.note_others(ended_all, failures)
            raise
    failed = [job for job in jobs if job.error is not None]
    if failed:
        error = failed[0].error
        assert error is not None
        error.add_note(f"Raised by {failed[0].name}.")
        errors.note_others(error, {job.name: job.error for job in failed})
        raise error
    results: list[Any] = [job.result for job in jobs]
    return results


def check_options(
    layout: Layout, at_once: int, verbose: int | str, workers: "Workers | None" = None
) -> None:
    """Raises an error if an option of `map` is none that can be."""
    check_layout(layout, takes_factors=False)
    check_workers(workers)
    if isinstance(at_once, bool) or not is_count(at_once, least=1):
        raise CohortError(f"Expected `at_once` to be a positive integer. Received: {at_once!r}.")
    if verbose not in (0, 1, 2, "auto"):
        raise CohortError(f"Expected `verbose` to be 0, 1, 2 or 'auto'. Received: {verbose!r}.")


def name_of(function: Callable[..., T]) -> str:
    """Returns a name for a function, as messages and progress bars show it."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return "function" if name == "<lambda>" else name
