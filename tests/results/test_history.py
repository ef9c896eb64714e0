"""`CohortHistory` and its plot."""

import keras
import matplotlib.pyplot as plt
import pytest

import kerascohost as kc


def recorded(**metrics):
    history = keras.callbacks.History()
    history.history = metrics
    history.epoch = list(range(len(next(iter(metrics.values())))))
    return history


def two_members():
    return kc.CohortHistory(
        {"a": recorded(loss=[3.0, 2.0], val_loss=[4.0, 3.5]), "b": recorded(loss=[1.0])}
    )


def test_the_history_is_a_mapping_from_members_to_keras_histories():
    history = two_members()
    assert list(history) == ["a", "b"] and len(history) == 2
    assert history["a"].history["loss"] == [3.0, 2.0]


def test_the_frame_is_tidy():
    frame = two_members().frame
    assert list(frame.columns) == ["member", "epoch", "metric", "split", "value"]
    assert frame.values.tolist() == [
        ["a", 0, "loss", "train", 3.0],
        ["a", 1, "loss", "train", 2.0],
        ["a", 0, "loss", "val", 4.0],
        ["a", 1, "loss", "val", 3.5],
        ["b", 0, "loss", "train", 1.0],
    ]


def test_rare_validations_stand_at_their_own_epochs():
    history = kc.CohortHistory(
        {"a": recorded(loss=[3.0, 2.0, 1.0, 0.5], val_loss=[4.0, 3.0])}, {"a": [1, 3]}
    )
    frame = history.frame
    assert frame[frame["split"] == "val"]["epoch"].tolist() == [1, 3]


def test_an_empty_history_has_an_empty_frame_and_plot():
    history = kc.CohortHistory({"a": keras.callbacks.History()})
    assert history.frame.empty
    assert history.plot().get_lines()[:] == []


def test_a_name_that_is_not_there_is_told():
    history = kc.CohortHistory({"a": keras.callbacks.History(), "b": keras.callbacks.History()})
    with pytest.raises(KeyError, match="'c' is none of the members: a, b"):
        history["c"]
    assert repr(history).splitlines()[1:3] == ["    a: 0 epochs,", "    b: 0 epochs,"]


def test_the_plot_draws_training_solid_and_validation_dashed():
    ax = two_members().plot()
    styles = [line.get_linestyle() for line in ax.get_lines() if len(line.get_xdata())]
    assert styles == ["-", "--", "-"]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["a", "b", "training", "validation"]


def test_the_plot_uses_the_axes_given_and_leaves_pyplot_alone():
    ax = kc.plot_losses(two_members().frame)
    assert plt.get_fignums() == []
    figure, given = plt.subplots()
    assert two_members().plot(ax=given) is given is not ax
    assert plt.gcf() is figure
    plt.close(figure)


def test_a_dozen_members_are_told_apart():
    members = {f"m{i}": recorded(loss=[2.0, 1.0 + i]) for i in range(12)}
    lines = kc.CohortHistory(members).plot().get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 12


def test_the_table_shows_each_members_epochs_and_final_metrics():
    html = two_members()._repr_html_()
    assert all(text in html for text in ("<th>a</th>", "<td>2</td>", "<td>3.5</td>", "val_loss"))
