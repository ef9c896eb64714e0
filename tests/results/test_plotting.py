"""Plots draw on the Axes given, and are readable with few members and with many."""

import sys

import keras
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure

import kerascohost as kc
from kerascohost.results.plotting import MOST_NAMED, plot_benchmark


def frame(members, validated=True, epochs=20):
    random = np.random.default_rng(0)
    rows = []
    for i in range(members):
        losses = np.exp(-np.arange(epochs) / (4 + i)) + random.normal(size=epochs) * 0.01 + 0.1
        for split in ["train", "val"][: 1 + validated]:
            rows += [(f"m{i}", e, "loss", split, loss) for e, loss in enumerate(losses)]
    return pd.DataFrame(rows, columns=["member", "epoch", "metric", "split", "value"])


def test_a_notebook_shows_the_axes_as_a_picture():
    speeds = pd.DataFrame(
        {"layout": ["joined"], "speedup": [3], "low": [2], "high": [4], "same_training": [True]}
    )
    for ax in (kc.plot_losses(frame(2)), plot_benchmark(speeds)):
        shown, _ = DisplayFormatter().format(ax)
        assert shown["image/png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("members", [1, 2, 6, MOST_NAMED])
def test_each_member_has_a_sign_of_its_own(members):
    ax = kc.plot_losses(frame(members))
    solid = [line for line in ax.lines if len(line.get_xdata()) and line.get_linestyle() == "-"]
    signs = {(line.get_color(), line.get_marker()) for line in solid}
    assert len(solid) == len(signs) == members
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [*(f"m{i}" for i in range(members)), "training", "validation"]
    assert solid[0].get_xdata()[0] == 1


def test_many_members_are_shown_by_their_median():
    table = frame(32)
    ax = kc.plot_losses(table)
    assert len(ax.lines) == 2 * 33
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["median of 32, training", "median of 32, validation"]
    expected = table[table["split"] == "train"].groupby("epoch")["value"].median()
    np.testing.assert_array_equal(ax.lines[32].get_ydata(), expected)


def test_a_metric_that_is_not_there_is_told():
    for wrong in ("los", "val_loss"):
        with pytest.raises(kc.CohortError, match=rf"'{wrong}'\. Did you mean 'loss'"):
            kc.plot_losses(frame(2), metric=wrong)


def test_a_keras_history_is_drawn_too():
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    history = net.fit(np.ones((8, 2)), np.ones((8, 1)), epochs=3, validation_split=0.5, verbose=0)
    ax = kc.plot_losses(history)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.history["loss"])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), history.history["val_loss"])
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["training", "validation"]


def test_it_draws_on_the_axes_given_and_leaves_pyplot_alone():
    mine = Figure().add_subplot()
    assert kc.plot_losses(frame(2), ax=mine) is mine
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
    assert len(kc.plot_losses(frame(0)).lines) == 0


@pytest.mark.parametrize("members", [1, 2, 6, 32])
def test_each_member_may_have_axes_of_its_own(members):
    grid = kc.plot_losses(frame(members), subplots=True)
    assert [ax.get_title() for ax in grid] == [f"m{i}" for i in range(members)]
    assert all(len(ax.lines[0].get_xdata()) == 20 for ax in grid)
    assert {ax.figure for ax in grid} == {grid[0].figure}
    assert [text.get_text() for text in grid[0].figure.legends[0].get_texts()] == [
        "training",
        "validation",
    ]
    with pytest.raises(kc.CohortError, match="either `ax` or `subplots"):
        kc.plot_losses(frame(1), ax=grid[0], subplots=True)


def test_drawn_again_each_epoch_it_ends_as_drawn_once():
    ax = Figure().add_subplot()
    table = frame(2)
    for epoch in range(20):
        ax.clear()
        kc.plot_losses(table[table["epoch"] <= epoch], ax=ax)
    once = kc.plot_losses(table)
    assert len(ax.lines) == len(once.lines)
    for live, line in zip(ax.lines, once.lines, strict=True):
        np.testing.assert_array_equal(live.get_xydata(), line.get_xydata())
    assert ax.get_xlim() == once.get_xlim()
