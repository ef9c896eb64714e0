"""Functions in turn: each runs as written, in a thread that waits in what is trained together.

A `Turn` runs a function in a thread of its own, but only while `resume` waits for it: no two run at
the same time. In `fit`, `evaluate` and `predict` the thread waits until the call has been run with
those of the other functions. `Turns` decides which of them goes on.
"""

import contextlib
import contextvars
import ctypes
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from types import FrameType
from typing import Any, Generic, TypeVar

import keras

from kerascohost.arguments import Layout
from kerascohost.backends import Tree, threads
from kerascohost.backends.process_state import ProcessState
from kerascohost.deferred import calls
from kerascohost.deferred.context import unique
from kerascohost.deferred.fits import (
    DeferredFit,
    DeferredRunner,
    Evaluation,
    Prediction,
    WaitingCall,
)
from kerascohost.errors import CohortError
from kerascohost.tracing.places import UserObject
from kerascohost.training.member import check_trainable_here

T = TypeVar("T")


class TurnState:
    """The state of the process that a function in turn has for itself, set while it runs.

    It begins as the process is when this is made.

    Attributes:
        process: The random states and the configuration.
    """

    def __init__(self) -> None:
        self.process = ProcessState()
        self._argv = sys.argv
        self._environment = dict(os.environ)
        self._methods = _methods()
        self._stdout = sys.stdout  # later the stream to which the function has redirected it
        self._figure = _current_figure()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Applies the state to the process within the block, and stores the one at its end."""
        outside, sys.argv = sys.argv, self._argv
        try:
            with (
                self.process.entered(),
                self._environed(),
                self._own_methods(),
                self._own_figure(),
                redirect_stdout(self._stdout),
            ):
                try:
                    yield
                finally:
                    self._stdout = sys.stdout
        finally:
            self._argv, sys.argv = sys.argv, outside

    @contextlib.contextmanager
    def _environed(self) -> Iterator[None]:
        outside = dict(os.environ)
        _set_environment(outside, self._environment)
        try:
            yield
        finally:
            self._environment = dict(os.environ)
            _set_environment(self._environment, outside)

    @contextlib.contextmanager
    def _own_methods(self) -> Iterator[None]:
        """Sets the function's wrappers of methods of `keras.Model`, within the block."""
        outside = _methods()
        _set_methods(outside, self._methods)
        try:
            yield
        finally:
            self._methods = _methods()
            _set_methods(self._methods, outside)

    @contextlib.contextmanager
    def _own_figure(self) -> Iterator[None]:
        """Makes the function's current figure pyplot's, within the block."""
        outside = _current_figure()
        _set_figure(outside, self._figure)
        try:
            yield
        finally:
            self._figure = _current_figure()
            _set_figure(self._figure, outside)


class Turn(Generic[T]):
    """A function in its own thread, which runs only while `resume` waits for it.

    Args:
        function: The function, without arguments.
        name: Its name, which is that of its calls too; unique among functions under way.
        state: The state of the process for it.
        number: Its position among the functions. Default 0: the order in which they begin counts.
        settings: What its thread begins with of the state that Keras keeps per thread.
        verbose: What replaces the `verbose` of its calls. Default `None`: they keep theirs.

    Attributes:
        result: What the function returned.
        error: The exception that ended it.
        has_ended: Whether it has ended.
        call: The call that it waits in, if any.
        state: The state of the process for it.
        keras_state: What Keras keeps for its thread.
    """

    keras_state: threads.State

    def __init__(
        self,
        function: Callable[[], T],
        name: str,
        state: TurnState,
        number: int = 0,
        settings: threads.State | None = None,
        verbose: int | str | None = None,
    ):
        self.name = name
        self.number = number
        self.result: T | None = None
        self.error: BaseException | None = None
        self.has_ended = False
        self._function = function
        self.state = state
        self._settings = settings
        self._verbose = verbose
        self.call: WaitingCall | None = None
        self._raised: BaseException | None = None
        self._has_told = False
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()  # where a notebook shows what is printed
        self._thread = threading.Thread(target=context.run, args=(self._main,), daemon=True)
        self._thread.start()

    def resume(self, error: BaseException | None = None) -> WaitingCall | None:
        """Continues the function until it trains something, or ends.

        Args:
            error: The exception that the call it waits in raises, if any.

        Returns:
            The call that it waits in now, or `None` at its end.
        """
        self._raised, self.call = error, None
        with self.state.entered():
            self._go.release()
            self._wait()
        return self.call

    def interrupt(self, error: BaseException) -> None:
        """Raises `error` in each call that the function waits in or still makes, until it ends."""
        while not self.has_ended:
            self.resume(error)

    def defer(
        self,
        method: calls.Method,
        model: keras.Model,
        arguments: calls.Arguments,
        caller: FrameType,
    ) -> Tree:
        """Waits, in the function's thread, until the call has been run.

        Args:
            method: The method that is called.
            model: The model.
            arguments: All arguments of the method.
            caller: The frame that calls it.

        Returns:
            What the call returns; `NotImplemented` if it cannot be run in a cohort.
        """
        try:
            if method != "predict":
                check_trainable_here(model)
        except CohortError as error:  # alone it may run: no reason to stop the function
            warnings.warn(
                f"A `{method}` of {self.name} runs apart from the others. {error}", stacklevel=3
            )
            return NotImplemented
        if self._verbose is not None:
            arguments["verbose"] = self._verbose
        self.call = call = self._made(method, model, arguments)
        call.name = call.label = self.name
        self._about_to_wait(call)
        self._waits.release()
        self._go.acquire()
        if self._raised is not None:
            raise self._raised
        return model.history if method == "fit" else call.result

    def _made(
        self, method: calls.Method, model: keras.Model, arguments: calls.Arguments
    ) -> WaitingCall:
        own = threads.thread_state()

        @contextlib.contextmanager
        def entered() -> Iterator[None]:  # in the thread that trains
            with self.state.entered(), threads.configured(own):
                yield

        if method == "fit":
            return DeferredFit(model, arguments, entered=entered, is_deferred=False)
        kind = Evaluation if method == "evaluate" else Prediction
        return kind(model, arguments, entered)

    def train_if_met(self, model: keras.Model) -> None:
        """Does nothing: each call is run before it returns."""

    def tell(self, text: str) -> None:
        """Prints, once, why something is not trained with the rest."""
        if not self._has_told:
            self._has_told = True
            print(text)

    def _wait(self) -> None:
        while True:
            try:
                self._waits.acquire()
                return
            except KeyboardInterrupt:  # the running function gets it, as it would alone
                ident = ctypes.c_ulong(self._thread.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ident, ctypes.py_object(KeyboardInterrupt)
                )

    def _main(self) -> None:
        self._go.acquire()
        self.keras_state = threads.thread_state()
        try:
            if self._settings is not None:
                threads.set_settings(self._settings)
            if self._raised is not None:  # interrupted before it began
                raise self._raised
            with calls.passed_to(self):
                self.result = self._function()
        except BaseException as error:
            self.error = error
        finally:
            self._end()
            self.call, self.has_ended = None, True
            self._waits.release()

    def _about_to_wait(self, call: WaitingCall) -> None:
        """Does what is due before the function waits for a call, in its thread."""

    def _end(self) -> None:
        """Does what is due at the function's end, in its thread."""


AnyTurn = TypeVar("AnyTurn", bound=Turn[Any])

# A function that trains more models keeps what was traced for the last ones only.
_KEPT_MODELS = 4


class _Use:
    """A record of what a call of a function uses, without its data.

    Args:
        call: The call.
    """

    def __init__(self, call: WaitingCall):
        self.model = weakref.ref(call.model)
        self._key = id(call.model)
        self._changes, self._reads = call.changes, call.snapshot.reads

    @property
    def key(self) -> int | None:
        """The identity of the model, unless it is gone."""
        return None if self.model() is None else self._key

    def conflicts_with(self, call: WaitingCall) -> bool:
        """Returns whether one changes what the other changes or reads."""
        return self.key is not None and not (
            self._changes.isdisjoint(call.changes)
            and self._changes.isdisjoint(call.snapshot.reads)
            and self._reads.isdisjoint(call.changes)
        )


class Turns(Generic[AnyTurn]):
    """Runs functions in turn, and what they train together.

    Args:
        next_turn: Returns the next function to begin, or `None` if none can begin now.
        ended: Called with each function that has ended.
        layout: As in `Cohort`.
        at_once: The number of functions under way.
    """

    def __init__(
        self,
        next_turn: Callable[[], AnyTurn | None],
        ended: Callable[[AnyTurn], None],
        layout: Layout = "joined",
        at_once: float = float("inf"),
    ):
        self._next_turn = next_turn
        self._ended = ended
        self._runner: DeferredRunner[WaitingCall] = DeferredRunner(layout=layout)
        self._at_once = at_once
        self._under_way: list[AnyTurn] = []  # in their order
        self._ending: dict[int, BaseException] = {}
        self._owners: dict[int, AnyTurn] = {}
        # What the calls of a function use: until it ends, calls of later ones wait for it.
        self._uses: dict[int, list[_Use]] = {}
        self._names: dict[int, str] = {}  # of members, by the identity of the model
        self._blocked: list[WaitingCall] = []
        self._ready: list[WaitingCall] = []

    def run(self) -> None:
        """Runs functions until no more can begin.

        Raises:
            BaseException: An interrupt, or an error that is of no single function. It is raised in
                every function under way first.
        """
        try:
            while waiting := self._begun():
                self._runner.run(waiting, self._on_end)
        except BaseException as error:
            for turn in list(self._under_way):
                turn.interrupt(error)
            self._under_way.clear()
            raise

    def end(self, turn: AnyTurn, error: BaseException) -> None:
        """Ends a function by `error`, as soon as the call that it waits in has ended."""
        self._ending[id(turn)] = error
        for call in [call for call in self._blocked if self._owners[id(call)] is turn]:
            self._blocked.remove(call)
            self._ready += self._resumed(turn)
            return
        if turn.call is not None:
            turn.call.model.stop_training = True  # not all of its epochs are of use

    def _on_end(self, call: WaitingCall) -> Iterable[WaitingCall]:
        turn = self._owners.pop(id(call))
        self._ready += self._resumed(turn, call.error)
        return self._begun()

    def _begun(self) -> list[WaitingCall]:
        """Begins as many functions as may be under way; returns the calls that can be run now."""
        while len(self._under_way) < self._at_once:
            turn = self._next_turn()
            if turn is None:
                break
            self._under_way.append(turn)
            self._under_way.sort(key=lambda turn: turn.number)
            self._ready += self._resumed(turn)
        ready, self._ready = self._ready, []
        return ready

    def _resumed(self, turn: AnyTurn, error: BaseException | None = None) -> list[WaitingCall]:
        """Continues a function; returns the calls that can be run now."""
        if id(turn) in self._ending:
            turn.interrupt(self._ending.pop(id(turn)))
            call = None
        else:
            call = turn.resume(error)
        if call is not None:
            self._owners[id(call)] = turn
            uses = self._uses.setdefault(id(turn), [])
            uses[:] = [use for use in uses if use.key is not None]
            uses.append(_Use(call))
            call.name = self._name_of(call.model, turn)
            self._dismiss([key for key in dict.fromkeys(use.key for use in uses)][:-_KEPT_MODELS])
            if self._is_free(call):
                return [call]
            self._blocked.append(call)
            return []
        self._under_way.remove(turn)
        self._owners = {key: owner for key, owner in self._owners.items() if owner is not turn}
        self._dismiss(use.key for use in self._uses.pop(id(turn), []))
        self._ended(turn)
        free = [call for call in self._blocked if self._is_free(call)]
        self._blocked = [call for call in self._blocked if call not in free]
        return free

    def _name_of(self, model: keras.Model, turn: AnyTurn) -> str:
        """Returns the name of the member for a model, which keeps it, and what was traced."""
        return self._names.setdefault(id(model), unique(turn.name, self._names.values()))

    def _dismiss(self, keys: Iterable[int | None]) -> None:
        """Releases the members for models, unless another function uses them.

        Args:
            keys: The models' identities.
        """
        waiting = {id(turn.call.model) for turn in self._under_way if turn.call is not None}
        for key in keys:
            if key is not None and key in self._names and key not in waiting:
                self._runner.dismiss(self._names.pop(key))

    def _is_free(self, call: WaitingCall) -> bool:
        """Returns whether no function that began earlier uses what this call may change."""
        for turn in self._under_way:
            if turn is self._owners[id(call)]:
                return True
            for use in self._uses.get(id(turn), ()):
                if use.conflicts_with(call):
                    turn.tell(
                        f"{self._owners[id(call)].name} waits for the end of {turn.name}, as both "
                        f"use {call.model.name!r} or an object that its `fit` changes."
                    )
                    return False
        return True


def _set_environment(present: dict[str, str], target: dict[str, str]) -> None:
    """Changes the process's environment variables from `present` to `target`."""
    if present == target:
        return
    for name in present.keys() - target.keys():
        del os.environ[name]
    os.environ.update({k: v for k, v in target.items() if present.get(k) != v})


def _methods() -> dict[str, UserObject]:
    """Returns the methods of `keras.Model` itself, with wrappers by libraries."""
    return {name: value for name, value in vars(keras.Model).items() if callable(value)}


def _set_methods(present: dict[str, UserObject], target: dict[str, UserObject]) -> None:
    for name in present.keys() - target.keys():
        delattr(keras.Model, name)
    for name, value in target.items():
        if present.get(name) is not value:
            setattr(keras.Model, name, value)


def _current_figure() -> int | None:
    """Returns the number of pyplot's current figure, if there is one."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return pyplot.gcf().number if pyplot is not None and pyplot.get_fignums() else None


def _set_figure(present: int | None, target: int | None) -> None:
    """Makes the figure of this number pyplot's current one, if it is open."""
    if target is None or target == present:
        return
    pyplot = sys.modules["matplotlib.pyplot"]
    if target in pyplot.get_fignums():
        pyplot.figure(target)
