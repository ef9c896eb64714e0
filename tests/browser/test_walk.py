"""Walks through all of the widget, in JupyterLab and in Notebook 7, as a user goes."""

import re

import pytest

pytest.importorskip("playwright", reason="pip install playwright jupyterlab notebook")

from tests.browser import lab
from tests.browser.axe import axe, violations
from tests.browser.controls import (
    choose_layout,
    copy,
    is_usable,
    open_tab,
    pick,
    press,
    said,
    set_number,
    shoot,
    train,
)

pytestmark = [*lab.marks("the widget knows no backend"), pytest.mark.nightly]

SETUP = """
import keras
import numpy as np
from keras import layers
import kerascohost as kc
%load_ext kerascohost

random = np.random.default_rng(0)
x_cnn, y_cnn = random.random((320, 8, 8, 1)), random.integers(0, 3, 320)
left, right, y_pair = (random.random((480, n)) for n in (5, 3, 1))
x_gru, y_gru = random.random((256, 6, 2)), random.random((256, 1))

keras.utils.set_random_seed(1)
cnn = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3, activation="relu"),
                        layers.Flatten(), layers.Dense(3, "softmax")])
cnn.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
inputs = [keras.Input((5,), name="left"), keras.Input((3,), name="right")]
pair = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(inputs)))
pair.compile("sgd", "mse")
gru = keras.Sequential([keras.Input((6, 2)), layers.GRU(4), layers.Dense(1)])
gru.compile("rmsprop", "mse", metrics=["mae"])
"""
NAMES = ("cnn", "pair", "gru")
CLONES = """
x_mlp, y_mlp = random.random((320, 6)), random.random((320, 1))
mlp = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(1)])
mlp.compile("sgd", "mse")
clones = kc.clones(mlp, 32, seed=0, learning_rate=[0.1 / 2**i for i in range(32)])
"""


def look(page, shots, name):
    """Pictures at two widths in both themes; nothing is cut, and axe-core finds nothing."""
    size = page.viewport_size
    for theme in ("Dark", "Light"):
        lab.use_theme(page, f"JupyterLab {theme}")
        for width in (600, 1400):
            page.set_viewport_size({"width": width, "height": 1400})
            page.wait_for_timeout(500)
            shoot(page, shots / f"{name}-{theme.lower()}-{width}.png")
            widget = page.locator(".kerascohost").first
            assert widget.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), (theme, width)
            if axe() is not None:
                assert violations(page, ".kerascohost") == [], (theme, width)
    page.set_viewport_size(size)


@pytest.mark.parametrize("app", ["lab", "notebook"])
@pytest.mark.parametrize("models", ["unlike", "clones"])
def test_from_the_first_tick_to_the_code(opened, shots, app, models):
    name = f"{app}-{models}"
    rows = NAMES if models == "unlike" else ["clones, 32 models"]
    labels = NAMES if models == "unlike" else ["clones"]
    cells = [SETUP + CLONES, "%cohost cnn pair gru mlp clones", ""]
    with lab.browser_page(width=1400, height=1800) as page:
        opened(page, cells, app)
        if app == "lab":
            page.keyboard.press("Control+b")  # the file browser goes
        press(page, "Select none")
        page.get_by_text("0 of 36 ticked").wait_for()
        press(page, "Train")
        page.locator(".kc-pane [role=alert]").get_by_text("Expected models to take part").wait_for()
        pick(page, rows)
        count = 3 if models == "unlike" else 32
        page.get_by_text(f"{count} of 36 ticked").wait_for()
        if models == "unlike":
            page.get_by_label("y of pair", exact=True).select_option(label="y_pair (480, 1)")
        else:
            choose_layout(page, "stacked")

        for label in labels:
            set_number(page, f"epochs of {label}", 100_000)
        press(page, "Train")
        page.locator(".kc-plots svg").first.wait_for(timeout=120_000)
        shoot(page, shots / f"{name}-running.png")
        assert not is_usable(page, "Train")
        press(page, "Stop training")
        said(page, "Stopped after")

        for label in labels:
            set_number(page, f"epochs of {label}", 4)
            chosen = page.get_by_label(f"validation of {label}", exact=True)
            chosen.select_option(label="last 20 %")
        train(page)
        page.locator(".kc-legend").get_by_text("earlier trainings").wait_for()
        picture = page.locator(".kc-plots svg").first
        if models == "unlike":
            for one in NAMES:
                row = page.locator("tr", has=page.get_by_role("checkbox", name=one, exact=True))
                row.get_by_text("epoch 4/4").wait_for()
                assert f"{one} validation" in picture.get_attribute("aria-label")
        else:
            page.get_by_text("all 32 ended").wait_for()
            assert "32 models: from" in picture.get_attribute("aria-label")
        look(page, shots, f"{name}-trained")
        if models == "clones":
            page.get_by_label("show each model of clones").click()
            page.get_by_label("epochs of clones[31]").wait_for(state="attached")
            look(page, shots, f"{name}-open")
            page.get_by_label("show each model of clones").click()

        open_tab(page, "Benchmark")
        set_number(page, "seconds", 3)
        press(page, "Run benchmark")
        said(page, "Measured; the models are as they were.")
        table = page.get_by_role("region", name="speed of each layout")
        for layout in ("separate", "joined"):
            table.get_by_role("rowheader", name=layout, exact=True).wait_for()
        look(page, shots, f"{name}-benchmark")

        open_tab(page, "Code")
        look(page, shots, f"{name}-code")
        copy(page, "Python")
        lab.run_cell(page, 2, pasted=True)
        lab.run_cell(page, 2, "print(len(history), 'histories')")
        page.get_by_text(f"{count} histories", exact=True).wait_for()


def test_a_failure_and_a_loss_that_is_nan(opened, shots):
    broken = """
def wrong(y, prediction):
    raise ValueError("this loss is broken on purpose")

def stop_in_epoch_3(epoch, logs):
    if epoch == 2:
        raise RuntimeError("this callback is broken on purpose")

bad = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
bad.compile("sgd", wrong)
wild = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
wild.compile(keras.optimizers.SGD(1e30), "mse")
failing = keras.callbacks.LambdaCallback(on_epoch_end=stop_in_epoch_3)
"""

    def row(name):
        return page.locator("tr", has=page.get_by_role("checkbox", name=name, exact=True))

    with lab.browser_page(width=1400, height=1800) as page:
        opened(page, [SETUP + CLONES + broken, "%cohost cnn mlp bad wild"])
        page.keyboard.press("Control+b")
        for name in ("bad", "wild"):
            page.get_by_label(f"x of {name}", exact=True).select_option(label="x_mlp (320, 6)")
            page.get_by_label(f"y of {name}", exact=True).select_option(label="y_mlp (320, 1)")
        press(page, "Train")
        alert = page.locator(".kc-pane [role=alert]")
        alert.get_by_text("this loss is broken on purpose").wait_for(timeout=120_000)
        assert "bad" in alert.inner_text()
        row("bad").get_by_text("failed").wait_for()
        row("bad").get_by_text("this loss is broken on purpose").wait_for()
        row("cnn").get_by_text("stopped").wait_for()
        assert is_usable(page, "Train") and not is_usable(page, "Stop training")
        assert not page.locator("progress:indeterminate").count()  # which looks like work
        look(page, shots, "failed-loss")

        page.get_by_role("checkbox", name="bad", exact=True).uncheck()
        page.get_by_text("3 of ").wait_for()
        page.get_by_label("callbacks of mlp").select_option(label="failing (LambdaCallback)")
        press(page, "Train")
        alert.get_by_text("this callback is broken on purpose").wait_for(timeout=120_000)
        row("mlp").get_by_text("failed after epoch 2/5").wait_for()
        row("wild").get_by_text(re.compile("loss is (NaN|infinite) since epoch")).wait_for()
        look(page, shots, "failed-callback")

        page.get_by_label("callbacks of mlp").select_option(label="none")
        train(page)  # what has failed is no longer said
        assert alert.inner_text() == "" and not row("bad").get_by_text("failed").count()
        row("wild").get_by_text(re.compile("loss is (NaN|infinite) since epoch")).wait_for()
        look(page, shots, "nan")


@pytest.mark.parametrize("saves_state", [True, False])
def test_without_its_kernel_and_as_a_page(opened, shots, saves_state):
    from nbconvert import HTMLExporter

    what = "saved" if saves_state else "unsaved"
    with lab.browser_page(width=1200, height=1800) as page:
        path = opened(page, [SETUP, "%cohost cnn gru"], saves_state=saves_state)
        train(page)
        # The picture is drawn after the training has ended, and hidden beside the widget.
        page.locator(".jp-OutputArea-output img").wait_for(state="attached")
        lab.save(page, path)
        lab.restart(page)
        page.locator(".kc-plots svg").wait_for()  # what was drawn stays
        page.reload()
        if saves_state:  # the widget as it was last
            page.locator(".kc-plots svg").wait_for()
        else:
            page.locator(".jp-OutputArea-output img").wait_for()
            page.locator(".jp-OutputArea-output th", has_text="cnn").wait_for()
        page.screenshot(path=shots / f"reopened-{what}.png")
        html, _ = HTMLExporter().from_filename(str(path))
    (shots / f"export-{what}.html").write_text(html)
    body = html[html.index("<body") :]
    assert "data:image/png;base64" in body and re.search(r"<th[^>]*>cnn</th>", body)
    assert "CohostWidget(" not in body
    if not saves_state:
        assert "The widget of kerascohost, with 3 models: run this cell to use it." in body
