"""Programs whose loops run in turn end as the programs as written."""

import dataclasses
import re
import subprocess
import sys
import types

import keras
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from kerascohost.backends import reached
from kerascohost.deferred import effects, loops
from tests.helpers import looped
from tests.helpers.looped import assert_same, known
from tests.helpers.programs_that_loop import DANGEROUS, PREAMBLE, PROGRAMS

ON_TORCH = keras.backend.backend() == "torch"

pytestmark = [
    pytest.mark.skipif(ON_TORCH, reason="fits draw from torch's generator, which members share"),
    pytest.mark.filterwarnings("ignore:.*figure.*:UserWarning"),
]

# Of each kind one is run on every change; the others in a nightly run.
QUICK = {
    "k-fold, unseeded shuffle, seed set once",
    "grid, nested loops, dict of results",
    "an exception in iteration 2",
    "function in a dict reads the loop's global",
    "an error, after others have trained models from before",
}
# At least these run in turn, on each backend.
TOGETHER = {
    "EarlyStopping, verbose prints, numpy totals",
    "a later iteration fails first",
    "an error, after others have trained models from before",
    "an exception in iteration 2",
    "break before all fits",
    "build() reads the loop's global",
    "closures kept for later",
    "counter and print",
    "ensemble: list grows, mean of all so far",
    "for-else, and a name deleted",
    "functional models with layers in variables",
    "global counter in build()",
    "grid, nested loops, dict of results",
    "grid, outer loop with its own statements",
    "history to DataFrame rows",
    "if/else with fits in both, while inside",
    "k-fold, evaluate",
    "k-fold, unseeded shuffle, seed set once",
    "layer class reads the loop's global",
    "learning curve over sizes",
    "loop in an if, inside a with",
    "models of a dict, fitted and evaluated",
    "per group, groupby, predictions collected",
    "product of itertools, zip, enumerate, scaler",
    "quantiles, lambda loss (late binding)",
    "random draws in the head (np.random)",
    "seeds, best so far, save the best",
    "subclass model, custom train_step, own callback",
    "three fits per iteration, rows of a DataFrame",
    "tqdm around",
    "train_on_batch and own loops beside fit",
    "try/except around fit",
    "two loops after each other",
    "unequal lengths: later ones end first",
    "walk-forward: slices of one array, filled",
}
ALL = {**PROGRAMS, **DANGEROUS}
FIT = "m.fit(x, y, **FIT)\n    scores.append(m.evaluate(x, y, verbose=0))\n"


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path, monkeypatch):
    """Programs write files, and all files of the present folder are compared."""
    monkeypatch.chdir(tmp_path)


def made():
    """The names of a program after its preamble."""
    return looped.made(PREAMBLE)


def run(program, with_loops, layout="joined"):
    """What a program leaves, and what is told of its loops."""
    left = looped.run(PREAMBLE, program, with_loops, layout)
    return left.values, left.told


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.nightly) for n in ALL],
)
def test_programs_end_as_written(name, tmp_path):
    if name == "verbose=2 and model.summary in the loop":
        pytest.skip("the lines that `verbose=2` prints begin with the name of the iteration")
    plain, _ = run(ALL[name], with_loops=False)
    for file in tmp_path.iterdir():
        file.unlink()
    together, told = run(ALL[name], with_loops=True)
    assert_same(plain, together)
    assert name not in TOGETHER or any("trained together" in line for line in told), told


def test_most_programs_that_can_run_in_turn_do():
    assert len(TOGETHER & PROGRAMS.keys()) >= 0.4 * len(PROGRAMS)


@pytest.mark.nightly
def test_stacked_to_tolerance():
    program = "scores = []\nfor u in (8, 8, 8):\n    m = build(u)\n    " + FIT
    (plain, _), (together, told) = run(program, False), run(program, True, "stacked")
    one, other = (left["names"]["scores"][1] for left in (plain, together))
    np.testing.assert_allclose(np.array(one, float), np.array(other, float), rtol=1e-4)
    assert "3 iterations trained together" in told[0]


@pytest.mark.nightly
def test_losses_that_read_names_of_their_iteration_are_not_stacked_with_others():
    program = (
        "scores = []\nfor q in (0.1, 0.5, 0.9):\n"
        "    m = build(loss=lambda t, p: ops.mean((t - p) ** 2) * q)\n    " + FIT
    )
    (plain, _), (together, _) = run(program, False), run(program, True, "stacked")
    assert_same(plain, together)


@pytest.mark.parametrize(
    ("body", "told_of"),
    [
        ("rng.normal()\n    m = build()\n    " + FIT, "`rng` is used in each iteration before"),
        ("m = build()\n    " + FIT + "    if scores[-1] > 9: break\n", "a `break` after a `fit`"),
        ("m = unknown[k]()\n    " + FIT, r"it is not known what `unknown\[k\]` calls"),
    ],
)
def test_the_line_names_what_keeps_a_loop_from_running_in_turn(body, told_of):
    head = (
        "rng, scores = np.random.default_rng(0), []\nunknown = [build, build]\nfor k in range(2):\n"
    )
    _, (line,) = run(head + "    " + body, True)
    assert "kc.map" in line
    assert re.search(told_of, line), line


def test_a_loop_that_trains_by_a_method_is_told_of():
    program = (
        "class Run:\n    def go(self, k):\n        self.m = build()\n"
        "        self.m.fit(x, y, **FIT)\n    def size(self):\n        return 1\n"
        "for k in range(2):\n    r = Run()\n    r.{}\n"
    )
    _, (line,) = run(program.format("go(k)"), True)
    assert "the loop in line 7" in line
    _, told = run(program.format("size()"), True)
    assert not told


def test_the_line_names_what_iterations_wait_for():
    _, (line,) = run("scores = []\nfor k in range(3):\n    m = build()\n    " + FIT, True)
    assert line == (
        "cohost: the loop in line 2: 3 iterations trained together (`scores`: in order, each after "
        "the iteration before)."
    )


def test_a_failure_shows_the_lines_of_the_program_only():
    program = (
        "scores = []\nfor k in range(3):\n    m = build()\n    " + FIT + "    raise KeyError(k)\n"
    )
    names, told = made(), []
    with pytest.raises(KeyError) as raised:
        loops.run(program, "<failing>", names, tell=told.append)
    ours = [entry for entry in raised.traceback if "deferred/turns" in str(entry.path)]
    assert not ours
    assert "1 iteration trained together" in told[0]
    assert names["k"] == 0


def test_an_interrupt_ends_the_loop_with_models_after_whole_steps():
    program = (
        "scores, trained = [], []\n"
        "class Interrupts(keras.callbacks.Callback):\n"
        "    def on_epoch_end(self, epoch, logs=None):\n"
        "        if epoch == 1: raise KeyboardInterrupt\n"
        "for k in range(3):\n"
        "    keras.utils.set_random_seed(k)\n"
        "    m = build()\n"
        "    callbacks = [Interrupts()] if k == 1 else []\n"
        "    m.fit(x, y, epochs=k + 1, verbose=0, shuffle=False, callbacks=callbacks)\n"
        "    scores.append(m.evaluate(x, y, verbose=0))\n"
    )
    names, told = made(), []
    with pytest.raises(KeyboardInterrupt):
        loops.run(program, known(program, "<interrupted>"), names, tell=told.append)
    assert "as written" not in told[0]
    steps = int(names["m"].optimizer.iterations)
    assert steps > 0
    keras.utils.set_random_seed(names["k"])
    alone = names["build"]()
    for step in np.resize(np.arange(4), steps):
        rows = slice(32 * step, 32 * step + 32)
        alone.train_on_batch(names["x"][rows], names["y"][rows])
    for mine, its in zip(names["m"].get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)
    assert not [name for name in names if name.startswith("__kc")]


def test_a_cell_of_a_notebook():
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    try:
        shell.run_line_magic("load_ext", "kerascohost")
        shell.run_cell(PREAMBLE).raise_error()
        cell = (
            "scores = []\nfor k in range(3):\n    keras.utils.set_random_seed(k)\n"
            "    m = build()\n    "
        )
        with capture_output() as captured:
            shell.run_cell("%%cohost --loops\n" + cell + FIT + "scores").raise_error()
        together = shell.user_ns["scores"]
        shell.run_cell(cell + FIT).raise_error()
        assert shell.user_ns["scores"] == together
        assert "3 iterations trained together" in captured.stdout
        with capture_output() as captured:
            result = shell.run_cell("%%cohost --loops -o runs\npass")
        assert "Expected no `--output` with `--loops`" in str(result.error_in_exec)
    finally:
        InteractiveShell.clear_instance()


@pytest.mark.nightly
def test_a_script(tmp_path):
    script = tmp_path / "folds.py"
    script.write_text(
        "import sys\n"
        + PREAMBLE
        + "scores = []\nfor k in range(3):\n    m = build()\n    "
        + FIT
        + "print(len(scores), sys.argv[1:], __name__)\n"
    )
    command = [sys.executable, "-m", "kerascohost", "run", "--loops", str(script), "--", "7"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout == "3 ['7'] __main__\n", ended.stderr
    assert "3 iterations trained together" in ended.stderr


def test_loops_of_functions_and_loops_that_train_nothing_are_left_alone():
    program = "def f():\n    for k in range(2):\n        build()\nfor k in range(3):\n    f()\n"
    names = made()
    told = []
    loops.run(program, "<nothing>", names, tell=told.append)
    assert not told
    assert isinstance(names["f"], types.FunctionType)


def test_a_loop_with_one_item_is_told_of_and_one_without_is_not():
    line = "cohost: the loop in line 2 has one iteration: there is nothing to train with it."
    for count in (0, 1):
        program = f"scores = []\nfor k in range({count}):\n    m = build()\n    " + FIT
        assert run(program, True)[1] == [line] * count


def test_what_is_looked_up_once_uses_no_names_of_the_program():
    program = "scores = []\nfor k in range(2):\n    m = build()\n    " + FIT
    program += "name = keras.Model(m.inputs, m.outputs).name\n"
    plain, _ = run(program, False)
    reached._own_of_layers.cache_clear()  # as in a process that has not looked yet
    together, _ = run(program, True)
    assert plain["names"]["name"] == together["names"]["name"]


@dataclasses.dataclass(slots=True)
class Settings:
    """Settings of a program, in an object without a `__dict__`."""

    units: int = 4
    unset: int = dataclasses.field(init=False)
    more: object = None


@pytest.mark.parametrize(
    ("thing", "is_plain"),
    [
        (Settings(), True),
        (Settings(more=[1, {"a": np.ones(2)}]), True),
        (Settings(more=keras.optimizers.SGD), False),
        (types.SimpleNamespace(a=1, b=(2, "c")), True),
        (types.SimpleNamespace(a=object()), False),
        (pd.DataFrame({"a": [1]}), True),
        (keras.ops.convert_to_tensor([1.0]), True),
        (np.array([None]), False),
    ],
)
def test_what_is_data_and_nothing_else(thing, is_plain):
    assert effects.is_plain(thing) == is_plain


def test_an_iterator_in_a_slot_is_read_in_order():
    class Slotted:
        __slots__ = ("rows",)

    held = Slotted()
    assert not effects.changes_when_read(held)
    held.rows = [1]
    assert not effects.changes_when_read(held)
    held.rows = iter([1])
    assert effects.changes_when_read(held) and not effects.is_plain(held)
