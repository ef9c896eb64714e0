"""The magics `%cohost` and `%%cohost`: they parse a line and call the core."""

import argparse
import ast
import asyncio
import glob
import inspect
import io
import itertools
import keyword
import math
import re
import shlex
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import TYPE_CHECKING, TypeVar

import keras
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import (
    MagicArgumentParser,
    argument,
    magic_arguments,
    parse_argstring,
)
from IPython.display import Image, display
from matplotlib.figure import Figure

from kerascohost import environment
from kerascohost.arguments import LAYOUTS, counts_per_member
from kerascohost.deferred import scripts
from kerascohost.deferred.context import cohost
from kerascohost.deferred.loops import Loops, loops_of
from kerascohost.errors import CohortError, did_you_mean
from kerascohost.layouts.benchmark import benchmark
from kerascohost.layouts.result import BenchmarkResult
from kerascohost.notebook import namespace
from kerascohost.notebook.namespace import Value, Variables
from kerascohost.results.history import CohortHistory

if TYPE_CHECKING:
    from kerascohost.integrations.ray import RayWorkers

Default = TypeVar("Default")

_COMMANDS = ("%cohost", "%%cohost")


@magics_class
class CohostMagics(Magics):
    """The magics `%cohost` and `%%cohost`."""

    shell: InteractiveShell
    _file = ""  # the file name under which the last cell was compiled
    _program: ast.Module  # of the last cell

    @magic_arguments()
    @argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="Names of models, or of lists or dicts of them; or: run SCRIPT ...",
    )
    @argument(
        "-l",
        "--layout",
        metavar="LAYOUT",
        help=f"How the members are placed in the one program: {', '.join(LAYOUTS)} (default: "
        "joined).",
    )
    @argument(
        "-g",
        "--group-factor",
        action="append",
        default=[],
        metavar="MODEL=N",
        help="Merge N batches of the model into one step; a number alone is for all. Repeatable.",
    )
    @argument(
        "-r",
        "--replicas",
        action="append",
        default=[],
        metavar="MODEL=N",
        help="Apply the model N times in a step, with the same weights. Repeatable.",
    )
    @argument(
        "-o",
        "--output",
        metavar="NAME",
        help="The variable that gets the CohortHistory, or the BenchmarkResult.",
    )
    @argument(
        "-b",
        "--benchmark",
        action="store_true",
        help="Measure which layout trains the models fastest, on random data.",
    )
    @argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="When a benchmark begins no new round; it needs two of each layout (default: 30).",
    )
    @argument(
        "--loops",
        action="store_true",
        help="Run the iterations of the cell's loops in turn, with what they train run together.",
    )
    @argument(
        "--search",
        action="store_true",
        help="Run what scikit-learn fits in the cell's searches and loops together (layout: auto).",
    )
    @argument(
        "-w",
        "--workers",
        type=int,
        metavar="N",
        help="Train in N processes of Ray on this machine, which start for the cell.",
    )
    @argument("-q", "--quiet", action="store_true", help="Neither progress bars nor the table.")
    @argument("-p", "--plot", action="store_true", help="Draw the losses at the end.")
    @line_cell_magic
    def cohost(self, line: str, cell: str | None = None) -> Value:
        """Trains Keras models together, each exactly as if it were alone.

        As `%%cohost` before a cell: the cell's calls of `fit` are deferred, and trained together
        at its end; everything else runs as written. The histories that `fit` returns are filled
        then, and a table shows how each model ended.

            %%cohost --group-factor mlp=2 -o runs
            h1 = cnn.fit(x1, y1, epochs=5)
            h2 = mlp.fit(x2, y2, epochs=9)

        As `%%cohost --loops`: the iterations of the cell's `for` loops run in turn, and what they
        train, evaluate and predict runs together, where that ends as the loops as written. A line
        for each loop says what became of it.

        As `%%cohost --search`: what scikit-learn fits in a loop in the cell (`GridSearchCV`,
        `cross_validate`) runs together, as within `kerascohost.integrations.sklearn.fused`. For
        Optuna and KerasTuner there are functions instead: `optimize(study, objective, n_trials)`
        of `kerascohost.integrations.optuna`, `search(tuner, ...)` of `.keras_tuner`.

            %%cohost --search
            best = GridSearchCV(classifier, {"learning_rate": [0.1, 0.01]}).fit(x, y)

        As `%cohost`: the widget, in which to pick models, benchmark and train them, with those
        named and the options already picked (where there are no widgets: a table of them). With
        `--benchmark`: how fast the models named, or all, train in each layout.

        As `%cohost run a.py b.py [-- ARGUMENTS]`: runs whole scripts, unchanged, with their calls
        of `fit` trained together.
        """
        __tracebackhide__ = True  # IPython leaves this frame out: an error is the cell's
        try:
            if cell is not None:
                return self._train(line, cell)
            if line.split()[:1] == ["run"]:
                return self._run(line)
            return self._show(line)
        except CohortError as error:
            raise UsageError(f"{error}{self._where(error)}") from None

    def _train(self, line: str, cell: str) -> Value:
        __tracebackhide__ = True
        asked = _parsed(self.cohost, line)
        _check_output(asked.output, self.shell.user_ns)
        if asked.benchmark:
            raise CohortError("Expected `%cohost MODEL ... --benchmark`. Received: it on a cell.")
        if asked.models:
            raise CohortError(
                "Expected options only after `%%cohost`; the models are those that the cell fits. "
                f"Received: {asked.models[0]!r}."
            )
        _check_options(asked, "on a cell, without `--benchmark`", "budget")
        if asked.search:
            return self._search(asked, cell)
        if asked.loops:
            return self._loop(asked, cell)
        run = cohost(
            asked.layout or "joined",
            _by_name("--group-factor", asked.group_factor, 1),
            _by_name("--replicas", asked.replicas, 1),
            verbose=0 if asked.quiet else None,
            names=self.shell.user_ns,
            workers=_workers(asked.workers),
        )
        try:
            with run:
                value = self._executed(cell)
        finally:
            # Also after a failure or an interrupt, so that no results are lost.
            if asked.output and run.has_run:
                self.shell.user_ns[asked.output] = run.history
        if not asked.quiet:
            self._show_hint(run.reads)
            display(run.history)
        if asked.plot:
            display(_image(run.history))
        return value

    def _show_hint(self, reads: Iterable[Iterable[tuple[str, int]]]) -> None:
        """Prints how to train a loop's iterations together, if one read what it had trained."""
        lines = {line for read in reads for file, line in read if file == self._file}
        loops = loops_of(self._program) if lines else []
        found = [loop for loop in loops if not lines.isdisjoint(_lines_of(loop))]
        if found:
            print(
                f"cohost: the loop in line {found[0].lineno} reads what it trains, so that its "
                "iterations were trained one after another; `%%cohost --loops` can train them "
                "together."
            )

    def _loop(self, asked: argparse.Namespace, cell: str) -> Value:
        __tracebackhide__ = True
        _check_options(asked, "with `--loops`", *_NOT_WITH_LOOPS)
        loops = Loops(self.shell.user_ns, asked.layout or "joined")
        try:
            with loops.entered():
                return self._executed(cell, loops)
        finally:
            for report in loops.reports:
                print(report)

    def _search(self, asked: argparse.Namespace, cell: str) -> Value:
        __tracebackhide__ = True
        _check_options(asked, "with `--search`", *_NOT_WITH_SEARCH)
        try:
            from kerascohost.integrations.sklearn import fused  # only here: an extra
        except ImportError as error:
            raise CohortError(str(error)) from None
        shown = 0 if asked.quiet else "auto"
        with fused(asked.layout or "auto", verbose=shown, workers=_workers(asked.workers)):
            return self._executed(cell)

    def _benchmark(self, models: dict[str, keras.Model], asked: argparse.Namespace) -> None:
        _check_options(asked, "with `--benchmark`, which measures every layout", "layout")
        result = benchmark(
            models,
            group_factor=_by_name("--group-factor", asked.group_factor, "auto"),
            replicas=_by_name("--replicas", asked.replicas, 2),
            budget_s=30.0 if asked.budget is None else asked.budget,
            progress=not asked.quiet,
        )
        if asked.output:
            self.shell.user_ns[asked.output] = result
        display(result)
        if asked.plot:
            display(_image(result))

    def _open(self, selected: list[str], asked: argparse.Namespace) -> None:
        try:
            with environment.extra("notebook"):  # only here: a cell of fits needs no widget
                from kerascohost.notebook.widget import CohostWidget
        except ImportError as error:
            raise CohortError(str(error)) from None

        _check_options(asked, "for the widget, which draws by itself", "quiet", "plot")
        widget = CohostWidget(self.shell.user_ns)
        session = widget.session
        session.selected = selected
        for option, layout in (("group_factor", "grouped"), ("replicas", "replicated")):
            factors = _by_name(f"--{option.replace('_', '-')}", getattr(asked, option), None)
            if factors is not None:
                session.layout = layout
                session.choose(option, counts_per_member(option, factors, session.models))
        session.layout = asked.layout or session.layout
        session.output = asked.output or session.output
        session.budget_s = asked.budget or session.budget_s
        display(widget)

    def _executed(self, cell: str, loops: Loops | None = None) -> Value:
        """Runs the cell; returns the value of its last expression, as a cell shows it."""
        __tracebackhide__ = True
        # Lines are counted as the user sees them: with the magic's, and empty ones after it, which
        # IPython leaves out.
        empty = itertools.takewhile(lambda line: not line.strip(), cell.splitlines())
        code = "\n" * (1 + len(list(empty))) + self.shell.transform_cell(cell)
        # So that tracebacks show its lines, and its number.
        self._file = name = self.shell.compile.cache(code, self.shell.execution_count)
        program = ast.parse(code, filename=name)
        self._program = program
        body = (program if loops is None else loops.prepared(program, name)).body
        last = body.pop() if body and _is_shown(body[-1], code) else None
        variables = self.shell.user_ns
        _evaluated(compile(ast.Module(body, []), name, "exec", _AWAITS), variables)
        if isinstance(last, ast.Expr):
            code = compile(ast.Expression(last.value), name, "eval", _AWAITS)
            return _evaluated(code, variables)
        return None

    def _where(self, error: BaseException) -> str:
        """Returns a text with the line of the cell that raised the error, or `""`."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self._file]
        return f" (Line {lines[-1]} of the cell.)" if lines and lines[-1] else ""

    def _run(self, line: str) -> None:
        options = [word for word in line.partition(" -- ")[0].split() if word.startswith("-")]
        if options:
            raise CohortError(
                "Expected no options with `%cohost run`, but the scripts' own after ` -- `. "
                f"Received: {options[0]}."
            )
        own, _, arguments = line.partition(" -- ")
        try:
            paths, given = shlex.split(own)[1:], shlex.split(arguments)
        except ValueError as error:
            raise CohortError(_no_words(line, error)) from None
        if not paths:
            raise CohortError(
                f"Expected `%cohost run SCRIPT ...`. Received: %cohost {line.strip()}"
            )
        outcomes = scripts.run(paths, given)
        for outcome in outcomes:
            print(outcome)
        if any(isinstance(outcome.error, KeyboardInterrupt) for outcome in outcomes):
            raise KeyboardInterrupt

    def _show(self, line: str) -> None:
        asked = _parsed(self.cohost, line)
        if asked.models[:1] == ["run"]:
            raise CohortError(
                f"Expected `%cohost run SCRIPT ...`. Received: %cohost {line.strip()}"
            )
        _check_options(asked, "without a cell", "loops", "search", "workers")
        variables = self.shell.user_ns
        _check_output(asked.output, variables)
        if not asked.benchmark and not hasattr(self.shell, "kernel"):
            _check_options(asked, "for the table of models", *_OPTIONS)
        models = namespace.chosen(variables, asked.models) or namespace.models_in(variables)
        if models and asked.benchmark:
            self._benchmark(models, asked)
        elif hasattr(self.shell, "kernel"):
            self._open(list(models) if asked.models else [], asked)
        elif models:
            display(namespace.table(models))
        else:
            print("There are no Keras models yet. Build one, then look again: %cohost")


def load(ipython: InteractiveShell) -> None:
    """Registers the magics and the completion of their arguments."""
    ipython.register_magics(CohostMagics)
    unload_completion(ipython)
    if hasattr(ipython.Completer, "custom_matchers"):
        ipython.Completer.custom_matchers.append(_matcher(ipython))
    else:  # IPython 7, as on Colab
        for command in _COMMANDS:
            ipython.set_hook("complete_command", _complete, str_key=command)


def unload(ipython: InteractiveShell) -> None:
    """Removes the magics and the completion of their arguments."""
    unload_completion(ipython)
    for kind in ("line", "cell"):
        ipython.magics_manager.magics[kind].pop("cohost", None)


def unload_completion(ipython: InteractiveShell) -> None:
    """Removes the completion only."""
    matchers = getattr(ipython.Completer, "custom_matchers", [])
    matchers[:] = [one for one in matchers if getattr(one, "matcher_identifier", "") != __name__]
    for command in _COMMANDS:
        ipython.strdispatchers["complete_command"].strs.pop(command, None)


def _matcher(shell: InteractiveShell) -> Value:
    """Returns a matcher that completes the magics' arguments, and lets no other one do so.

    A hook, as older versions of IPython have only, has Jedi's words for Python beside its own.
    """
    from IPython.core.completer import SimpleCompletion, context_matcher  # not in IPython 7

    @context_matcher(identifier=__name__, priority=200)
    def matches(context: Value) -> dict[str, Value]:
        line = context.line_with_cursor
        if context.cursor_line or line.split(" ")[0] not in _COMMANDS or " " not in line:
            return {"completions": []}
        found = _complete(shell, SimpleNamespace(line=line))
        fitting = [text for text in found if text.startswith(context.token)]
        # IPython lets others offer their words where there is no completion at all.
        fitting = fitting or [context.token] * bool(context.token)
        completions = [SimpleCompletion(text) for text in fitting]
        return {"completions": completions, "suppress": True, "ordered": True}

    return matches


def _complete(shell: InteractiveShell, event: SimpleNamespace) -> list[str]:
    """Returns the options and the names of models, or what can follow an option or `run`."""
    words = event.line.split()
    word = "" if event.line.endswith(" ") else words.pop()
    if words[1:2] == ["run"]:
        return [] if "--" in words else _scripts(word)
    models = namespace.models_in(shell.user_ns)
    option, given = words[-1] if words else "", word
    if word.startswith("--") and "=" in word:  # as in `--layout=stacked`
        option, _, given = word.partition("=")
    if option in ("-g", "--group-factor", "-r", "--replicas"):
        return ["2"] if "=" in given else [f"{name}=" for name in models]
    if option in ("-l", "--layout"):
        return list(LAYOUTS)
    if option in ("-o", "--output"):
        results = [n for n, value in shell.user_ns.items() if isinstance(value, _RESULTS)]
        return [name for name in results if not name.startswith("_")] or ["history"]
    if option in _EXAMPLES:
        return [_EXAMPLES[option]]
    is_cell = event.line.startswith("%%")
    groups = dict.fromkeys(namespace.group_of(name) or name for name in models)
    return [*_options(), *([] if is_cell else [*groups, "run"])]


# Values of options that are any number.
_EXAMPLES = {"--budget": "30", "-w": "2", "--workers": "2"}


def _scripts(begin: str) -> list[str]:
    """Returns the scripts and folders whose paths begin so."""
    paths = sorted(glob.glob(glob.escape(begin) + "*"))  # noqa: PTH207  # as they were written
    folders = [f"{path}/" for path in paths if Path(path).is_dir()]
    return [path for path in paths if path.endswith(".py")] + folders


def _options() -> list[str]:
    parser: MagicArgumentParser = CohostMagics.cohost.parser
    return [
        option
        for action in parser._actions  # noqa: SLF001  # argparse has no public list
        for option in action.option_strings
        if option.startswith("--")
    ]


def _parsed(magic: Callable[..., Value], line: str) -> argparse.Namespace:
    if "--help" in line.split() or "-h" in line.split():
        raise UsageError("Type %cohost? for help.")
    try:
        asked = parse_argstring(magic, line)
    except ValueError as error:
        raise CohortError(_no_words(line, error)) from None
    name, budget = asked.output, asked.budget
    _check_layout(asked.layout)
    if name is not None and (not name.isidentifier() or keyword.iskeyword(name)):
        raise CohortError(f"Expected `--output` to be a variable's name. Received: {name!r}.")
    if budget is not None and not 0 <= budget < math.inf:
        raise CohortError(f"Expected `--budget` to be a number of seconds. Received: {budget}.")
    return asked


def _no_words(line: str, error: ValueError) -> str:
    """Returns the error text for a line that cannot be split into words."""
    return f"Expected a line with each quotation closed. Received: {line.strip()} ({error})."


def _check_layout(layout: str | None) -> None:
    """Raises if a cohort has no such layout; says what to write for those of the widget."""
    options = {"grouped": "--group-factor MODEL=2", "replicated": "--replicas MODEL=2"}
    if layout in options:
        raise CohortError(
            f"Expected `--layout` to be one of {', '.join(LAYOUTS)}. Received: {layout}; for it, "
            f"write {options[layout]}."
        )
    if layout is not None and layout not in LAYOUTS:
        raise CohortError(
            f"Expected `--layout` to be one of {', '.join(LAYOUTS)}. Received: {layout!r}."
            f"{did_you_mean(layout, LAYOUTS)}"
        )


def _check_output(name: str | None, variables: Variables) -> None:
    """Raises if the result would replace something that is no result."""
    there = None if name is None else variables.get(name)
    if there is not None and not isinstance(there, (*_RESULTS, keras.callbacks.History)):
        raise CohortError(
            f"Expected a name for `--output` that is free. Received: {name!r}, which holds a "
            f"{type(there).__name__}."
        )


_RESULTS = (CohortHistory, BenchmarkResult)
_OPTIONS = ("layout", "group_factor", "replicas", "output", "budget", "quiet", "plot")
_NOT_WITH_SEARCH = ("loops", "group_factor", "replicas", "output", "plot")
_NOT_WITH_LOOPS = ("group_factor", "replicas", "output", "plot", "quiet", "workers")


def _workers(count: int | None) -> "RayWorkers | None":
    """Returns workers as `--workers` asks for them."""
    if count is None:
        return None
    from kerascohost.integrations.ray import RayWorkers  # only here: others need no Ray

    return RayWorkers(num_workers=count)


def _check_options(asked: argparse.Namespace, where: str, *refused: str) -> None:
    """Raises if an option is given that would have no effect."""
    for option in refused:
        value = getattr(asked, option)
        if value not in (None, [], False):
            text = " ".join(value) if isinstance(value, list) else value
            received = "it" if value is True else text
            raise CohortError(
                f"Expected no `--{option.replace('_', '-')}` {where}. Received: {received}."
            )


def _by_name(option: str, given: list[str], otherwise: Default) -> dict[str, int] | int | Default:
    """Returns `["cnn=2", "mlp=4"]` as a dict, `["2"]` as a number, `[]` as `otherwise`."""
    factors: dict[str, int] = {}
    for text in given:
        name, equals, number = text.rpartition("=")
        is_name = name and "=" not in name.partition("[")[0]  # a key of a dict may have one
        if not re.fullmatch("[0-9]+", number) or (equals and not is_name):
            raise CohortError(
                f"Expected MODEL=N after `{option}`, with a whole number N. Received: {text}."
            )
        if not equals and len(given) == 1:
            return int(number)
        if not equals or name in factors:
            raise CohortError(
                f"Expected `{option}` once for each model, or one number for all. "
                f"Received: {' '.join(given)}."
            )
        factors[name] = int(number)
    return factors or otherwise


# Allows `await` outside of functions, as IPython does in cells.
_AWAITS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def _evaluated(code: CodeType, variables: dict[str, Value]) -> Value:
    """Runs code and returns its value; what it awaits runs in an event loop of its own.

    A kernel's own loop waits for this cell and can run nothing meanwhile: it is put aside, as
    asyncio lets a thread run only one loop at a time.
    """
    __tracebackhide__ = True
    value = eval(code, variables)
    if not code.co_flags & inspect.CO_COROUTINE:
        return value
    running, loop = asyncio._get_running_loop(), asyncio.new_event_loop()  # noqa: SLF001  # exported
    asyncio._set_running_loop(None)  # noqa: SLF001
    try:
        return loop.run_until_complete(value)
    finally:
        loop.close()
        asyncio._set_running_loop(running)  # noqa: SLF001


def _lines_of(loop: ast.For) -> range:
    """Returns the lines of a loop's body."""
    return range(loop.body[0].lineno, (loop.end_lineno or loop.lineno) + 1)


def _is_shown(statement: ast.stmt, code: str) -> bool:
    """Returns whether a cell shows its last statement: an expression without a `;` after it."""
    return isinstance(statement, ast.Expr) and not code.rstrip().endswith(";")


def _image(result: CohortHistory | BenchmarkResult) -> Image:
    """Returns the result's plot as a picture, which needs no matplotlib backend for notebooks."""
    picture = io.BytesIO()
    figure = result.plot().figure
    assert isinstance(figure, Figure)  # the plot has made a whole one
    figure.savefig(picture, format="png", dpi=144, bbox_inches="tight")
    return Image(picture.getvalue(), width=640)
