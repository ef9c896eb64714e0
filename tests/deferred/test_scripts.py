"""Scripts run together do what each does alone; one that fails leaves the others running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from kerascohost import __main__

PROGRAMS = sorted((Path(__file__).parents[1] / "helpers" / "scripts").glob("*.py"))
FIT = """
import sys, keras, numpy as np
keras.utils.set_random_seed(0)
x = np.random.rand(64, 4); y = x[:, :1]
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
model.compile("adam", "mse")
"""


def python(*args, **kwargs):
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


def run(*paths, arguments=()):
    return python("-m", "kerascohost", "run", *paths, "--", *arguments)


def script(folder, name, text, before=FIT):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(before + text)
    return path


def said(output, name):
    """What one script printed, without its prefix."""
    prefix = f"[{name}] "
    return [
        line.removeprefix(prefix) for line in output.splitlines() if line.startswith(prefix.strip())
    ]


def results(lines):
    """The lines with results, without progress bars: Keras's (which name times), or ours."""
    bars = ("step", "Epoch", " - ")
    return [line for line in lines if line.strip() and not any(bar in line for bar in bars)]


def numbers(line):
    words = line.replace("[", " ").replace("]", " ").replace(",", " ").split()
    return [float(word) for word in words if word.replace(".", "").replace("-", "").isdigit()]


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="an unseeded Dropout there draws from torch's generator, which the members share",
)
@pytest.mark.parametrize(
    "programs",
    [PROGRAMS[1:], pytest.param(PROGRAMS, marks=pytest.mark.nightly)],
    ids=["two", "all"],
)
def test_unchanged_programs_give_the_same_results(programs, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    outputs = {program.stem: python(program, alone) for program in programs}
    both = run(*programs, arguments=[together])
    assert both.returncode == 0, both.stderr
    for name, output in outputs.items():
        assert output.returncode == 0, output.stderr
        expected, found = results(output.stdout.splitlines()), results(said(both.stdout, name))
        assert len(expected) == len(found) > 1
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(numbers(one), numbers(other), atol=1e-5)
        first = keras.saving.load_model(alone / f"{name}.keras")
        second = keras.saving.load_model(together / f"{name}.keras")
        for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.nightly
def test_each_script_has_a_process_of_its_own_as_far_as_it_sees(tmp_path):
    """Its `argv`, `__main__`, neighbours, and random numbers before and after `fit`."""
    text = """
import helper, os
os.chdir(os.path.dirname(os.path.abspath(__file__)))
print(helper.NAME, sys.argv[1:], __name__, sys.modules["__main__"].model is model)
keras.utils.set_random_seed(helper.SEED)
before = np.random.rand(), __import__("random").random()
model.fit(x, y, epochs=3, verbose=0, shuffle=False)
import later
print(os.getcwd(), later.NAME, before, np.random.rand(), __import__("random").random())
"""
    paths = []
    for seed, name in enumerate(["a", "b"]):
        folder = tmp_path / name
        paths.append(script(folder, f"train_{name}", text))
        script(folder, "helper", f"NAME, SEED = {name!r}, {seed}", before="")
        script(folder, "later", f"NAME = 'later {name}'", before="")
    both = run(*paths, arguments=["--epochs", "5"])
    assert both.returncode == 0, both.stderr
    for path in paths:
        name = path.stem.removeprefix("train_")
        alone = python(path, "--epochs", "5").stdout.splitlines()
        assert alone[0] == f"{name} ['--epochs', '5'] __main__ True"
        assert said(both.stdout, path.stem) == alone


def test_a_script_that_crashes_names_itself_and_leaves_the_others_running(tmp_path):
    good = script(tmp_path, "good", "model.fit(x, y, epochs=2, verbose=0)\nprint('well')")
    bad = script(tmp_path, "bad", "model.fit(x, y, verbose=0)\nraise KeyError('mine')")
    wrong = script(tmp_path, "wrong", "model.fit(x[:, :2], y, verbose=0)")
    caught = script(
        tmp_path,
        "caught",
        "try:\n    model.fit(x[:, :2], y, verbose=0)\nexcept ValueError:\n    print('saw it')\n",
    )
    left = script(tmp_path, "left", "model.fit(x, y, verbose=0)\nsys.exit(3)")
    torn = script(tmp_path, "torn", "model.fit(x, y")
    both = run(good, bad, wrong, caught, left, torn)
    assert both.returncode == 1
    assert said(both.stdout, "good") == ["well"]
    assert said(both.stdout, "caught") == ["saw it"]
    traceback = said(both.stderr, "bad")
    assert traceback[0].startswith("Traceback")
    assert "bad.py" in traceback[1]
    assert traceback[-1] == "KeyError: 'mine'"
    *_, refusal, note = said(both.stderr, "wrong")
    assert "incompatible with the layer" in refusal
    assert note == "Raised while running member 'wrong' of the cohort."
    assert "bad: KeyError after" in both.stderr
    assert said(both.stderr, "torn")[-1].startswith("SyntaxError")
    assert "left: ended with exit status 3" in both.stderr
    assert run(good, left).returncode == 3


@pytest.mark.nightly
def test_a_model_that_no_cohort_takes_is_trained_by_its_own_fit(tmp_path):
    text = """
class Own(keras.Sequential):
    def make_train_function(self, force=False):
        return super().make_train_function(force)
model = Own(model.layers)
model.compile("sgd", "mse")
print(len(model.fit(x, y, epochs=2, verbose=0).epoch))
"""
    good = script(tmp_path, "good", "print(len(model.fit(x, y, epochs=3, verbose=0).epoch))")
    both = run(script(tmp_path, "own", text), good)
    assert both.returncode == 0, both.stderr
    assert (said(both.stdout, "own"), said(both.stdout, "good")) == (["2"], ["3"])
    assert "A `fit` of own runs apart from the others" in both.stderr


@pytest.mark.nightly
def test_a_callback_that_fails_fails_its_script_only(tmp_path):
    text = """
def fail(epoch, logs):
    print("epoch", epoch)
    if epoch == 1:
        raise RuntimeError("boom")
model.fit(x, y, epochs=4, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=fail)])
"""
    good = script(tmp_path, "good", "h = model.fit(x, y, epochs=9, verbose=0)\nprint(len(h.epoch))")
    both = run(script(tmp_path, "bad", text), good)
    assert said(both.stdout, "good") == ["9"]
    assert said(both.stdout, "bad") == ["epoch 0", "epoch 1"]
    assert said(both.stderr, "bad")[-2:][0].startswith("RuntimeError: boom")


def test_an_interrupt_reaches_every_script(tmp_path):
    text = """
print("ready", flush=True)
try:
    model.fit(x, y, epochs=10**5, verbose=0)
except KeyboardInterrupt:
    print("saved after", len(model.history.epoch) > 0)
    raise
"""
    paths = [script(tmp_path, name, text) for name in ("a", "b")]
    command = [sys.executable, "-m", "kerascohost", "run", *map(str, paths)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline()[4:] for _ in paths] == ["ready\n"] * 2
        time.sleep(8)  # until both train; an interrupt before that ends them likewise
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()  # a lost interrupt fails this test, and not the whole run by its time
    assert process.returncode == 130
    assert "[a] saved after True" in output
    assert "[b] saved after True" in output


@pytest.mark.nightly
def test_bad_paths_and_help_are_told_in_a_line(tmp_path):
    missing = run(tmp_path / "none.py")
    assert missing.returncode == 2
    assert "Expected scripts that can be read" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert "run scripts" in python("-m", "kerascohost", "--help").stdout


def test_arguments_of_scripts_stand_after_two_dashes(capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["run", "train.py", "--epochs", "5"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(
        "Expected the scripts' own arguments after ` -- `. Received: --epochs 5. For example: "
        "python -m kerascohost run train.py -- --epochs 5\n"
    )


@pytest.mark.nightly
def test_scripts_of_one_name_are_told_apart(tmp_path):
    one = script(tmp_path / "one", "train", "print('hello')", before="")
    two = script(tmp_path / "two", "train", "print('hello')", before="")
    assert run(one, two).stdout.splitlines() == ["[one/train] hello", "[two/train] hello"]


def test_a_script_ends_with_the_status_that_it_asks_for(tmp_path, capsys):
    ends = {
        "none": "import sys; print('no line', end=''); sys.exit()",
        "text": "import sys; print(sys.stdout.isatty(), sys.stdout.encoding); sys.exit('why')",
        "number": "import sys; sys.exit(3)",
    }
    paths = []
    for name, code in ends.items():
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(code)
    assert __main__.main(["run", *map(str, paths)]) == 1
    out, err = capsys.readouterr()
    assert "[none] no line\n" in out and "[text] False utf-8\n" in out.replace("UTF", "utf")
    assert "why\n" in err
    assert "none: ended after" in err
    assert "text: ended with exit status 1" in err and "number: ended with exit status 3" in err


def test_the_loops_of_one_script_are_run(tmp_path, capsys):
    script = tmp_path / "one.py"
    script.write_text("import sys; print(sys.argv[1:])")
    assert __main__.main(["run", "--loops", str(script), "--", "-n", "3"]) == 0
    assert capsys.readouterr().out == "['-n', '3']\n"
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["run", "--loops", str(script), str(script)])
    assert "Expected one script with `--loops`. Received: 2." in capsys.readouterr().err
