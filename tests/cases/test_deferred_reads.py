"""A deferred fit reads what its call read: programs run as they are and with fits deferred."""

import contextlib
import sys
import types

import keras
import numpy as np
import pytest

import kerascohost as kc
from tests.helpers.programs_that_read import CHANGED, MEETING, PREAMBLE, UNCHANGED
from tests.helpers.sampled import one_in

# What a program may not change any more, or what cannot be put back: refused where not right.
REFUSED = {
    "layer.trainable = False after fit",
    "optimizer.learning_rate = after fit",
    "generator reads loop var (closure)",
    "Dropout rate changed after fit",
    "counter: callback and program both write",
    "Generator (rng) of a PyDataset also drawn from by program",
    "callback's NumPy array (validation) refilled",
    "EarlyStopping.patience changed; stopped_epoch read",
}


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    """A module of the user's, with a setting that programs change."""
    module = types.ModuleType("settings_of_a_user")
    module.q = 0.5
    monkeypatch.setitem(sys.modules, module.__name__, module)


def outcome(program, hold):
    """The weights of all models that the program leaves, and what else it tells."""
    keras.utils.set_random_seed(0)
    keras.utils.clear_session(free_memory=False)
    scope = {"__name__": "program", "HOLD": hold}
    exec(compile(PREAMBLE + program, "<program>", "exec"), scope)
    return [w for model in scope["models"] for w in model.get_weights()], scope["extra"]


def assert_as_alone(program):
    deferred = outcome(program, kc.cohost)
    weights, extra = outcome(program, contextlib.nullcontext)
    assert len(weights) == len(deferred[0])
    for mine, its in zip(weights, deferred[0], strict=True):
        np.testing.assert_allclose(its, mine, rtol=1e-4, atol=1e-5)
    assert repr(deferred[1]) == repr(extra)


@pytest.mark.parametrize("name", one_in(3, CHANGED))
def test_what_changes_after_the_call_is_trained_as_it_was_or_refused(name):
    if name not in REFUSED:
        assert_as_alone(CHANGED[name])
        return
    try:
        assert_as_alone(CHANGED[name])
    except kc.CohortError as error:
        assert "as it was at its call. Received: " in str(error)
        assert str(error).startswith("Member 'm")


@pytest.mark.parametrize("name", one_in(4, UNCHANGED))
def test_what_changes_nothing_that_is_read_is_not_refused(name):
    assert_as_alone(UNCHANGED[name])


@pytest.mark.parametrize("name", one_in(2, MEETING))
def test_fits_that_meet_wait_for_each_other(name):
    assert_as_alone(MEETING[name])


def test_losses_that_read_other_values_are_not_stacked():
    """Functions of a module are compared by identity, so what they read must be compared too."""
    program = """
def loss(t, p): return pinball(q, t, p)
with HOLD():
    for q in (.1, .5, .9):
        m = compiled(loss); m.fit(x, y, **FIT); models.append(m)
"""
    deferred = outcome(program, lambda: kc.cohost(layout="stacked"))
    alone = outcome(program, contextlib.nullcontext)
    for mine, its in zip(alone[0], deferred[0], strict=True):
        np.testing.assert_allclose(its, mine, rtol=1e-4, atol=1e-5)


def test_a_refusal_tells_the_variable_both_values_and_the_way_out():
    with pytest.raises(kc.CohortError) as caught:
        outcome(CHANGED["counter: callback and program both write"], kc.cohost)
    told = str(caught.value)
    assert "global `n`, read by `Cnt.on_epoch_end`: 0 at the call, 200 now" in told
    assert "move the change below the block" in told
