"""Programs with loops, drawn at random, end in turn as they end as written."""

import os
import random

import keras
import pytest

from kerascohost.deferred import names
from tests.fuzz import loops

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="fits draw from torch's generator, which members share",
)


@pytest.mark.nightly
def test_programs_with_loops_end_in_turn_as_written():
    """`SEED` is where it begins, in another place each time; it is printed."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    print(f"SEED={seed}")
    report = loops.try_loops(10, seed, seconds=20.0, shrink=60.0, say=print)
    print(report)
    assert not report.differing, f"SEED={seed}\n" + "\n".join(report.differing)
    assert report.kinds.total(), "no program was tried"


# A slow machine tries a few at random only, of which perhaps none can run in turn.
FOLDS = """
for u in (3, 4, 5):
    keras.utils.set_random_seed(u)
    m = small(u)
    m.fit(x, y, verbose=0)
    scores.append(m.evaluate(x, y, verbose=0))
"""


def test_a_loop_that_can_runs_in_turn():
    assert loops.judge(FOLDS, is_eager=True) == loops.Verdict("in turn", "", 3, 3)


GROWS = """
for u in (3, 4, 5):
    log.append(u)
    m = small(len(log))
    m.fit(x, y, verbose=0)
    scores.append((len(log), m.evaluate(x, y, verbose=0)))
"""
BEST = """
for u in (3, 4, 5):
    m = small(u)
    m.fit(x, y, verbose=0, epochs=6 - u)
    s = m.evaluate(x, y, verbose=0)
    scores.append(s)
    if s < best:
        best, best_model = s, m
"""


@pytest.mark.nightly
@pytest.mark.parametrize("program", [GROWS, BEST])
def test_what_is_broken_on_purpose_is_seen(program, monkeypatch):
    assert loops.judge(program, is_eager=True).kind != "differs"
    monkeypatch.setattr(names.Analysis, "waits", lambda analysis, effects: False)
    assert loops.judge(program, is_eager=True).kind == "differs"
