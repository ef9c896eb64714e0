"""The widget without a browser: what it sends to the page, and what it does when the page asks."""

import gc
import json

import keras
import numpy as np
import pytest
from keras import layers

import kerascohost as kc
from kerascohost.notebook import view
from kerascohost.notebook.widget import CohostWidget


def net(units=4):
    made = keras.Sequential([keras.Input((5,)), layers.Dense(units), layers.Dense(1)])
    made.compile("adam", "mse")
    return made


@pytest.fixture
def variables():
    random = np.random.default_rng(0)
    x, y = random.random((64, 5)).astype("float32"), random.random((64, 1)).astype("float32")
    return {"mlp": net(), "seeds": [net(3), net(3)], "x": x, "y": y}


@pytest.fixture
def widget(variables):
    made = CohostWidget(variables)
    yield made
    made.session.stop()
    assert made.session.wait(60)
    made.close()


def ask(widget, do, **rest):
    """Sends a message as the page does."""
    widget._handle_custom_msg({"do": do, **rest}, [])


def rows(widget):
    return {row["name"]: row for row in widget.page["rows"]}


def test_ticks_and_values_for_many_rows_at_once(widget):
    ask(widget, "select", names=["seeds[0]", "seeds[1]"], value=True)
    ask(widget, "choose", trait="epochs", names=["seeds[0]", "seeds[1]"], value=7)
    ask(widget, "choose", trait="validation", names=["seeds[1]"], value=[0.2])
    assert [row["epochs"] for row in rows(widget).values()] == [5, 7, 7]
    row = rows(widget)["seeds[1]"]
    assert row["selected"] and row["group"] == "seeds" and row["validation"] == (0.2,)
    assert [value for value, _ in widget.page["options"][row["options"]["x"][0]]] == ["x", ""]
    assert rows(widget)["mlp"]["options"] == {}
    ask(widget, "select", names=["seeds[0]"], value=False)
    assert widget.session.selected == ["seeds[1]"]


def test_an_error_is_shown_where_it_was_asked_for(widget):
    ask(widget, "train")
    assert "There are: mlp, seeds[0], seeds[1]" in widget.live["errors"]["train"]
    ask(widget, "select", names=["mlp"], value=True)
    ask(widget, "choose", trait="batch_size", names=["mlp"], value=-3)
    assert "batch_size=-3" in widget.live["errors"]["models"]
    ask(widget, "copies", names=["mlp"], value=1, rates=[], trait="copies")
    assert "two copies" in widget.live["errors"]["copies"]
    ask(widget, "nonsense")
    assert "nonsense" in widget.live["errors"]["models"]


def test_what_is_sent_is_json_at_every_moment(widget):
    sent = []
    widget.observe(lambda change: sent.append(json.dumps(change.new, allow_nan=False)))
    widget.session.choose("validation", {"mlp": (0.5,)})
    ask(widget, "select", names=["mlp", "seeds[0]", "seeds[1]"], value=True)
    ask(widget, "train")
    assert widget.session.wait(60) and not widget.live["errors"], widget.live
    assert widget.live["members"]["mlp"]["state"] == "epoch 5/5"
    assert widget.live["groups"]["seeds"]["state"] == "all 2 ended"
    assert set(widget.curves["now"]) == {"mlp", "seeds[0]", "seeds[1]"}
    assert set(widget.curves["now"]["mlp"]) == {"loss", "val_loss"}
    assert widget.live["message"].startswith("Trained after") and sent


def test_rows_tell_of_a_failure(widget, variables):
    def fail(epoch, logs):
        if epoch == 1:
            raise RuntimeError("broken on purpose")

    variables["broken"] = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    ask(widget, "select", names=["mlp", "seeds[0]", "seeds[1]"], value=True)
    ask(widget, "choose", trait="callbacks", names=["seeds[1]"], value=["broken"])
    ask(widget, "train")
    assert widget.session.wait(60) and widget.live["status"] == "idle"
    assert widget.live["message"] == "Failed; the error says why."
    assert widget.live["text"].startswith("failed at ")
    members = widget.live["members"]
    assert members["seeds[1]"]["state"] == "failed after epoch 1/5"
    assert members["seeds[1]"]["note"].startswith("RuntimeError: broken on purpose. Raised while")
    assert members["mlp"]["state"].startswith("stopped after epoch ")
    assert widget.live["groups"]["seeds"]["state"] == "1 stopped, 1 failed"
    variables["y_short"] = variables["y"][:9]
    widget.session.choose("y", {"mlp": "y_short"})
    ask(widget, "train")
    assert widget.session.wait(60) and widget.live["text"] == "failed at 0 %"
    assert widget.live["members"]["mlp"]["state"] == "failed"
    assert widget.live["members"]["seeds[0]"]["state"] == "stopped"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # of `__del__`
def test_arguments_of_another_type_are_refused():
    with pytest.raises(kc.CohortError, match=r"`variables` to be a dict .* Received: 3\."):
        CohostWidget(3)
    with pytest.raises(kc.CohortError, match=r"`session` to be a `CohostSession` .* Received: 3\."):
        CohostWidget(session=3)
    gc.collect()


def test_a_failure_to_draw_is_told_and_ends_no_training(widget, monkeypatch):
    def broken(session):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(view, "curves", broken)
    ask(widget, "select", names=["mlp"], value=True)
    ask(widget, "train")
    assert widget.session.wait(60)
    assert "The curves could not be shown. RuntimeError" in widget.live["errors"]["train"]
    assert widget.live["message"].startswith("Trained after")


def test_sixty_four_models_are_drawn_once_for_each_request(monkeypatch):
    """So that they open, and are ticked, at once: `tests.benchmarks.widget` has the times."""
    drawn = []
    usual = view.page
    monkeypatch.setattr(view, "page", lambda session: drawn.append(0) or usual(session))
    x, y = np.zeros((64, 5), "float32"), np.zeros((64, 1), "float32")
    variables = {"x": x, "y": y, "seeds": [net() for _ in range(64)]}
    variables |= {f"x_{i}": np.zeros((64, 5)) for i in range(10)}
    widget = CohostWidget(variables)
    assert len(drawn) == 1
    ask(widget, "select", names=list(widget.session.models), value=True)
    ask(widget, "choose", trait="epochs", names=list(widget.session.models), value=7)
    widget.close()
    assert len(drawn) == 3
    assert len(widget.session.selected) == 64
    assert set(widget.session.epochs.values()) == {7}
    assert len(json.dumps(widget.page)) < 100_000


@pytest.mark.nightly
def test_the_table_of_layouts_says_what_is_not_the_same(widget):
    session = widget.session
    session.selected = ["mlp", "seeds[0]"]
    session.group_factor = session.group_factor | {"mlp": 2}
    session.budget_s = 1.0
    sent = []
    widget.observe(lambda change: sent.append(json.dumps(change.new, allow_nan=False)), "page")
    session.benchmark()
    assert session.wait(300) and not session.errors, session.errors
    assert len(sent) > 4  # a row for each layout as it was measured
    result = widget.page["result"]
    grouped = next(row for row in result["rows"] if row[0] == "grouped")
    assert grouped[result["columns"].index("same training?")] == (
        "no, batch sizes: mlp 64 instead of 32"
    )
    assert result["old"] is False and len(result["bars"]) >= 4
    ask(widget, "choose", trait="batch_size", names=["mlp"], value=16)
    assert widget.page["result"]["old"] is True


def test_without_a_kernel_the_widget_is_a_readable_line(widget):
    data, _ = widget._repr_mimebundle_()
    assert data["text/plain"].startswith("The widget of kerascohost, with 3 models")
    assert kc.CohostWidget is CohostWidget
