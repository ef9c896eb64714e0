"""What the notebook shows, and what it takes (cases D2 to D6)."""

import math

import keras
import numpy as np
import pandas as pd
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from kerascohost.layouts.result import BenchmarkResult
from kerascohost.layouts.speedup import ratio, student
from kerascohost.notebook import namespace, view
from kerascohost.notebook.session import CohostSession
from kerascohost.notebook.widget import CohostWidget
from kerascohost.results.history import CohortHistory


def net():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model


def history(**logs):
    made = keras.callbacks.History()
    made.epoch = list(range(len(next(iter(logs.values())))))
    made.history = logs
    return made


# D2


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("members", [1, 7, 12, 13, 40])
@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("subplots", [False, True])
def test_any_number_of_members_and_epochs_is_drawn(members, epochs, validated, subplots):
    logs = {"loss": [0.5] * epochs} | ({"val_loss": [0.7] * epochs} if validated else {})
    found = CohortHistory({f"m{i}": history(**logs) for i in range(members)})
    axes = found.plot(subplots=subplots)
    lines = [line for ax in np.atleast_1d(axes) for line in ax.lines if len(line.get_xdata())]
    assert len(lines) >= members * (1 + validated)
    if epochs == 1:
        assert all(line.get_marker() == "o" for line in lines)


def session():
    x = np.ones((64, 4), "float32")
    models = {f"m{i}": net() for i in range(2)}
    made = CohostSession({**models, "x": x, "y": x[:, :1]})
    made.selected = list(models)
    return made


def test_a_failure_of_who_looks_on_is_told_and_the_work_goes_on():
    work = session()
    told = []

    def fails(change):
        told.append(change.name)
        raise ValueError("no ink")

    work.observe(fails, ["progress", "curves", "status", "history"])
    work.train()
    assert work.wait(60)
    assert set(told) == {"progress", "curves", "status", "history"}
    assert work.status == "idle"
    assert "could not be shown. ValueError: no ink" in work.errors["train"]
    assert work.history is not None
    assert len(work.history["m0"].epoch) == 5


def test_a_failure_while_drawing_is_shown_and_ends_nothing(monkeypatch):
    widget = CohostWidget(session=session())
    work = widget.session

    def fails(*_):
        raise KeyError("marker")

    monkeypatch.setattr(view, "curves", fails)
    work.train()
    assert work.wait(60)
    assert "could not be shown. KeyError: 'marker'" in work.errors["train"]
    assert "marker" in str([widget.page, widget.live])  # beside its button
    assert work.history is not None
    assert work.status == widget.live["status"] == "idle"
    assert len(work.history["m1"].epoch) == 5


# D3


def test_any_name_of_a_model_is_taken_and_shown():
    variables = {"a": net()}
    variables["b"] = variables["a"]
    assert list(namespace.models_in(variables)) == ["a"]
    assert list(namespace.chosen(variables, ["b"])) == ["b"]
    work = CohostSession(variables)
    work.selected = ["b"]
    assert (work.selected, list(work.models)) == (["b"], ["b"])
    work.refresh()
    assert work.selected == ["b"]
    work.selected = ["a"]
    assert list(work.models) == ["a"]
    with pytest.raises(namespace.CohortError, match="'a' and 'b', which are one model"):
        namespace.chosen(variables, ["a", "b"])


@pytest.mark.parametrize("loop", ["for m in (a, b): pass", "for i, (m, n) in pairs:\n    m.fit()"])
def test_the_variable_of_a_loop_is_only_a_name_where_there_is_no_other(loop):
    first, second, lone = net(), net(), net()
    cells = ["", "!ls", "for m in nets: pass", loop]
    variables = {"m": second, "a": first, "b": second, "In": cells}
    assert list(namespace.models_in(variables)) == ["a", "b"]
    assert list(namespace.models_in(variables, ["m"])) == ["m", "a"]
    assert list(namespace.models_in({"m": lone, "In": cells})) == ["m"]


# D4


def test_nan_is_told_from_nothing():
    found = CohortHistory(
        {"a": history(loss=[1.0, math.nan]), "b": history(loss=[0.5], mae=[0.25])}
    )
    a, b = (row.split() for row in found._text.to_string().splitlines()[1:])
    assert (a, b) == (["a", "2", "nan"], ["b", "1", "0.5", "0.25"])
    assert "<td>nan</td>" in found._repr_html_()
    assert "<td></td>" in found._repr_html_()
    assert pd.isna(found.table.loc["a", "mae"])


# D6


def test_intervals_are_student_s():
    middle, low, high = ratio([1.0, 1.2], [0.01, 0.02])
    logs = np.log([100, 60])
    half = 12.706 * logs.std(ddof=1) / math.sqrt(2)
    assert middle == pytest.approx(math.exp(logs.mean()))
    assert (low, high) == pytest.approx(
        (math.exp(logs.mean() - half), math.exp(logs.mean() + half))
    )
    assert ratio([1.0], [0.5]) == (2.0, 0.0, math.inf)
    assert ratio([1.0, 1e-99], [1e-99, 1.0])[2] > 1e300  # and no OverflowError


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (5, 2.571), (6, 2.447), (10, 2.228), (30, 2.042), (1000, 1.962)],
)
def test_quantiles_of_student_s_t(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, rel=2e-3)


def test_of_few_rounds_only_what_is_known_is_said():
    times = {"separate": [1.0, 1.2], "joined": [0.01, 0.0101]}
    rows = []
    for layout, own in times.items():
        speedup, low, high = ratio(times["separate"], own)
        rows.append({"layout": layout, "speedup": speedup, "low": low, "high": high})
    frame = pd.DataFrame(rows).assign(
        samples_per_s=1.0, step_ms=1.0, compile_s=1.0, memory_mb=1.0, batch_size="m: 32",
        same_training=True, weight_difference=0.0, note=None,
    )  # fmt: skip
    result = BenchmarkResult(frame, pd.DataFrame(), lambda layout: layout)
    row = result.frame.set_index("layout").loc["joined"]
    assert row["high"] > 1.5 * row["speedup"]
    assert f"{row['speedup']:.1f} times" not in result.reason
    assert f"at least {row['low']:.1f} times as fast" in result.reason
    assert f"{row['low']:.2g}x to {row['high']:.2g}x" in repr(result)


# D5


@pytest.fixture
def shell():
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "kerascohost")
    made.user_ns.update(base=net(), x=np.ones((32, 4)), y=np.ones((32, 1)))
    made.user_ns["other"] = made.user_ns["base"]
    yield made
    InteractiveShell.clear_instance()


WRONG = [
    ("-q", "Expected no `--quiet`"),
    ("-p", "Expected no `--plot`"),
    ("-o 3x", "Expected `--output` to be a variable's name. Received: '3x'"),
    ("-o class", "Expected `--output` to be a variable's name. Received: 'class'"),
    ("-b -l auto", "Expected no `--layout` with `--benchmark`.*. Received: auto"),
    ("-b --budget -1", "Expected `--budget` to be a number of seconds. Received: -1.0"),
    ("-b --budget nan", "Expected `--budget` to be a number of seconds. Received: nan"),
    ("-b --budget soon", "budget.*soon"),
    ("-b -g base=1.5", "after `--group-factor`, .*. Received: base=1.5"),
    ("-b -r ²", "after `--replicas`, .*. Received: ²"),
    ("-b -g 2 -g base=3", "Expected `--group-factor` once for each model.*. Received: 2 base=3"),
    ("-b -r base=2 -r base=3", "Expected `--replicas` once for each model"),
]


# What the table, which there is without a kernel, cannot do; the widget can.
OF_THE_WIDGET = [
    ("-g base=x", "Expected no `--group-factor` .*. Received: base=x"),
    ("-g base=2", "Expected no `--group-factor` .*. Received: base=2"),
    ("-r 2", "Expected no `--replicas` .*. Received: 2"),
    ("-l stacked", "Expected no `--layout` .*. Received: stacked"),
    ("--budget 3", "Expected no `--budget` .*. Received: 3.0"),
]


@pytest.mark.parametrize(("options", "text"), OF_THE_WIDGET)
def test_options_of_the_widget_are_refused_where_there_is_none(shell, options, text):
    with pytest.raises(UsageError, match=text):
        shell.run_line_magic("cohost", f"base {options}")


def test_options_are_set_in_the_widget(shell, monkeypatch):
    shown = []
    monkeypatch.setattr("kerascohost.notebook.magic.display", shown.append)
    shell.kernel = None
    try:
        shell.run_line_magic("cohost", "base -g base=2 --budget 3")
        with pytest.raises(UsageError, match=r"after `--group-factor`, .*. Received: base=x"):
            shell.run_line_magic("cohost", "base -g base=x")
    finally:
        del shell.kernel
    (widget,) = shown
    assert (widget.session.layout, widget.session.budget_s) == ("grouped", 3.0)
    widget.close()


@pytest.mark.parametrize("is_widget", [False, True], ids=["table", "widget"])
@pytest.mark.parametrize(("options", "text"), WRONG)
def test_every_option_is_taken_or_refused(shell, options, text, is_widget):
    if is_widget:
        shell.kernel = None
    try:
        with pytest.raises(UsageError, match=text):
            shell.run_line_magic("cohost", f"base {options}")
    finally:
        if is_widget:
            del shell.kernel


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--budget 3", "Expected no `--budget` on a cell"),
        ("-o 3x", "Expected `--output` to be a variable's name. Received: '3x'"),
        ("-g base=x", "after `--group-factor`, .*. Received: base=x"),
        ("-r base=", "after `--replicas`, .*. Received: base="),
        ("-l stack", "layout.*stack"),
    ],
)
def test_a_wrong_option_of_a_cell_is_refused_before_it_runs(shell, options, text):
    with pytest.raises(UsageError, match=text):
        shell.run_cell_magic("cohost", options, "ran = True")
    assert "ran" not in shell.user_ns


def test_the_widget_opens_with_any_name(shell):
    shell.kernel = None
    try:
        with capture_output() as shown:
            shell.run_line_magic("cohost", "other -o runs")
    finally:
        del shell.kernel
    assert len(shown.outputs) >= 1
