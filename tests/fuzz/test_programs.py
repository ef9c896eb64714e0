"""Programs drawn at random end in a block as they end without one, or are refused."""

import os
import random

from tests.fuzz import programs


def test_programs_end_in_a_block_as_without_one_or_are_refused():
    """`SEED` is where it begins, in another place each time; it is printed."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    print(f"SEED={seed}")
    report = programs.try_programs(1000, seed, seconds=30.0, shrink=60.0, say=print)
    print(report)
    assert not report.differing, "\n".join(report.differing)
    assert report.kinds["same"], "no program ran to its end"
