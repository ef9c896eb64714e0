"""Programs that look at what a deferred fit trains see, and end with, what they would alone."""

import contextlib
import warnings

import keras
import numpy as np
import pytest

import kerascohost as kc
from kerascohost.deferred import context, scripts
from tests.helpers.programs_that_look import LOOKING, PREAMBLE, UNTOUCHED
from tests.helpers.sampled import one_in

BACKEND = keras.backend.backend()


class Alone:
    """Stands for `cohost()` where a program runs as it would without it."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@contextlib.contextmanager
def uncompiled():
    """Spares TensorFlow the tracing, which takes far longer than these trainings."""
    if BACKEND != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* does not apply to tf.data functions")
            yield
    finally:
        tf.config.run_functions_eagerly(False)


def run(program, block):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    names = {"HOLD": block, "BACKEND": BACKEND, "__name__": "program"}
    is_exact = "mixed" not in program  # compiled, 16 bits are rounded elsewhere
    with uncompiled() if block is Alone and is_exact else contextlib.nullcontext():
        exec(PREAMBLE, names)
        exec(program, names)
    return names["models"], names["seen"]


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable.value) for variable in variables]


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (float, np.ndarray)):
        return np.allclose(one, other, rtol=1e-5, atol=1e-6)
    return one == other


def compare(program):
    expected, alone = run(program, Alone)
    found, deferred = run(program, kc.cohost)
    assert same(alone, deferred)
    for one, other in zip(expected, found, strict=True):
        assert same(state(one), state(other))


@pytest.fixture
def trained_early(monkeypatch):
    """The reasons for which fits were trained before the end of their block."""
    reasons = []
    usual = context.cohost._train_first

    def train_first(self, why, **how):
        reasons.append(why)
        usual(self, why, **how)

    monkeypatch.setattr(context.cohost, "_train_first", train_first)
    return reasons


@pytest.mark.parametrize("name", one_in(3, LOOKING))
def test_who_looks_lets_it_train_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare(LOOKING[name])


@pytest.mark.parametrize("name", one_in(2, UNTOUCHED))
def test_who_does_not_look_changes_nothing(name, tmp_path, monkeypatch, trained_early):
    monkeypatch.chdir(tmp_path)
    compare(UNTOUCHED[name])
    assert not trained_early


SCRIPTS = {
    "wrapping": """
kept = keras.Model.fit
def fit(self, *args, **kwargs):
    print("wrapped")
    return kept(self, *args, **kwargs)
keras.Model.fit = fit
for i in range(2):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        model.fit(x, y, epochs=2, verbose=0)
        print("inside")
    print(out.getvalue().split())
print(keras.Model.fit is fit)
""",
    "plain": """
for i in range(3): model.fit(x, y, epochs=2, verbose=0)
print(hasattr(keras.Model.fit, "__wrapped__"), keras.Model.fit.__name__)
""",
}


def test_what_a_script_wraps_or_redirects_is_its_own(tmp_path, capsys):
    begin = """
import contextlib, io, keras, numpy as np
x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
"""
    own = dict(vars(keras.Model))
    for name, text in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(begin + text)
    outcomes = scripts.run([tmp_path / f"{name}.py" for name in SCRIPTS])
    assert [outcome.error for outcome in outcomes] == [None, None]
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines == [
        "[plain] True fit",
        "[wrapping] True",
        *2 * ["[wrapping] ['wrapped', 'inside']"],
    ]
    assert dict(vars(keras.Model)) == own


def test_a_wrapper_that_keeps_fit_is_said_to_train_apart(capsys):
    kept = keras.Model.fit
    keras.Model.fit = lambda self, *args, **kwargs: kept(self, *args, **kwargs)
    try:
        with kc.cohost():
            models, _ = run("m = compiled(); m.fit(x, y, **FIT); models.append(m)", Alone)
    finally:
        del keras.Model.fit
    assert int(models[0].optimizer.iterations) == 8
    assert "is trained now and apart, as something that wraps" in capsys.readouterr().out
