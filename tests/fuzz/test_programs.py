"""Programs drawn at random end in a block as they end without one, or are refused."""

import os
import random

import keras
import pytest

from kerascohost.deferred import context, fits
from kerascohost.tracing import reads
from kerascohost.tracing.places import Cell
from tests.fuzz import programs

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="runs once validations draw from torch's generator as in `fit`",
)


@pytest.mark.nightly
def test_programs_end_in_a_block_as_without_one_or_are_refused():
    """`SEED` is where it begins, in another place each time; it is printed."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    print(f"SEED={seed}")
    report = programs.try_programs(1000, seed, seconds=15.0, shrink=60.0, say=print)
    print(report)
    assert not report.differing, f"SEED={seed}\n" + "\n".join(report.differing)
    assert report.kinds.total(), "no program was tried"


BEGIN = """
def main():
    with HOLD():
        for q in (0.5, 3.0):
            m = functional()
            m.compile("sgd", loss=lambda t, p: q * mse(t, p))
            buffer[:] = q * x
"""
LOSSES = f"{BEGIN}            m.fit(x, y, verbose=0, shuffle=False); models.append(m)\nmain()"
BUFFER = f"{BEGIN}            m.fit(buffer, y, verbose=0, shuffle=False); models.append(m)\nmain()"
LOOKS = f"{BEGIN}            m.fit(x, y, verbose=0); note(m.evaluate(x, y, verbose=0))\nmain()"
DRAWS = f"{BEGIN}            m.fit(Rows(x, y), verbose=0); note(random.random())\nmain()"
MUTANTS = {
    "variables of closures are not compared": (LOSSES, Cell, "differs", lambda cell: False),
    "arrays are not copied": (BUFFER, reads, "copied", lambda path, value, compare: value),
    "nothing is trained first": (LOOKS, context.cohost, "_look", lambda block, thing, doing: None),
    "draws are not foreseen": (DRAWS, fits.DeferredFit, "draw_ahead", lambda fit, is_built: None),
}


def test_a_program_that_can_runs_in_a_block():
    assert programs.judge(LOOKS).kind == "same"


@pytest.mark.nightly
@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_broken_on_purpose_is_seen(name, monkeypatch):
    program, owner, attribute, broken = MUTANTS[name]
    assert programs.judge(program).kind == "same"
    monkeypatch.setattr(owner, attribute, broken)
    assert programs.judge(program).kind == "differs"
