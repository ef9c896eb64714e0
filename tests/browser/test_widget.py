"""The widget in a real browser, with a real kernel."""

import re

import nbformat
import pytest

pytest.importorskip("playwright", reason="pip install playwright jupyterlab notebook")

from tests.browser import lab
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

pytestmark = lab.marks("the widget knows no backend")

SETUP = """
import keras
from keras import layers
from sklearn.datasets import load_digits, load_wine
import kerascohost as kc
%load_ext kerascohost

digits, wine = load_digits(), load_wine()
x_digits, y_digits = digits.images[..., None] / 16, digits.target
x_wine, y_wine = wine.data / wine.data.max(0), wine.target

def build():
    global digits_net, wine_net
    keras.utils.set_random_seed(1)
    digits_net = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10, "softmax")])
    digits_net.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    wine_net = keras.Sequential(
        [keras.Input((13,)), layers.Dense(8), layers.Dense(3, "softmax")])
    wine_net.compile("sgd", "sparse_categorical_crossentropy")

build()
"""
NAMES = ("digits_net", "wine_net")


@pytest.mark.nightly
def test_benchmark_and_use_its_layout(opened, shots):
    with lab.browser_page(width=1500, height=1400) as page:
        opened(page, [SETUP, "%cohost", "weights = digits_net.get_weights()"])
        pick(page, NAMES)
        open_tab(page, "Benchmark")
        press(page, "Run benchmark")
        said(page, "weights are not yours")
        page.get_by_text(re.compile("s so far")).wait_for()
        assert not is_usable(page, "Run benchmark")
        lab.run_cell(page, 2)
        page.get_by_text("Caution: digits_net is being measured").wait_for()
        press(page, "Stop benchmark")
        said(page, re.compile("Stopped"))

        set_number(page, "seconds", 8)
        press(page, "Run benchmark")
        said(page, "Measured; the models are as they were.")
        shoot(page, shots / "widget-benchmark.png")
        set_number(page, "batch size of wine_net", 16)
        said(page, "run it again")
        set_number(page, "batch size of wine_net", 32)
        page.get_by_text("run it again").wait_for(state="detached")
        use = page.get_by_role("button", name=re.compile("^Use "))
        if use.count():  # on a busy machine no layout may be known to be faster
            use.first.click()
        train(page)
        lab.use_theme(page, "JupyterLab Dark")
        shoot(page, shots / "dark.png")


def test_train_stop_train_again_and_take_the_code(opened, shots):
    again = "first = history.frame\nbuild()"
    check = (
        "keys = list(first)[:-1]\nboth = first.merge(history.frame, on=keys)\n"
        "print('same' if len(both) == len(first) > 9 and"
        " (both.value_x - both.value_y).abs().max() < 1e-5 else 'not the same')"
    )
    cells = [SETUP, "kc.CohostWidget()", "build()", again.replace("history.frame", "0"), "", ""]
    with lab.browser_page(width=1500, height=1800) as page:
        path = opened(page, cells)
        pick(page, NAMES)
        choose_layout(page, "grouped")
        press(page, "Suggest factors")
        page.get_by_text("320 instead of 32").wait_for()
        set_number(page, "epochs of digits_net", 100_000)
        press(page, "Train")
        page.locator(".kc-plots svg").first.wait_for(timeout=120_000)
        press(page, "Stop training")
        said(page, "Stopped after")

        lab.run_cell(page, 2)  # builds the models again; the widget follows
        set_number(page, "group factor of digits_net", 2)
        set_number(page, "epochs of digits_net", 12)
        set_number(page, "epochs of wine_net", 20)
        page.get_by_label("validation of all ticked").select_option(label="last 10 %")
        train(page)
        shoot(page, shots / "widget.png")
        open_tab(page, "Code")
        for area in ("Python", "or a cell"):
            lab.run_cell(page, 3, again)
            copy(page, area)
            lab.run_cell(page, 4, pasted=True)
            lab.run_cell(page, 5, check)
            page.get_by_text("same", exact=True).wait_for()
            lab.run_cell(page, 5, "0")
        saved = lab.save(page, path)
    nbformat.validate(saved)
    outputs = saved.cells[1].outputs
    kinds = {kind for output in outputs for kind in output["data"]}
    assert {"application/vnd.jupyter.widget-view+json", "text/html", "image/png"} <= kinds
    assert "state" in saved.metadata.widgets["application/vnd.jupyter.widget-state+json"]


@pytest.mark.nightly
def test_in_notebook_7(opened, shots):
    with lab.browser_page(width=900, height=1400) as page:
        opened(page, [SETUP, "kc.CohostWidget()"], app="notebook")
        pick(page, NAMES)
        train(page)
        shoot(page, shots / "notebook-7.png")


@pytest.mark.nightly
def test_many_clones_and_their_curves(opened, shots):
    cells = [SETUP + "\nseeds = kc.clones(wine_net, 64, seed=0)\n", "%cohost seeds"]
    with lab.browser_page(height=1400) as page:
        opened(page, cells)
        assert page.locator(".kerascohost").bounding_box()["height"] < 900
        press(page, "Select none")
        page.get_by_text("0 of 66 ticked").wait_for()
        page.get_by_role("checkbox", name="seeds, 64 models").check()
        page.get_by_text("64 of 66 ticked").wait_for(timeout=1_000)
        choose_layout(page, "stacked")
        set_number(page, "epochs of seeds", 2000)
        press(page, "Train")
        page.locator(".kc-plots svg").first.wait_for(timeout=120_000)
        drawn = set()
        for _ in range(80):
            page.wait_for_timeout(100)
            drawn.add(page.locator(".kc-plots path[stroke-width='2.8']").get_attribute("d"))
        press(page, "Stop training")
        assert len(drawn) >= 6, f"{len(drawn)} changes of the curves in 8 s"
        said(page, "Stopped after")
        shoot(page, shots / "clones.png")


@pytest.mark.nightly
def test_with_the_keyboard_alone_in_a_narrow_pane(opened, shots):
    def go_to(name):
        focused = """() => {
            const at = document.activeElement;
            const label = at.getAttribute("aria-label") || at.labels?.[0]?.innerText;
            return (label || at.innerText || "").trim();
        }"""
        passed = []
        while page.evaluate(focused) != name:
            passed.append(page.evaluate(focused)[:40])
            assert len(passed) < 80, f"Tab does not lead to {name}, but to {passed}"
            page.keyboard.press("Tab")

    with lab.browser_page(width=680, height=1400) as page:
        opened(page, [SETUP, "kc.CohostWidget()"])
        page.keyboard.press("Control+b")  # the file browser goes
        page.locator(".jp-Cell").nth(1).locator(".cm-content").click()
        page.keyboard.press("Escape")
        for name in NAMES:
            go_to(name)
            page.keyboard.press("Space")
            page.get_by_label(f"epochs of {name}").wait_for()
        go_to("epochs of wine_net")
        page.keyboard.press("ArrowUp")
        go_to("joined (sync-bound)")
        page.keyboard.press("ArrowRight")
        go_to("Suggest factors")
        page.keyboard.press("Enter")
        page.get_by_text("320 instead of 32").wait_for()
        go_to("Train")  # the tab, then the button
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        said(page, "Trained after")
        shoot(page, shots / "narrow.png")
        assert page.locator(".kerascohost").evaluate("e => e.scrollWidth <= e.clientWidth + 1")


@pytest.mark.nightly
def test_two_widgets_a_reopened_page_a_deleted_model_and_a_new_kernel(opened):
    def widget(number):
        return page.locator(".jp-Cell").nth(number)

    with lab.browser_page(height=3600) as page:
        path = opened(page, [SETUP, "kc.CohostWidget()", "kc.CohostWidget()", "0"])
        for number in (1, 2):
            pick(widget(number), ["wine_net"])
        set_number(widget(1), "epochs of wine_net", 100_000)
        press(widget(1), "Train")
        press(widget(2), "Train")
        widget(2).get_by_text("Expected one training or benchmark at a time").wait_for()

        lab.save(page, path)
        page.reload()  # while it trains: the view comes back, and Stop still stops
        press(widget(1), "Stop training")
        said(widget(1), "Stopped after")
        train(widget(2))

        lab.run_cell(page, 3, "del wine_net")
        for number in (1, 2):
            widget(number).get_by_role("checkbox", name="wine_net").wait_for(state="detached")
        pick(widget(2), ["digits_net"])
        train(widget(2))

        lab.restart_and_run_all(page)
        pick(widget(1), ["digits_net"])
        train(widget(1))
