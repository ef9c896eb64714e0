"""The magics, in IPython's in-process shell and in a real kernel."""

import re
import sys

import keras
import nbclient
import nbformat
import numpy as np
import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from kerascohost.notebook import namespace
from kerascohost.training import scheduler

SETUP = """
import keras, numpy as np
from keras import layers

def net(units):
    keras.utils.set_random_seed(units)
    made = keras.Sequential([keras.Input((4,)), layers.Dense(units), layers.Dense(1)])
    made.compile("adam", "mse", metrics=["mae"])
    return made

cnn, mlp = net(3), net(8)
x = np.random.default_rng(0).random((60, 4)).astype("float32")
y = x[:, :1]
"""
TRAIN = """%%cohost -o runs
h1 = cnn.fit(x, y, epochs=3, shuffle=False, verbose=0)
h2 = mlp.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0)
"""


@pytest.fixture
def shell():
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "kerascohost")
    made.run_cell(SETUP).raise_error()
    yield made
    InteractiveShell.clear_instance()


def run(shell, cell):
    """What a cell displays, after checking that it ran."""
    with capture_output() as captured:
        shell.run_cell(cell).raise_error()
    return captured


def message(shell, cell):
    """The one line that a refused cell shows."""
    with capture_output() as captured:
        result = shell.run_cell(cell)
    assert isinstance(result.error_in_exec, UsageError), result.error_in_exec
    assert "Traceback" not in captured.stdout + captured.stderr
    return str(result.error_in_exec)


def test_a_cell_equals_separate_training(shell):
    run(shell, TRAIN)
    names = shell.user_ns
    together = {name: names[name].get_weights() for name in ("cnn", "mlp")}
    histories = names["h1"].history, names["h2"].history
    run(shell, SETUP)
    run(shell, TRAIN.partition("\n")[2])
    for name, weights in together.items():
        for one, other in zip(weights, names[name].get_weights(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    for one, other in zip(histories, (names["h1"].history, names["h2"].history), strict=True):
        for key in one:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-6, atol=1e-6)


def test_a_cell_shows_a_table_and_its_last_expression(shell):
    shown = run(shell, TRAIN + "2 + 2")
    [table] = shown.outputs
    assert list(shell.user_ns["runs"]) == ["cnn", "mlp"]
    assert "<td>3</td>" in table.data["text/html"]
    lines = table.data["text/plain"].splitlines()
    assert lines[0].split() == ["epochs", "seconds", "loss", "mae"]
    assert [line.split()[:2] for line in lines[1:]] == [["cnn", "3"], ["mlp", "2"]]
    assert "4" in shown.stdout
    assert "Out" not in run(shell, TRAIN + "2 + 2;").stdout


@pytest.mark.nightly
def test_quiet_plot_and_factors(shell):
    assert run(shell, TRAIN.replace("-o runs", "--quiet")).outputs == []
    run(shell, SETUP)
    shown = run(shell, TRAIN.replace("-o runs", "--plot -q -g mlp=2 --replicas cnn=2"))
    [picture] = [output.data for output in shown.outputs if "image/png" in output.data]
    assert len(picture["image/png"]) > 5000
    grouped = shell.user_ns["mlp"].get_weights()
    run(shell, SETUP)
    run(shell, "mlp.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0);")
    for one, other in zip(grouped, shell.user_ns["mlp"].get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("%cohost cmn", "names of Keras models. Received: 'cmn'. Did you mean 'cnn'?"),
        ("%cohost x", "Received: 'x', a ndarray. There are: cnn, mlp."),
        ("%cohost --layout stack", "Received: 'stack'. Did you mean 'stacked'?"),
        ("%%cohost -l grouped\n1", "Received: grouped; for it, write --group-factor MODEL=2"),
        ("%%cohost -o mlp\n1", "is free. Received: 'mlp', which holds a Sequential"),
        ("%cohost cnn --benchmark -o x", "is free. Received: 'x', which holds a ndarray"),
        ("%cohost -q run a.py", "Expected `%cohost run SCRIPT ...`. Received: %cohost -q run"),
        ("%cohost run -l stacked a.py", "no options with `%cohost run`.* Received: -l"),
        ("%cohost --quiet", "no `--quiet` for the table of models"),
        ("%cohost --nope", "unrecognized arguments: --nope"),
        ("%cohost --help", "%cohost?"),
        ("%%cohost cnn\n1", "options only after `%%cohost`"),
        (
            "%%cohost -g mlp\nmlp.fit(x, y)",
            "Expected MODEL=N after `--group-factor`, with a whole number N. .* mlp",
        ),
        ("%%cohost -g 0\nmlp.fit(x, y)", "Member 'mlp': .* at least 1"),
        ("%%cohost -g mpl=2\nmlp.fit(x, y)", "Received: 'mpl'. Did you mean 'mlp'?"),
        ("%%cohost\nkeras.Sequential([layers.Dense(1)]).fit(x, y)", "must call `compile"),
        ("%cohost --search", "Expected no `--search` without a cell. Received: it."),
        ("%%cohost --search --loops\n1", "Expected no `--loops` with `--search`. Received: it."),
        ("%%cohost -g a=2=3\n1", "Expected MODEL=N after `--group-factor`, .* a=2=3"),
        ('%cohost "a', 'each quotation closed. Received: "a (No closing quotation).'),
        ('%%cohost -o "a\n1', "each quotation closed"),
        ('%cohost run "a.py', "each quotation closed"),
        ("%cohost run", "Expected `%cohost run SCRIPT ...`. Received: %cohost run"),
        ("%cohost run none.py", "scripts that can be read. Received: 'none.py'"),
    ],
)
def test_bad_input_is_one_line(shell, cell, expected):
    text = message(shell, cell)
    assert re.search(re.sub(r"([?()])", r"\\\1", expected), text), text
    assert "\n" not in text.strip()
    assert vars(keras.Model).get("fit") is None


def test_what_keras_refuses_is_shown_as_keras_shows_it(shell):
    with capture_output() as captured:
        result = shell.run_cell("%%cohost\nmlp.fit(x[:, :2], y, verbose=0)")
    assert type(result.error_in_exec) is ValueError
    assert "incompatible" in captured.stdout
    assert "Raised while running member 'mlp' of the cohort." in captured.stdout


@pytest.mark.parametrize("look", ["h.history['loss']", "mlp.predict(x, verbose=0)"])
def test_a_cell_that_looks_at_a_held_fit_trains_it_first(shell, look):
    run(shell, f"%%cohost\nh = mlp.fit(x, y, epochs=2, verbose=0)\nseen = {look}")
    assert len(shell.user_ns["h"].epoch) == 2
    assert len(shell.user_ns["seen"])


LOOP = "for seed in range(2):\n    m = net(seed + 3)\n    {}\n    {}\n"


@pytest.mark.parametrize(
    ("body", "is_told"),
    [
        (("m.fit(x, y, verbose=0)", "s = m.evaluate(x, y, verbose=0)"), True),
        (("h = m.fit(x, y, verbose=0)", "print(h.history['loss'])"), True),
        (("m.fit(x, y, verbose=0)", "print(seed)"), False),
    ],
)
def test_a_loop_that_reads_what_it_trains_is_told_of_the_flag_once(shell, body, is_told):
    cell = LOOP.format(*body)
    told = run(shell, f"%%cohost\n{cell}{cell}").stdout
    assert told.count("%%cohost --loops") == is_told
    assert ("the loop in line 2 reads what it trains" in told) is is_told
    assert "--loops" not in run(shell, f"%%cohost --loops\n{cell}").stdout
    assert "--loops" not in run(shell, f"%%cohost --quiet\n{cell}").stdout


def test_a_read_outside_of_a_loop_is_not_told_of_the_flag(shell):
    cell = "%%cohost\nh = mlp.fit(x, y, verbose=0)\nh.history\nfor k in range(2): pass\n"
    assert "--loops" not in run(shell, cell).stdout


SEARCH = """
from sklearn.model_selection import cross_val_score
from kerascohost.integrations.sklearn import KerasRegressor
def build(X):
    keras.utils.set_random_seed(1)
    return net(1)
scores = cross_val_score(KerasRegressor(build, epochs=2, verbose=0), x, y, cv=2)
"""


def test_what_scikit_learn_fits_in_a_cell_is_trained_together(shell):
    together = []
    usual = scheduler.Scheduler.turn

    def recorded(self, requests):
        together.append(len(requests))
        return usual(self, requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler.Scheduler, "turn", recorded)
        run(shell, f"%%cohost --search -l joined{SEARCH}")
    assert max(together) == 2
    scores = shell.user_ns["scores"]
    run(shell, SEARCH)
    np.testing.assert_array_equal(scores, shell.user_ns["scores"])


def test_the_cells_own_error_is_shown_as_its_own(shell):
    with capture_output() as captured:
        result = shell.run_cell("%%cohost\nh = mlp.fit(x, y)\n1 / 0")
    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert "1 / 0" in captured.stdout + captured.stderr
    assert "were not run: mlp" in result.error_in_exec.__notes__[0]
    assert "magic.py" not in captured.stdout + captured.stderr


def test_the_histories_of_a_training_that_fails_are_kept(shell):
    with capture_output():
        result = shell.run_cell(
            "def fail(epoch, logs):\n    if epoch == 1: raise RuntimeError('boom')\n"
        )
        result = shell.run_cell(
            "%%cohost -o runs\n"
            "h = mlp.fit(x, y, epochs=3, verbose=0, callbacks=["
            "keras.callbacks.LambdaCallback(on_epoch_end=fail)])"
        )
    assert isinstance(result.error_in_exec, RuntimeError)
    assert shell.user_ns["runs"]["mlp"] is shell.user_ns["h"]
    assert shell.user_ns["h"].epoch[0] == 0


def test_bare_it_shows_the_models(shell):
    run(shell, "same = cnn; bare = keras.Sequential([layers.Dense(1)])")
    [shown] = run(shell, "%cohost").outputs
    lines = shown.data["text/plain"].splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["cnn", "mlp", "bare"]
    assert "Adam, mse" in lines[1]
    assert "(4)" in lines[1]
    assert "not built" in lines[3]
    assert lines[3].split()[-1] == "no"
    [shown] = run(shell, "%cohost mlp").outputs
    assert len(shown.data["text/plain"].splitlines()) == 2
    assert namespace.models_in({"_": shell.user_ns["cnn"], "n": 3}) == {}
    shell.reset()
    assert "no Keras models yet" in run(shell, "%cohost").stdout


@pytest.mark.nightly
def test_a_benchmark_of_some_models(shell):
    with capture_output() as shown:
        shell.run_cell("%cohost cnn mlp --benchmark --budget 1 -q -p -o found").raise_error()
    table, picture = shown.outputs
    assert "<td>joined</td>" in table.data["text/html"]
    assert "image/png" in picture.data
    found = shell.user_ns["found"]
    assert found.frame.set_index("layout").loc["joined", "batch_size"] == "cnn: 32, mlp: 32"
    assert "Received: -1.0" in message(shell, "%cohost cnn mlp --benchmark --budget -1")
    run(shell, "bare = keras.Sequential([layers.Dense(1)])")
    assert "Member 'bare': you must call" in message(shell, "%cohost bare --benchmark").replace(
        "You", "you"
    )


def test_completion_offers_options_and_models_and_nothing_else(shell, tmp_path, monkeypatch):
    def offered(line):
        with provisionalcompleter():
            return {found.text for found in shell.Completer.completions(line, len(line))}

    run(shell, "seeds = [net(1), net(2)]")
    models = {"cnn", "mlp", "seeds", "run"}
    assert {name for name in offered("%cohost ") if not name.startswith("--")} == models
    assert offered("%cohost m") == {"mlp"}
    assert offered("%%cohost --gro") == {"--group-factor"}
    assert offered("%%cohost -g ") == {"cnn=", "mlp=", "seeds[0]=", "seeds[1]="}
    assert offered("%cohost --layout ") == {"joined", "stacked", "auto"}
    assert offered("%%cohost --layout=") == {"joined", "stacked", "auto"}
    assert offered("%%cohost --layout=jo") == {"joined"}
    assert offered("%%cohost -g cnn=") == offered("%%cohost --replicas=cnn=") == {"2"}
    assert all(name.startswith("--") for name in offered("%%cohost "))
    assert offered("%cohost -o ") == {"history"}
    assert offered("%cohost -o ra") == {"ra"}  # none of IPython's
    run(shell, TRAIN)
    assert offered("%cohost -o ") == {"runs"}
    assert "cnn" in offered("cn")
    for name in ("one.py", "two.txt", "folder/three.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert offered("%cohost run ") == offered("%cohost run a.py ") == {"one.py", "folder/"}
    assert offered("%cohost run folder/th") == {"folder/three.py"}


def test_a_list_of_models_stands_for_all_in_it(shell):
    run(shell, "seeds = [net(1), net(2)]; folds = {'a': net(3)}")
    [shown] = run(shell, "%cohost seeds folds").outputs
    lines = shown.data["text/plain"].splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["seeds[0]", "seeds[1]", "folds['a']"]
    assert "Received: 'folds', a dict with" not in message(shell, "%cohost fold")
    run(shell, "mixed = [mlp, 3]")
    assert "'mixed', a list with more than Keras models" in message(shell, "%cohost mixed")


def test_a_cell_may_await(shell):
    run(shell, "import asyncio\nasync def data():\n    await asyncio.sleep(0)\n    return x")
    shown = run(shell, "%%cohost -q -o runs\nh = mlp.fit(await data(), y, verbose=0)\nawait data()")
    assert shell.user_ns["runs"]["mlp"] is shell.user_ns["h"] and "array" in shown.stdout


def test_messages_and_tracebacks_count_lines_alike(shell):
    said = message(
        shell, "%%cohost\n\nmlp.fit(x, y)\nkeras.Sequential([layers.Dense(1)]).fit(x, y)"
    )
    assert "(Line 4 of the cell.)" in said
    with capture_output() as captured:
        shell.run_cell("%%cohost\n\nmlp.fit(x, y)\n1 / 0")
    assert "> 4 1 / 0" in re.sub(r"\x1b\[[\d;]*m", "", captured.stdout)


def test_tracebacks_have_the_number_of_the_cell(shell):
    run(shell, "1")
    number = shell.execution_count = 7
    with capture_output() as captured:
        shell.run_cell("%%cohost\nmlp.fit(x, y)\n1 / 0")
    assert f"Cell In[{number}], line 3" in re.sub(r"\x1b\[[\d;]*m", "", captured.stdout)
    with capture_output():
        result = shell.run_cell("%%cohost\nmlp.fit(x[:, :2], y, verbose=0)")
    assert f"<ipython-input-{number}-" in str(result.error_in_exec.__notes__)


def test_loading_twice_reloading_and_unloading_do_no_harm(shell):
    for step in ("load_ext", "reload_ext", "unload_ext", "load_ext"):
        with capture_output():
            shell.run_line_magic(step, "kerascohost")
    run(shell, TRAIN)
    shell.run_line_magic("unload_ext", "kerascohost")
    with capture_output() as captured:
        shell.run_cell("%cohost")
    assert "not found" in captured.stderr + captured.stdout
    with provisionalcompleter():
        assert "--layout" not in {c.text for c in shell.Completer.completions("%cohost ", 8)}


@pytest.mark.nightly
def test_autoreload_does_no_harm(shell):
    run(shell, "%load_ext autoreload\n%autoreload 2")
    run(shell, TRAIN)
    run(shell, TRAIN)
    assert vars(keras.Model).get("fit") is None


def test_scripts_run_from_the_notebook(shell, tmp_path):
    text = SETUP + "mlp.fit(x, y, verbose=0)\nprint('loss', mlp.history.epoch)\n"
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(text)
    shown = run(shell, f"%cohost run {tmp_path}/one.py {tmp_path}/two.py")
    lines = shown.stdout.splitlines()
    assert lines[:2] == ["[one] loss [0]", "[two] loss [0]"]
    assert lines[2].startswith("one: ended after")


def test_a_file_run_by_the_run_magic(shell, tmp_path):
    path = tmp_path / "program.py"
    block = TRAIN.replace("%%cohost -o runs", "with kc.cohost() as run:").replace("\nh", "\n    h")
    path.write_text(f"{SETUP}\nimport kerascohost as kc\n{block}\nruns = run.history\n")
    run(shell, f"%run {path}")
    assert list(shell.user_ns["runs"]) == ["cnn", "mlp"]


@pytest.mark.nightly
def test_in_a_real_kernel():
    cells = [SETUP, "%load_ext kerascohost", "%cohost", TRAIN.replace("verbose=0", "verbose=1")]
    cells += ["%%cohost --plot\ncnn.fit(x, y, verbose=0)", "%cohost nothing"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=300, allow_errors=True).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert "application/vnd.jupyter.widget-view+json" in outputs[2][0].data
    tables = [o.data["text/html"] for o in outputs[3] if "text/html" in o.get("data", {})]
    assert any("<th>cnn</th>" in table and "<td>3</td>" in table for table in tables)
    assert any("image/png" in o.get("data", {}) for o in outputs[4])
    assert "UsageError: Expected names of Keras models" in str(outputs[5])
    assert "Traceback" not in str(outputs[5])


def test_without_widgets_the_extra_is_named_and_cells_still_train(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "kerascohost.notebook.widget", raising=False)
    monkeypatch.setattr(shell, "kernel", object(), raising=False)
    assert message(shell, "%cohost cnn") == (
        'Expected `anywidget` to be installed, as `pip install "kerascohost[notebook]"` does.'
    )
    run(shell, TRAIN)
    assert list(shell.user_ns["runs"]) == ["cnn", "mlp"]
