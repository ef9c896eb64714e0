"""The whole path through the widget in JupyterLab: pick, group, suggest, train, read, save."""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="pip install playwright jupyterlab")

from tests.browser import lab

SETUP = """
import keras
from keras import layers
from sklearn.datasets import load_digits, load_wine
import kerascohost as kc

digits, wine = load_digits(), load_wine()
x_digits, y_digits = digits.images[..., None] / 16, digits.target
x_wine, y_wine = wine.data / wine.data.max(0), wine.target
cnn = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10, "softmax")])
cnn.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
mlp = keras.Sequential([keras.Input((13,)), layers.Dense(8), layers.Dense(3, "softmax")])
mlp.compile("sgd", "sparse_categorical_crossentropy")
"""


@pytest.mark.skipif(not lab.has_browser(), reason="apt-get install chromium")
@pytest.mark.filterwarnings("default")  # of Jupyter's own, not of the widget
def test_pick_group_suggest_train_and_save(tmp_path):
    path = tmp_path / "widget.ipynb"
    lab.notebook(path, [SETUP, "kc.CohostWidget()"])
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with lab.server(tmp_path) as (address, token), lab.browser_page() as page:
        page.goto(f"{address}/lab/tree/{path.name}?token={token}&reset")
        lab.run_all(page)
        for name in ("cnn", "mlp"):
            page.get_by_role("checkbox", name=name, exact=True).check()
        page.get_by_role("button", name="grouped", exact=True).click()
        page.get_by_role("button", name="✓ grouped", exact=True).wait_for()
        page.get_by_role("button", name="Suggest", exact=True).click()
        page.get_by_text("320 instead of 32").wait_for()
        page.get_by_role("spinbutton", name="epochs of cnn").fill("100000")
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Train", exact=True).click()
        page.get_by_role("button", name="Stop training").click()
        page.get_by_text("Stopped after").wait_for()
        page.get_by_role("spinbutton", name="epochs of cnn").fill("3")
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Train", exact=True).click()
        page.get_by_text("Trained after").wait_for()
        page.screenshot(path=shots / "widget.png")
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2000)
    outputs = json.loads(path.read_text())["cells"][1]["outputs"]
    kinds = {kind for output in outputs for kind in output["data"]}
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "image/png"} <= kinds
