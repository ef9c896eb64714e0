"""Functions in turn: each runs as written, in a thread that waits in what is trained together.

A `Turn` runs a function in a thread of its own, but only while `resume` waits for it: no two run at
the same time. In `fit`, `evaluate` and `predict` the thread waits until the call has been run with
those of the other functions. `Turns` decides which of them goes on.
"""

import contextlib
import contextvars
import ctypes
import functools
import logging
import os
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import keras

from kerascohost import backends
from kerascohost.arguments import Layout
from kerascohost.backends import StepKind, Tree, observed, threads
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

if TYPE_CHECKING:
    from kerascohost.training.workers import Workers

T = TypeVar("T")


class _Thread(threading.local):
    """The function in turn that each thread runs, if any."""

    turn: "Turn[Any] | None" = None


_thread = _Thread()
# One set of functions at a time: each changes the state of the process.
_engine = threading.Lock()


def is_in_turn() -> bool:
    """Returns whether the calling thread runs a function in turn."""
    return _thread.turn is not None


def interrupt(thread: threading.Thread) -> None:
    """Raises `KeyboardInterrupt` in a thread, as soon as it runs Python code."""
    ident = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(KeyboardInterrupt))


class TurnState:
    """The state of the process that a function in turn has for itself, set while it runs.

    It begins as the process is when this is made.

    Attributes:
        process: The random states and the configuration.
    """

    def __init__(self) -> None:
        self.process = ProcessState()
        self._own = _read()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Applies the state to the process within the block, and stores the one at its end."""
        outside = _read()
        try:
            _write(outside, self._own)
            with self.process.entered():
                yield
        finally:
            self._own = _read()
            _write(self._own, outside)


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
        tells: Whether it prints why something is not trained with the rest.
        was_interrupted: Whether a `KeyboardInterrupt` came while it ran.
        is_paused: Whether it waits in `pause`.
        state: The state of the process for it.
        keras_state: What Keras keeps for its thread.
    """

    # Whether an interrupt of the function ends the others, too.
    INTERRUPTS_ALL = False
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
        self._scopes = threads.scopes()
        self._verbose = verbose
        self.call: WaitingCall | None = None
        self._raised: BaseException | None = None
        self._has_told = False
        self.tells = True
        self._watches: Sequence[observed.Watch] = ()
        self.was_interrupted = self.is_paused = False
        # The turns that were given to the thread, and those that it has ended. Numbers, as an
        # interrupt may come between any two lines: setting one again changes nothing.
        self._given = self._done = 0
        self._changed = threading.Condition()
        context = contextvars.copy_context()  # where a notebook shows what is printed
        self._thread = threading.Thread(target=context.run, args=(self._main,), daemon=True)
        self._thread.start()

    def resume(
        self, error: BaseException | None = None, watches: Sequence[observed.Watch] = ()
    ) -> WaitingCall | None:
        """Continues the function until it trains something, or ends.

        Args:
            error: The exception that the call it waits in raises, if any.
            watches: Those of what the other functions train.

        Returns:
            The call that it waits in now, or `None` at its end or in `pause`.
        """
        self._raised, self.call, self.is_paused = error, None, False
        self._watches = watches
        with self.state.entered():
            self._give_turn()
        return self.call

    def interrupt(self, error: BaseException) -> None:
        """Raises `error` in each call that the function waits in or still makes, until it ends."""
        while not self.has_ended:
            self.resume(error)

    def pause(self) -> None:
        """Waits, in the function's thread, until `may_go_on` allows the function to go on."""
        self.is_paused = True
        self._rest()
        if self._raised is not None:
            raise self._raised

    @property
    def may_go_on(self) -> bool:
        """Returns whether the function may go on from `pause`."""
        return True

    def defer(
        self,
        method: calls.Method,
        model: keras.Model,
        arguments: calls.Arguments,
        caller: FrameType,
    ) -> Tree:
        """Waits, in the function's thread, until the call has been run; see `calls.Context`."""
        try:
            with observed.paused():
                if method != "predict":
                    check_trainable_here(model)
        except CohortError as error:  # alone it may run: no reason to stop the function
            warnings.warn(
                f"A `{method}` of {self.name} runs apart from the others. {error}", stacklevel=3
            )
            return NotImplemented
        if self._verbose is not None:
            arguments["verbose"] = self._verbose
        with observed.paused():  # what the call shares with others is compared when it waits
            self.call = call = self._made(method, model, arguments)
            call.name = call.label = self.name
            self._about_to_wait(call)
        self._rest()
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

    def train_deferred(self, why: str) -> None:
        """Does nothing, as `train_if_met`."""

    def tell(self, text: str) -> None:
        """Prints, once, why something is not trained with the rest."""
        if self.tells and not self._has_told:
            self._has_told = True
            print(text)

    def _give_turn(self) -> None:
        """Runs the thread until it waits for a call, or ends."""
        turn = self._done + 1
        while True:
            try:
                with self._changed:
                    self._given = turn
                    self._changed.notify_all()
                    while self._done != turn:
                        self._changed.wait()
                return
            except KeyboardInterrupt:  # the running function gets it, as it would alone
                self.was_interrupted = True
                interrupt(self._thread)

    def _await_turn(self) -> None:
        with self._changed:
            while self._given == self._done:
                self._changed.wait()
        observed.watch_for(self._watches)

    def _rest(self) -> None:
        """Waits for the next turn, without what it is to notice then: that has models of others."""
        observed.watch_for(())
        self._end_turn()
        self._await_turn()

    def _end_turn(self) -> None:
        with self._changed:
            self._done = self._given
            self._changed.notify_all()

    def _main(self) -> None:
        self._await_turn()
        _thread.turn = self
        self.keras_state = threads.thread_state()
        self.keras_state[0].update(self._scopes)
        try:
            if self._settings is not None:
                threads.set_settings(self.keras_state, self._settings)
            if self._raised is not None:  # interrupted before it began
                raise self._raised
            with calls.passed_to(self):
                self.result = self._function()
        except BaseException as error:
            self.error = error
        try:
            self._end()
        except BaseException as error:
            self.error = self.error or error
        finally:
            self.call, self.has_ended = None, True
            self._end_turn()

    def about_to_run(self, call: WaitingCall) -> None:
        """Does what is due before a call is run, in the thread that runs it."""

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

    Attributes:
        model: Returns the model, unless it is gone.
        key: The identity of the model.
        kind: The kind of the call's steps.
        has_begun: Whether the call has begun.
    """

    def __init__(self, call: WaitingCall):
        self.model = weakref.ref(call.model)
        self.key = id(call.model)
        self.kind = call.kind
        self.has_begun = False
        self._footprint = call.footprint
        callbacks = backends.callbacks_in(call.arguments["callbacks"])
        self._seen = [
            [weakref.ref(one) for one in seen] for seen in (callbacks, call.snapshot.others)
        ]

    def conflicts_with(self, call: WaitingCall) -> bool:
        """Returns whether one changes what the other changes or reads."""
        return self.model() is not None and self._footprint.conflicts_with(call.footprint)

    def shared_with(self, call: WaitingCall) -> str:
        """Returns what of a call that conflicts with this it uses, for messages."""
        keys = self._footprint.shared_with(call.footprint)
        things = [thing for thing in call.things if id(thing) in keys]
        if id(call.model) in keys:
            return repr(call.model.name)
        paths = [repr(key) for key in keys if isinstance(key, str)]
        return next(
            (repr(observed.name_of(thing)) for thing in things),
            (*paths, "an object that changes")[0],
        )

    def add_to(self, watch: observed.Watch) -> None:
        """Has a watch look at all that the call uses and that still exists."""
        model = self.model()
        if model is None:
            return
        seen = [[one() for one in seen] for seen in self._seen]
        callbacks, others = ([one for one in some if one is not None] for some in seen)
        if self.kind == "train":
            watch.add(model, callbacks, others)
        else:
            watch.add(None, callbacks, [model, *others])

    def is_too_early(self, thing: UserObject, writes: bool) -> bool:
        """Returns whether the call has begun, and has changed a thing or used what is written to.

        Frozen weights remain as they are.
        """
        model = self.model()
        if model is None or not self.has_begun:
            return False
        used, changed = (
            backends.with_values(model.variables),
            backends.changed_by_steps(model, self.kind),
        )
        of_thing = thing.variables if isinstance(thing, keras.Layer) else [thing]
        keys = {id(one) for one in of_thing}
        if not keys.isdisjoint(used):
            return not keys.isdisjoint(used if writes else changed)
        return self.kind == "train"

    def is_too_early_for(self, call: WaitingCall) -> bool:
        """Returns whether the call has begun, and one of both has changed what the other uses."""
        model = self.model()
        if model is None or not self.has_begun or not self.conflicts_with(call):
            return False
        keys = self._footprint.shared_with(call.footprint)
        own, its = ({id(one), *map(id, backends.parts(one))} for one in (model, call.model))
        if keys - own - its:
            return True  # a callback, a file, an iterator
        kinds: list[StepKind] = [self.kind, call.kind]
        if "train" not in kinds:  # each evaluation begins with metrics of its own
            kinds = ["predict", "predict"]
        changed = backends.changed_by_steps(model, kinds[0])
        changed |= backends.changed_by_steps(call.model, kinds[1])
        return not changed.isdisjoint(keys)


class Turns(Generic[AnyTurn]):
    """Runs functions in turn, and what they train together.

    Args:
        next_turn: Returns the next function to begin, or `None` if none can begin now.
        ended: Called with each function that has ended.
        layout: As in `Cohort`.
        at_once: The number of functions under way.
        may_run: Returns whether the call that a function waits in may be run now.
        workers: As in `Cohort`: what trains the fits of the functions.
    """

    def __init__(
        self,
        next_turn: Callable[[], AnyTurn | None],
        ended: Callable[[AnyTurn], None],
        layout: Layout = "joined",
        at_once: float = float("inf"),
        may_run: Callable[[AnyTurn], bool] = lambda turn: True,
        workers: "Workers | None" = None,
    ):
        self._may_run = may_run
        self._next_turn = next_turn
        self._ended = ended
        self._runner: DeferredRunner[WaitingCall] = DeferredRunner(layout=layout, workers=workers)
        self._at_once = at_once
        self._under_way: list[AnyTurn] = []  # in their order
        # These, and those that have ended before an earlier one has, which may still be too early.
        self._known: list[AnyTurn] = []
        self._ending: dict[int, BaseException] = {}
        self._owners: dict[int, AnyTurn] = {}
        # What the calls of a function use: until it ends, calls of later ones wait for it.
        self._uses: dict[int, list[_Use]] = {}
        # Those over what the functions use that do not run: a function that uses the same waits.
        self._watches: dict[int, observed.Watch] = {}
        self._names: dict[int, str] = {}  # of members, by the identity of the model
        self._blocked: list[WaitingCall] = []
        self._ready: list[WaitingCall] = []

    def run(self) -> None:
        """Runs functions until no more can begin.

        Raises:
            BaseException: An interrupt, or an error that is of no single function. It is raised in
                every function under way first.
        """
        # Functions that call this are those whose engine waits for them.
        with contextlib.nullcontext() if is_in_turn() else _engine, calls.left_to_keras():
            self._run()

    def _run(self) -> None:
        try:
            while waiting := self._begun():
                self._runner.run(waiting, self._on_end)
        except BaseException as error:
            for turn in list(self._under_way):
                turn.interrupt(error)
            self._under_way.clear()
            self._known.clear()
            raise
        finally:
            for watch in self._watches.values():
                watch.clear()
            self._watches.clear()

    def end(self, turn: AnyTurn, error: BaseException) -> None:
        """Ends a function by `error`, as soon as the call that it waits in has ended."""
        self._ending[id(turn)] = error
        if turn.call in self._blocked:
            self._blocked.remove(turn.call)
            self._ready += self._resumed(turn)
        elif turn.is_paused:
            self._ready += self._resumed(turn)
        elif turn.call is not None:
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
            for turns in (self._under_way, self._known):
                turns.append(turn)
                turns.sort(key=lambda turn: turn.number)
            self._ready += self._resumed(turn)
        ready, self._ready = self._ready, []
        return ready

    def _resumed(self, turn: AnyTurn, error: BaseException | None = None) -> list[WaitingCall]:
        """Continues a function; returns the calls that can be run now."""
        is_dropped = id(turn) in self._ending
        if is_dropped:
            turn.interrupt(self._ending.pop(id(turn)))
            call = None
        else:
            with self._watched_for(turn) as watches:
                call = turn.resume(error, watches)
        if turn.was_interrupted and turn.INTERRUPTS_ALL:
            raise KeyboardInterrupt
        if call is not None:
            self._owners[id(call)] = turn
            uses = self._uses.setdefault(id(turn), [])
            self._forget(use for use in uses if use.model() is None)
            uses[:] = [use for use in uses if use.model() is not None]
            uses.append(_Use(call))
            late = self._used_too_early(turn, call)
            if late is not None:
                return self._resumed(turn, late)
            call.name = self._name_of(call.model, turn)
            last = list({use.key: use for use in uses}.values())
            self._forget(last[:-_KEPT_MODELS])
            self._blocked.append(call)
        if not turn.has_ended:
            freed = self._freed()
            self._watch_over(turn)
            return freed
        self._under_way.remove(turn)
        self._owners = {key: owner for key, owner in self._owners.items() if owner is not turn}
        self._forget(self._uses.get(id(turn), []))
        if is_dropped:
            self.forget(turn)
        while self._known and self._known[0].has_ended:
            self.forget(self._known[0])
        self._ended(turn)
        gone_on = [
            call
            for other in list(self._under_way)
            if other.is_paused and other.may_go_on
            for call in self._resumed(other)
        ]
        return [*gone_on, *self._freed()]

    def _freed(self) -> list[WaitingCall]:
        """Returns the calls that nothing keeps any more from being run."""
        free = [call for call in self._blocked if self._is_free(call)]
        self._blocked = [call for call in self._blocked if call not in free]
        for call in free:
            owner = self._owners[id(call)]
            self._uses[id(owner)][-1].has_begun = True
            owner.about_to_run(call)
        return free

    def forget(self, turn: AnyTurn) -> None:
        """Forgets what a function has used: nothing can depend on it, or it has been undone."""
        if turn in self._known:
            self._known.remove(turn)
            self._uses.pop(id(turn), None)
            if id(turn) in self._watches:
                self._watches.pop(id(turn)).clear()

    @contextlib.contextmanager
    def _watched_for(self, turn: AnyTurn) -> Iterator[list[observed.Watch]]:
        """Returns a context with the watches over what the others use, for the time it runs.

        Meanwhile it is not watched itself, nor are those that have ended else, so that models which
        a function no longer has can be released.
        """
        if id(turn) in self._watches:
            self._watches[id(turn)].clear()
        later = self._known[self._known.index(turn) + 1 :]
        ended = [other for other in later if other.has_ended]
        for other in ended:
            self._watch_over(other)
        try:  # of one object, the watch of the first function counts
            yield [self._watches[id(t)] for t in reversed(self._others(turn))]
        finally:
            for other in ended:
                self._watches[id(other)].clear()

    def _others(self, turn: AnyTurn) -> list[AnyTurn]:
        """Returns the other functions whose uses are watched, in their order."""
        return [t for t in self._known if t is not turn and id(t) in self._watches]

    def _watch_over(self, turn: AnyTurn) -> None:
        """Has functions that use what this one uses noticed, while it waits."""
        look = functools.partial(self._look, turn)
        watch = self._watches.setdefault(id(turn), observed.Watch(look, is_elsewhere=True))
        uses = {(use.key, use.kind == "train"): use for use in self._uses.get(id(turn), ())}
        for use in uses.values():
            use.add_to(watch)

    def _look(self, owner: AnyTurn, thing: UserObject, doing: str, writes: bool) -> None:
        """Has the running function wait for earlier ones that use what it is about to use.

        Raises:
            CohortError: If a later one has changed it already, or others may wait for this one.
        """
        turn = _thread.turn
        if turn is None or turn not in self._known:
            return  # a thread of the function's, or a function in a function
        with observed.paused():
            what = doing.format(repr(observed.name_of(thing)))
            sharing = [
                t for t in self._others(turn) if t is owner or self._watches[id(t)].has(thing)
            ]
            place = self._known.index(turn)
            for other in sharing:
                uses = self._uses[id(other)] if self._known.index(other) > place else ()
                if any(use.is_too_early(thing, writes) for use in uses):
                    raise _too_early(other, f"{turn.name}, in which {what}")
        earlier = [t for t in sharing if self._known.index(t) < place]
        if earlier and _holds_lock():
            raise CohortError(
                "Expected what an earlier function trains to be used outside of traced functions "
                f"and of logging, for which that one may have to wait. Received: {turn.name}, in "
                f"which {what}. Read it before, or call the functions one after another."
            )
        if earlier:
            turn.tell(
                f"{turn.name} waits for the end of {earlier[-1].name}, which uses it: {what}."
            )
        while not all(other.has_ended for other in earlier):
            turn.pause()

    def _used_too_early(self, turn: AnyTurn, call: WaitingCall) -> CohortError | None:
        """Returns an error if a later function has used what a call changes, or the reverse."""
        for other in self._known[self._known.index(turn) + 1 :]:
            for use in self._uses.get(id(other), ()):
                if use.is_too_early_for(call):
                    return _too_early(other, f"{turn.name}, which uses {use.shared_with(call)}")
        return None

    def _name_of(self, model: keras.Model, turn: AnyTurn) -> str:
        """Returns the name of the member for a model, which keeps it, and what was traced."""
        return self._names.setdefault(id(model), unique(turn.name, self._names.values()))

    def _forget(self, uses: Iterable[_Use]) -> None:
        """Releases the members for models, unless another function waits for one of them."""
        waiting = {id(turn.call.model) for turn in self._under_way if turn.call is not None}
        for use in uses:
            if use.key in self._names and use.key not in waiting:
                self._runner.dismiss(self._names.pop(use.key))

    def _is_free(self, call: WaitingCall) -> bool:
        """Returns whether no function that began earlier uses what this call may change."""
        owner = self._owners[id(call)]
        if not self._may_run(owner):
            return False
        for turn in self._under_way:
            if turn is owner:
                return True
            for use in self._uses.get(id(turn), ()):
                if use.conflicts_with(call):
                    turn.tell(
                        f"{owner.name} waits for the end of {turn.name}, as both use "
                        f"{use.shared_with(call)}."
                    )
                    return False
        return True


def _holds_lock() -> bool:
    """Returns whether the thread is where another one would wait for it, were it to wait."""
    handling = logging.Handler.handle.__code__
    logs = any(frame.f_code is handling for frame, _ in traceback.walk_stack(None))
    return logs or backends.get_backend().is_tracing()


def _too_early(later: Turn[Any], use: str) -> CohortError:
    return CohortError(
        "Expected functions that share nothing that they change, or that use it in their order. "
        f"Received: {use}, after {later.name} has used it. Call them one after another: a loop, "
        "or `at_once=1`."
    )


def _read() -> dict[str, Any]:
    """Returns the present value of everything in `_ASPECTS`."""
    return {name: read() for name, (read, _) in _ASPECTS.items()}


def _write(present: dict[str, Any], target: dict[str, Any]) -> None:
    """Changes everything in `_ASPECTS` from `present` to `target`."""
    for name, (_, write) in _ASPECTS.items():
        write(present[name], target[name])


def _set_environment(present: dict[str, str], target: dict[str, str]) -> None:
    """Changes the process's environment variables from `present` to `target`."""
    if present == target:
        return
    for name in present.keys() - target.keys():
        del os.environ[name]
    os.environ.update({k: v for k, v in target.items() if present.get(k) != v})


def _shown_warnings() -> dict[str, Any]:
    """Returns what `warnings.catch_warnings` replaces, also to record warnings."""
    names = ("filters", "showwarning", "_showwarnmsg_impl")
    return {name: vars(warnings)[name] for name in names if name in vars(warnings)}


# Stands for a hook of ours, which comes and goes by itself.
_HOOK = object()


def _methods() -> dict[str, UserObject]:
    """Returns the methods of `keras.Model` itself, with wrappers by libraries."""
    own = {n: _HOOK if observed.is_hook(value) else value for n, value in vars(keras.Model).items()}
    return {name: value for name, value in own.items() if callable(value) or value is _HOOK}


def _set_methods(present: dict[str, UserObject], target: dict[str, UserObject]) -> None:
    for name in present.keys() | target.keys():
        found, wanted = present.get(name), target.get(name)
        if found is wanted or _HOOK in (found, wanted):
            continue
        if wanted is None:
            delattr(keras.Model, name)
        else:
            setattr(keras.Model, name, wanted)


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


def _attribute(name: str) -> tuple[Callable[[], Any], Callable[[Any, Any], None]]:
    """Returns the functions that read and set an attribute of `sys`."""
    return lambda: getattr(sys, name), lambda present, target: setattr(sys, name, target)


# What a function in turn has for itself besides random states and configuration: for each, what
# returns the present value, and what changes the process from a present value to another one.
_ASPECTS: dict[str, tuple[Callable[[], Any], Callable[[Any, Any], None]]] = {
    "argv": _attribute("argv"),
    "stdout": _attribute("stdout"),
    "stderr": _attribute("stderr"),
    "warnings": (_shown_warnings, lambda present, target: vars(warnings).update(target)),
    "environment": (lambda: dict(os.environ), _set_environment),
    "methods": (_methods, _set_methods),
    "figure": (_current_figure, _set_figure),
}
