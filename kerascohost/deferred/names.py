"""Analysis of a loop's body: what is each iteration's own, and what it shares with others.

The body is followed through the functions that it calls, with the objects that the program's names
have when the loop begins. Only code whose effects are known is accepted: a statement either depends
on nothing that an iteration changes for others, or it has to wait until all earlier iterations have
ended. Everything else raises `UnprovenError`, and the loop runs as written.
"""

import ast
import builtins
import contextlib
import functools
import inspect
import os
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping

import keras
import numpy as np

from kerascohost import backends
from kerascohost.deferred import library
from kerascohost.deferred.effects import (
    ARGUMENT,
    CODE,
    ESTIMATOR,
    FILES,
    ITEM,
    LAYER,
    NOTHING,
    Effects,
    Key,
    UnprovenError,
    Value,
    changes_when_read,
    code_of,
    is_atom,
    is_plain,
    mutable,
    reached,
    union,
)
from kerascohost.tracing.places import UserObject
from kerascohost.tracing.reads import is_of_package

_MOST_PASSES = 12


class _Locals:
    """The names of a scope, as they are at one place of the code.

    Args:
        variables: The module's names, as objects.
        cells: Those of enclosing functions, as objects.
        own: Those set in this scope or, in a lambda, in an enclosing one; `None` in the body.
    """

    def __init__(
        self,
        variables: Mapping[str, UserObject],
        cells: Mapping[str, UserObject],
        own: dict[str, Value] | None,
        names: Iterable[str] = (),
        is_comprehension: bool = False,
    ):
        self.variables, self.cells, self.own, self.names = variables, cells, own, set(names)
        self.is_comprehension = is_comprehension
        self.returned: list[Value] = []


_ARGUMENT = Value(frozenset({ARGUMENT}), frozenset({ARGUMENT}))
_CODE = Value(frozenset({CODE}))
_CONTAINERS = (list, dict, set)
_MAKE = ("__init__", "__new__", "__post_init__")
_UNCHANGING = (str, bytes, int, float, complex, bool, tuple, frozenset)
# What classes have besides data; their functions are followed apart.
_OF_CLASSES = (types.FunctionType, staticmethod, classmethod, property)


class Analysis:
    """The effects of the statements of a loop's body.

    Args:
        loop: The loop.
        variables: The program's names, with their values as the loop begins.
        items: The items that the loop's target is set to.
        header: What the expression that the loop goes over leads to, by `header_objects`.

    Attributes:
        own: The names that iterations set.
        effects: The effects of each statement, by its identity; of a statement with a body, those
            of its first line.
        written: The objects that iterations change for others.
        carried: The names that an iteration takes over from the one before when that trains first.
        trains_items: Whether models are trained that are items.
        read_later: The own names that functions read which may be called at any time.

    Raises:
        UnprovenError: If the effects of the body are not known.
    """

    def __init__(
        self,
        loop: ast.For,
        variables: Mapping[str, UserObject],
        items: Iterable[UserObject],
        header: Iterable[UserObject],
    ):
        self._loop, self._variables = loop, variables
        self._all_items = list(items)
        self._items = [item for item in self._all_items if not is_atom(item)]
        self._objects: dict[Key, UserObject] = {}
        self._read_once: dict[Key, bool] = {}
        self._labels: dict[Key, str] = {}
        self._is_plain: dict[Key, bool] = {
            FILES: True,
            ITEM: all(map(is_plain, self._items)),
            ARGUMENT: True,
            CODE: True,
        }
        self._header = list(header)
        self._user_methods: set[str] = set()
        self._ever: dict[str, Value] = {}
        self._stored_after: set[str] = set()
        self._unassigned: set[str] = set()
        self._functions: list[types.CodeType] = []
        self._item_lines: set[int] = set()
        self._late: dict[Key, int] = {}
        self._held: set[Key] = set()  # what is kept in containers and attributes
        self._code: dict[int, bool] = {}
        self.own = {n for n in stored(loop) if not n.startswith("__kc")}
        self.read_later: set[str] = set()
        self.effects: dict[int, Effects] = {}
        self._now = Effects()
        self._is_late = False
        for _ in range(_MOST_PASSES):
            before = self._state()
            self._pass()
            if self._state() == before:
                break
        else:
            raise UnprovenError("its names are used in too many ways", loop.lineno)
        self.written = self._all_written()
        self.carried = {
            name
            for name in self._unassigned - self._stored_after
            if f"own {name}" not in self.written
        }
        self.trains_items = ITEM in self.written
        self._check()

    def waits(self, effects: Effects) -> bool:
        """Returns whether earlier iterations must have ended before this."""
        touched = (effects.reads | effects.writes) & self.written
        return bool(effects.deletes or effects.unassigned - self.carried or touched - {ITEM})

    def label(self, effects: Effects) -> str:
        """Returns what in a statement has to wait, for messages."""
        touched = sorted(
            self.label_of(key) for key in (effects.reads | effects.writes) & self.written
        )
        names = sorted(f"`{name}`" for name in effects.unassigned - self.carried)
        return next(iter([*touched, *names]), "a name that is deleted")

    def label_of(self, key: Key) -> str:
        """Returns the name of an object for messages."""
        if isinstance(key, str):
            own = key.removeprefix("own ")
            known = {FILES: "a file", ITEM: "an item", CODE: "a function, class or module"}
            return known.get(key, f"`{own}`")
        return f"`{self._labels[key]}`"

    def of(self, node: ast.expr) -> Effects:
        """Returns the effects of an expression of the body."""
        return self._of_expressions[id(node)]

    # Passes

    def _state(self) -> tuple[int, ...]:
        ever = sum(len(value.keys) + 1 for value in self._ever.values())
        names = (self.own, self._user_methods, self._stored_after, self._unassigned)
        others = (self._late, self._held, self.read_later)
        return ever, *map(len, names), *map(len, others)

    def _pass(self) -> None:
        # Followed anew, as what names may be is known better each time.
        self._checked: set[Key] = set()
        self._classes: set[tuple[type, Value]] = set()
        self.effects, self._of_expressions = {}, dict[int, Effects]()
        self._trained = False
        self._env: dict[str, Value] = {}
        self._scope = _Locals(self._variables, {}, None)
        with self._statement(self._loop):
            for each in ast.walk(self._loop.target):
                if isinstance(each, (ast.Attribute, ast.Subscript)):
                    raise UnprovenError(f"`{_text(each)}` is set by it", self._loop.lineno)
            self._store_items(self._loop.target, self._all_items)
            if changes_when_read(self._items):
                raise UnprovenError("an item of what the loop goes over is an iterator")
            if not self._is_plain[ITEM]:
                self._check_reached(self._items, ITEM)
        self.effects.clear()
        self._block(self._loop.body)

    def _store_items(self, target: ast.expr, items: list[UserObject]) -> None:
        """Sets the loop's target to what the items are, each part apart where they are tuples."""
        if isinstance(target, (ast.Tuple, ast.List)):
            lengths = {len(item) if type(item) in (tuple, list) else -1 for item in items}
            if lengths == {len(target.elts)} and not any(
                isinstance(part, ast.Starred) for part in target.elts
            ):
                for i, part in enumerate(target.elts):
                    self._store_items(part, [item[i] for item in items])
                return
        key = frozenset[Key]({ITEM})
        self._store(target, NOTHING if all(map(is_atom, items)) else Value(key, key))

    def _all_written(self) -> set[Key]:
        """Returns all objects that are changed, with those that share something with one."""
        written = {key for effects in self.effects.values() for key in effects.writes}
        objects = {key: [thing] for key, thing in self._objects.items()}
        objects[ITEM] = self._items
        if not written & objects.keys():
            return written
        reached = {key: mutable(things) for key, things in objects.items()}
        header = mutable(self._header)
        while True:
            changed = set().union(*(reached[key] for key in written if key in reached))
            more = {key for key, found in reached.items() if not found.isdisjoint(changed)}
            if more <= written:
                break
            written |= more
        for key in written - {ITEM}:
            if key in reached and not reached[key].isdisjoint(header):
                raise UnprovenError(
                    f"the loop goes over what its body changes: {self.label_of(key)}",
                    self._loop.lineno,
                )
        return written

    def _check(self) -> None:
        """Raises an error if what is changed is also used where iterations cannot wait."""
        for key, line in self._late.items():
            if key in self.written:
                raise UnprovenError(
                    f"{self.label_of(key)} is used by a function that may be called while others "
                    "train",
                    line,
                )
        if not any(each.seeds and not each.after for each in self.effects.values()):
            for each in self.effects.values():
                if each.after and each.draws:
                    raise UnprovenError(
                        "random numbers are drawn after the first training (seed each iteration "
                        "with `keras.utils.set_random_seed`)",
                        each.line,
                    )
        if self.trains_items:
            self._check_items()

    def _check_items(self) -> None:
        """Raises an error if items are more than models, of which each is trained by itself."""
        if self._item_lines or self._is_plain[ITEM]:
            line = min(self._item_lines, default=self._loop.lineno)
            raise UnprovenError("an item of what the loop goes over is changed", line)
        for each in _leaves_of(self._items):
            if not (is_plain(each) or isinstance(each, keras.Model)):
                kind = type(each).__name__
                raise UnprovenError(f"it is not known how to restore an item, a {kind}")
        seen: set[int] = set()
        for item in self._items:
            found = mutable([item])
            if seen & found:
                raise UnprovenError("items of what the loop goes over share objects", 0)
            seen |= found

    # Statements

    @contextlib.contextmanager
    def _statement(self, node: ast.stmt | ast.ExceptHandler) -> Iterator[Effects]:
        """Collects the effects of a statement, or of the first line of one, within the block."""
        outside = self._now
        self._now = now = Effects(line=node.lineno, after=self._trained)
        try:
            yield now
        except UnprovenError as error:
            error.line = error.line or node.lineno
            raise
        finally:
            self._now = outside
        if self._scope.own is None:
            self.effects[id(node)] = now
            self._unassigned |= now.unassigned
            self._trained |= now.trains
        else:
            self._now.add(now)

    def _block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            visit = getattr(self, f"_do_{type(statement).__name__.lower()}", None)
            if visit is None:
                what = type(statement).__name__.removesuffix("Def").lower()
                raise UnprovenError(f"there is a `{what}` in it", statement.lineno)
            visit(statement)

    def _do_pass(self, node: ast.Pass) -> None:
        with self._statement(node):
            pass

    _do_continue = _do_pass

    def _do_break(self, node: ast.Break) -> None:
        self._do_pass(node)  # type: ignore[arg-type]  # both have no parts
        if self._trained and self._scope.own is None and any(b is node for b in breaks(self._loop)):
            raise UnprovenError(
                "a `break` after a `fit` means that later iterations would train for nothing",
                node.lineno,
            )

    def _do_expr(self, node: ast.Expr) -> None:
        with self._statement(node):
            self._value(node.value)

    def _do_assign(self, node: ast.Assign) -> None:
        with self._statement(node):
            value = self._value(node.value)
            for target in node.targets:
                self._store(target, value)

    def _do_annassign(self, node: ast.AnnAssign) -> None:
        with self._statement(node):
            if node.value is not None:
                self._store(node.target, self._value(node.value))

    def _do_augassign(self, node: ast.AugAssign) -> None:
        with self._statement(node):
            target = node.target
            if isinstance(target, ast.Name):
                old = self._value(ast.copy_location(ast.Name(target.id, ast.Load()), target))
                value = self._value(node.value)
                # Lists and arrays are changed in place; of names that are taken over from the
                # iteration before, only values that cannot be changed.
                self._write({k for k in old.be if not str(k).startswith("own ")}, target)
                self._store(target, Value(old.be, old.holds | value.keys))
            else:
                value = self._value(node.value)
                self._write(self._value(target.value).keys, target)
                self._store(target, value)

    def _do_delete(self, node: ast.Delete) -> None:
        with self._statement(node) as now:
            for target in node.targets:
                if isinstance(target, ast.Name):
                    now.deletes |= self._scope.own is None
                    self._env_now().pop(target.id, None)
                else:
                    self._store(target, NOTHING)

    def _do_assert(self, node: ast.Assert) -> None:
        with self._statement(node):
            self._value(node.test)
            if node.msg is not None:
                self._value(node.msg)

    def _do_raise(self, node: ast.Raise) -> None:
        with self._statement(node):
            for part in (node.exc, node.cause):
                if part is not None:
                    self._value(part)

    def _do_return(self, node: ast.Return) -> None:
        with self._statement(node):
            if node.value is not None:
                self._scope.returned.append(self._value(node.value))

    def _do_global(self, node: ast.Global) -> None:
        if self._scope.own is None:
            raise UnprovenError("there is a `global` in it", node.lineno)

    def _do_nonlocal(self, node: ast.Nonlocal) -> None:
        raise UnprovenError(f"`{node.names[0]}` is `nonlocal`", node.lineno)

    def _do_import(self, node: ast.Import | ast.ImportFrom) -> None:
        with self._statement(node):
            raise UnprovenError("there is an `import` in it")

    _do_importfrom = _do_import

    def _do_functiondef(self, node: ast.FunctionDef) -> None:
        with self._statement(node):
            if node.decorator_list:
                raise UnprovenError(f"`{node.name}` is decorated")
            value = self._made(node, node.args, node.body)
            self._set(node.name, value)

    def _do_if(self, node: ast.If) -> None:
        with self._statement(node):
            self._value(node.test)
        self._branches([node.body, node.orelse])

    def _branches(self, bodies: list[list[ast.stmt]]) -> None:
        """Follows bodies of which one is run; names are set if all of them set them."""
        begun, trained = dict(self._env_now()), self._trained
        ends, was_trained = [], False
        for body in bodies:
            self._replace_env(dict(begun))
            self._trained = trained
            self._block(body)
            was_trained |= self._trained
            if not _leaves(body):
                ends.append(dict(self._env_now()))
        self._trained = was_trained
        self._replace_env(_joined(ends) if ends else begun)

    def _do_for(self, node: ast.For) -> None:
        with self._statement(node):
            value = self._value(node.iter)
        for _ in range(_MOST_PASSES):  # what the end of the body leaves, its begin finds
            begun = dict(self._env_now())
            with self._statement_again(node):
                self._store(node.target, self._part(value))
            self._block(node.body)
            self._replace_env(_joined([begun, self._env_now()]))
            if self._env_now() == begun:
                break
        self._branches([node.orelse, []])

    def _do_while(self, node: ast.While) -> None:
        for _ in range(_MOST_PASSES):
            with self._statement_again(node):
                self._value(node.test)
            begun = dict(self._env_now())
            self._block(node.body)
            self._replace_env(_joined([begun, self._env_now()]))
            if self._env_now() == begun:
                break
        self._branches([node.orelse, []])

    @contextlib.contextmanager
    def _statement_again(self, node: ast.For | ast.While) -> Iterator[None]:
        """Collects effects as `_statement`, in addition to those that the node has already."""
        known = self.effects.get(id(node))
        with self._statement(node) as now:
            yield
        if known is not None:
            now.add(known)
            now.after = known.after

    def _do_with(self, node: ast.With) -> None:
        with self._statement(node):
            for item in node.items:
                call = item.context_expr
                if not (isinstance(call, ast.Call) and self._resolve(call.func) == (True, open)):
                    raise UnprovenError(f"it is not known what `with {_text(call)}` changes")
                value = self._value(call)
                if item.optional_vars is not None:
                    self._store(item.optional_vars, value)
        self._block(node.body)

    def _do_try(self, node: ast.Try) -> None:
        begun = dict(self._env_now())
        self._block(node.body)
        # A handler may begin after any statement of the body.
        end, of_body = dict(self._env_now()), self._scope.own is None
        seen = union([*begun.values(), *end.values()]) if not of_body else NOTHING
        changed = stored(ast.Module(node.body, []))
        inside = {
            name: value
            if name not in changed
            else union([value, seen, *([self._ever[name]] if of_body else [])])
            for name, value in begun.items()
        }
        self._block(node.orelse)
        ends = [] if _leaves([*node.body, *node.orelse]) else [dict(self._env_now())]
        for handler in node.handlers:
            self._replace_env(dict(inside))
            with self._statement(handler) as now:
                if handler.type is not None:
                    self._value(handler.type)
                if handler.name is not None:
                    now.deletes = self._scope.own is None  # its name is deleted at its end
                    self._set(handler.name, NOTHING)
            self._block(handler.body)
            if handler.name is not None:
                self._env_now().pop(handler.name, None)
            if not _leaves(handler.body):
                ends.append(dict(self._env_now()))
        self._replace_env(_joined([*ends, inside] if node.finalbody else ends or [inside]))
        self._block(node.finalbody)

    # Names

    def _env_now(self) -> dict[str, Value]:
        return self._env if self._scope.own is None else self._scope.own

    def _replace_env(self, env: dict[str, Value]) -> None:
        if self._scope.own is None:
            self._env = env
        else:
            self._scope.own = env

    def _set(self, name: str, value: Value) -> None:
        if self._scope.own is not None and name in self._scope.names:
            self._scope.own[name] = value
            return
        if self._scope.variables is not self._variables:
            raise UnprovenError(f"`{name}` of another module is set")
        if self._is_late:
            raise UnprovenError(f"`{name}` is set by a function that may be called at any time")
        self.own.add(name)
        if self._scope.own is None:
            self._env[name] = value
        elif name in self._env:  # by a function, which may do so or not
            self._env[name] = union([self._env[name], value])
        self._ever[name] = union([*([self._ever[name]] if name in self._ever else []), value])
        if self._trained or self._now.trains:
            self._stored_after.add(name)

    def _store(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._set(target.id, value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                self._store(part, self._part(value))
        elif isinstance(target, ast.Starred):
            self._store(target.value, value)
        elif isinstance(target, (ast.Attribute, ast.Subscript)):
            found, thing = self._resolve(target.value)
            is_of_module = isinstance(target.value, ast.Attribute)
            is_code = isinstance(thing, (types.ModuleType, type, types.FunctionType))
            calls = isinstance(target.value, ast.Call) and _text(target.value.func) == "type"
            if calls or (found and (is_of_module or is_code)):
                raise UnprovenError(f"`{_text(target)}` is set")
            changed = self._value(target.value)
            if isinstance(target, ast.Subscript):
                self._value(target.slice)
            self._write(changed.be, target)
            self._keep(target.value, value)
        else:
            raise UnprovenError(f"`{_text(target)}` is set")

    def _keep(self, node: ast.expr, value: Value) -> None:
        """Notes that the object in a variable now refers to a value."""
        self._held |= value.keys
        while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
            node = node.func if isinstance(node, ast.Call) else node.value
        if not (isinstance(node, ast.Name) and value.keys):
            return
        own = self._scope.own
        if own is not None and node.id in self._scope.names:
            places = [own]
        else:
            places = [self._env, self._ever] if self._scope.variables is self._variables else []
        for names in places:
            if node.id in names:
                old = names[node.id]
                names[node.id] = old._replace(holds=old.holds | value.keys)

    def _write(self, keys: Iterable[Key], node: ast.AST, trains: bool = False) -> None:
        keys = set(keys)
        if not keys:
            return
        if self._is_late:
            raise UnprovenError(
                f"{self.label_of(min(keys, key=str))} is changed by a function that may be called "
                "while others train"
            )
        if CODE in keys:
            raise UnprovenError(
                "a function, class or module is changed", getattr(node, "lineno", 0)
            )
        if ITEM in keys and not trains:
            self._item_lines.add(getattr(node, "lineno", 0))
        self._now.writes |= keys

    def _look_up(self, name: str, node: ast.AST) -> Value:
        scope = self._scope
        if scope.own is not None and name in scope.own:
            return scope.own[name]
        if scope.own is not None and name in scope.names:
            return NOTHING  # not set yet: an error, or a loop that has set it
        if name in scope.cells:
            return self._of_object(scope.cells[name], name)
        if scope.variables is self._variables and name in self.own:
            return self._of_own(name)
        if name in scope.variables:
            return self._of_object(scope.variables[name], name)
        if hasattr(builtins, name):
            return NOTHING
        raise UnprovenError(f"`{name}` is not defined before the loop", getattr(node, "lineno", 0))

    def _of_own(self, name: str) -> Value:
        """Returns the value of a name that iterations set."""
        if self._is_late:
            self.read_later.add(name)
        elif name in self._env:
            return self._env[name]
        values = [self._ever.get(name, NOTHING)]  # what is set later, or was before
        if name in self._env:
            return union(values)
        if self._is_late:
            raise UnprovenError(
                f"`{name}` may be read before it is set, by a function that may be called at any "
                "time"
            )
        self._now.unassigned.add(name)
        # What the iteration before, or the program, has left.
        key = f"own {name}"
        self._is_plain[key] = is_atom(self._variables.get(name, self))
        values.append(Value(frozenset({key}), frozenset({key})))
        if name in self._variables:
            values.append(self._of_object(self._variables[name], name))
        return union(values)

    def _of_object(self, thing: UserObject, name: str) -> Value:
        """Returns the value of an object that there was before the loop."""
        if is_atom(thing):
            return NOTHING
        if thing is os.environ:
            raise UnprovenError(f"`{name}` is the environment")
        if isinstance(thing, (types.ModuleType, type, types.FunctionType)):
            return self._of_code(thing)
        if isinstance(thing, (types.BuiltinFunctionType, np.ufunc)) and library.is_trusted(thing):
            return NOTHING
        key = id(thing)
        if key not in self._objects:
            self._check_kinds(thing, name)
            self._objects[key], self._labels[key] = thing, name
            self._is_plain[key] = is_plain(thing)
            self._read_once[key] = changes_when_read(thing)
        if self._read_once[key]:
            self._write({key}, self._loop)
        if not self._is_plain[key] or not library.is_trusted(type(thing)):
            self._check_reached([thing], key)
        self._now.reads.add(key)
        if self._is_late:
            self._late.setdefault(key, self._now.line)
        return Value(frozenset({key}), frozenset({key}))

    def _of_code(self, thing: types.ModuleType | type | types.FunctionType) -> Value:
        """Returns the value of a module, class or function that there was before the loop."""
        if not isinstance(thing, types.ModuleType):
            if library.is_trusted(thing):
                return NOTHING
            if isinstance(thing, type):
                self._class(thing)
            else:
                self._function_value(thing)
        return _CODE

    def _check_kinds(self, thing: UserObject, name: str) -> None:
        """Raises an error for objects of unknown packages: they may need their thread."""
        waiting, seen = [thing], set()
        while waiting:
            each = waiting.pop()
            kind = type(each)
            if id(each) in seen or is_atom(each) or isinstance(each, (type, types.ModuleType)):
                continue
            seen.add(id(each))
            if kind is inspect.Signature:  # models of the program's classes have one
                continue
            if self._is_library(kind) and not library.is_trusted(kind):
                raise UnprovenError(f"it is not known what `{name}`, a {kind.__name__}, does")
            if isinstance(each, dict):
                waiting += each.values()
            elif isinstance(each, (list, tuple, set)):
                waiting += each
            elif not self._is_library(kind):
                waiting += getattr(each, "__dict__", {}).values()

    def _check_reached(self, things: list[UserObject], key: Key) -> None:
        """Follows the user's functions and classes that objects lead to."""
        if key in self._checked:
            return
        self._checked.add(key)
        for each in reached(things):
            if isinstance(each, types.FunctionType):
                if not self._is_library(each):
                    self._function_value(each)
            elif not self._is_library(type(each)):
                self._class(type(each), Value(frozenset({key}), frozenset({key})))

    def _is_library(self, thing: UserObject) -> bool:
        """Returns whether a class or function is of an installed package."""
        name = getattr(thing, "__module__", None)
        return name != self._variables.get("__name__") and (
            library.is_trusted(thing) or is_of_package(thing)
        )

    # Functions

    @contextlib.contextmanager
    def _later(self) -> Iterator[None]:
        """Follows code, within the block, that may be called at any time from here on."""
        outside, self._is_late = self._is_late, True
        try:
            yield
        finally:
            self._is_late = outside

    def _made(self, node: ast.AST, given: ast.arguments, body: list[ast.stmt]) -> Value:
        """Returns the value of a function that the code makes: it may be called at any time."""
        for default in [*given.defaults, *given.kw_defaults]:
            if default is not None and self._value(default).keys:
                raise UnprovenError(f"a default of `{_text(node)}` is not a plain value")
        outer = self._scope
        names = {a.arg for a in _arguments(given)} | stored(ast.Module(body, []))
        own: dict[str, Value] = {} if outer.own is None else dict(outer.own)
        argument = Value(frozenset({ARGUMENT}), frozenset({ARGUMENT}))
        own |= {a.arg: argument for a in _arguments(given)}
        inner = _Locals(outer.variables, outer.cells, own, names | outer.names)
        effects = self._run(inner, body)
        self._hand_back(inner)
        self._code[id(node)] = effects.trains
        seen = effects.reads | union(inner.returned).keys
        return Value(frozenset(), frozenset(seen - {ARGUMENT}), frozenset({id(node)}))

    def _hand_back(self, inner: _Locals) -> None:
        """Takes over what an inner scope has noted of this scope's objects."""
        own = self._scope.own
        if own is not None and inner.own is not None:
            for name in own.keys() & inner.own.keys():
                if inner.own[name].keys >= own[name].keys:
                    own[name] = own[name]._replace(holds=own[name].holds | inner.own[name].holds)

    def _run(self, scope: _Locals, body: list[ast.stmt], later: bool = True) -> Effects:
        """Follows the body of a function; returns its effects, which are noted, too."""
        outside = self._scope
        outer, self._now = self._now, Effects(line=self._now.line)
        try:
            self._scope = scope
            with self._later() if later else contextlib.nullcontext():
                # The second time finds what the first has noted of containers.
                for _ in range(2):
                    self._block(body)
        finally:
            self._scope = outside
            inner, self._now = self._now, outer
        if later:
            outer.reads |= inner.reads
            outer.unassigned |= inner.unassigned
        else:
            outer.add(inner)
        return inner

    def _function_value(self, function: types.FunctionType) -> None:
        """Follows a function that is passed on, so that it may be called at any time."""
        names = inspect.signature(function).parameters
        argument = Value(frozenset({ARGUMENT}), frozenset({ARGUMENT}))
        with self._later():
            self._called(function, dict.fromkeys(names, argument))

    def _class(self, kind: type, self_value: Value = NOTHING) -> None:
        """Follows all methods of a class: Keras may call them at any time."""
        if (kind, self_value) in self._classes:
            return
        self._classes.add((kind, self_value))
        for base in kind.__mro__:
            if base.__name__ in library.WRITES_FILES:
                raise UnprovenError(f"`{kind.__name__}` writes files while others train")
            if self._is_library(base):
                continue
            if type(base) is not type and not self._is_library(type(base)):
                raise UnprovenError(f"`{base.__name__}` has a metaclass")
            shared = [
                self._of_object(member, f"{base.__name__}.{name}").keys
                for name, member in vars(base).items()
                if not (name.startswith("__") or isinstance(member, _OF_CLASSES))
            ]
            held = self_value.holds.union(*shared)
            self_value = self_value._replace(holds=held)
            for name, member in vars(base).items():
                accessors = [getattr(member, part, None) for part in ("fget", "fset", "fdel")]
                for each in [member, getattr(member, "__func__", None), *accessors]:
                    if isinstance(each, types.FunctionType) and not library.is_trusted(each):
                        self._user_methods.add(name)
                        parameters = list(inspect.signature(each).parameters)
                        given = dict.fromkeys(parameters, NOTHING)
                        is_of_class = isinstance(member, classmethod)
                        owner = _ARGUMENT if is_of_class else self_value
                        if name in _MAKE:  # of a new object, with what it is made of
                            owner = Value(frozenset(), self_value.holds - self_value.be)
                            given = dict.fromkeys(parameters, owner.part)
                        given |= dict.fromkeys(parameters[:1], owner)
                        with self._later():
                            self._called(each, given)

    def _called(self, function: types.FunctionType, given: dict[str, Value]) -> Value:
        """Follows a call of a function of the program; returns what it returns."""
        code = function.__code__
        if code in self._functions:
            raise UnprovenError(f"`{function.__name__}` calls itself")
        if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE):
            raise UnprovenError(f"`{function.__name__}` is a generator function")
        node = _source(function)
        cells = {
            name: cell.cell_contents
            for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
            if cell != types.CellType()
        }
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        default = union(
            self._of_object(each, f"a default of {function.__name__}")
            for each in defaults
            if not is_atom(each)
        )
        body: list[ast.stmt] = []
        if isinstance(node, ast.Lambda):
            body.append(ast.copy_location(ast.Return(node.body), node))
        else:
            body += node.body
        module = ast.Module(body, [])
        globals_ = {
            name for each in ast.walk(module) if isinstance(each, ast.Global) for name in each.names
        }
        arguments = {a.arg for a in _arguments(node.args)}
        names = arguments | stored(module) - globals_
        variables = function.__globals__
        if variables is not self._variables and globals_:
            raise UnprovenError(f"`{function.__name__}` sets names of its module")
        own = {name: union([given.get(name, NOTHING), default]) for name in arguments}
        scope = _Locals(variables, cells, own, names)
        self._functions.append(code)
        line = self._now.line
        try:
            self._run(scope, body, later=self._is_late)
        except UnprovenError as error:
            if not error.args or "(in `" not in error.why:
                error.why = f"{error.why} (in `{function.__name__}`)"
            error.line = line
            raise
        finally:
            self._functions.pop()
        return union(scope.returned)

    # Expressions

    def _value(self, node: ast.expr) -> Value:
        visit = getattr(self, f"_of_{type(node).__name__.lower()}", None)
        if visit is None:
            raise UnprovenError(f"it is not known what `{_text(node)}` does", node.lineno)
        outside, self._now = self._now, Effects(line=self._now.line, after=self._now.after)
        try:
            value: Value = visit(node)
        finally:
            inner, self._now = self._now, outside
            self._now.add(inner)
        if self._scope.own is None:
            known = self._of_expressions.get(id(node))
            if known is not None:
                inner.add(known)
            self._of_expressions[id(node)] = inner
        return value

    def _of_constant(self, node: ast.Constant) -> Value:
        return NOTHING

    def _of_name(self, node: ast.Name) -> Value:
        return self._look_up(node.id, node)

    def _of_joinedstr(self, node: ast.JoinedStr) -> Value:
        for part in node.values:
            self._value(part)
        return NOTHING

    def _of_formattedvalue(self, node: ast.FormattedValue) -> Value:
        self._value(node.value)
        if node.format_spec is not None:
            self._value(node.format_spec)
        return NOTHING

    def _of_binop(self, node: ast.BinOp) -> Value:
        return union([self._value(node.left), self._value(node.right)]).container

    def _of_boolop(self, node: ast.BoolOp) -> Value:
        return union([self._value(each) for each in node.values])

    def _of_unaryop(self, node: ast.UnaryOp) -> Value:
        return self._value(node.operand).container

    def _of_compare(self, node: ast.Compare) -> Value:
        for each in (node.left, *node.comparators):
            self._value(each)
        return NOTHING

    def _of_ifexp(self, node: ast.IfExp) -> Value:
        self._value(node.test)
        return union([self._value(node.body), self._value(node.orelse)])

    def _of_tuple(self, node: ast.Tuple | ast.List | ast.Set) -> Value:
        return union([self._value(each) for each in node.elts]).container

    _of_list = _of_set = _of_tuple

    def _of_dict(self, node: ast.Dict) -> Value:
        parts = [*(key for key in node.keys if key is not None), *node.values]
        return union([self._value(each) for each in parts]).container

    def _of_starred(self, node: ast.Starred) -> Value:
        return self._value(node.value)

    def _of_slice(self, node: ast.Slice) -> Value:
        for part in (node.lower, node.upper, node.step):
            if part is not None:
                self._value(part)
        return NOTHING

    def _of_subscript(self, node: ast.Subscript) -> Value:
        value = self._value(node.value)
        self._value(node.slice)
        return self._part(value)

    def _of_attribute(self, node: ast.Attribute) -> Value:
        if node.attr.startswith("__") and node.attr not in ("__name__", "__version__"):
            raise UnprovenError(f"`{_text(node)}` is read", node.lineno)
        found, thing = self._resolve(node)
        if found:
            is_value = not isinstance(thing, (*_CONTAINERS, keras.Layer, np.ndarray))
            if self._package_of(node) in library.TRUSTED and is_value:
                return NOTHING
            return self._of_object(thing, _text(node))
        found, thing = self._resolve(node.value)
        if found and isinstance(thing, (types.FunctionType, type)) and node.attr != "__name__":
            raise UnprovenError(f"`{_text(node)}` is read", node.lineno)
        if node.attr in library.CHANGES:
            raise UnprovenError(f"`{_text(node)}` may be called at any time", node.lineno)
        return self._part(self._value(node.value))

    def _part(self, value: Value) -> Value:
        """Returns the value of a part of an object, which may have been kept there."""
        keys = value.keys | self._held
        return Value(keys, keys)

    def _of_namedexpr(self, node: ast.NamedExpr) -> Value:
        if self._scope.is_comprehension:
            raise UnprovenError("there is a `:=` in a comprehension", node.lineno)
        value = self._value(node.value)
        self._store(node.target, value)
        return value

    def _of_lambda(self, node: ast.Lambda) -> Value:
        return self._made(node, node.args, [ast.copy_location(ast.Return(node.body), node)])

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
    ) -> Value:
        outer = self._scope
        names = {n for each in node.generators for n in stored(each.target)}
        own: dict[str, Value] = {} if outer.own is None else dict(outer.own)
        inner = _Locals(outer.variables, outer.cells, own, names | outer.names, True)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        try:
            for each in node.generators:
                value = self._value(each.iter)
                self._scope = inner
                self._store(each.target, self._part(value))
                for test in each.ifs:
                    self._value(test)
            self._scope = inner
            return union([self._value(part) for part in parts]).container
        finally:
            self._scope = outer
            self._hand_back(inner)

    def _of_listcomp(self, node: ast.ListComp | ast.SetComp | ast.DictComp) -> Value:
        return self._comprehension(node)

    _of_setcomp = _of_dictcomp = _of_listcomp

    def _of_generatorexp(self, node: ast.GeneratorExp) -> Value:
        with self._later():  # it may be read at any time
            return self._comprehension(node)

    def _resolve(self, node: ast.expr) -> tuple[bool, UserObject]:
        """Returns the object that a chain of names leads to through modules and classes."""
        if isinstance(node, ast.Name):
            name, scope = node.id, self._scope
            if scope.own is not None and name in scope.names | scope.own.keys():
                return False, None
            if name in scope.cells:
                return True, scope.cells[name]
            if scope.variables is self._variables and name in self.own:
                return False, None
            if name in scope.variables:
                return True, scope.variables[name]
            return hasattr(builtins, name), getattr(builtins, name, None)
        if isinstance(node, ast.Attribute):
            found, thing = self._resolve(node.value)
            if found and isinstance(thing, (types.ModuleType, type)) and hasattr(thing, node.attr):
                if isinstance(thing, types.ModuleType) and not library.is_trusted(thing):
                    self._now.reads.add(id(thing))
                return True, getattr(thing, node.attr)
        return False, None

    # Calls

    def _of_call(self, node: ast.Call) -> Value:
        function = node.func
        found, thing = self._resolve(function)
        is_method = not found and isinstance(function, ast.Attribute)
        receiver = NOTHING
        if isinstance(function, ast.Attribute) and is_method:
            receiver = self._value(function.value)
        args = [self._value(each) for each in node.args]
        keywords = {each.arg: self._value(each.value) for each in node.keywords}
        if found and self._is_function(thing, function):
            return self._call(thing, node, args, keywords)
        if is_method:
            return self._method(receiver, node, args, keywords)
        value = self._value(function)
        if value.code:
            self._now.trains |= any(self._code[each] for each in value.code if each in self._code)
            if not value.code <= self._code.keys():
                others = union([*args, *keywords.values(), value]).keys
                self._write({key for key in others if not self._is_plain[key]}, node)
            return union([*args, *keywords.values(), value]).part
        if found and library.is_trusted(type(thing)) and value.keys and not library.bound_to(thing):
            given = union([*args, *keywords.values()])
            is_of_keras = library.package(type(thing)) == "keras"  # such as a layer
            written = {k for k in given.keys if not (is_of_keras and self._is_plain[k])}
            self._write(value.keys | written, node)
            return union([given, value]).part
        raise UnprovenError(f"it is not known what `{_text(function)}` calls", node.lineno)

    def _is_function(self, thing: UserObject, node: ast.expr) -> bool:
        """Returns whether an object is a function or a class, and none that has a state."""
        if isinstance(thing, (types.FunctionType, type, np.ufunc)):
            return True
        if isinstance(thing, functools.partial) or library.bound_to(thing):
            return False
        # Of a package, such as a compiled function of JAX's.
        is_of_package = (
            isinstance(node, ast.Attribute) and self._package_of(node) in library.TRUSTED
        )
        return is_of_package or isinstance(thing, (types.BuiltinFunctionType, types.MethodType))

    def _call(
        self,
        thing: UserObject,
        node: ast.Call,
        args: list[Value],
        keywords: Mapping[str | None, Value],
    ) -> Value:
        """Returns the value of a call of an object that is known."""
        given = union([*args, *keywords.values()])
        if isinstance(thing, types.FunctionType) and not library.is_trusted(thing):
            return self._called(thing, _bound(thing, node, args, keywords))
        if isinstance(thing, type) and not library.is_trusted(thing):
            self._class(thing, given.container)
            return given.container._replace(code=code_of(thing))
        text = _text(node.func)
        name = getattr(thing, "__name__", text.rpartition(".")[2])
        called = {name, text.rpartition(".")[2]}
        package = library.package(thing) or self._package_of(node.func)
        self._check_function(thing, called, package, node)
        if library.uses_files(called, package):
            self._files()
        self._check_keywords(node, keywords)
        if name == "print" and "file" in keywords:
            self._files()
            self._write(keywords["file"].keys, node)
        if called & library.CHANGES_FIRST and args:
            self._write(args[0].keys, node)
        self._write_outputs(thing, called, package, node, args)
        calls_back = any(each.arg == "key" for each in node.keywords)
        if calls_back or not called & library.PURE_FUNCTIONS:
            self._write({key for key in given.keys if not self._is_plain[key]}, node)
        self._now.trains |= bool(called & (library.TRAINS | library.MAY_TRAIN))
        self._now.seeds |= name == "set_random_seed"
        is_random = package == "random" or ".random." in f".{text}" or "train_test_split" in called
        self._now.draws |= is_random or LAYER in code_of(thing)
        return self._returned(thing, called, package, given)

    def _write_outputs(
        self,
        thing: UserObject,
        called: set[str],
        package: str,
        node: ast.Call,
        args: list[Value],
    ) -> None:
        """Notes what a function of NumPy changes that is given as `out`, perhaps by position."""
        inputs = len(args)
        if isinstance(thing, np.ufunc):
            inputs = thing.nin
        elif package == "numpy" and called & library.MAY_HAVE_OUT:
            inputs = 2
        is_open = any(isinstance(each, ast.Starred) for each in node.args)
        is_open = is_open or any(each.arg is None for each in node.keywords)
        if is_open and package in ("numpy", "pandas", "scipy", "sklearn"):
            inputs = 0
        self._write(union(args[inputs:]).be, node)

    def _returned(self, thing: UserObject, called: set[str], package: str, given: Value) -> Value:
        """Returns the value of what a package's function returns for what it is given."""
        if called & library.SCALARS and package == "builtins":
            return NOTHING
        if "super" in called:
            return self._part(union((self._scope.own or {}).values()))
        if called & library.DESERIALIZES:
            for each in keras.saving.get_custom_objects().values():
                self._of_object(each, "a registered class")
        if called & {"deepcopy", "clone", "clone_model"}:
            return Value(code=code_of(keras.Model) if "clone_model" in called else frozenset())
        if isinstance(thing, type) and package in library.KEEPS_WHOLE:
            return given.container._replace(code=code_of(thing))
        return self._part(given)

    def _check_function(
        self, thing: UserObject, called: set[str], package: str, node: ast.Call
    ) -> None:
        """Raises an error if it is not known what a function changes, or if it is too much."""
        self._check_chain(node)
        text = _text(node.func)
        if package not in library.TRUSTED or not callable(thing):
            raise UnprovenError(f"it is not known what `{text}` changes", node.lineno)
        if called & library.WRITES_FILES:
            raise UnprovenError(f"`{text}` writes files while others train", node.lineno)
        is_method = isinstance(thing, (types.MethodDescriptorType, types.WrapperDescriptorType))
        if is_method and thing.__objclass__ not in _UNCHANGING:
            raise UnprovenError(f"it is not known what `{text}` changes", node.lineno)
        if package in library.UNPICKLES and called & {"load", "loads"}:
            raise UnprovenError(f"it is not known what `{text}` makes", node.lineno)
        if package == "tensorflow" and "print" in called:
            raise UnprovenError(f"`{text}` prints at once", node.lineno)
        is_setter = any(each.startswith(library.SETTERS) for each in called)
        changes = called & library.REFUSED or thing is compile or package == "functools"
        if (changes or is_setter) and "set_random_seed" not in called:
            raise UnprovenError(f"`{text}` changes what all iterations use", node.lineno)

    def _check_chain(self, node: ast.Call) -> None:
        """Raises an error for functions that configure a package."""
        names = {each.attr for each in ast.walk(node.func) if isinstance(each, ast.Attribute)}
        if names & library.CONFIGURES and not names & library.ONLY_READ:
            raise UnprovenError(
                f"`{_text(node.func)}` changes what all iterations use", node.lineno
            )

    def _package_of(self, node: ast.expr) -> str:
        """Returns the package of the module that a chain of names begins with."""
        while isinstance(node, ast.Attribute):
            node = node.value
        found, thing = self._resolve(node)
        return library.package(thing) if found else ""

    def _files(self) -> None:
        self._now.reads.add(FILES)
        self._write({FILES}, self._loop)

    def _check_keywords(self, node: ast.Call, keywords: Mapping[str | None, Value]) -> None:
        for each in node.keywords:
            if each.arg == "out":
                self._write(self._value(each.value).keys, node)
            is_off = isinstance(each.value, ast.Constant) and each.value.value is False
            if each.arg == "copy" and is_off:
                raise UnprovenError("`copy=False` may change what is given", node.lineno)
            if each.arg is None and keywords[None].keys - {
                key for key in keywords[None].keys if self._is_plain[key]
            }:
                raise UnprovenError("it is not known what `**` gives", node.lineno)

    def _check_method(self, function: ast.Attribute, node: ast.Call) -> None:
        """Raises an error if a method may change what cannot be seen."""
        owner, name = function.value, function.attr
        if self._package_of(owner):
            self._check_chain(node)
        is_of_module = isinstance(owner, ast.Attribute) and self._resolve(owner)[0]
        if is_of_module and name not in library.PURE:
            raise UnprovenError(f"`{_text(function)}` may change what all use", node.lineno)
        if name in library.REFUSED or name.startswith(library.SETTERS[1:]):
            raise UnprovenError(f"`{_text(function)}` may change anything", node.lineno)

    def _method(
        self,
        receiver: Value,
        node: ast.Call,
        args: list[Value],
        keywords: Mapping[str | None, Value],
    ) -> Value:
        """Returns the value of a call of a method."""
        assert isinstance(node.func, ast.Attribute)
        name, given = node.func.attr, union([*args, *keywords.values()])
        # Of scikit-learn's own, only those that are given models train any.
        is_estimator = receiver.code == {ESTIMATOR} and not receiver.keys
        trains = name in library.TRAINS and not is_estimator
        self._check_method(node.func, node)
        if name in library.FILES:
            self._files()
        self._now.trains |= trains or (name in library.MAY_TRAIN and not is_estimator)
        self._now.draws |= trains and name == "fit" and _may_shuffle(node)
        self._check_keywords(node, keywords)
        self._change(name, receiver, args, keywords, node, trains)
        plain = {key for key in given.keys if self._is_plain[key]}
        kept = given.keys if name in library.KEEPS else given.keys - plain
        self._keep(node.func.value, Value(frozenset(), frozenset(kept)))
        if name in library.FRESH:
            return NOTHING
        if is_estimator and name == "fit":
            return receiver
        if trains:
            return Value(receiver.be, frozenset(k for k in receiver.holds if not self._is_plain[k]))
        if name == "copy":
            return receiver.container if not _is_frame_like(receiver, self._objects) else NOTHING
        return self._part(union([receiver, given]))

    def _change(
        self,
        name: str,
        receiver: Value,
        args: list[Value],
        keywords: Mapping[str | None, Value],
        node: ast.Call,
        trains: bool,
    ) -> None:
        """Notes what a method changes."""
        given = union([*args, *keywords.values()])
        if any(each.arg in ("inplace", None) for each in node.keywords) and not trains:
            self._write(receiver.be, node)
        if name.startswith("__") and name != "__init__":
            self._write(receiver.keys, node)
        if name in library.MAY_HAVE_OUT:
            stars = any(isinstance(each, ast.Starred) for each in node.args)
            self._write(union(args if stars else args[1:]).be, node)
        if name == "shuffle":
            self._write(given.keys, node)
        if trains and self._is_late and ARGUMENT in receiver.be:
            raise UnprovenError("a function that may be called at any time trains")
        if name == "__init__" and _text(node.func).startswith("super()"):
            own = union((self._scope.own or {}).values())  # followed in each class by itself
            self._write(given.keys - own.keys, node)
            return
        if name in self._user_methods:
            self._write(receiver.keys | given.keys, node, trains)
        if name not in library.PURE:
            changed = {k for k in receiver.be if name in library.CHANGES or not self._is_plain[k]}
            others = receiver.holds | given.keys
            self._write(changed | {k for k in others if not self._is_plain[k]}, node, trains)


def _may_shuffle(node: ast.Call) -> bool:
    """Returns whether a `fit` may draw the order of its rows from a global random state."""
    is_off = any(
        each.arg == "shuffle" and isinstance(each.value, ast.Constant) and not each.value.value
        for each in node.keywords
    )
    return backends.get_backend().SHUFFLES_BY_GLOBAL_STATE and not is_off


def _is_frame_like(value: Value, objects: Mapping[Key, UserObject]) -> bool:
    """Returns whether `copy` of this copies its data, too."""
    kinds = [type(objects[key]) for key in value.keys if key in objects]
    return (
        bool(kinds) and all(kind is np.ndarray for kind in kinds) and len(kinds) == len(value.keys)
    )


def _leaves_of(thing: UserObject, depth: int = 4) -> Iterator[UserObject]:
    """Yields the objects in containers, which are not followed deeper than `depth`."""
    if isinstance(thing, (list, tuple)) and depth:
        for each in thing:
            yield from _leaves_of(each, depth - 1)
    elif type(thing) is dict and depth:
        for each in thing.values():
            yield from _leaves_of(each, depth - 1)
    else:
        yield thing


def breaks(node: ast.stmt | ast.ExceptHandler) -> Iterator[ast.Break]:
    """Yields the `break` statements that leave this loop."""
    for field in ("body", "orelse", "finalbody", "handlers"):
        for each in getattr(node, field, []):
            if isinstance(each, ast.Break):
                yield each
            elif isinstance(each, (ast.For, ast.While)):
                yield from breaks(ast.If(ast.Constant(0), each.orelse, []))
            elif not isinstance(each, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                yield from breaks(each)


def stored(node: ast.AST) -> set[str]:
    """Returns the names that code sets or deletes, without those inside of functions."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Load):
            found.add(each.id)
        elif isinstance(each, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            found.add(each.name)
            continue
        elif isinstance(each, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp)):
            found |= {n.target.id for n in ast.walk(each) if isinstance(n, ast.NamedExpr)}
            continue
        elif isinstance(each, ast.GeneratorExp):
            continue
        elif isinstance(each, ast.ExceptHandler) and each.name:
            found.add(each.name)
        elif isinstance(each, ast.alias):
            found.add(each.asname or each.name.partition(".")[0])
        waiting += ast.iter_child_nodes(each)
    return found


def _arguments(given: ast.arguments) -> list[ast.arg]:
    stars = [each for each in (given.vararg, given.kwarg) if each is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *stars]


def _bound(
    function: types.FunctionType,
    node: ast.Call,
    args: list[Value],
    keywords: Mapping[str | None, Value],
) -> dict[str, Value]:
    """Returns the values of a function's parameters; where stars are given, all of all."""
    signature = inspect.signature(function)
    stars = any(isinstance(each, ast.Starred) for each in node.args) or None in keywords
    if not stars:
        with contextlib.suppress(TypeError):
            bound = signature.bind(*args, **{str(k): v for k, v in keywords.items()})
            return {name: _flat(value) for name, value in bound.arguments.items()}
    return dict.fromkeys(signature.parameters, union([*args, *keywords.values()]).part)


def _flat(value: Value | tuple[Value, ...] | dict[str, Value]) -> Value:
    """Returns one value for that of a parameter, which may be `*args` or `**kwargs`."""
    if isinstance(value, Value):
        return value
    return union(value.values() if isinstance(value, dict) else value).container


def _joined(ends: list[dict[str, Value]]) -> dict[str, Value]:
    """Returns the names that are set at all ends, with what they may be."""
    if not ends:
        return {}
    names = set(ends[0]).intersection(*ends[1:])
    return {name: union([end[name] for end in ends]) for name in names}


def _leaves(body: list[ast.stmt]) -> bool:
    """Returns whether what follows a body is not run after it."""
    return bool(body) and isinstance(body[-1], (ast.Continue, ast.Break, ast.Raise, ast.Return))


def _source(function: types.FunctionType) -> ast.FunctionDef | ast.Lambda:
    """Returns the source of a function of the program."""
    code, name = function.__code__, function.__name__
    try:
        text = textwrap.dedent(inspect.getsource(code))
        tree = _parsed(text)
    except (OSError, SyntaxError, TypeError):
        raise UnprovenError(f"there is no source of `{name}`") from None
    parameters = code.co_varnames[: code.co_argcount]
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.Lambda))]
    found = [
        node
        for node in functions
        if getattr(node, "name", "<lambda>") == code.co_name
        and tuple(a.arg for a in [*node.args.posonlyargs, *node.args.args]) == parameters
    ]
    if len(found) != 1:
        raise UnprovenError(f"there is no source of `{name}`")
    known = {n.id for n in ast.walk(found[0]) if isinstance(n, ast.Name)}
    known |= {n.attr for n in ast.walk(found[0]) if isinstance(n, ast.Attribute)}
    if not known.issuperset(n for n in code.co_names if not n.startswith("__")) and not any(
        isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(found[0])
    ):
        raise UnprovenError(f"the source of `{name}` has changed")
    return found[0]


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> ast.Module:
    """Returns the tree of a function's source, which may be a part of a larger statement."""
    try:
        return ast.parse(text)
    except SyntaxError:  # a line that a lambda stands in, such as an argument
        for end in range(len(text), 0, -1):
            begin = text.find("lambda")
            with contextlib.suppress(SyntaxError):
                return ast.parse(f"({text[begin:end]})")
        raise


def _text(node: ast.AST) -> str:
    text = ast.unparse(node).partition("\n")[0]
    return text if len(text) <= 40 else f"{text[:37]}..."
