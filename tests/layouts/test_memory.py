"""What is predicted of a cohort's memory, against what a process of its own is seen to take."""

import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

import kerascohost as kc
from tests.helpers.measured_models import MODELS, compiled

BACKEND = keras.backend.backend()

# Trains a small model first, so that what the backend takes for itself is there already.
MEASURED = """
import json, sys
import keras, numpy as np
import kerascohost as kc
from kerascohost.layouts import memory
from tests.helpers.measured_models import MODELS

kc.Cohort([MODELS["small"]()]).fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=16, verbose=0)
with memory.peak() as found:
    named = {name: MODELS[name]() for name in sys.argv[1:]}
    x = {name: np.ones((256, *model.input_shape[1:]), "float32") for name, model in named.items()}
    kc.Cohort(named).fit(x, np.ones((256, 1)), batch_size=128, verbose=0)
print(json.dumps([found["mb"], kc.estimate_memory(named, 128).total_mb]))
"""


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
@pytest.mark.parametrize(
    "names",
    [
        ["wide"],
        pytest.param(
            ["images", "sequence"],
            marks=pytest.mark.skipif(
                BACKEND != "tensorflow",
                reason="XLA's and torch's CPU kernels take memory of theirs",
            ),
        ),
    ],
)
def test_the_prediction_is_near_what_is_measured(names):
    code = [sys.executable, "-W", "ignore", "-c", MEASURED, *names]
    run = subprocess.run(code, capture_output=True, text=True, check=True)
    measured, predicted = json.loads(run.stdout.splitlines()[-1])
    assert predicted == pytest.approx(measured, rel=0.25)


def test_each_part_is_counted():
    net = compiled(keras.Input((100,)), layers.Dense(50))
    row = kc.estimate_memory({"net": net}, batch_size=8).frame.iloc[0]
    weights = (100 * 50 + 50) * 4 / 2**20
    assert row["weights"] == pytest.approx(weights)
    # Two moments for each weight; the iteration and the learning rate once it is built.
    assert row["optimizer"] == pytest.approx(2 * weights)
    assert row["activations"] == pytest.approx(4 * 8 * 50 * 4 / 2**20)
    net.fit(np.ones((8, 100)), np.ones((8, 50)), verbose=0)
    built = kc.estimate_memory({"net": net}, batch_size=8).frame.iloc[0]
    assert built["optimizer"] == pytest.approx(row["optimizer"], rel=1e-3)


def test_more_clones_until_the_limit():
    estimate = kc.estimate_memory({"wide": MODELS["wide"](), "small": MODELS["small"]()}, 32)
    total = estimate.frame["total"][0]
    assert estimate.more_clones(estimate.total_mb + 2.5 * total)["wide"] == 2
    assert estimate.more_clones(1.0) == {"wide": 0, "small": 0}
    assert "All together" in repr(estimate) and "<td>wide</td>" in estimate._repr_html_()


def test_a_model_of_less_than_a_megabyte_is_not_shown_as_nothing():
    estimate = kc.estimate_memory([compiled(keras.Input((4,)), layers.Dense(1))])
    assert re.search(r"\b0\.000\d+\b", repr(estimate))
    assert not re.search(r"\b0\.0\b", repr(estimate))


def test_nothing_is_changed_by_it():
    net = compiled(keras.Input((4,)), layers.BatchNormalization(), layers.Dropout(0.1, seed=1))
    before = [keras.ops.convert_to_numpy(v.value) for v in net.variables]
    call = layers.Layer.__call__
    kc.estimate_memory([net])
    assert layers.Layer.__call__ is call
    for one, variable in zip(before, net.variables, strict=True):
        np.testing.assert_array_equal(one, keras.ops.convert_to_numpy(variable.value))


def test_unknown_shapes_need_data():
    net = compiled(keras.Input((None, 3)), layers.GRU(4))
    with pytest.raises(kc.CohortError, match="one with unknown dimensions; give `x`"):
        kc.estimate_memory([net])
    short, long = (kc.estimate_memory([net], 8, np.ones((8, n, 3))).total_mb for n in (10, 100))
    assert long > 2 * short


@pytest.mark.parametrize(
    "make",
    [
        pd.DataFrame,
        lambda x: pd.DataFrame(x).assign(label=True).drop(columns=0),
        keras.ops.convert_to_tensor,
        lambda x: kc.Subset(pd.DataFrame(x), [1, 2]),
        lambda x: x.astype(object),
    ],
    ids=["frame", "unlike columns", "tensor", "subset", "objects"],
)
def test_data_of_every_kind_has_a_shape(make):
    x = np.ones((20, 4), "float32")
    net = compiled(keras.Input((4,)), layers.Dense(1))
    expected = kc.estimate_memory([net], 32).total_mb
    assert kc.estimate_memory([net], 32, make(x)).total_mb == pytest.approx(expected)
    if hasattr(make(x), "iloc"):
        kc.Cohort([net], at_once="auto").fit(make(x), x[:, :1], verbose=0)


def test_data_without_a_shape_is_refused_by_name():
    net = compiled(keras.Input((4,)), layers.Dense(1))
    with pytest.raises(kc.CohortError, match=r"Member 'net': expected `x` to be arrays.*generator"):
        kc.estimate_memory({"net": net}, x=iter(i for i in range(3)))
