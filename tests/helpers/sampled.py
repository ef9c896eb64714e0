"""Samples of long lists of programs: on every change some of them run, in a nightly run all."""

from collections.abc import Iterable

import pytest


def one_in(count: int, names: Iterable[str]) -> list:
    """Returns `names` as parameters, all but each `count`-th one marked as nightly."""
    return [
        pytest.param(name, marks=[pytest.mark.nightly] if i % count else [])
        for i, name in enumerate(names)
    ]
