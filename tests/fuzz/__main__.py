"""Draws many fits, and programs: `FUZZ=1000 SEED=1 KERAS_BACKEND=jax python -m tests.fuzz`.

Of programs two fifths as many: each fits several models. Of programs with loops half as many.
"""

import functools
import os
import sys
import time

from tests.fuzz import drawn, fits, loops, programs, search

# A search ends with the first case that differs: the next one goes on with another seed.
PART = 25


def main() -> int:
    count, seed = int(os.environ.get("FUZZ", "1000")), int(os.environ.get("SEED", "1"))
    seconds = float(os.environ.get("FUZZ_SECONDS", "inf"))
    tally, begun, part = search.Tally(), time.monotonic(), 0
    while tally.tried < count and time.monotonic() - begun < seconds:
        left = min(PART, count - tally.tried)
        search.search(drawn.cases(), fits.verdict, left, seed * 100_000 + part, tally)
        part += 1
        print(
            f"{drawn.BACKEND}, SEED={seed}, {time.monotonic() - begun:.0f} s: {tally.tried} draws, "
            f"{len(tally.differing)} differing, {tally.refused.total()} refused",
            flush=True,
        )
    print(f"{drawn.BACKEND}, SEED={seed}: {tally}")
    say = functools.partial(print, flush=True)
    report = programs.try_programs(count * 2 // 5, seed * 100_000, seconds, shrink=60, say=say)
    print(f"{drawn.BACKEND}, SEED={seed}: {report}")
    of_loops = loops.try_loops(count // 2, seed * 100_000, seconds, shrink=60, say=say)
    print(f"{drawn.BACKEND}, SEED={seed}: {of_loops}")
    return bool(tally.differing or report.differing or of_loops.differing)


if __name__ == "__main__":
    sys.exit(main())
