"""Results as text and as HTML, in which members have whatever names users give them."""

import pandas as pd
import pytest

import kerascohost as kc
from kerascohost.layouts.result import BenchmarkResult

NAME = "<b>'R&D'"
ESCAPED = "&lt;b&gt;&#x27;R&amp;D&#x27;"


def plan():
    return kc.Plan([{"member": NAME, "layout": "joined", "reason": "runs eagerly"}])


def result():
    numbers = ["samples_per_s", "step_ms", "speedup", "low", "high", "compile_s", "memory_mb"]
    rows = [
        dict.fromkeys(numbers, 1.0)
        | {"layout": "separate", "same_training": True, "weight_difference": 0.0},
        {"layout": "stacked", "note": f"not possible: {NAME}"},
    ]
    frame = pd.DataFrame(rows).astype({"same_training": "boolean"})
    return BenchmarkResult(frame, pd.DataFrame(), lambda layout: layout)


@pytest.mark.parametrize("make", [plan, result])
def test_sentences_are_escaped_in_html_and_only_there(make):
    shown = make()
    assert NAME in repr(shown).splitlines()[-1]
    html = shown._repr_html_()
    assert ESCAPED in html and NAME not in html
