"""The context `cohost`, in which calls of `fit` are deferred and then trained together."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import re
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, TypeAlias

import keras
import numpy as np

from kerascohost import backends, errors
from kerascohost.arguments import (
    Data,
    FitArguments,
    Layout,
    PerMember,
    check_layout,
    check_workers,
    counts_per_member,
)
from kerascohost.backends import Tree, observed
from kerascohost.deferred import calls
from kerascohost.deferred.fits import (
    DeferredFit,
    DeferredHistory,
    DeferredHistoryError,
    DeferredRunner,
    check_call,
)
from kerascohost.results.history import CohortHistory
from kerascohost.tracing.places import AnyGenerator, UserObject

if TYPE_CHECKING:
    from kerascohost.training.workers import Workers

# A program's variables by name: globals, locals, attributes of an object.
Variables: TypeAlias = Mapping[str, UserObject]


@dataclasses.dataclass
class _Call:
    """A call of `fit` in the block, which outlives its data.

    Attributes:
        model: The model.
        variable: The name that the program has for the model where it calls `fit`.
        fit: The fit; `None` once it has been trained and its data released.
        history: The `History` that the caller was given.
        label: The name of this fit.
        validated: As in `DeferredFit`, once it has been trained.
        seconds: As in `DeferredFit`.
        has_begun: As in `DeferredFit`.
    """

    model: keras.Model
    variable: str
    fit: DeferredFit | None
    history: DeferredHistory
    label: str = ""
    validated: list[int] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    has_begun: bool = False


class cohost:  # noqa: N801  # used like a function, as `contextlib.suppress` is
    """Defers the calls of `fit` inside a `with` block, and trains them together at its end.

    Everything else in the block runs as written. When the program reads or changes something that
    a deferred `fit` is yet to change (`evaluate`, weights, an optimizer's learning rate, its
    `History`, also those of other models that share layers), all fits deferred so far are trained
    first, and a line is printed; later calls are deferred again. Each model ends as it would
    without the block. A fit that continues an earlier one (of the same model, or of one that shares
    layers or an optimizer with it) starts when that one has ended.

    Members are named after the variables that refer to the models, or else by `model.name`. Only
    the fits of the thread that opened the block are deferred. After an exception inside the block
    nothing more is trained. Arguments that cannot be, also arrays of unlike lengths, are refused at
    the call. An exception of a training is raised where the program asked for the training, or at
    the end of the block.

    Args:
        layout: As in `Cohort`: `"joined"` (default), `"stacked"` or `"auto"`.
        group_factor: As in `Cohort`: a positive integer, or a dict from names to integers. Default
            1.
        replicas: As in `Cohort`: a positive integer, or a dict from names to integers. Default 1.
        verbose: 0, 1, 2 or `"auto"`, which replaces each fit's own `verbose`. Default `None`: it is
            not replaced.
        names: A dict from names to objects, in which the names of models are looked up. Default
            `None`: the variables of the code around the block.
        workers: As in `Cohort`: `kerascohost.RayWorkers`, which train the fits. Default `None`:
            all are trained here.

    Attributes:
        history: The `CohortHistory` of all fits, once the block has ended. A second fit of one
            model is named `"mlp (2)"`.
        reads: Where the program read what a deferred `fit` was yet to change, so that fits were
            trained before the end of the block: for each time, the files and lines of its calls.

    Raises:
        CohortError: If the fits cannot be trained together.

    Example:

    >>> import keras, numpy as np
    >>> def model(units):
    ...     net = keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(1)])
    ...     net.compile("adam", loss="mse")
    ...     return net
    >>> small, large = model(4), model(64)
    >>> x, y = np.ones((100, 4)), np.zeros((100, 1))
    >>> with cohost() as run:
    ...     h1 = small.fit(x, y, epochs=2, verbose=0)
    ...     h2 = large.fit(x, y, epochs=3, batch_size=16, verbose=0)
    >>> len(h1.history["loss"]), len(h2.history["loss"])
    (2, 3)
    >>> list(run.history)
    ['small', 'large']
    """

    def __init__(
        self,
        layout: Layout = "joined",
        group_factor: PerMember[int] = 1,
        replicas: PerMember[int] = 1,
        *,
        verbose: int | str | None = None,
        names: Variables | None = None,
        workers: "Workers | None" = None,
    ):
        check_layout(layout)
        check_workers(workers)
        self._layout = layout
        self._factors = {"group_factor": group_factor, "replicas": replicas}
        self._verbose = verbose
        self._names = names
        self._workers = workers
        self._calls: list[_Call] = []
        self._fits: list[DeferredFit] = []
        self._histories: CohortHistory | None = None
        self._watch = observed.Watch(self._look)
        self.reads: list[list[tuple[str, int]]] = []

    @property
    def history(self) -> CohortHistory:
        """The `CohortHistory` of all fits, once the block has ended.

        Raises:
            CohortError: If the block has not ended.

        Example:

        >>> import keras, numpy as np
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> net.compile("adam", loss="mse")
        >>> with cohost() as run:
        ...     h = net.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2, verbose=0)
        >>> run.history["net"].epoch
        [0, 1]
        """
        if self._histories is None:
            raise DeferredHistoryError(
                "Expected `history` to be read after the `with` block. Received: the block has not "
                "been run to its end."
            )
        return self._histories

    @property
    def has_run(self) -> bool:
        """Returns whether the fits have been run, also if one failed."""
        return self._histories is not None

    def __repr__(self) -> str:
        return f"cohost({', '.join(self._histories or (fit.name for fit in self._fits))})"

    def __enter__(self) -> "cohost":
        self._calls, self._fits, self._histories, self.reads = [], [], None, []
        self._by_name: dict[str, tuple[int, ...]] = {}
        self._together: DeferredRunner[DeferredFit] = self._runner()
        self._failure: BaseException | None = None
        self._has_told = False
        self._frame: FrameType | None = calls.caller()
        self._thread, self._stdout = threading.get_ident(), sys.stdout
        calls.enter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        calls.leave(self)
        self._watch.clear()
        self._frame = calls.caller()
        try:
            self._name_members()
            if error is None:
                self._train_rest()
                return
            for fit in self._fits:
                fit.hand_over()
            if self._fits:
                listed = ", ".join(fit.label for fit in self._fits)
                error.add_note(f"The fits deferred by `cohost()` were not run: {listed}.")
        finally:
            if error is None or any(call.has_begun for call in self._calls):
                self._collect()
            self._fits, self._calls, self._frame = [], [], None  # with their data

    def _runner(self) -> DeferredRunner[DeferredFit]:
        return DeferredRunner(self._by_name, self._layout, self._workers)

    def defer(
        self,
        method: calls.Method,
        model: keras.Model,
        arguments: calls.Arguments,
        caller: FrameType,
    ) -> Tree:
        """Defers a call of `fit`, of no other method; see `calls.Context`.

        It is trained at the end of the block, or when the program needs its result. Its `History`
        is filled then.

        Raises:
            CohortError: If the model cannot be trained in a cohort, or an argument cannot be.
            ValueError: Keras's, if the lengths of arrays differ.
        """
        if method != "fit":
            return NotImplemented
        return self._defer_fit(model, arguments, caller)

    def _defer_fit(
        self, model: keras.Model, arguments: FitArguments, caller: FrameType
    ) -> DeferredHistory:
        names = {**caller.f_globals, **caller.f_locals}
        name = _name_in(names, model) or _attribute_in(names, model) or model.name
        if self._verbose is not None:
            arguments["verbose"] = self._verbose
        is_redirected = sys.stdout is not self._stdout and _prints(arguments)
        if is_redirected:  # the fits deferred so far print to the usual output
            with contextlib.redirect_stdout(self._stdout):
                self._train_first("output is redirected around a `fit`")
        with observed.paused():
            with errors.about(name):
                check_call(model, arguments)
            history = DeferredHistory(self._train_of_history)
            fit = DeferredFit(model, arguments, history)
            fit.name = fit.label = name
            fit.called_at = f"{caller.f_code.co_filename}, line {caller.f_lineno}"
            fit.draw_ahead(is_built=any(other.model is model for other in self._fits))
            self._calls.append(_Call(model, name, fit, history))
            self._fits.append(fit)
            self._watch.add(model, _callbacks(arguments), fit.snapshot.others)
        if is_redirected:
            self._train_first("output is redirected around a `fit`", at_call=True)
        elif any(map(_depends_on_open, keras.tree.flatten(_data(arguments)))):
            self._train_first(f"the data of {name!r} may be closed after its `fit`", at_call=True)
        elif fit.snapshot.draws_globally:  # the program draws next from the state after this fit
            self._train_first(f"the fit of {name!r} draws global random numbers", at_call=True)
        return history

    def train_if_met(self, model: keras.Model) -> None:
        """Trains the deferred fits if a fit of `model` in an inner block shares parts with them."""
        if self._watch.covers(model):
            self._train_first(f"a block within this one fits {self._name_of(model)!r}")

    def train_deferred(self, why: str) -> None:
        """Trains the fits deferred so far, for the reason `why`."""
        self._train_first(why)

    def tell(self, text: str) -> None:
        """Prints, once per block, why something is not trained with the rest."""
        if not self._has_told:
            self._has_told = True
            print(text)

    # Training before the end

    def _look(self, thing: UserObject, doing: str, writes: bool) -> None:
        self._note_read()
        self._train_first(doing.format(repr(self._name_of(thing))))

    def _train_of_history(self) -> None:
        if threading.get_ident() == self._thread:
            self._note_read()
            self._train_first("a `History` is read")

    def _note_read(self) -> None:
        if self._fits:
            stack = traceback.walk_stack(None)
            self.reads.append([(frame.f_code.co_filename, line) for frame, line in stack])

    def _train_first(self, why: str, at_call: bool = False) -> None:
        """Trains the deferred fits because the program needs their results.

        Args:
            why: What the program does, for the line that is printed.
            at_call: Whether the program is calling the last one of the fits. A failure of that one
                is then raised where it would be raised alone, and the program may go on after it.
        """
        if not self._fits:
            return
        self._name_members()
        told = any(fit.arguments["verbose"] != 0 for fit in self._fits)
        last = self._fits[-1]
        try:
            observed.apart(functools.partial(self._train, ends=False))
        except BaseException as error:
            if not (at_call and error is last.error):
                self._failure = error
            raise
        if told:
            self.tell(f"cohost: the fits deferred so far were trained now, as {why}.")

    def _train_rest(self) -> None:
        if not self._calls and not self._has_told:  # otherwise fits were trained apart
            warnings.warn("No `fit` was called inside `cohost()`.", stacklevel=3)
        if self._fits:
            self._train(ends=True)
        if self._failure is not None:  # the program may have caught it
            raise self._failure

    def _train(self, ends: bool) -> None:
        """Trains the fits that are deferred.

        Args:
            ends: Whether the block has ended, so that a failure may end all of them.
        """
        fits, self._fits = self._fits, []
        self._watch.clear()

        def ended(fit: DeferredFit) -> Iterable[DeferredFit]:
            if fit.error is not None:
                # The traceback leads to the end of the block, or to what reads the result.
                fit.error.add_note(f"Its `fit` was called in {fit.called_at}.")
                if ends:
                    raise fit.error
                self._together.drop_after(fit)
            return ()

        try:
            self._by_name |= self._factors_of({fit.name: fit.model for fit in fits}, ends)
            with calls.left_to_keras():
                self._together.run(fits, ended)
            self._together.print_plan(fits)
        except BaseException as error:  # a failure, or an interrupt after failures
            errors.note_others(error, _failures(fits))
            self._together = self._runner()
            raise
        finally:
            for fit in fits:
                fit.hand_over()
            self._go_on_drawing(fits)
            self._note_ends()
        _raise_first([fit for fit in fits if fit.error is not None])

    def _factors_of(
        self, models: Mapping[str, keras.Model], ends: bool
    ) -> dict[str, tuple[int, ...]]:
        """Returns the group factor and replicas of each of `models`.

        Before the end of the block (`ends`), a dict of factors may name models still to come.
        """
        known = {**models, **({call.label: call.model for call in self._calls} if ends else {})}
        factors = []
        for key, value in self._factors.items():
            if isinstance(value, Mapping) and not ends:
                value = {name: factor for name, factor in value.items() if name in models}
            factors.append(counts_per_member(key, value, known))
        return {name: tuple(each[name] for each in factors) for name in models}

    def _note_ends(self) -> None:
        """Copies the results of fits that have been trained, and releases these fits."""
        for call in self._calls:
            fit = call.fit
            if fit is not None and fit not in self._fits:
                call.validated, call.seconds = fit.validated, fit.seconds
                call.has_begun, call.fit = fit.has_begun, None

    def _collect(self) -> None:
        begun = [call for call in self._calls if call.has_begun]
        self._histories = CohortHistory(
            {call.label: call.history for call in begun},
            {call.label: call.validated for call in begun},
            {call.label: call.seconds for call in begun},
        )

    # Names

    def _variables(self) -> Variables:
        if self._names is not None or self._frame is None:
            return self._names or {}
        return {**self._frame.f_globals, **self._frame.f_locals}

    def _name_of(self, thing: UserObject) -> str:
        """Returns a name for messages: a label, a variable, the thing's own name or its type."""
        named = {id(call.model): call.label for call in reversed(self._calls)}
        found = named.get(id(thing)) or _name_in(self._variables(), thing)
        return found or observed.name_of(thing)

    def _name_members(self) -> None:
        """Gives each model a unique name, and each further fit of it a label with a number."""
        names, named = self._variables(), dict[int, str]()
        models_of: dict[str, set[int]] = {}
        for call in self._calls:
            models_of.setdefault(call.variable, set()).add(id(call.model))
        loops = {name for name, models in models_of.items() if len(models) > 1}
        times: dict[int, int] = {}
        for call in self._calls:
            model = call.model
            if id(model) not in named:
                found = _name_in(names, model, loops)
                if found is None:
                    takes_own = call.variable in loops and _is_named(model)
                    found = model.name if takes_own else call.variable
                named[id(model)] = unique(found, named.values())
            name = named[id(model)]
            times[id(model)] = before = times.get(id(model), 0) + 1
            call.label = f"{name} ({before})" if before > 1 else name
            if call.fit is not None:
                call.fit.name, call.fit.label = name, call.label

    @staticmethod
    def _go_on_drawing(fits: list[DeferredFit]) -> None:
        """Sets the random state after the last fit, unless the program changed it since."""
        found = backends.random_state()
        for fit, later in itertools.zip_longest(fits, (fit.called_in for fit in fits[1:])):
            fit.warn_of_draws(later or found)
        if found == fits[-1].expected:
            backends.set_random_state(fits[-1].random_after)


def _raise_first(failed: list[DeferredFit]) -> None:
    """Raises the exception of the first of the fits that failed, with a note of the others'."""
    if not failed:
        return
    error = failed[0].error
    assert error is not None
    errors.note_others(error, _failures(failed))
    raise error


def _failures(fits: list[DeferredFit]) -> dict[str, BaseException | None]:
    """Returns what ended each of the fits, if an exception did, by words for it."""
    return {f"The training of {fit.label!r}": fit.error for fit in fits}


# Properties of a fit


def _callbacks(arguments: FitArguments) -> list[keras.callbacks.Callback]:
    callbacks = backends.callbacks_in(arguments["callbacks"])
    return [each for each in callbacks if isinstance(each, keras.callbacks.Callback)]


def _prints(arguments: FitArguments) -> bool:
    """Returns whether a fit may print, by itself or in the user's callbacks."""
    callbacks = _callbacks(arguments)
    return arguments["verbose"] != 0 or not all(backends.is_of_keras(type(c)) for c in callbacks)


def _data(arguments: FitArguments) -> list[Data]:
    x, y, weights = arguments["x"], arguments["y"], arguments["sample_weight"]
    return [x, y, weights, arguments["validation_data"]]


# Data of these packages is in memory, or is read by code that opens the files it needs.
_LIBRARIES = frozenset(
    {"builtins", "grain", "jax", "jaxlib", "keras", "numpy", "pandas", "polars", "scipy"}
    | {"tensorflow", "torch"}
)


def _depends_on_open(data: Data) -> bool:
    """Returns whether data may be readable only as long as something, such as a file, is open.

    This is assumed of data that is neither an array, a tensor, a frame, a dataset nor a generator,
    such as a dataset of h5py's, and of the user's generators and datasets with an open file in a
    variable.
    """
    if isinstance(data, types.GeneratorType):
        return any(map(_is_open, _locals_of(data)))
    if isinstance(data, keras.utils.PyDataset):
        return any(map(_is_open, vars(data).values()))
    kinds = {kind.__module__.partition(".")[0] for kind in type(data).__mro__[:-1]}
    return bool(kinds) and kinds.isdisjoint(_LIBRARIES)


def _locals_of(generator: AnyGenerator) -> Iterator[UserObject]:
    """Yields the values of a generator's variables, and of those of generators in them."""
    values = list(inspect.getgeneratorlocals(generator).values())
    while values:
        value = values.pop()
        yield value
        if isinstance(value, types.GeneratorType):
            values += inspect.getgeneratorlocals(value).values()


def _is_open(value: UserObject) -> bool:
    """Returns whether a value is an open file, or something else that a `with` block closes."""
    is_array = isinstance(value, np.ndarray) or hasattr(value, "dtype")
    return (hasattr(type(value), "__exit__") and hasattr(value, "close")) or (
        is_array and _depends_on_open(value)
    )


# Names


def _name_in(names: Variables, model: UserObject, loops: Iterable[str] = ()) -> str | None:
    """Returns the name of a variable whose value is the model, or `None`.

    Names in `loops`, names that begin with `_` (IPython has `_12`), `self` and `cls` do not count.
    """
    skipped = {"self", "cls", *loops}
    found = [name for name, value in names.items() if value is model and name not in skipped]
    return next((name for name in found if not name.startswith("_")), None)


def _attribute_in(names: Variables, model: keras.Model) -> str | None:
    """Returns the attribute of `self` that is the model, where a method calls `fit`, or `None`."""
    return _name_in(getattr(names.get("self"), "__dict__", {}), model)


def _is_named(model: keras.Model) -> bool:
    """Returns whether the user named the model, not Keras after its class ("sequential_1")."""
    made, kind = re.sub(r"_\d+$", "", model.name), type(model).__name__
    return made.replace("_", "").lower() != kind.replace("_", "").lower()


def unique(name: str, taken: Iterable[str]) -> str:
    """Returns `name`, with a number appended if it is taken."""
    taken = set(taken)
    numbered = (f"{name}_{i}" for i in itertools.count(1))
    return next(one for one in itertools.chain([name], numbered) if one not in taken)
