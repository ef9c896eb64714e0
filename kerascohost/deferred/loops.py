"""Loops of a program whose iterations run in turn, where that ends as the loop as written.

Each iteration is a function in turn, as those of `kerascohost.map`, with its own values of the
names that the loop's body sets. What `names` proves to be an iteration's own runs as soon as it
can; a statement that touches something else waits until all earlier iterations have ended. A loop
that is not understood runs as written.
"""

import ast
import contextlib
import copy
import dataclasses
import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import keras
from tqdm import tqdm

from kerascohost import backends
from kerascohost.arguments import Layout
from kerascohost.backends import Tree, threads
from kerascohost.deferred import calls, library, names
from kerascohost.deferred.effects import Effects, UnprovenError, is_atom, is_plain
from kerascohost.deferred.fits import WaitingCall
from kerascohost.deferred.functions import Begin, Calls, Job
from kerascohost.deferred.names import Analysis
from kerascohost.deferred.scripts import source_of
from kerascohost.deferred.turns import TurnState, is_in_turn
from kerascohost.tracing.places import AnyGenerator, UserObject

# The names that the code of an iteration has besides those of the program.
_ITEMS, _ENDED, _WAIT, _LOOPS = "__kc_items__", "__kc_ended__", "__kc_wait__", "__kc_loops__"
_MISSING = object()

Variables = dict[str, UserObject]


@dataclasses.dataclass
class Report:
    """Record of what became of a loop.

    Attributes:
        line: The line of the loop.
        together: The number of its iterations that ran in turn.
        plainly: The number of those that ran as written.
        why: Why some did, or `None`.
        waits: The names that iterations waited for.
        is_single: Whether it had but one iteration.
    """

    line: int
    together: int = 0
    plainly: int = 0
    why: str | None = None
    waits: list[str] = dataclasses.field(default_factory=list)
    is_single: bool = False

    def __str__(self) -> str:
        where = f"cohost: the loop in line {self.line}"
        if not self.together and self.why is None:
            if self.is_single:
                return f"{where} has one iteration: there is nothing to train with it."
            return f"{where} was left in its first iteration."
        if not self.together:
            return f"{where} ran as written, as {self.why}. {_HELP}"
        many = "iteration" if self.together == 1 else "iterations"
        text = f"{where}: {self.together} {many} trained together"
        if self.waits:
            text += f" ({', '.join(self.waits)}: in order, each after the iteration before)"
        if self.plainly:
            text += f", {self.plainly} as written, as {self.why}. {_HELP}"
        return text.rstrip(".") + "."


_HELP = "A function of the body for `kc.map` may help."


class Loops:
    """Runs programs with the iterations of their loops in turn.

    Args:
        variables: The program's names.
        layout: As in `Cohort`. Default `"joined"`.
        at_once: The number of iterations under way. Default 16.
        verbose: What replaces the `verbose` of fits in loops. Default `None`: they keep theirs.

    Attributes:
        reports: What became of each loop in which a model is trained.
    """

    def __init__(
        self,
        variables: Variables,
        layout: Layout = "joined",
        at_once: int = 16,
        verbose: int | None = None,
    ):
        self._variables = variables
        self._options = layout, at_once, verbose
        self._loops: list[ast.For] = []
        self._reports: dict[int, Report] = {}

    @property
    def reports(self) -> list[Report]:
        """Returns the record of each loop in which a model is trained."""
        return [self._reports[i] for i in sorted(self._reports)]

    def prepared(self, program: ast.Module, file: str) -> ast.Module:
        """Returns the program with its loops asking `entered` how they are to run.

        Args:
            program: The program.
            file: Its file, for tracebacks.
        """
        self._file = file
        finder = _Finder(self._loops)
        return ast.fix_missing_locations(finder.visit(program))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Gives the program's loops the way to this, within the block."""
        self._variables[_LOOPS] = self._begun
        try:
            yield
        finally:
            self._variables.pop(_LOOPS, None)

    def _begun(self, position: int, iterable: Iterable[UserObject]) -> Iterable[UserObject]:
        """Runs a loop in turn as far as that is possible; returns the items that are left."""
        __tracebackhide__ = True
        loop = self._loops[position]
        if is_in_turn() or not _may_train(loop.body, self._variables):
            return iterable
        report = self._reports.setdefault(position, Report(loop.lineno))
        plain = iterable
        try:
            run, plain = self._made(loop, iterable, report)
        except UnprovenError as error:
            line = f" (line {error.line})" if error.line else ""
            report.why = f"{error.why}{line}"
            return plain if error.rest is None else error.rest
        if run is None:
            if report == Report(loop.lineno):
                del self._reports[position]
            return plain
        rest = run.run(report)
        if run.both is None:
            return rest
        self._variables[_ITEMS] = rest
        try:
            exec(run.both, self._variables)
        finally:
            self._variables.pop(_ITEMS, None)
        return ()

    def _made(
        self, loop: ast.For, iterable: Iterable[UserObject], report: Report
    ) -> tuple["_Run | None", Iterable[UserObject]]:
        """Returns the run of a loop; `None` if it has too few iterations for that."""
        if loop.orelse and any(True for _ in names.breaks(loop)):
            raise UnprovenError("it has an `else` and a `break`", loop.lineno)
        for each in ast.walk(loop.iter):
            if hasattr(type(_named_by(each, self._variables)), "__next__"):
                raise UnprovenError(f"`{ast.unparse(each)}` may be read on after it", loop.lineno)
        is_call = isinstance(loop.iter, ast.Call) and ast.unparse(loop.iter.func) != "iter"
        if type(iterable) in _ITERATORS and is_call:
            raise UnprovenError("what it goes over may be read on after it", loop.lineno)
        plain, items, header = _opened(iterable)
        bar = iterable if isinstance(iterable, tqdm) else None
        if len(items) < 2:
            report.is_single |= len(items) == 1
            return None, plain
        try:
            single = copy.deepcopy(loop)
            self._read_ahead: set[str] = set()
            nested, items, header = self._flattened(single, items, header)
            both = None if nested is single else _compiled(copy.deepcopy(nested), self._file)
            analysis = Analysis(nested, self._variables, items, header)
            if not self._read_ahead.isdisjoint(analysis.own):
                raise UnprovenError("its inner loop goes over what its body sets", loop.lineno)
            code, waits = _Rewriter(nested, analysis).code(self._file)
        except UnprovenError as error:
            error.rest = plain
            raise
        except Exception as error:  # of the analysis: the program runs as written
            unknown = UnprovenError(f"it is not understood ({type(error).__name__}: {error})")
            unknown.rest = plain
            raise unknown from error
        run = _Run(self._variables, analysis, code, waits, items, bar, self._options)
        run.both = both
        return run, plain

    def _flattened(
        self, loop: ast.For, items: list[UserObject], header: list[UserObject]
    ) -> tuple[ast.For, list[UserObject], list[UserObject]]:
        """Returns a loop over the pairs of items of two loops, if the body is another loop."""
        while len(loop.body) == 1 and isinstance(inner := loop.body[0], ast.For):
            if loop.orelse or inner.orelse or any(True for _ in names.breaks(inner)):
                break
            if not _is_simple(inner.iter, self._variables):
                break
            read = {each.id for each in ast.walk(inner.iter) if isinstance(each, ast.Name)}
            targets = names.stored(loop.target)
            if not names.stored(inner).isdisjoint(read | targets):
                break
            # What is read to know the items may be changed by the body.
            header = [
                *header,
                *(self._variables[n] for n in (read - targets) & self._variables.keys()),
            ]
            self._read_ahead |= read - targets
            random = backends.random_state()
            pairs = []
            for item in items:
                opened = self._inner_items(loop, inner, item)
                if not opened[0]:
                    return loop, items, header
                pairs += [(item, each) for each in opened[0]]
                header = [*header, *opened[1]]
            if backends.random_state() != random:
                backends.set_random_state(random)
                break
            target = ast.Tuple([loop.target, inner.target], ast.Store())
            nested = ast.For(target, loop.iter, inner.body, [])
            loop = ast.fix_missing_locations(ast.copy_location(nested, loop))
            items = pairs
        return loop, items, header

    def _inner_items(
        self, loop: ast.For, inner: ast.For, item: UserObject
    ) -> tuple[list[UserObject], list[UserObject]]:
        own = {**self._variables, _ITEMS: item}
        name = ast.copy_location(ast.Name(_ITEMS, ast.Load()), loop)
        target = ast.copy_location(ast.Assign([loop.target], name), loop.target)
        exec(compile(ast.fix_missing_locations(ast.Module([target], [])), self._file, "exec"), own)
        try:
            _, items, header = _opened(
                eval(compile(ast.Expression(inner.iter), self._file, "eval"), own)
            )
        except UnprovenError:
            raise
        except Exception:
            return [], []  # it is raised where it is raised as written
        return items, header


def loops_of(program: ast.Module) -> list[ast.For]:
    """Returns copies of the loops of a program that may run in turn, without changing it."""
    found: list[ast.For] = []
    _Finder(found).visit(copy.deepcopy(program))
    return found


_CONTEXTS = ("errstate", "open", "suppress", "catch_warnings", "redirect_stdout", "nullcontext")


class _Finder(ast.NodeTransformer):
    """Makes loops ask how they are to run, but for those inside of functions and classes."""

    def __init__(self, loops: list[ast.For]):
        self._loops = loops

    def visit_FunctionDef(self, node: ast.AST) -> ast.AST:
        return node

    def visit_With(self, node: ast.With) -> ast.With:
        """Leaves loops alone where a context may be that of one thread, such as a device."""
        known = [
            isinstance(each.context_expr, ast.Call)
            and ast.unparse(each.context_expr.func).rpartition(".")[2] in _CONTEXTS
            for each in node.items
        ]
        if all(known):
            self.generic_visit(node)
        return node

    visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = visit_FunctionDef  # noqa: N815

    def visit_For(self, node: ast.For) -> ast.For:
        position = len(self._loops)
        self._loops.append(copy.deepcopy(node))
        asked = ast.Call(ast.Name(_LOOPS, ast.Load()), [ast.Constant(position), node.iter], [])
        for each in (asked, asked.func, asked.args[0]):
            ast.copy_location(each, node.iter)
        node.iter = asked
        self.generic_visit(node)
        return node


# An expression in a larger one: its owner, the field, and the position in the field.
_Place = tuple[ast.AST, str, int | None]


class _Rewriter:
    """Makes the code of one iteration: what is not its own waits.

    Args:
        loop: The loop; it is changed.
        analysis: Its analysis.

    Raises:
        UnprovenError: If an iteration would have to wait before it trains.
    """

    def __init__(self, loop: ast.For, analysis: Analysis):
        self._loop, self._analysis = loop, analysis
        self._count = 0
        self._waits: list[str] = []

    def code(self, file: str) -> tuple[types.CodeType, list[str]]:
        """Returns the code, and the names that iterations wait for."""
        loop = self._loop
        if not any(each.trains for each in self._analysis.effects.values()):
            raise UnprovenError("it is not seen where a model is trained in it", loop.lineno)
        body = self._block(loop.body, [])
        loop.body, loop.orelse = body, ast.parse(f"{_ENDED} = True").body
        return _compiled(loop, file), self._waits

    def _block(
        self, body: list[ast.stmt], outer: list[ast.stmt], rare: bool = False
    ) -> list[ast.stmt]:
        made: list[ast.stmt] = []
        for statement in body:
            made += self._waiting(statement, rare, outer)
            for field in ("body", "orelse", "finalbody"):
                inner = getattr(statement, field, None)
                if isinstance(inner, list) and not isinstance(statement, ast.FunctionDef):
                    loops = (
                        [*outer, statement] if isinstance(statement, ast.For | ast.While) else outer
                    )
                    setattr(statement, field, self._block(inner, loops, rare))
            for handler in getattr(statement, "handlers", []):
                before = self._waiting(handler, True, outer)
                handler.body = [*before, *self._block(handler.body, outer, rare=True)]
            made.append(statement)
        return made

    def _waiting(
        self, statement: ast.stmt | ast.ExceptHandler, rare: bool, outer: list[ast.stmt]
    ) -> list[ast.stmt]:
        """Returns what comes before a statement: what is trained in it, and that it waits."""
        effects = self._analysis.effects.get(id(statement))
        if effects is None or not self._analysis.waits(effects):
            return []
        label = self._analysis.label(effects)
        before: list[ast.stmt] = []
        is_free = True
        if effects.trains:
            is_free = self._hoist_statement(statement, before)
        if not (effects.after or rare) and not (effects.trains and is_free):
            raise UnprovenError(
                f"{label} is used in each iteration before the training, and changed", effects.line
            )
        if any(self._trains(each) for each in outer):
            raise UnprovenError(
                f"{label} is used between the trainings of an iteration", effects.line
            )
        if label not in self._waits:
            self._waits.append(label)
        wait = ast.Expr(ast.Call(ast.Name(_WAIT, ast.Load()), [], []))
        return [*before, _located(wait, statement)]

    def _trains(self, loop: ast.stmt) -> bool:
        """Returns whether a model is trained in an inner loop."""
        effects = (self._analysis.effects.get(id(each)) for each in ast.walk(loop))
        return any(each is not None and each.trains for each in effects)

    # What is trained in a statement that has to wait is trained before.

    def _hoist_statement(
        self, statement: ast.stmt | ast.ExceptHandler, before: list[ast.stmt]
    ) -> bool:
        """Moves what a statement trains to before it; returns whether it trains nothing then."""
        field = "test" if isinstance(statement, ast.If | ast.Assert) else "value"
        value = getattr(statement, field, None)
        if not isinstance(value, ast.expr):
            return False
        moves: list[tuple[_Place, ast.expr]] = []
        try:
            made = self._hoisted(value, before, moves)
        except UnprovenError:
            before.clear()
            return False
        for place, part in moves:
            _set_part(*place, part)
        setattr(statement, field, made)
        return True

    def _hoisted(
        self, node: ast.expr, before: list[ast.stmt], moves: list[tuple[_Place, ast.expr]]
    ) -> ast.expr:
        """Returns what takes the place of an expression; `moves` gets those of its parts."""
        effects = self._of(node)
        if effects is None or not effects.trains:
            return node
        if not self._analysis.waits(effects):
            return self._moved(node, before)
        parts = _parts(node)
        found = [_part(*part) for part in parts]
        training = [i for i, part in enumerate(found) if self._is_training(part)]
        if not training:
            raise UnprovenError("it cannot be trained before")
        for place, part in list(zip(parts, found, strict=True))[: training[-1] + 1]:
            if self._is_training(part):
                moves.append((place, self._hoisted(part, before, moves)))
            elif any(isinstance(each, ast.Call | ast.NamedExpr) for each in ast.walk(part)):
                of_part = self._of(part)
                if of_part is None or self._analysis.waits(of_part):
                    raise UnprovenError("it cannot be trained before")
                moves.append((place, self._moved(part, before)))
        return node

    def _of(self, node: ast.expr) -> Effects | None:
        try:
            return self._analysis.of(node)
        except KeyError:
            return None

    def _is_training(self, node: ast.expr) -> bool:
        effects = self._of(node)
        return effects is not None and effects.trains

    def _moved(self, node: ast.expr, before: list[ast.stmt]) -> ast.expr:
        name = f"__kc_{self._count}__"
        self._count += 1
        before.append(_located(ast.Assign([ast.Name(name, ast.Store())], node), node))
        return ast.copy_location(ast.Name(name, ast.Load()), node)


def _compiled(loop: ast.For, file: str) -> types.CodeType:
    """Returns the code of a loop over `_ITEMS`."""
    loop.iter = ast.Name(_ITEMS, ast.Load())
    for node in ast.walk(loop):
        if isinstance(node, ast.expr | ast.stmt) and not hasattr(node, "lineno"):
            ast.copy_location(node, loop)
    return compile(ast.fix_missing_locations(ast.Module([loop], [])), file, "exec")


def _parts(node: ast.expr) -> list[_Place]:
    """Returns the parts of an expression, in the order in which they are evaluated."""
    if isinstance(node, ast.Call):
        args: list[_Place] = [(node, "args", i) for i in range(len(node.args))]
        return [(node, "func", None), *args, *((each, "value", None) for each in node.keywords)]
    if isinstance(node, ast.Tuple | ast.List):
        return [(node, "elts", i) for i in range(len(node.elts))]
    if isinstance(node, ast.Dict):
        return [(node, "values", i) for i in range(len(node.values))]
    if isinstance(node, ast.BinOp):
        return [(node, "left", None), (node, "right", None)]
    if isinstance(node, ast.Compare) and len(node.comparators) == 1:
        return [(node, "left", None), (node, "comparators", 0)]
    if isinstance(node, ast.Subscript | ast.Attribute | ast.Starred):
        return [(node, "value", None)]
    return []


def _part(owner: ast.AST, field: str, index: int | None) -> ast.expr:
    value = getattr(owner, field)
    part: ast.expr = value if index is None else value[index]
    return part


def _set_part(owner: ast.AST, field: str, index: int | None, part: ast.expr) -> None:
    if index is None:
        setattr(owner, field, part)
    else:
        getattr(owner, field)[index] = part


def _located(made: ast.stmt, like: ast.AST) -> ast.stmt:
    """Returns a statement as one of a line of the program."""
    for node in ast.walk(made):
        if isinstance(node, ast.expr | ast.stmt) and not hasattr(node, "lineno"):
            ast.copy_location(node, like)
    return made


class _Output:
    """Text that an iteration writes, kept until all earlier iterations have ended."""

    def __init__(self) -> None:
        self._kept: list[tuple[TextIO, str]] = []
        self._is_open = False

    def write(self, stream: TextIO, text: str) -> None:
        """Writes to a stream, now or later."""
        if self._is_open:
            stream.write(text)
        else:
            self._kept.append((stream, text))

    def open(self) -> None:
        """Writes what was kept, and everything from now on."""
        self._is_open = True
        kept, self._kept = self._kept, []
        for stream, text in kept:
            stream.write(text)

    @property
    def is_open(self) -> bool:
        """Returns whether it is written at once."""
        return self._is_open


class _Stream:
    """A standard stream of an iteration.

    Args:
        output: What keeps its text.
        stream: The stream of the process.
    """

    def __init__(self, output: _Output, stream: TextIO):
        self._output, self._stream = output, stream

    def write(self, text: str) -> int:
        """Writes text."""
        self._output.write(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, if the text is written at once."""
        if self._output.is_open:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever streams have
        return getattr(self._stream, name)


class _IterationState(TurnState):
    """The state of the process for an iteration, with its own values of the program's names.

    Args:
        variables: The program's names.
        own: The names of which iterations have values of their own.
        values: Those values at the iteration's begin.

    Attributes:
        values: The iteration's own values, while it does not run.
        program: The program's, while it runs.
        output: What it prints.
    """

    def __init__(self, variables: Variables, own: Iterable[str], values: Variables):
        super().__init__()
        self._variables, self._names = variables, list(own)
        self.values = values
        self.program: Variables = {}
        self._is_named = False
        self.output = _Output()
        for name in ("stdout", "stderr"):
            self._own[name] = _Stream(self.output, self._own[name])

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Applies the iteration's state and names to the process, within the block."""
        with self.named(), super().entered():
            yield

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Gives the program's names the iteration's values, within the block."""
        if self._is_named:
            yield
            return
        self.program = self._exchanged(self.values)
        self._is_named = True
        try:
            yield
        finally:
            self._is_named = False
            self.values = self._exchanged(self.program)

    def _exchanged(self, values: Variables) -> Variables:
        """Gives the names these values; returns those that they had."""
        known = self._variables
        found = {name: known[name] for name in self._names if name in known}
        for name in found.keys() - values.keys():
            del known[name]
        known.update(values)
        return found

    def fill(self) -> None:
        """Gives names that the iteration has not set the values that the program has by now."""
        for name, value in self.program.items():
            if name not in self._variables:
                self._variables[name] = value


class _RunsAgain(BaseException):
    """Ends an iteration that is to run as written; no handler of `Exception` catches it."""


class _Iteration(Job[None]):
    """One iteration, as a function in turn.

    Attributes:
        runs_again: Whether it failed before it changed anything, so that it is run as written.
        broke: Whether it left the loop.
        trains: Whether it has trained, evaluated or predicted something.
        is_filled: Whether it has all names that the program has.
        carried: The names that it has taken over from an iteration that had not ended.
    """

    def __init__(self, run: "_Run", number: int, begin: Begin, values: Variables):
        self._run_of = run
        self.is_filled = number == run.counted  # it begins with all that the program has
        self.carried = {} if self.is_filled else values
        self.broke = self.runs_again = self.trains = self._has_passed = False
        self.item = run.items[number]
        values = {**values, _ITEMS: (self.item,), _WAIT: self.wait}
        self.own_state = _IterationState(run.variables, run.own, values)
        self.begun_with = threads.unseeded(begin.settings)
        super().__init__(
            number, self._execute, f"iteration[{number}]", begin, run.verbose, state=self.own_state
        )

    def _execute(self) -> None:
        try:
            exec(self._run_of.code, self._run_of.variables)
        except Exception:
            self.runs_again = not self._has_passed
            raise
        finally:
            self.broke = _ENDED not in self._run_of.variables

    def defer(
        self,
        method: calls.Method,
        model: keras.Model,
        arguments: calls.Arguments,
        caller: types.FrameType,
    ) -> Tree:
        """Waits as `Turn.defer`; ends the iteration, to run it as written, if the call fails."""
        if self.runs_again:
            raise _RunsAgain
        try:
            return super().defer(method, model, arguments, caller)
        except Exception:
            if self._has_passed:
                raise
            self.runs_again = True
            raise _RunsAgain from None

    def _about_to_wait(self, call: WaitingCall) -> None:
        super()._about_to_wait(call)
        self.trains = True

    def wait(self) -> None:
        """Waits, in the iteration's thread, until all earlier iterations have ended."""
        if self.runs_again:
            raise _RunsAgain
        while not self.is_sure:
            self.pause()
        self._has_passed = True
        self._snapshots.clear()
        self.own_state.output.open()
        if not self.is_filled:
            self.is_filled = True
            self.own_state.fill()

    def settle(self) -> None:
        """Allows the iteration to go on from where it waits for earlier ones."""
        self.is_sure = True  # until it has waited, it may still be run again

    @property
    def seeds_itself(self) -> bool:
        """Returns whether it begins in a way that does not depend on the one before."""
        return super().seeds_itself and not self.carried

    def _made(
        self, method: calls.Method, model: keras.Model, arguments: calls.Arguments
    ) -> WaitingCall:
        call = super()._made(method, model, arguments)
        call.snapshot.surroundings = self.own_state.named
        values = self._run_of.variables
        call.snapshot.key = tuple(
            (name, values.get(name) if is_atom(values.get(name)) else id(values[name]))
            for name in sorted(self._run_of.analysis.read_later)
        )
        return call

    def about_to_run(self, call: WaitingCall) -> None:
        """Stores the model's state if it was there before the loop."""
        if self._run_of.analysis.trains_items and not self._has_passed:
            self._store(call.model)


class _Run(Calls[None]):
    """The iterations of a loop, in turn.

    Args:
        variables: The program's names.
        analysis: The analysis of the loop.
        code: The code of an iteration.
        waits: The names that iterations wait for.
        items: The items.
        bar: The progress bar that the loop goes over, if any.
        options: The layout, the number of iterations under way, and the `verbose` of fits.
    """

    def __init__(
        self,
        variables: Variables,
        analysis: Analysis,
        code: types.CodeType,
        waits: list[str],
        items: Sequence[UserObject],
        bar: UserObject,
        options: tuple[Layout, int, int | None],
    ):
        layout, at_once, self.verbose = options
        self.variables, self.analysis, self.code, self.items = variables, analysis, code, items
        self.own = {*analysis.own, _ITEMS, _WAIT, _ENDED}
        self.own |= {n for n in code.co_names if n.startswith("__kc_")}
        self._waits, self._bar = waits, bar
        self._why: str | None = None
        self._error: BaseException | None = None
        self._was_left = False
        self.both: types.CodeType | None = None  # two loops as written, if this is made of them
        count = len(items)
        super().__init__(
            [_nothing] * count, [""] * count, layout, at_once, None, False, self._committed
        )

    def run(self, report: Report) -> Iterable[UserObject]:  # type: ignore[override]
        """Runs the iterations; returns the items that are left for the loop as written."""
        __tracebackhide__ = True
        calls.train_deferred("a loop runs in turn")
        try:
            super().run()
        except BaseException:
            first = self._jobs.get(self._counted)
            if isinstance(first, _Iteration):  # it is where the program would be
                self._take(first)
            raise
        finally:
            report.together += self._counted
            report.waits += [name for name in self._waits if name not in report.waits]
        if self._error is not None:
            raise _without_ours(self._error)
        rest = [] if self._was_left else list(self.items[self._counted :])
        if rest:
            report.plainly += len(rest)
            report.why = self._why
        return self._shown(rest) if self._bar is not None else rest

    def _shown(self, rest: list[UserObject]) -> Iterator[UserObject]:
        for item in rest:
            yield item
            self._bar.update()
        self._bar.close()

    def _made(self, number: int, begin: Begin) -> Job[None]:
        begin = Begin(begin.parts, begin.settings)  # its own: it may be dropped
        if number == self._counted:
            known = {n: self.variables[n] for n in self.analysis.own if n in self.variables}
            return _Iteration(self, number, begin, known)
        return _Iteration(self, number, begin, self._carried_to(number))

    @property
    def counted(self) -> int:
        """Returns the number of iterations that have ended as the loop's."""
        return self._counted

    def _carried_to(self, number: int) -> Variables:
        """Returns the values that an iteration takes over from the one before it."""
        before = self._jobs[number - 1]
        assert isinstance(before, _Iteration)
        values = before.own_state.values
        return {name: values[name] for name in self.analysis.carried if name in values}

    def _begin_of(self, number: int) -> Begin | None:
        begin = super()._begin_of(number)
        if begin is None or number == self._counted:
            return begin
        carried = self._carried_to(number)
        return begin if all(map(is_atom, carried.values())) else None

    def _follows(self, later: Job[None], before: Job[None]) -> bool:
        assert isinstance(later, _Iteration)
        values = {n: self.variables[n] for n in self.analysis.carried if n in self.variables}
        is_same = values.keys() == later.carried.keys() and all(
            values[name] is value for name, value in later.carried.items()
        )
        if not is_same:
            self._why = "names are set after a training that the next iteration begins with"
            return False
        ended = threads.unseeded(self._last.settings)
        if not threads.take_over_names(later.keras_state, later.begun_with, ended):
            self._why = "layers are made after the first training of an iteration"
            return False
        if not super()._follows(later, before):
            self._why = (
                "random numbers are drawn after the first training (seed each iteration with "
                "`keras.utils.set_random_seed`)"
            )
            return False
        return True

    def _redo(self, later: Job[None], job: Job[None]) -> None:
        self.stop()

    def _count(self, job: Job[None]) -> None:
        """Takes over what an iteration leaves, unless it is to be run again as written."""
        assert isinstance(job, _Iteration)
        if not job.runs_again:
            super()._count(job)
            return
        self._why = "one failed"  # which is raised where it is raised as written
        job.undo()
        self.stop()

    def _committed(self, job: Job[None]) -> None:
        """Gives the program the names of an iteration that has ended."""
        assert isinstance(job, _Iteration)
        self._take(job)
        if self._bar is not None:
            self._bar.update()
        if job.error is not None or job.broke:
            self._error, self._was_left = job.error, True
            self.stop()
        elif job.trains and job.expected is None:
            self._why = (
                "it is not known before the end of a `fit` how many random numbers it draws (seed "
                "each iteration with `keras.utils.set_random_seed`)"
            )
            self.stop()

    def _take(self, job: _Iteration) -> None:
        job.own_state.output.open()
        values = job.own_state.values
        for name in self.analysis.own:
            if name in values:
                self.variables[name] = values[name]
            elif job.is_filled:
                self.variables.pop(name, None)


def _nothing() -> None:
    """Stands for the function of an iteration, which is made when it begins."""


def _without_ours(error: BaseException) -> BaseException:
    """Returns an exception without the frames of ours that its traceback begins with."""
    place = error.__traceback__
    while place is not None and place.tb_frame.f_globals.get("__name__", "").startswith(
        "kerascohost."
    ):
        place = place.tb_next
    return error.with_traceback(place or error.__traceback__)


# What loops go over


_PRODUCTS = (
    itertools.product,
    itertools.combinations,
    itertools.permutations,
    itertools.combinations_with_replacement,
)
_VIEWS: tuple[Iterable[UserObject], ...] = ({}.keys(), {}.values(), {}.items())
_EMPTY: tuple[Iterable[UserObject], ...] = ([], (), {}, set(), range(0), "", *_VIEWS)
_CONTAINERS = (list, tuple, dict, set, frozenset, range, str, *map(type, _VIEWS))
_ITERATORS = tuple(type(iter(each)) for each in _EMPTY)
_IN_MEMORY = ("Index", "RangeIndex", "Series", "DataFrameGroupBy", "SeriesGroupBy")

_Opened = tuple[Iterable[UserObject], list[UserObject], list[UserObject]]


def _opened(iterable: Iterable[UserObject]) -> _Opened:
    """Reads all items of what a loop goes over.

    Returns:
        What the loop goes over if it runs as written, the items, and the objects that they are
        read from.

    Raises:
        UnprovenError: If reading them ahead may not be the same. Nothing has been read then.
    """
    for each in _sources(iterable):
        if not (_is_container(each) or _is_read_once(each)):
            raise UnprovenError(f"a {type(each).__name__} may not be read ahead")
    return _read(iterable)


def _sources(iterable: UserObject) -> Iterator[UserObject]:
    """Yields what `enumerate`, `zip` and `tqdm` go over, at last."""
    inner: tuple[UserObject, ...] = ()
    if type(iterable) is enumerate:
        inner = _reduced(iterable)[1][:1]
    elif type(iterable) is zip and len(_reduced(iterable)) == 2:  # not a strict one
        inner = _reduced(iterable)[1]
    elif isinstance(iterable, tqdm):
        inner = (iterable.iterable,)
    if not inner:
        yield iterable
    for each in inner:
        yield from _sources(each)


def _reduced(iterable: UserObject) -> tuple[UserObject, ...]:
    """Returns what an iterator of Python's is made of, as `pickle` stores it."""
    made: Any = iterable.__reduce__()
    return tuple(made)


def _is_container(thing: UserObject) -> bool:
    """Returns whether something, or a copy of it, can be read without changing it."""
    is_array = _is_of(thing, "numpy", "ndarray") and thing.ndim
    is_frame = _is_of(thing, "pandas", *_IN_MEMORY)
    return type(thing) in (*_CONTAINERS, *_ITERATORS) or is_array or is_frame


def _is_read_once(thing: UserObject) -> bool:
    """Returns whether something has the same items if it is read ahead."""
    return isinstance(thing, _PRODUCTS) or (
        type(thing) is types.GeneratorType and _splits_ahead(thing)
    )


def _read(iterable: UserObject) -> _Opened:
    if type(iterable) in _ITERATORS:
        again, source = copy.copy(iterable), _reduced(iterable)[1]
        return iterable, list(again), list(source)
    if _is_container(iterable):
        return iterable, list(iterable), [iterable]
    if type(iterable) is enumerate:
        inner, start = _reduced(iterable)[1]
        plain, items, header = _read(inner)
        return enumerate(plain, start), list(enumerate(items, start)), header
    if type(iterable) is zip:
        parts = [_read(inner) for inner in _reduced(iterable)[1]]
        plain, again = (zip(*(part[i] for part in parts), strict=False) for i in (0, 1))
        return plain, list(again), [each for part in parts for each in part[2]]
    if isinstance(iterable, tqdm):
        iterable.iterable, items, header = _read(iterable.iterable)
        return iterable, items, header
    items = list(iterable)
    return items, items, []


def _is_of(thing: UserObject, package: str, *kinds: str) -> bool:
    """Returns whether an object is of one of a package's classes, which is not imported for it."""
    kind = type(thing)
    return kind.__module__.partition(".")[0] == package and kind.__name__ in kinds


# Those that draw all random numbers before the first split.
_DRAW_FIRST = ("KFold", "StratifiedKFold", "GroupKFold", "TimeSeriesSplit", "LeaveOneOut")


def _splits_ahead(generator: AnyGenerator) -> bool:
    """Returns whether a generator is that of a scikit-learn splitter that may be read ahead."""
    frame = generator.gi_frame
    if frame is None or not frame.f_globals.get("__name__", "").startswith("sklearn."):
        return False
    splitter = frame.f_locals.get("self")
    if splitter is None or not type(splitter).__module__.startswith("sklearn."):
        return False
    seed = getattr(splitter, "random_state", None)
    return isinstance(seed, int) or (seed is None and type(splitter).__name__ in _DRAW_FIRST)


def _named_by(node: ast.AST, variables: Variables) -> UserObject:
    """Returns the object that an expression of names, items and attributes leads to, or `None`."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return variables.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(_named_by(node.value, variables), "__dict__", {}).get(node.attr)
    if isinstance(node, ast.Subscript):
        owner, key = (_named_by(each, variables) for each in (node.value, node.slice))
        if type(owner) in (dict, list, tuple):
            with contextlib.suppress(LookupError, TypeError):
                return owner[key]
    return None


def _is_simple(node: ast.expr, variables: Variables) -> bool:
    """Returns whether an expression may be evaluated ahead, for each item of an outer loop."""
    for each in ast.walk(node):
        if isinstance(each, ast.Call):
            function = each.func
            named = variables.get(getattr(function, "id", ""))
            is_builtin = (
                isinstance(function, ast.Name)
                and function.id not in variables
                and function.id in _BUILTINS
            )
            is_method = isinstance(function, ast.Attribute) and function.attr in _METHODS
            if not (is_builtin or is_method or _is_splitter(named)):
                return False
        elif isinstance(each, ast.Name):
            thing = variables.get(each.id)
            if hasattr(type(thing), "__next__"):
                return False
            if not (
                is_plain(thing) or library.is_trusted(thing) or library.is_trusted(type(thing))
            ):
                return False  # what its methods and properties do is not known
        elif not isinstance(each, _SIMPLE):
            return False
    return True


def _is_splitter(thing: UserObject) -> bool:
    return isinstance(thing, type) and thing.__module__.startswith("sklearn.model_selection")


_BUILTINS = ("range", "enumerate", "zip", "len", "list", "sorted", "tuple", "reversed")
_METHODS = ("split", "items", "keys", "values", "groupby")
_SIMPLE = (
    ast.Constant, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.keyword, ast.expr_context,
    ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop, ast.Slice,
)  # fmt: skip


def _may_train(body: list[ast.stmt], variables: Variables) -> bool:
    """Returns whether code may train a model: a quick look, to leave all other loops alone."""
    nodes = list(ast.walk(ast.Module(body, [])))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    if not library.TRAINS.isdisjoint(attributes):
        return True
    named = [variables.get(node.id) for node in nodes if isinstance(node, ast.Name)]
    waiting = [code for thing in named for code in _codes(thing, attributes)]
    seen: set[types.CodeType] = set()
    while waiting:
        code = waiting.pop()
        if code in seen:
            continue
        seen.add(code)
        if library.TRAINS.intersection(code.co_names):
            return True
        waiting += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        named = [variables.get(name) for name in code.co_names]
        waiting += [own for thing in named for own in _codes(thing, set(code.co_names))]
    return False


def _codes(thing: UserObject, attributes: set[str]) -> list[types.CodeType]:
    """Returns the code of a function, or of methods of a class or an object that may be called.

    Args:
        thing: The function, class or object.
        attributes: The names of attributes that are used beside it.
    """
    while hasattr(thing, "__wrapped__"):
        thing = thing.__wrapped__
    if isinstance(thing, types.FunctionType):
        return [thing.__code__]
    kind = thing if isinstance(thing, type) else type(thing)
    own = [vars(base) for base in kind.__mro__ if not library.is_trusted(base)]
    methods = (base.get(name) for base in own for name in attributes | _IMPLICIT)
    return [method.__code__ for method in methods if isinstance(method, types.FunctionType)]


# Methods that are called without their names.
_IMPLICIT = {"__init__", "__call__", "__enter__", "__exit__", "__iter__", "__next__"}


def run(
    source: str | bytes,
    file: str,
    variables: Variables,
    layout: Layout = "joined",
    tell: Callable[[str], None] = print,
) -> None:
    """Runs a program with the iterations of its loops in turn.

    Args:
        source: The program.
        file: Its file, for tracebacks.
        variables: Its names.
        layout: As in `Cohort`. Default `"joined"`.
        tell: What is given a line for each loop. Default `print`.
    """
    loops = Loops(variables, layout)
    program = loops.prepared(ast.parse(source, file), file)
    try:
        with loops.entered():
            exec(compile(program, file, "exec"), variables)
    finally:
        for report in loops.reports:
            tell(str(report))


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Runs a script with the iterations of its loops in turn, as the program of this process.

    Args:
        path: The script.
        arguments: The value of `sys.argv[1:]` in it.

    Raises:
        CohortError: If the script cannot be read.
    """
    source = source_of(Path(path))
    main = types.ModuleType("__main__")
    main.__file__ = path
    sys.modules["__main__"] = main
    sys.argv = [path, *arguments]
    sys.path[0] = str(Path(path).resolve().parent)
    run(source, path, vars(main), tell=functools.partial(print, file=sys.stderr))
