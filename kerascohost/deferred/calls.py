"""Calls of `fit`, `evaluate` and `predict`, passed to the context that their thread has entered."""

import contextlib
import functools
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeAlias, TypeVar

import keras

from kerascohost import backends, errors
from kerascohost.backends import Tree, observed

P = ParamSpec("P")
T = TypeVar("T")

Method = Literal["fit", "evaluate", "predict"]

# The arguments of a call by name: `FitArguments`, and so on, which mypy does not take a
# comprehension for.
Arguments: TypeAlias = Any


class Context(Protocol):
    """A receiver of the calls of a thread: a `cohost` block, or a function in turn."""

    def defer(
        self, method: Method, model: keras.Model, arguments: Arguments, caller: FrameType
    ) -> Tree:
        """Receives a call, and returns its result.

        Args:
            method: The method that is called.
            model: The model.
            arguments: All arguments, by name.
            caller: The frame that calls the method.

        Returns:
            What the caller is given; `NotImplemented` if Keras's own method is to be run.
        """

    def train_if_met(self, model: keras.Model) -> None:
        """Trains its fits if a fit of `model` in an inner context conflicts with one of them."""

    def train_deferred(self, why: str) -> None:
        """Trains what it has deferred, for the reason `why`."""

    def tell(self, text: str) -> None:
        """Prints a line about the fits."""


class _Contexts(threading.local):
    """The contexts that this thread has entered; the last one takes its calls."""

    def __init__(self) -> None:
        self.stack: list[Context] = []
        self.is_own = False  # whether a method of Keras's is run by ours

    @contextlib.contextmanager
    def of_keras(self) -> Iterator[None]:
        """Leaves calls inside a method of Keras's to Keras, within the block."""
        outside, self.is_own = self.is_own, True
        try:
            yield
        finally:
            self.is_own = outside


_contexts = _Contexts()


def enter(context: Context) -> None:
    """Passes this thread's calls to `context` until `leave`."""
    _contexts.stack.append(context)
    _hooks.acquire()


def leave(context: Context) -> None:
    """Ends what `enter` began."""
    _contexts.stack.remove(context)
    _hooks.release()


@contextlib.contextmanager
def passed_to(context: Context) -> Iterator[None]:
    """Passes this thread's calls to `context`, within the block."""
    enter(context)
    try:
        yield
    finally:
        leave(context)


@contextlib.contextmanager
def left_to_keras() -> Iterator[None]:
    """Leaves this thread's calls, such as those of callbacks, to Keras within the block."""
    outside, _contexts.stack = _contexts.stack, []
    try:
        yield
    finally:
        _contexts.stack = outside


def train_deferred(why: str) -> None:
    """Trains what this thread's contexts have deferred, for the reason `why`."""
    for context in _contexts.stack:
        context.train_deferred(why)


def caller() -> FrameType:
    """Returns the frame that called the function which calls this one."""
    return sys._getframe(2)  # noqa: SLF001  # `inspect.currentframe` may return `None`


def _passing_fit(
    original: Callable[Concatenate[keras.Model, P], keras.callbacks.History],
) -> Callable[Concatenate[keras.Model, P], keras.callbacks.History]:
    """Returns a `fit` that gives its call to the thread's last context, if there is one."""
    signature = inspect.signature(original)

    def keras_fit(self: keras.Model, *args: P.args, **kwargs: P.kwargs) -> keras.callbacks.History:
        with _contexts.of_keras():
            return original(self, *args, **kwargs)

    @functools.wraps(original)
    def fit(self: keras.Model, *args: P.args, **kwargs: P.kwargs) -> keras.callbacks.History:
        if not _contexts.stack:
            return original(self, *args, **kwargs)
        if backends.overridden(self, "fit"):
            warnings.warn(
                f"{type(self).__name__} {self.name!r} has its own `fit`, which runs now and apart "
                "from the cohort.",
                stacklevel=3,
            )
            return keras_fit(self, *args, **kwargs)
        *outer, context = _contexts.stack
        for other in outer:
            other.train_if_met(self)
        for name in kwargs:
            if name not in signature.parameters:
                raise TypeError(errors.not_of_fit(name, kwargs[name], signature.parameters))
        arguments = _by_name(signature.bind(self, *args, **kwargs))
        history = context.defer("fit", self, arguments, caller())
        return keras_fit(self, *args, **kwargs) if history is NotImplemented else history

    return fit


def _passing(
    method: Method, original: Callable[Concatenate[keras.Model, P], Tree]
) -> Callable[Concatenate[keras.Model, P], Tree]:
    """Returns an `evaluate` or `predict` that gives its call to the thread's last context."""
    signature = inspect.signature(original)
    names = {name for name, it in signature.parameters.items() if it.kind is not it.VAR_KEYWORD}

    @functools.wraps(original)
    def passing(self: keras.Model, *args: P.args, **kwargs: P.kwargs) -> Tree:
        # Other arguments are those of Keras's own `fit` when it validates, or raise in `original`.
        is_usual = names.issuperset(kwargs) and not backends.overridden(self, method)
        if not _contexts.stack or _contexts.is_own or not is_usual:
            return original(self, *args, **kwargs)
        arguments = _by_name(signature.bind(self, *args, **kwargs))
        result = _contexts.stack[-1].defer(method, self, arguments, caller())
        if result is not NotImplemented:
            return result
        with _contexts.of_keras():
            return original(self, *args, **kwargs)

    return passing


def _by_name(bound: inspect.BoundArguments) -> Arguments:
    """Returns all arguments of a call by name, without the model and those of no name."""
    bound.apply_defaults()
    return {k: value for k, value in bound.arguments.items() if k not in ("self", "kwargs")}


def _begun(
    original: Callable[[keras.Model, str | None], T],
) -> Callable[[keras.Model, str | None], T]:
    """Returns a method that detects fits which were not deferred.

    A wrapper that has a reference to Keras's own `fit` calls it directly.
    """

    @functools.wraps(original)
    def begun(self: keras.Model, method_name: str | None = None) -> T:
        if method_name == "fit" and _contexts.stack:
            observed.looked_at([self], "fit of {} begins", writes=True)
            if not _contexts.is_own:
                _contexts.stack[-1].tell(
                    f"cohost: the fit of {self.name!r} is trained now and apart, as something that "
                    "wraps `keras.Model.fit` calls Keras's own."
                )
        return original(self, method_name)

    return begun


def _make_hooks() -> Iterator[Any]:  # the class of hooks is private to `observed`
    # On Keras's base class, as wrappers replace methods of `keras.Model` itself. Keras's `fit`
    # always begins with `_assert_compile_called`.
    trainer = keras.Model.__mro__[1]
    for name, replace in (
        ("fit", _passing_fit),
        ("evaluate", functools.partial(_passing, "evaluate")),
        ("predict", functools.partial(_passing, "predict")),
        ("_assert_compile_called", _begun),
    ):
        yield observed.hook(trainer, name, replace, lambda: bool(_contexts.stack))


_hooks = observed.Hooks(_make_hooks)
