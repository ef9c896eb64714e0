"""Scripts that run one at a time, and whose fits are trained together."""

import contextlib
import dataclasses
import io
import sys
import time
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tqdm.auto import tqdm

from kerascohost.deferred.context import unique
from kerascohost.deferred.turns import Turn, Turns, TurnState
from kerascohost.errors import CohortError


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
    waiting = iter(scripts)
    turns = Turns(lambda: next(waiting, None), lambda script: None)
    try:
        turns.run()
    except KeyboardInterrupt as error:
        for script in waiting:
            script.interrupt(error)
    return [script.outcome for script in scripts]


class _Script(Turn[None]):
    """A script in its own thread, which runs only while `resume` waits for it."""

    def __init__(self, name: str, path: Path, arguments: Sequence[str]):
        self._began = time.perf_counter()
        self._path, self._source = path, source_of(path)
        self._own = _ScriptState(name, path, arguments)
        self.outcome = Outcome(name, 0, None, 0.0)
        super().__init__(self._execute, name, self._own)

    def _execute(self) -> None:
        exec(compile(self._source, self._path, "exec"), vars(self._own.module))

    def _end(self) -> None:
        error = self.error
        if isinstance(error, SystemExit):
            self.outcome.status = _status(error)
        elif error is not None:
            self.outcome.error = error
            self.outcome.status = 130 if isinstance(error, KeyboardInterrupt) else 1
            self._own.write("".join(_formatted(error)), sys.stderr)
        self.outcome.seconds = time.perf_counter() - self._began
        self._own.flush()


def _formatted(error: BaseException) -> list[str]:
    """Returns the lines of a script's traceback, without those of what executes it."""
    own = error.__traceback__
    while own is not None and own.tb_frame.f_globals.get("__name__", "").startswith("kerascohost."):
        own = own.tb_next
    return traceback.format_exception(type(error), error, own)


class _ScriptState(TurnState):
    """The state of the process that a script has for itself, set while it runs."""

    def __init__(self, name: str, path: Path, arguments: Sequence[str]):
        super().__init__()
        self.module = types.ModuleType("__main__")
        self.module.__file__ = str(path)
        self._folder = path.resolve().parent
        self._path = [str(self._folder), *sys.path]
        self._modules: dict[str, types.ModuleType] = {"__main__": self.module}
        self._out = _Prefixed(f"[{name}] ", sys.stdout)
        self._own |= {"argv": [str(path), *arguments], "stdout": self._out}

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Applies the script's state to the process, within the block."""
        outside, sys.path = sys.path, self._path
        main, known = sys.modules["__main__"], set(sys.modules)
        sys.modules.update(self._modules)
        try:
            with super().entered():
                yield
        finally:
            self._path, sys.path = sys.path, outside
            self._modules = {"__main__": self.module, **self._take_modules(known)}
            sys.modules["__main__"] = main

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


def _status(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code
    print(end.code, file=sys.stderr)
    return 1


def source_of(path: Path) -> bytes:
    """Returns the source of a script."""
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
