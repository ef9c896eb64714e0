"""Plots draw on the Axes given, and are readable with few members and with many."""

import sys

import keras
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import kerascohost as kc
from kerascohost.plotting import MOST_NAMED


def frame(members, validated=True, epochs=20):
    random = np.random.default_rng(0)
    rows = []
    for i in range(members):
        losses = np.exp(-np.arange(epochs) / (4 + i)) + random.normal(size=epochs) * 0.01 + 0.1
        for split in ["train", "val"][: 1 + validated]:
            rows += [(f"m{i}", e, "loss", split, loss) for e, loss in enumerate(losses)]
    return pd.DataFrame(rows, columns=["member", "epoch", "metric", "split", "value"])


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
