"""Programs left as they are: calls of `fit` are held, and then trained together."""

import contextlib
import functools
import inspect
import itertools
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import keras

from kerascohost import errors, programs
from kerascohost.cohort import check_layout
from kerascohost.errors import CohortError
from kerascohost.fusion import factors_of
from kerascohost.held import HeldFit, HeldHistory, HeldHistoryError, Together
from kerascohost.history import CohortHistory
from kerascohost.member import check_trainable_here

# What of a held model would show, or change, weights that are yet to be trained.
_DEPENDENT = (
    "compile",
    "evaluate",
    "export",
    "get_weights",
    "load_weights",
    "predict",
    "predict_on_batch",
    "save",
    "save_weights",
    "set_weights",
    "test_on_batch",
    "train_on_batch",
)


class cohost:  # noqa: N801  # used like a function, as `contextlib.suppress` is
    """Holds the calls of `fit` inside a `with` block, and trains them together at its end.

    Everything else in the block runs as written. `fit` returns a `History` that is filled when the
    block ends; reading it earlier is an error, and so is using a model whose training is held. Each
    model ends as if the block had not been there. A fit that continues an earlier one (of the same
    model, or of one that shares layers or an optimizer with it) starts when that one has ended.

    Members go by the names of the variables that hold the models, or else by `model.name`. Only
    the thread that opened the block is held. An exception inside the block trains nothing.

    Args:
        layout: As in `Cohort`.
        group_factor: As in `Cohort`.
        replicas: As in `Cohort`.
        verbose: Instead of each fit's own `verbose`, if given.
        names: Where to look for the names of models: a dict from names to objects; by default the
            variables of the code around the block.

    Attributes:
        history: The `CohortHistory` of all fits, once the block has ended. A second fit of one
            model is named `"mlp (2)"`.

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
        layout: str = "joined",
        group_factor: int | Mapping[str, int] = 1,
        replicas: int | Mapping[str, int] = 1,
        *,
        verbose: int | str | None = None,
        names: Mapping[str, Any] | None = None,
    ):
        check_layout(layout)
        self._layout = layout
        self._factors = {"group_factor": group_factor, "replicas": replicas}
        self._verbose = verbose
        self._names = names
        self._fits: list[HeldFit] = []
        self._histories: CohortHistory | None = None

    @property
    def history(self) -> CohortHistory:
        """The `CohortHistory` of all fits, once the block has ended."""
        if self._histories is None:
            raise HeldHistoryError(
                "Expected `history` to be read after the `with` block. Received: the block has not "
                "been run to its end."
            )
        return self._histories

    @property
    def has_run(self) -> bool:
        """Whether the fits have been run, be it to a failure."""
        return self._histories is not None

    def __repr__(self) -> str:
        return f"cohost({', '.join(self._histories or (fit.name for fit in self._fits))})"

    def __enter__(self) -> "cohost":
        self._fits, self._histories = [], None
        _holders.enter(self)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        _holders.leave(self)
        frame = sys._getframe(1)
        self._name_members(self._names or {**frame.f_globals, **frame.f_locals})
        if error is None:
            self._train()
            return
        for fit in self._fits:
            fit.history.was_not_run()
        if self._fits:
            listed = ", ".join(fit.label for fit in self._fits)
            error.add_note(f"The fits held by `cohost()` were not run: {listed}.")

    def hold(self, model: keras.Model, arguments: dict[str, Any], caller: FrameType) -> Any:
        """Keeps a call of `fit` for the end of the block."""
        name = _name_in({**caller.f_globals, **caller.f_locals}, model) or model.name
        with errors.about(name):
            check_trainable_here(model)
        if self._verbose is not None:
            arguments["verbose"] = self._verbose
        fit = HeldFit(model, arguments, HeldHistory())
        fit.name = name
        fit.draw_ahead()
        self._fits.append(fit)
        return fit.history

    def holds(self, model: keras.Model) -> bool:
        """Whether a call of the model's `fit` is kept."""
        return any(fit.model is model for fit in self._fits)

    def _name_members(self, names: Mapping[str, Any]) -> None:
        """Every model gets one unique name; each further fit of it, a label with a number."""
        named: dict[int, str] = {}
        models_of: dict[str, set[int]] = {}
        for fit in self._fits:
            models_of.setdefault(fit.name, set()).add(id(fit.model))
        loops = {name for name, models in models_of.items() if len(models) > 1}
        for fit in self._fits:
            if id(fit.model) not in named:
                wanted = _name_in(names, fit.model, loops)
                if wanted is None:
                    takes_own = fit.name in loops and _is_named(fit.model)
                    wanted = fit.model.name if takes_own else fit.name
                named[id(fit.model)] = unique(wanted, named.values())
            fit.name = named[id(fit.model)]
            before = sum(other.model is fit.model for other in self._fits[: self._fits.index(fit)])
            fit.label = f"{fit.name} ({before + 1})" if before else fit.name

    def _train(self) -> None:
        fits, self._fits = self._fits, []  # what they hold of data is let go of at the end
        if not fits:
            warnings.warn("No `fit` was called inside `cohost()`.", stacklevel=3)
            self._histories = CohortHistory({})
            return

        def ended(fit: HeldFit) -> Iterable[HeldFit]:
            if fit.error is not None:
                raise fit.error
            return ()

        try:
            models = {fit.name: fit.model for fit in fits}
            factors = [factors_of(key, value, models) for key, value in self._factors.items()]
            by_name = {name: tuple(each[name] for each in factors) for name in models}
            together = Together(by_name, self._layout)
            together.run(fits, ended)
            if self._layout != "joined" and any(fit.arguments["verbose"] != 0 for fit in fits):
                print(f"{self._layout}: {together.plan.summary}")
        finally:
            for fit in fits:
                fit.hand_over()
            self._go_on_drawing(fits)
            self._histories = CohortHistory(
                {fit.label: fit.history for fit in fits if fit.has_begun},
                {fit.label: fit.validated for fit in fits},
                {fit.label: fit.seconds for fit in fits},
            )

    @staticmethod
    def _go_on_drawing(fits: list[HeldFit]) -> None:
        """Random numbers go on after the last fit, unless they were drawn or set anew after it."""
        found = programs.random_state()
        for fit, later in itertools.zip_longest(fits, (fit.called_in for fit in fits[1:])):
            fit.warn_of_draws(later or found)
        if found == fits[-1].expected:
            programs.set_random_state(fits[-1].random_after)


def _name_in(names: Mapping[str, Any], model: keras.Model, loops: Iterable[str] = ()) -> str | None:
    """The variable that holds the model; not one of IPython's `_`, `_12`, nor one of `loops`."""
    found = [name for name, value in names.items() if value is model and name not in loops]
    return next((name for name in found if not name.startswith("_")), None)


def _is_named(model: keras.Model) -> bool:
    """Whether its name was given to it, and not made by Keras from its class, as "sequential_1"."""
    made, kind = re.sub(r"_\d+$", "", model.name), type(model).__name__
    return made.replace("_", "").lower() != kind.replace("_", "").lower()


def unique(wanted: str, taken: Iterable[str]) -> str:
    """`wanted`, with a number if it is taken."""
    taken = set(taken)
    numbered = (f"{wanted}_{i}" for i in itertools.count(1))
    return next(name for name in itertools.chain([wanted], numbered) if name not in taken)


class _Holders(threading.local):
    """Who holds the fits of this thread: the innermost block, or the program that it runs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []

    def enter(self, holder: Any) -> None:
        self.stack.append(holder)
        _patch.acquire()

    def leave(self, holder: Any) -> None:
        self.stack.remove(holder)
        _patch.release()


class _Patch:
    """`fit`, and what depends on it, on `keras.Model`: replaced while any thread holds fits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._found: dict[str, Any] = {}

    def acquire(self) -> None:
        with self._lock:
            self._count += 1
            if self._count > 1:
                return
            replacements = {"fit": _held_fit(keras.Model.fit)}
            for name in _DEPENDENT:
                replacements[name] = _refused_while_held(getattr(keras.Model, name))
            # Most are inherited: then there is nothing on the class itself to be put back.
            self._found = {name: vars(keras.Model).get(name) for name in replacements}
            for name, function in replacements.items():
                setattr(keras.Model, name, function)

    def release(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count:
                return
            for name, function in self._found.items():
                if function is None:
                    delattr(keras.Model, name)
                else:
                    setattr(keras.Model, name, function)


_holders = _Holders()
_patch = _Patch()


@contextlib.contextmanager
def held_by(holder: Any) -> Iterator[None]:
    """Within the block, this thread's fits go to `holder.hold(model, arguments, caller)`.

    Where that answers `NotImplemented`, Keras's own `fit` is run.
    """
    _holders.enter(holder)
    try:
        yield
    finally:
        _holders.leave(holder)


def _held_fit(original: Callable) -> Callable:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def fit(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        if not _holders.stack:
            return original(self, *args, **kwargs)
        own = programs.overridden(self, "fit")
        if own:
            warnings.warn(
                f"{type(self).__name__} {self.name!r} has its own `fit`, which runs now and apart "
                "from the cohort.",
                stacklevel=3,
            )
            return original(self, *args, **kwargs)
        *outer, holder = _holders.stack
        _refuse_if_held(outer, self, "fit")
        for name in kwargs:
            if name not in signature.parameters:
                raise TypeError(errors.not_of_fit(name, kwargs[name], signature.parameters))
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = {k: v for k, v in bound.arguments.items() if k != "self"}
        history = holder.hold(self, arguments, sys._getframe(1))
        return original(self, *args, **kwargs) if history is NotImplemented else history

    return fit


def _refused_while_held(original: Callable) -> Callable:
    @functools.wraps(original)
    def method(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        _refuse_if_held(_holders.stack, self, original.__name__)
        return original(self, *args, **kwargs)

    return method


def _refuse_if_held(holders: list[Any], model: keras.Model, method: str) -> None:
    if any(holder.holds(model) for holder in holders):
        raise CohortError(
            f"Expected `{method}` of {model.name!r} after its training. Received: a call inside "
            "the block that holds its `fit`, where its weights are not trained yet. Move the call "
            "below the block."
        )
