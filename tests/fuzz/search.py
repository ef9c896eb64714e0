"""Runs drawn cases, counts how they end, and shrinks the first that differs."""

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

# Shrinking runs cases, each of which takes seconds.
SHRINKING_SECONDS = 60.0


@dataclasses.dataclass
class Tally:
    """How cases ended.

    Attributes:
        tried: Their number.
        refused: How many were refused before training, by reason.
        failed: How many failed together as apart, by what was raised.
        warned: How many were told that random numbers are others than apart, by the first words.
        differing: The shrunk case and what differs, for each search that found one.
    """

    tried: int = 0
    refused: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    failed: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    warned: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    differing: list[tuple[Any, str]] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.tried} draws: {len(self.differing)} differing, "
            f"{self.refused.total()} refused before training, {self.failed.total()} failed as "
            f"apart, {self.warned.total()} warned of other draws"
        ]
        lines += [f"  failed {count} times: {why}" for why, count in self.failed.most_common()]
        lines += [f"  refused {count} times: {why}" for why, count in self.refused.most_common()]
        lines += [f"differs: {what}\n  {case!r}" for case, what in self.differing]
        return "\n".join(lines)


class DiffersError(Exception):
    """A case that differs: what lets hypothesis shrink it."""


def search(
    cases: SearchStrategy,
    verdict: Callable[[Any], Any],
    count: int,
    start: int,
    tally: Tally,
    seconds: float = float("inf"),
    shrinking: float = SHRINKING_SECONDS,
) -> None:
    """Runs up to `count` cases, until one differs; adds to `tally`.

    Args:
        cases: Draws cases, whose `repr` can be run again.
        verdict: Runs a case; its result has a `kind` ("same", "failed", "refused" or "differs") and
            a `text`.
        count: How many cases.
        start: The seed.
        tally: How cases ended so far.
        seconds: No new case is run after this time.
        shrinking: The time for shrinking.
    """
    known: dict[str, Any] = {}  # what hypothesis asks for twice is answered alike
    ends = time.monotonic() + seconds
    smallest: tuple[Any, str] | None = None

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(cases)
    def run(case: Any) -> None:
        nonlocal ends, smallest
        key = repr(case)
        if key not in known and time.monotonic() < ends:
            known[key] = result = verdict(case)
            if smallest is None:
                tally.tried += 1
                if result.kind in ("refused", "failed", "warned"):
                    getattr(tally, result.kind)[result.text] += 1
            if result.kind == "differs" and smallest is None:
                print(f"differs: {result.text}\n  {key}\n  shrinking", flush=True)
                ends = time.monotonic() + shrinking
        if key in known and known[key].kind == "differs":
            smallest = (case, known[key].text)
            raise DiffersError

    try:
        run()
    except DiffersError:
        tally.differing.append(smallest)
