"""Programs that look at what a held fit trains see, and end with, what they would alone."""

import keras
import numpy as np
import pytest

import kerascohost as kc
from kerascohost import capture
from tests.cases.programs_that_look import LOOKING, PREAMBLE, UNTOUCHED

BACKEND = keras.backend.backend()


class Alone:
    """Stands for `cohost()` where a program runs as it would without it."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def run(program, block):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    names = {"HOLD": block, "BACKEND": BACKEND, "__name__": "program"}
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
    found, held = run(program, kc.cohost)
    assert same(alone, held)
    for one, other in zip(expected, found, strict=True):
        assert same(state(one), state(other))


@pytest.fixture
def trained_early(monkeypatch):
    """The reasons for which fits were trained before the end of their block."""
    reasons = []
    usual = capture.cohost._train_first

    def train_first(self, why, **how):
        reasons.append(why)
        usual(self, why, **how)

    monkeypatch.setattr(capture.cohost, "_train_first", train_first)
    return reasons


@pytest.mark.parametrize("name", LOOKING)
def test_who_looks_lets_it_train_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compare(LOOKING[name])


@pytest.mark.parametrize("name", UNTOUCHED)
def test_who_does_not_look_changes_nothing(name, tmp_path, monkeypatch, trained_early):
    monkeypatch.chdir(tmp_path)
    compare(UNTOUCHED[name])
    assert not trained_early
