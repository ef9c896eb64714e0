"""Random fits end together as they end apart."""

import os

import pytest

from tests.fuzz import drawn, fits, search

SEED = int(os.environ.get("SEED", "1"))

pytestmark = pytest.mark.skipif(
    drawn.BACKEND == "torch", reason="runs once a torch program compiles its steps"
)


@pytest.mark.nightly
def test_random_fits_equal_separate_fits():
    tally = search.Tally()
    search.search(drawn.cases(), fits.verdict, 24, SEED, tally, seconds=20)
    print(f"SEED={SEED}, {tally}")
    assert not tally.differing, f"SEED={SEED}, {tally}"
    assert tally.tried > tally.refused.total() + tally.failed.total()
