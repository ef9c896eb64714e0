"""What one thread replaces, no other thread sees."""

import threading
import types

import keras
import pytest

from kerascohost.backends import observed
from kerascohost.patching import patched


class Base:
    def inherited(self):
        return "inherited"


class Owner(Base):
    table: dict = {"a": 1}  # noqa: RUF012  # an attribute like any other
    number = 1

    def __init__(self):
        self.held = 0

    def method(self, more=""):
        return f"method{more}"

    @property
    def held_twice(self):
        return 2 * self.held

    @held_twice.setter
    def held_twice(self, value):
        self.held = value / 2

    @classmethod
    def made(cls):
        return cls.__name__

    @staticmethod
    def alone():
        return "alone"

    def __call__(self):
        return "called"


class Child(Owner):
    def method(self, more=""):
        return super().method("!")


def elsewhere(function):
    """What another thread gets."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def always(value):
    return lambda usual: value


CLASS_CASES = {
    "method": (lambda usual: lambda self, more="": "new", lambda: Owner().method(), "new"),
    "inherited": (lambda usual: lambda self: "new", lambda: Owner().inherited(), "new"),
    "held_twice": (
        always(property(lambda self: 7, lambda s, v: None)),
        lambda: Owner().held_twice,
        7,
    ),
    "made": (
        always(classmethod(lambda cls: f"new {cls.__name__}")),
        lambda: Child.made(),
        "new Child",
    ),
    "alone": (always(staticmethod(lambda: "new")), lambda: Owner.alone(), "new"),
    "number": (always(5), lambda: Owner().number, 5),
    "__call__": (lambda usual: lambda self: usual(self) + "!", lambda: Owner()(), "called!"),
}


@pytest.mark.parametrize("name", CLASS_CASES)
def test_of_a_class_only_the_calling_thread_sees_a_replacement(name):
    replace, look, new = CLASS_CASES[name]
    before, own = look(), dict(vars(Owner))
    with patched(Owner, name, replace):
        assert look() == new
        assert elsewhere(look) == before
    assert look() == before
    assert dict(vars(Owner)) == own


def test_a_subclass_that_calls_super_gets_its_own_thread_s():
    with patched(Owner, "method", lambda usual: lambda self, more: usual(self, more) + "?"):
        assert Child().method() == "method!?"
        assert elsewhere(lambda: Child().method()) == "method!"


def test_a_property_of_another_thread_can_be_set():
    owner = Owner()
    with patched(Owner, "held_twice", always(property(lambda self: 7))):
        elsewhere(lambda: setattr(owner, "held_twice", 8))
        with pytest.raises(AttributeError):
            owner.held_twice = 9
        assert owner.held_twice == 7
    assert owner.held == 4


def test_identity_is_the_usual_one_in_other_threads():
    """Keras asks `type(model).compile is Trainer.compile`."""
    usual = keras.Model.compile
    with patched(keras.Model, "compile", lambda usual: lambda self: None):
        assert elsewhere(lambda: keras.Model.compile is usual)
        assert elsewhere(lambda: keras.Sequential.compile is usual)
    assert keras.Model.compile is usual


def test_of_a_module_and_of_an_object_only_the_calling_thread_sees_a_replacement():
    module, owner = types.ModuleType("module"), Owner()
    module.function = function = lambda: "usual"
    owner.own = own = lambda: "usual"
    for holder, name in ((module, "function"), (owner, "own"), (owner, "method")):
        usual = getattr(holder, name)()
        with patched(holder, name, lambda usual: lambda: f"new {usual()}"):
            assert getattr(holder, name)() == f"new {usual}"
            assert elsewhere(getattr(holder, name)) == usual
    assert (module.function, owner.own) == (function, own)
    assert "method" not in vars(owner)


def test_of_a_table_only_the_calling_thread_sees_new_entries():
    module = types.ModuleType("module")
    module.table = table = {"a": 1, "b": 2}
    with patched(module, "table", lambda usual: {**usual, "b": 3, "c": 4}):
        assert (dict(module.table), len(module.table)) == ({"a": 1, "b": 3, "c": 4}, 3)
        assert elsewhere(lambda: dict(module.table)) == {"a": 1, "b": 2}
        assert elsewhere(lambda: ("c" in module.table, module.table.get("c"))) == (False, None)
        assert elsewhere(lambda: list(module.table.values())) == [1, 2]
        assert isinstance(module.table, dict)
        elsewhere(lambda: module.table.update(d=5))
        assert "d" not in module.table
        assert module.table | {"e": 6} == {"a": 1, "b": 3, "c": 4, "e": 6}
        module.table |= {"f": 7}
        assert (module.table["f"], elsewhere(lambda: "f" in module.table)) == (7, False)
    assert module.table is table
    assert table == {"a": 1, "b": 2, "d": 5}


@pytest.mark.parametrize("holder", ["class", "module"])
def test_nested_and_in_two_threads_at_once(holder):
    """Each adds to what its own thread finds; the last one to leave puts back what was there."""
    owner = types.ModuleType("module") if holder == "module" else type("Some", (), {})
    owner.function = function = lambda: "usual"
    entered, may_leave = threading.Event(), threading.Event()
    seen = []

    def other():
        with patched(owner, "function", lambda usual: lambda: usual() + " other"):
            entered.set()
            may_leave.wait(10)
            seen.append(owner.function())

    thread = threading.Thread(target=other)
    with patched(owner, "function", lambda usual: lambda: usual() + " a"):
        thread.start()
        entered.wait(10)
        with patched(owner, "function", lambda usual: lambda: usual() + " b"):
            assert owner.function() == "usual a b"
        assert owner.function() == "usual a"
    assert owner.function() == "usual"
    assert vars(owner)["function"] is not function  # the other thread still needs it
    may_leave.set()
    thread.join()
    assert seen == ["usual other"]
    assert owner.function is function


def test_an_exception_leaves_everything_as_it_was():
    own = dict(vars(Owner))
    with pytest.raises(KeyError), patched(Owner, "method", always(None)):
        raise KeyError
    with pytest.raises(ZeroDivisionError), patched(Owner, "method", lambda usual: 1 / 0):
        pass
    assert dict(vars(Owner)) == own


def test_what_others_put_there_meanwhile_stays():
    module = types.ModuleType("module")
    module.function = lambda: "usual"
    with patched(module, "function", always(lambda: "new")):
        module.function = theirs = lambda: "theirs"
        with patched(module, "function", lambda usual: lambda: usual() + " and ours"):
            assert module.function() == "theirs and ours"
        assert module.function is theirs
    assert module.function is theirs


def test_what_cannot_tell_who_reads_it_is_refused():
    module = types.ModuleType("module")
    module.number = 3
    with pytest.raises(TypeError, match="Expected a function or a dict at 'number'"):
        patched(module, "number", always(4)).__enter__()
    with pytest.raises(TypeError, match="Expected a property"):
        patched(Owner, "held_twice", always(4)).__enter__()
    with pytest.raises(AttributeError):
        patched(module, "nothing", always(4)).__enter__()
    assert module.number == 3


def test_hooks_whose_installation_failed_are_installed_the_next_time():
    class Watched:
        def name(self):
            return "usual"

    failing = [True]

    def make():
        yield observed.hook(Watched, "name", lambda usual: lambda self: "hooked", lambda: True)
        if failing.pop():
            raise KeyboardInterrupt

    hooks = observed.Hooks(make)
    with pytest.raises(KeyboardInterrupt):
        hooks.acquire()
    assert Watched().name() == "usual"
    failing.append(False)
    hooks.acquire()
    assert Watched().name() == "hooked"
    hooks.release()
    assert Watched().name() == "usual"
