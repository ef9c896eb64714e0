"""Speed-ups over a baseline, each with the interval in which it is known to lie."""

import math
import statistics

# A speed-up is known well enough when its 95 % interval reaches no further than this (as a part of
# it) to either side. A speed-up smaller than this is not worth another layout.
ENOUGH = 0.05

# The largest logarithm of a speed-up; `math.exp` raises not much above it.
_LARGEST = 700.0

# The 97.5 % quantiles of Student's t for 1 to 5 degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571)


def ratio(baseline: list[float], times: list[float]) -> tuple[float, float, float]:
    """Returns the speed-up and its 95 % interval, from the logarithms of the rounds' ratios.

    The interval is that of Student's t, as few rounds say little about the spread (with two rounds
    it reaches 12.7 standard errors to either side).
    """
    logs = [math.log(one / other) for one, other in zip(baseline, times, strict=True)]
    middle = statistics.median(logs)
    if len(logs) < 2:
        return math.exp(middle), 0.0, math.inf
    half = student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(min(middle + half, _LARGEST))


def student(freedom: int) -> float:
    """Returns the 97.5 % quantile of Student's t: from a table, then by a series (to 0.1 %)."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**i for i, term in enumerate(terms))
