"""Scripts that run one at a time, and whose fits are trained together."""

import contextlib
import contextvars
import ctypes
import dataclasses
import io
import os
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TextIO

import keras
from tqdm.auto import tqdm

from kerascohost.arguments import FitArguments
from kerascohost.backends import threads
from kerascohost.backends.process_state import ProcessState
from kerascohost.deferred.context import deferred_by, unique
from kerascohost.deferred.fits import DeferredFit, DeferredRunner
from kerascohost.errors import CohortError
from kerascohost.tracing.places import UserObject
from kerascohost.training.member import check_trainable_here


@dataclasses.dataclass
class Outcome:
    """The result of a script.

    Attributes:
        name: The script's name.
        status: The exit status that its process would have.
        error: The exception that it did not catch, or `None`.
        seconds: The time from the start of all scripts to its end.
    """

    name: str
    status: int
    error: BaseException | None
    seconds: float

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.name}: {type(self.error).__name__} after {self.seconds:.1f} s"
        failed = f" with exit status {self.status}" if self.status else ""
        return f"{self.name}: ended{failed} after {self.seconds:.1f} s"


def run(paths: Sequence[str | Path], arguments: Sequence[str] = ()) -> list[Outcome]:
    """Runs scripts that train Keras models, with their calls of `fit` trained together.

    Each script runs, unchanged, until it calls `fit`. The fits of all scripts are trained as one
    cohort, and each script continues as soon as its own `fit` has ended. No two scripts run at the
    same time. Each has its own `__main__`, `argv`, random states and modules in its folder, so that
    it does what it does alone. Its output is prefixed by its name. If one fails, the others
    continue. The scripts share what exists once in a process: pyplot's figures, and the rule that
    only a main thread may set signal handlers. They share files, too: scripts that write files of
    the same names, such as "best.weights.h5", belong in folders of their own. (Fits whose callbacks
    write to one path wait for each other.)

    Args:
        paths: The scripts.
        arguments: The value of `sys.argv[1:]` in each of them.

    Returns:
        The outcome of each script, in the order given.

    Raises:
        CohortError: If a script cannot be read.
    """
    scripts = [
        _Script(name, path, arguments) for name, path in _names(list(map(Path, paths))).items()
    ]
    owners: dict[int, _Script] = {}

    def resumed(script: _Script, error: BaseException | None = None) -> Iterable[DeferredFit]:
        fit = script.resume(error)
        if fit is None:
            return ()
        owners[id(fit)] = script
        return (fit,)

    def ended(fit: DeferredFit) -> Iterable[DeferredFit]:
        return resumed(owners.pop(id(fit)), fit.error)

    try:
        fits = [fit for script in scripts for fit in resumed(script)]
        DeferredRunner().run(fits, ended)
    except BaseException as error:  # an interrupt, or an error that is of no single member
        for script in scripts:
            script.interrupt(error)
        if not isinstance(error, KeyboardInterrupt):
            raise
    return [script.outcome for script in scripts]


class _Script:
    """A script in its own thread, which runs only while `resume` waits for it."""

    def __init__(self, name: str, path: Path, arguments: Sequence[str]):
        self.name = name
        self._began = time.perf_counter()
        self._path, self._source = path, _source(path)
        self._state = _ScriptState(name, path, arguments)
        self._fit: DeferredFit | None = None
        self._error: BaseException | None = None
        self._go, self._parked = threading.Semaphore(0), threading.Semaphore(0)
        self._has_ended = self._has_told = False
        self.outcome = Outcome(name, 0, None, 0.0)
        context = contextvars.copy_context()  # where a notebook shows what is printed
        self._thread = threading.Thread(target=context.run, args=(self._main,), daemon=True)
        self._thread.start()

    def resume(self, error: BaseException | None = None) -> DeferredFit | None:
        """Continues the script until it calls `fit`, or ends.

        Args:
            error: The exception that the `fit` it waits in raises, if any.

        Returns:
            The call of `fit`, or `None` at the script's end.
        """
        self._error, self._fit = error, None
        with self._state.entered():
            self._go.release()
            self._wait()
        return self._fit

    def interrupt(self, error: BaseException) -> None:
        """Raises `error` in each `fit` that the script waits in or still calls, until it ends."""
        while not self._has_ended:
            self.resume(error)

    def defer(
        self, model: keras.Model, arguments: FitArguments, caller: FrameType
    ) -> keras.callbacks.History:
        """Waits, in the script's thread, until the fit has been run.

        Args:
            model: The model.
            arguments: All arguments of `fit`.
            caller: The frame that calls `fit`.

        Returns:
            The model's `History`; `NotImplemented` if the model cannot be trained in a cohort.
        """
        try:
            check_trainable_here(model)
        except CohortError as error:  # alone it may run: no reason to stop the script
            warnings.warn(
                f"A `fit` of {self.name} runs apart from the others. {error}", stacklevel=3
            )
            return NotImplemented
        own = threads.thread_state()

        @contextlib.contextmanager
        def entered() -> Iterator[None]:  # in the thread that trains
            with self._state.entered(), threads.configured(own):
                yield

        self._fit = DeferredFit(model, arguments, entered=entered, is_deferred=False)
        self._fit.name = self._fit.label = self.name
        self._parked.release()
        self._go.acquire()
        if self._error is not None:
            raise self._error
        return model.history

    def train_if_met(self, model: keras.Model) -> None:
        """Does nothing: each fit is trained before its call returns."""

    def tell(self, text: str) -> None:
        """Prints, once, why something is not trained with the rest."""
        if not self._has_told:
            self._has_told = True
            print(text)

    def _wait(self) -> None:
        while True:
            try:
                self._parked.acquire()
                return
            except KeyboardInterrupt:  # the running script gets it, as it would alone
                ident = ctypes.c_ulong(self._thread.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ident, ctypes.py_object(KeyboardInterrupt)
                )

    def _main(self) -> None:
        self._go.acquire()
        try:
            if self._error is not None:  # interrupted before it began
                raise self._error
            with deferred_by(self):
                exec(compile(self._source, self._path, "exec"), vars(self._state.module))
        except SystemExit as end:
            self.outcome.status = _status(end)
        except BaseException as error:
            self.outcome.error = error
            self.outcome.status = 130 if isinstance(error, KeyboardInterrupt) else 1
            own = error.__traceback__.tb_next if error.__traceback__ else None  # without `exec`
            text = "".join(traceback.format_exception(type(error), error, own))
            self._state.write(text, sys.stderr)
        finally:
            self.outcome.seconds = time.perf_counter() - self._began
            self._state.flush()
            self._fit, self._has_ended = None, True
            self._parked.release()


class _ScriptState:
    """The state of the process that a script has for itself, set while it runs."""

    def __init__(self, name: str, path: Path, arguments: Sequence[str]):
        self.module = types.ModuleType("__main__")
        self.module.__file__ = str(path)
        self._folder = path.resolve().parent
        self._argv = [str(path), *arguments]
        self._path = [str(self._folder), *sys.path]
        self._modules: dict[str, types.ModuleType] = {"__main__": self.module}
        self._process = ProcessState()
        self._environment = dict(os.environ)
        self._methods = _methods()
        self._out = _Prefixed(f"[{name}] ", sys.stdout)
        # Later the stream to which the script has redirected its output.
        self._stdout: TextIO | io.TextIOBase = self._out

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Applies the script's state to the process, within the block."""
        outside = sys.argv, sys.path
        main, known = sys.modules["__main__"], set(sys.modules)
        sys.argv, sys.path = self._argv, self._path
        sys.modules.update(self._modules)
        try:
            with (
                self._process.entered(),
                self._environed(),
                self._own_methods(),
                redirect_stdout(self._stdout),
            ):
                try:
                    yield
                finally:
                    self._stdout = sys.stdout
        finally:
            self._argv, self._path = sys.argv, sys.path
            self._modules = {"__main__": self.module, **self._take_modules(known)}
            sys.argv, sys.path = outside
            sys.modules["__main__"] = main

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
        """Sets the script's wrappers of methods of `keras.Model`, within the block."""
        outside = _methods()
        _set_methods(outside, self._methods)
        try:
            yield
        finally:
            self._methods = _methods()
            _set_methods(self._methods, outside)

    def _take_modules(self, known: set[str]) -> dict[str, types.ModuleType]:
        """Removes and returns the modules in the script's folder.

        Modules in another script's folder may have the same names.
        """
        new = sys.modules.keys() - known
        own = [name for name in new if self._is_beside(name.partition(".")[0])]
        return {name: sys.modules.pop(name) for name in own}

    def _is_beside(self, name: str) -> bool:
        return any((self._folder / file).exists() for file in (f"{name}.py", f"{name}/__init__.py"))

    def write(self, text: str, stream: TextIO) -> None:
        """Writes whole lines, each after the script's name."""
        out = _Prefixed(self._out.prefix, stream)
        out.write(text)
        out.flush()

    def flush(self) -> None:
        """Writes the rest of an unfinished line."""
        self._out.finish()


class _Prefixed(io.TextIOBase):
    """A stream that writes a prefix before each line, and only whole lines."""

    def __init__(self, prefix: str, stream: TextIO):
        self.prefix = prefix
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            tqdm.write(self.prefix + self._own(line), file=self._stream)
        return len(text)

    def _own(self, line: str) -> str:
        """Returns the line without the name that `verbose=2` prints, which the prefix has too."""
        return _last_state(line).removeprefix(self.prefix.strip("[] ") + ": ")

    def finish(self) -> None:
        """Writes the unfinished line too."""
        if self._line:
            self.write("\n")

    def flush(self) -> None:
        """Flushes the whole lines; an unfinished one waits for its rest."""
        self._stream.flush()

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]  # writable in typeshed
        return getattr(self._stream, "encoding", None) or "utf-8"


def _last_state(line: str) -> str:
    """Returns the text that is visible on a line after a progress bar has redrawn it."""
    return line.rstrip("\r\b").split("\r")[-1].split("\b")[-1]


def _set_environment(present: dict[str, str], target: dict[str, str]) -> None:
    """Changes the process's environment variables from `present` to `target`."""
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


def _status(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code
    print(end.code, file=sys.stderr)
    return 1


def _source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CohortError(
            f"Expected scripts that can be read. Received: {str(path)!r} ({error.strerror})."
        ) from error


def _names(paths: list[Path]) -> Mapping[str, Path]:
    """Returns the paths by unique names: the file's, if needed with its folder's or a number."""
    names: dict[str, Path] = {}
    for path in paths:
        alike = [other for other in paths if other.stem == path.stem]
        name = f"{path.resolve().parent.name}/{path.stem}" if len(alike) > 1 else path.stem
        names[unique(name, names)] = path
    return names
