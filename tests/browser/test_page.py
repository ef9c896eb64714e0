"""The page of the widget in a real browser, without Jupyter: it draws what `view` describes.

A kernel is here in the same process: what the page sends is handed to the widget, and what the
widget then says is drawn. So one browser shows every state in a few seconds. The page draws with
its next frame, so what changes after a click is expected, that is waited for, never read once.
"""

import contextlib
import json
import os
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

pytest.importorskip("playwright", reason="pip install playwright jupyterlab notebook")

from playwright.sync_api import expect

import kerascohost as kc
from kerascohost.notebook.widget import CohostWidget
from tests.browser import lab
from tests.browser.axe import axe, violations

pytestmark = lab.marks("the widget knows no backend")

# What JupyterLab's themes say of colours, as far as the widget asks.
THEMES = {
    "light": "--jp-ui-font-color1: rgba(0,0,0,.87); --jp-layout-color1: white;"
    "--jp-layout-color2: #eee; --jp-border-color2: #e0e0e0;",
    "dark": "--jp-ui-font-color1: white; --jp-layout-color1: #111;"
    "--jp-layout-color2: #424242; --jp-border-color2: #616161;",
}
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>widget</title>
<style>{css} body {{ {theme}
background: var(--jp-layout-color1); color: var(--jp-ui-font-color1); }}</style></head>
<body data-jp-theme-light="{is_light}"><main><h1>A notebook</h1><div id="here"></div></main>
<script type="module">{module}
const state = {state}, handlers = [];
window.told = (values) => {{
  Object.assign(state, values);
  for (const handler of handlers) handler({{}});
}};
const model = {{ get: (name) => state[name], off() {{}}, send: (message) => window.sent(message),
  on: (event, handler) => event.startsWith("change:") && handlers.push(handler) }};
render({{ model, el: document.getElementById("here") }});
</script></body></html>"""


def net(shape, outputs, loss="mse"):
    made = keras.Sequential([keras.Input(shape), layers.Dense(4), layers.Dense(outputs)])
    made.compile("adam", loss)
    return made


def variables(clones=0):
    random = np.random.default_rng(0)
    left, right = keras.Input((5,), name="left"), keras.Input((3,), name="right")
    two = keras.Model([left, right], layers.Dense(1)(layers.Concatenate()([left, right])))
    two.compile("sgd", "mse")
    made = {"mlp": net((6,), 1), "two": two, "raw": keras.Sequential([layers.Dense(2)])}
    made |= {"x_mlp": random.random((64, 6)), "y_mlp": random.random((64, 1))}
    made |= {"left": random.random((64, 5)), "right": random.random((64, 3))}
    made |= {"stop": keras.callbacks.EarlyStopping("loss", patience=50)}
    return made | ({"seeds": kc.clones(made["mlp"], clones, seed=0)} if clones else {})


@pytest.fixture
def shown():
    """Shows a widget: `page, widget = shown(variables, width=1200, theme="light")`."""
    with contextlib.ExitStack() as stack:

        def show(names, width=1200, theme="light", forced_colors="none"):
            page = stack.enter_context(lab.browser_page(width, 900))
            page.emulate_media(forced_colors=forced_colors)
            widget = CohostWidget(names)
            stack.callback(widget.session.wait, 60)
            stack.callback(widget.session.stop)
            page.expose_function("sent", lambda m: answer(page, widget, m))
            text = PAGE.format(
                theme=THEMES[theme],
                is_light=str(theme == "light").lower(),
                css=widget._css,
                state=json.dumps(state(widget)),
                module=widget._esm.replace("export default", "const shown ="),
            )
            page.set_content(text)
            return page, widget

        yield show


def state(widget):
    return {"page": widget.page, "live": widget.live, "curves": widget.curves}


def answer(page, widget, message):
    widget._handle_custom_msg(message, [])
    tell(page, widget)


def tell(page, widget):
    """Draws what the widget says now."""
    page.evaluate("(values) => window.told(values)", state(widget))


def trained(page, widget):
    """Clicks Train, waits for the end, and draws it."""
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_function("() => true")
    assert widget.session.wait(60) and not widget.live["errors"], widget.live["errors"]
    tell(page, widget)
    page.locator(".kc-pane").get_by_text("Trained after").wait_for()


def shoot(page, name):
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"], f"page-{name}.png"), full_page=True)


def test_three_unlike_models(shown):
    page, widget = shown(variables())
    page.get_by_role("button", name="Select all").click()
    page.get_by_text("2 of 3 ticked").wait_for()
    expect(page.get_by_role("checkbox", name="raw")).to_be_disabled()
    page.get_by_role("button", name="Train", exact=True).click()
    alert = page.locator(".kc-pane [role=alert]")
    alert.get_by_text("Member 'two': expected targets").wait_for()  # in the pane of the button
    page.get_by_label("y of two").select_option(label="y_mlp (64, 1)")
    box = page.get_by_label("epochs of all ticked")
    box.fill("4")
    box.press("Tab")
    page.get_by_label("callbacks of mlp").select_option(label="stop (EarlyStopping)")
    page.get_by_label("validation of mlp").select_option(label="last 20 %")
    trained(page, widget)
    assert widget.session.epochs["two"] == 4 and widget.session.callbacks["mlp"] == ("stop",)
    assert widget.session.x["two"] == "[left, right]"
    assert page.locator(".kerascohost").bounding_box()["height"] < 900
    for said in ("mlp validation", "after epoch 4"):
        expect(page.get_by_role("img").first).to_have_attribute("aria-label", re.compile(said))
    paths = page.locator(".kc-plots path")
    once = paths.first.get_attribute("d")
    page.get_by_label("log scale").check()
    page.wait_for_function("(d) => document.querySelector('.kc-plots path').getAttribute('d') != d",
                           arg=once)  # fmt: skip
    page.get_by_label("a plot for each").check()
    page.locator(".kc-apart svg").nth(1).wait_for()
    page.get_by_role("button", name="parameters").click()
    expect(page.locator("tbody th label")).to_have_text(["two", "mlp", "raw"])
    with page.expect_download() as file:
        page.get_by_role("button", name="PNG").click()
    assert file.value.suggested_filename == "loss.png"
    page.get_by_role("tab", name="Code").click()
    for said in (r"\[left, right\]", "callbacks"):
        expect(page.get_by_role("textbox", name="Python")).to_have_value(re.compile(said))
    page.get_by_role("tab", name="Code").press("ArrowLeft")
    page.get_by_role("tab", name="Benchmark", selected=True).wait_for()
    shoot(page, "three")


def test_thirty_two_clones_and_a_sweep(shown):
    page, widget = shown(variables(clones=32))
    page.get_by_role("checkbox", name="seeds, 32 models").check()
    page.get_by_text("32 of 35 ticked").wait_for()
    expect(page.locator("tbody tr")).to_have_count(5)  # all, three models, and a folded group
    box = page.get_by_label("epochs of seeds")
    box.fill("3")
    box.press("Tab")
    page.get_by_label("show each model of seeds").click()
    expect(page.get_by_label("epochs of seeds[31]")).to_have_value("3")
    assert page.locator(".kerascohost").bounding_box()["height"] < 900  # the table scrolls
    page.get_by_role("checkbox", name="seeds[31]").uncheck()
    page.get_by_text("31 of 35 ticked").wait_for()
    page.get_by_role("radio", name="stacked").check()
    trained(page, widget)
    picture = page.get_by_role("img").first
    expect(picture).to_have_attribute("aria-label", re.compile("31 models: from"))
    page.get_by_text("all 31 ended").wait_for()
    shoot(page, "clones")

    page.get_by_role("button", name="Select none").click()
    page.get_by_role("checkbox", name="mlp", exact=True).check()
    page.get_by_role("button", name="Copies…").click()
    page.get_by_label("or one for each learning rate").fill("0.1, 0.01")
    page.get_by_role("button", name="Make copies").click()
    page.get_by_text("mlp_copies, 2 models").wait_for()
    assert widget.session.selected == ["mlp_copies[0]", "mlp_copies[1]"]


def test_what_is_chosen_stays_until_the_kernel_answers(shown):
    page, widget = shown(variables())
    answers = []
    widget.on_msg(lambda *_: answers.append(state(widget)))
    chosen = [page.get_by_role("checkbox", name=name, exact=True) for name in ("mlp", "two")]
    chosen.append(page.get_by_role("radio", name="stacked"))
    for one in chosen:
        one.check()
    assert len(answers) == 3
    for answer in answers:  # the first one, which comes late, knows of one tick only
        page.evaluate("(values) => window.told(values)", answer)
        page.evaluate("() => new Promise(requestAnimationFrame)")
        assert all(one.is_checked() for one in chosen)
    assert widget.session.selected == ["mlp", "two"] and widget.session.layout == "stacked"


def test_what_cannot_be_drawn_is_said_and_the_next_is_drawn(shown):
    page, widget = shown(variables())
    good = widget.curves
    broken = {"now": {"mlp": {"loss": [[1, "x"], None]}}, "earlier": []}
    page.evaluate("(values) => window.told(values)", {"curves": broken})
    page.get_by_text("This could not be drawn.").wait_for()
    page.evaluate("(values) => window.told(values)", {"curves": good})
    page.get_by_text("This could not be drawn.").wait_for(state="detached")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("width", "theme", "forced_colors", "zoom"),
    [
        (1200, "light", "none", 1), (1200, "dark", "none", 1), (600, "light", "none", 1),
        (1200, "light", "active", 1), (1200, "light", "none", 2),
    ],
)  # fmt: skip
def test_axe_finds_nothing(shown, width, theme, forced_colors, zoom):
    if axe() is None:
        pytest.skip("axe-core comes from npm, and there is none or no network")
    names = variables(clones=6)
    page, widget = shown(names, width, theme, forced_colors)
    page.evaluate(f"document.body.style.zoom = {zoom}")
    assert violations(page) == []
    widget.session.selected = ["mlp", "seeds[0]", "seeds[1]"]
    widget.session.layout = "grouped"
    widget.session.budget_s = 1.0
    widget.session.train()
    tell(page, widget)
    assert violations(page) == []
    assert widget.session.wait(60)
    widget.session.benchmark()
    assert widget.session.wait(300) and not widget.session.errors
    for tab in ("Train", "Benchmark", "Code"):
        tell(page, widget)
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(100)
        assert violations(page) == [], tab
        shoot(page, f"{width}-{theme}-{forced_colors}-{zoom}-{tab}")

    def fail(epoch, logs):
        if epoch == 2:
            raise RuntimeError("broken on purpose")

    names["failing"] = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    names["wild"] = net((6,), 1)
    names["wild"].compile(keras.optimizers.SGD(1e30), "mse")
    widget.session.selected = ["mlp", "wild"]
    widget.session.x, widget.session.y = [
        {"mlp": f"{axis}_mlp", "wild": f"{axis}_mlp"} for axis in ("x", "y")
    ]
    widget.session.callbacks = {"mlp": ("failing",)}
    widget.session.train()
    assert widget.session.wait(60) and widget.session.errors
    page.get_by_role("tab", name="Train").click()
    tell(page, widget)
    page.get_by_text("loss is ").first.wait_for()  # NaN, or infinite
    assert violations(page) == []
    shoot(page, f"{width}-{theme}-{forced_colors}-{zoom}-failed")
