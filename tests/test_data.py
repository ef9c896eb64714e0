"""A Subset is to its members what `x[rows]` is, at the price of its row numbers."""

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from scipy import sparse

import kerascohost as kc
from kerascohost.backends import resident
from kerascohost.notebook import data as notebook_data
from tests.helpers import compare
from tests.helpers.compare import Member

BACKEND = keras.backend.backend()
RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(50, 4)).astype("float32")
Y = (X @ RANDOM.normal(size=(4, 1))).astype("float32")
LABELS = RANDOM.integers(3, size=50)
WEIGHTS = np.linspace(0, 1, 50)
ROWS = RANDOM.integers(50, size=37)  # a bootstrap sample


@pytest.mark.parametrize(
    "rows", [ROWS, [3, -1, 3], slice(40, None, 2), np.arange(50) % 3 == 0, []], ids=str
)
@pytest.mark.parametrize("kind", ["array", "tensor", "frame"])
def test_its_values_are_those_of_the_rows(rows, kind):
    makes = {"array": np.asarray, "tensor": keras.ops.convert_to_tensor, "frame": pd.DataFrame}
    subset = kc.Subset(makes[kind](X), rows)
    expected = X[np.asarray(rows, int) if isinstance(rows, list) else rows]
    np.testing.assert_array_equal(np.asarray(subset), expected)
    assert subset.shape == expected.shape and len(subset) == len(expected)
    np.testing.assert_array_equal(np.asarray(kc.Subset(subset, slice(1, 3))), expected[1:3])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint64"])
def test_rows_of_any_type_of_integers(dtype):
    rows = [1, 2] if dtype[0] == "u" else [1, -2]
    subset = kc.Subset(np.arange(300), np.array(rows, dtype))
    np.testing.assert_array_equal(subset[:], np.arange(300)[rows])


@pytest.mark.parametrize(
    ("x", "rows", "said"),
    [
        (X, [0, 50], "from -50 to 49"),
        (X, [-51], "Received: -51"),
        (X, [0.5], "Expected `rows` to be integers"),
        (X, [True, False], "booleans, `\\(50,\\)`"),
        ([X, X], [0], "Expected `x` to be an array"),
        (sparse.csr_array(X), [0], "Expected dense data. Received: csr_array"),
    ],
)
def test_what_cannot_be_is_refused(x, rows, said):
    with pytest.raises(kc.CohortError, match=said):
        kc.Subset(x, rows)


def model(name=None):
    net = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")], name=name)
    net.compile("adam", "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    return net


def both(subsets, **arguments):
    """Members with subsets, or with copies of the rows."""

    def data(array, rows):
        return kc.Subset(array, rows) if subsets else array[rows]

    def member(rows, **more):
        fit = {"x": data(X, rows), "y": data(LABELS, rows), "batch_size": 8, "epochs": 2}
        return Member(model, **fit, **more)

    held_out = np.arange(20)
    return {
        "bootstrap": member(ROWS, class_weight={0: 1.0, 1: 2.0, 2: 0.5}),
        "weighted": member(ROWS, sample_weight=data(WEIGHTS, ROWS), shuffle=False),
        "copied": member(ROWS, sample_weight=WEIGHTS[:37]),
        "split": member(slice(10, None), validation_split=0.3),
        "validated": member(
            slice(20, None), validation_data=(data(X, held_out), data(LABELS, held_out))
        ),
        "steps": member(np.arange(40), steps_per_epoch=5) if BACKEND != "torch" else member(ROWS),
    }


@pytest.mark.parametrize(
    "share",
    [resident._SHARE, pytest.param(0, marks=pytest.mark.nightly)],
    ids=["resident", "chunks"],
)
@pytest.mark.parametrize("layout", ["joined", "stacked"])
def test_members_end_as_with_copies_of_the_rows(layout, share, monkeypatch):
    monkeypatch.setattr(resident, "_SHARE", share)
    there = compare.train_together(both(subsets=True), layout=layout)
    copied = compare.train_together(both(subsets=False), layout=layout)
    compare.assert_same(copied, there, tolerance=0)


@pytest.mark.skipif(BACKEND == "torch", reason="torch's steps take batches from memory")
def test_folds_of_one_array_are_put_on_the_device_once(put):
    folds = {f"fold {i}": np.arange(50) % 3 != i for i in range(3)}
    cohort = kc.Cohort({name: model() for name in folds}, layout="stacked")
    x, y = ({n: kc.Subset(array, rows) for n, rows in folds.items()} for array in (X, LABELS))
    cohort.fit(x, y, batch_size=8, verbose=0)
    assert put == [[(50, 4)], [(50,)]]


def test_evaluations_and_predictions_are_those_of_the_rows():
    cohort = kc.Cohort([model("a"), model("b")])
    x, y = kc.Subset(X, ROWS), kc.Subset(LABELS, ROWS)
    assert cohort.evaluate(x, y, verbose=0) == cohort.evaluate(X[ROWS], LABELS[ROWS], verbose=0)
    there, copied = (cohort.predict(data, verbose=0) for data in (x, X[ROWS]))
    for name in there:
        np.testing.assert_array_equal(there[name], copied[name])


def test_unequal_lengths_are_refused_as_those_of_arrays():
    with pytest.raises(ValueError, match="cardinality"):
        kc.Cohort([model()]).fit(kc.Subset(X, ROWS), LABELS, verbose=0)


@pytest.mark.nightly
def test_benchmarks_take_subsets():
    x, y = kc.Subset(X, ROWS), kc.Subset(LABELS, ROWS)
    kc.benchmark([model("a")], x, y, layouts=["joined"], steps=2, repeats=2, progress=False)


def test_the_widget_takes_subsets():
    x, y = kc.Subset(X, ROWS), kc.Subset(LABELS, ROWS)
    data = notebook_data.data_in({"x": x, "y": y})
    assert list(data) == ["x", "y"]
    assert notebook_data.inputs_for("a", model(), data) == ["x"]
    assert notebook_data.targets_for("a", model(), "x", data) == ["y"]
