"""Suggested group factors: by size, by speed, and against all the factors that there are."""

import itertools
import math
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kerascohost as kc

suggest = kc.suggest_group_factors


def test_by_size_and_by_speed():
    assert suggest({"a": 1000, "b": 2900, "c": 1100}) == {"a": 1, "b": 3, "c": 1}
    assert suggest({"a": 5.0, "b": 1.0}, by="speed", max_batch_size=64) == {"a": 1, "b": 2}
    assert suggest({"a": 100, "b": 900}, max_batch_size=16) == {"a": 1, "b": 1}


def test_the_frame_says_what_to_expect():
    frame = suggest({"cnn": 300, "mlp": 610}).frame.set_index("member")
    assert frame["batch_size"].tolist() == [32, 64]
    assert frame["steps"].tolist() == [10, 10]
    assert frame["last_step"].tolist() == [300 - 9 * 32, 610 - 9 * 64]
    fast = suggest({"a": 0.004, "b": 0.001}, by="speed", samples={"b": 256}).frame
    assert fast["step_s"].tolist() == pytest.approx([0.004, 0.004])
    assert fast["epoch_s"].tolist()[1] == pytest.approx(2 * 0.004)


lines = st.tuples(st.floats(1e-5, 1e-2), st.floats(1e-6, 1e-2), st.integers(1, 20_000))


@given(st.lists(lines, min_size=2, max_size=2), st.integers(1, 16))
def test_by_both_is_near_the_best_of_all_factors(pair, most):
    def epoch(member, factor):
        start, slope, samples = member
        return math.ceil(samples / (32 * factor)) * (start + slope * factor)

    times = {str(i): {k: a + b * k for k in (1, 4)} for i, (a, b, _) in enumerate(pair)}
    samples = {str(i): member[2] for i, member in enumerate(pair)}
    found = suggest(times, by="both", max_batch_size=32 * most, samples=samples)
    best = min(
        sum(map(epoch, pair, factors))
        for factors in itertools.product(range(1, most + 1), repeat=2)
    )
    assert sum(map(epoch, pair, found.values())) <= 1.0201 * best
    assert found.frame["epoch_s"].sum() == pytest.approx(sum(map(epoch, pair, found.values())))
    assert len(found.tried) == 2 * most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measures": {"a": 1, "b": 0}}, r"'b': expected a positive number .* Received: 0"),
        ({"measures": {"a": 1}, "by": "pace"}, "by='pace'"),
        ({"measures": [300, 600]}, r"dict from members' names .* Received: \[300, 600\]"),
        ({"measures": {"a": {1: 0.1}}, "by": "both"}, "two group factors or more"),
        ({"measures": {"a": {1: 0.1, 2: 0.1}}, "by": "both"}, "its number of samples"),
    ],
)
def test_what_is_missing_is_said(arguments, message):
    with pytest.raises(kc.CohortError, match=message):
        suggest(**arguments)


def test_a_time_at_one_factor_is_one_per_batch():
    factors = suggest({"cnn": {4: 0.008}, "mlp": {1: 0.001}}, by="speed")
    assert factors == suggest({"cnn": 0.002, "mlp": 0.001}, by="speed") == {"cnn": 1, "mlp": 2}
    assert "<table" in factors._repr_html_() and "cnn" in factors._repr_html_()


def test_a_benchmark_has_no_numbers_of_samples():
    measured = types.SimpleNamespace(step_times={"cnn": {1: 0.002}, "mlp": {1: 0.001}})
    assert suggest(measured, by="speed") == {"cnn": 1, "mlp": 2}
    with pytest.raises(kc.CohortError, match="'speed' or 'both' for what a benchmark measured"):
        suggest(measured, by="size")
