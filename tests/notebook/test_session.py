"""The session behind the widget: every state and error, without a browser."""

import re
import threading
import time

import keras
import numpy as np
import pandas as pd
import pytest
import traitlets
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from keras import layers

import kerascohost as kc
from kerascohost import CohortError
from kerascohost.arguments import CHOSEN_LAYOUTS, MEASURED_LAYOUTS
from kerascohost.notebook import data, live
from kerascohost.notebook.source import Call, Fit
from tests.conftest import BACKEND

UNAVAILABLE = ["stacked", "auto"] if BACKEND == "torch" else []


def net(shape, outputs, loss, seed=1):
    keras.utils.set_random_seed(seed)
    made = keras.Sequential(
        [keras.Input(shape), layers.Flatten(), layers.Dense(8), layers.Dense(outputs)]
    )
    made.compile("adam", loss)
    return made


@pytest.fixture
def variables():
    random = np.random.default_rng(0)
    return {
        "cnn": net((4, 4, 1), 3, keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        "mlp": net((5,), 1, "mse"),
        "raw": keras.Sequential([layers.Dense(2)]),
        "x_cnn": random.random((96, 4, 4, 1)).astype("float32"),
        "y_cnn": random.integers(0, 3, 96),
        "x_mlp": random.random((192, 5)).astype("float32"),
        "y_mlp": random.random((192, 1)).astype("float32"),
        "x_val": random.random((20, 5)).astype("float32"),
        "y_val": random.random((20, 1)).astype("float32"),
        "notes": ["not", "data"],
    }


@pytest.fixture
def session(variables):
    made = kc.CohostSession(variables, selected=["cnn", "mlp"], epochs={"cnn": 2, "mlp": 3})
    yield made
    made.stop()
    assert made.wait(60)


def until(condition, seconds=60):
    """Waits for it; what was waited for must come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


LONG = {"cnn": 100_000, "mlp": 100_000}


def test_the_likeliest_data_is_chosen(session):
    assert session.x | {"raw": ""} == {"cnn": "x_cnn", "mlp": "x_mlp", "raw": ""}
    assert (session.y["cnn"], session.y["mlp"]) == ("y_cnn", "y_mlp")
    assert (session.validation["cnn"], session.validation["mlp"]) == ((), ("x_val", "y_val"))


def test_names_and_shapes_find_the_partner():
    model = net((5,), 1, "mse")
    found = {
        "X_train": np.zeros((40, 5)),
        "y_train": np.zeros(40),
        "x_test": np.zeros((40, 5)),
        "y_test": np.zeros(40),
        "features": pd.DataFrame(np.zeros((7, 5))),
        "target": pd.Series(np.zeros(7)),
        "other": np.zeros((40, 6)),
    }
    assert data.inputs_for("model", model, found) == ["X_train", "features", "x_test"]
    assert data.targets_for("model", model, "X_train", found)[0] == "y_train"
    assert data.targets_for("model", model, "x_test", found)[0] == "y_test"
    assert data.targets_for("model", model, "features", found) == ["target"]


def test_two_names_for_one_model_show_as_one(session, variables):
    variables["again"] = variables["cnn"]
    session.refresh()
    assert list(session.models) == ["cnn", "mlp", "raw"]


def test_a_deleted_model_or_array_leaves_no_dead_end(session, variables):
    session.epochs = session.epochs | {"mlp": 7}
    del variables["cnn"], variables["x_mlp"]
    session.refresh()
    assert session.selected == ["mlp"] and session.epochs["mlp"] == 7
    assert (session.x["mlp"], session.y["mlp"]) == ("", "")  # what is left is for validation
    assert session.x_options("mlp") == ["x_val", ""]
    variables["cnn"] = net((4, 4, 1), 3, "mse")
    session.refresh()
    assert "cnn" in session.models and session.x["cnn"] == "x_cnn"


def test_random_data_stays_chosen(session):
    session.x = session.x | {"mlp": ""}
    session.refresh()
    assert session.x["mlp"] == ""


def trained_weights(variables, names=("cnn", "mlp")):
    return [weight for name in names for weight in variables[name].get_weights()]


def fresh_weights(variables):
    """Lets the models begin as they were made; recompiled, for fresh optimizers."""
    for name in ("cnn", "mlp"):
        model = variables[name]
        variables[name] = other = keras.models.clone_model(model)
        keras.utils.set_random_seed(5)
        other.set_weights([np.random.normal(size=w.shape) * 0.3 for w in model.get_weights()])
        other.compile("adam", model.loss)
    keras.utils.set_random_seed(11)


def run_code(session, variables):
    exec(session.code.replace("cohort.fit(", "cohort.fit(verbose=0, "), variables)


def seeded(cell):
    """The cell with the seed set before each `fit`.

    Fits that stand one after another shuffle one after another on JAX and torch; members of a
    Cohort shuffle each as if it were alone.
    """
    seed = r"\1__import__('keras').utils.set_random_seed(11)\n\g<0>"
    return re.sub(r"(?m)^( *).*\.fit\(", seed, cell)


def run_cell(session, variables):
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(user_ns=variables)
    try:
        with capture_output():
            shell.run_line_magic("load_ext", "kerascohost")
            shell.run_cell(
                seeded(session.cell).replace("%%cohost", "%%cohost --quiet")
            ).raise_error()
    finally:
        InteractiveShell.clear_instance()


@pytest.mark.parametrize("run", [run_code, run_cell])
@pytest.mark.parametrize("layout", [name for name in CHOSEN_LAYOUTS if name not in UNAVAILABLE])
def test_training_equals_the_code_and_the_cell_shown(session, variables, layout, run):
    session.layout = layout
    session.group_factor = session.group_factor | {"mlp": 2}
    session.replicas = session.replicas | {"mlp": 2}
    fresh_weights(variables)
    session.train()
    assert session.wait(120) and not session.errors, session.errors
    ours, history = trained_weights(variables), variables["history"]
    fresh_weights(variables)
    run(session, variables)
    assert variables["history"] is not history
    for mine, theirs in zip(ours, trained_weights(variables), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    for name, one in history.items():
        other = variables["history"][name].history
        assert one.history.keys() == other.keys()
        for key in other:
            np.testing.assert_allclose(one.history[key], other[key], rtol=1e-5, atol=1e-6)


def test_the_cell_shown_is_what_a_person_would_write(session):
    session.layout = "grouped"
    session.group_factor = session.group_factor | {"mlp": 2}
    head, first, second = session.cell.strip().splitlines()
    assert head == "%%cohost --group-factor mlp=2 -o history"
    assert first == "cnn.fit(x_cnn, y_cnn, batch_size=32, epochs=2)"
    assert second == (
        "mlp.fit(x_mlp, y_mlp, batch_size=32, epochs=3, validation_data=(x_val, y_val));"
    )


def test_without_models_the_cell_says_so():
    assert kc.CohostSession({}).cell == "# No models are selected.\n"


@pytest.mark.parametrize("layout", ["stacked", "auto"])
def test_other_layouts_are_named_in_the_code(layout):
    fits = {"mlp": Fit("x", "y", validation=(), batch_size=32, epochs=1)}
    call = Call(fits, layout, {"mlp": 1}, "history")
    assert f'cohort = kc.Cohort({{"mlp": mlp}}, layout="{layout}")' in call.python()
    assert call.cell().startswith(f"%%cohost --layout {layout} -o history\n")


def test_curves_and_progress_tell_the_whole_history(session):
    session.train()
    assert session.wait(120)
    assert session.message.startswith("Trained after")
    drawn, whole = live.frame(session.curves), session.history.frame
    pd.testing.assert_frame_equal(
        drawn.sort_values(list(drawn), ignore_index=True),
        whole.sort_values(list(whole), ignore_index=True),
    )
    member = session.progress["members"]["mlp"]
    assert member["fraction"] == 1 and member["epoch"] == "3/3"
    assert member["metrics"]["val_loss"] == pytest.approx(
        session.history["mlp"].history["val_loss"][-1]
    )


def test_training_runs_off_the_main_thread_and_stops(session, variables):
    session.epochs = LONG
    before = trained_weights(variables)
    session.train()
    assert session.status == "training"
    with pytest.raises(CohortError, match="Received: training"):
        session.train()
    until(lambda: len(session.curves.get("mlp", {}).get("loss", [])) > 3)
    session.stop()
    assert session.wait(30) and session.message.startswith("Stopped after")
    history = variables["history"]
    assert all(1 <= len(history[name].epoch) < 100_000 for name in ("cnn", "mlp"))
    assert any((a != b).any() for a, b in zip(before, trained_weights(variables), strict=True))
    assert not session.errors.get("benchmark")
    session.epochs = {"cnn": 1, "mlp": 1}
    session.train()  # and once more
    assert session.wait(60) and not session.errors


def test_what_names_a_model_that_is_worked_with_is_told(session):
    assert session.caution("cnn.get_weights()") == ""
    session.epochs = LONG
    session.train()
    assert session.caution("cnn.predict(x); mlp") == (
        "cnn and mlp are being trained: what uses a model now sees it in between."
    )
    assert session.caution("cnn_2.predict(x)") == session.caution("raw") == ""
    session.stop()
    assert session.wait(60) and session.caution("cnn") == ""
    session.benchmark()
    assert session.caution("mlp.evaluate(x)").startswith("mlp is being measured: the weights")
    with pytest.raises(CohortError, match="Received: benchmarking"):
        session.train()
    session.stop()


def test_stop_before_the_first_step_is_not_forgotten(session, variables):
    session.epochs = LONG
    session.train()
    session.stop()
    assert session.wait(60)
    assert all(len(variables["history"][name].epoch) == 1 for name in ("cnn", "mlp"))


def test_a_second_session_has_to_wait(session, variables):
    other = kc.CohostSession(variables, selected=["mlp"])
    session.epochs = LONG
    session.train()
    with pytest.raises(CohortError, match="one training or benchmark at a time"):
        other.train()
    assert other.errors["train"] and other.status == "idle"
    session.stop()
    assert session.wait(60)
    other.train()
    assert other.wait(60) and not other.errors


def test_the_default_policy_of_the_notebook_holds_in_the_thread(session, variables):
    seen = {}

    class Spy(layers.Layer):
        def build(self, shape):
            seen["policy"] = keras.config.dtype_policy().name
            seen["thread"] = threading.current_thread()

        def call(self, x):
            return x

    variables["lazy"] = keras.Sequential([Spy(), layers.Dense(1)])
    variables["lazy"].compile("adam", "mse")
    keras.config.set_dtype_policy("float16")
    try:
        session.refresh()
        session.selected = ["lazy"]
        session.x, session.y = {"lazy": "x_mlp"}, {"lazy": "y_mlp"}
        session.train()
        assert session.wait(60)
    finally:
        keras.config.set_dtype_policy("float32")
    assert seen["policy"] == "float16" and seen["thread"] is not threading.main_thread()


def test_benchmark_then_use_and_suggest(session, variables):
    before = trained_weights(variables)
    session.budget_s = 1.0
    session.benchmark()
    assert session.status == "benchmarking"
    assert session.wait(300) and not session.errors, session.errors
    measured = [name for name in MEASURED_LAYOUTS if name not in UNAVAILABLE]
    assert list(session.result.frame["layout"]) == measured
    for old, new in zip(before, trained_weights(variables), strict=True):
        np.testing.assert_array_equal(old, new)
    session.use_layout("replicated")
    assert session.layout == "replicated" and session.factors == {"cnn": 2, "mlp": 2}
    session.use_layout("grouped")
    grouped = session.result.members.query("layout == 'grouped'")
    assert session.factors == dict(zip(grouped["member"], grouped["batches"], strict=True))
    session.suggest()
    assert min(session.factors.values()) == 1
    with pytest.raises(CohortError, match="was measured: separate, joined, "):
        session.use_layout("auto")


@pytest.mark.nightly
def test_a_benchmark_tells_how_long_it_has_been_at_it(session):
    told = []
    session.observe(lambda change: told.append(change.new), "progress")
    session.budget_s = 1.0
    session.benchmark()
    assert session.wait(300) and not session.errors, session.errors
    assert re.fullmatch(r"starting · 0 s so far", told[0]["text"]) and told[0]["fraction"] == 0
    assert re.fullmatch(r".*, at most about \d+ s left · \d+ s so far", told[-1]["text"])
    assert told[-1]["fraction"] > 0.5


def test_a_stopped_benchmark_leaves_the_models(session, variables):
    before = trained_weights(variables)
    session.benchmark()
    session.stop()
    assert session.wait(120) and session.message.startswith("Stopped; what was known then is shown")
    assert session.result is None
    session.benchmark()
    until(lambda: session.result is not None, 120)
    session.stop()
    assert session.wait(120)
    notes = session.result.frame.set_index("layout")["note"]
    assert pd.isna(notes["separate"]) and notes["grouped"] == "not yet"
    assert session.result.best == "separate" and not session.result_is_old
    for old, new in zip(before, trained_weights(variables), strict=True):
        np.testing.assert_array_equal(old, new)


def test_suggest_equalises_the_epochs(session):
    session.suggest()
    assert session.layout == "grouped" and session.factors == {"cnn": 1, "mlp": 2}
    assert session.effective_batch_size == {"cnn": 32, "mlp": 64}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"selected": []}, "There are: cnn, mlp, raw"),
        ({"selected": ["raw"]}, "compile"),
        ({"x": {"cnn": "", "mlp": "x_mlp"}}, "Member 'cnn': expected data"),
        ({"y": {"cnn": "y_cnn", "mlp": ""}}, "Member 'mlp': expected targets"),
        ({"output": "not a name"}, "variable's name"),
        ({"output": "x_cnn"}, "is free"),
    ],
)
def test_what_is_missing_is_said_beside_the_button(session, variables, change, words):
    for trait, value in change.items():
        setattr(session, trait, value)
    with pytest.raises(CohortError, match="(?i)" + words.replace("(", r"\(")):
        session.train()
    assert words.lower() in session.errors["train"].lower() and session.status == "idle"
    assert "history" not in variables


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": {"mlp": "x_mpl"}}, "data as x. Received: 'x_mpl'. Did you mean 'x_mlp'?"),
        ({"y": {"mlp": "y_mpl"}}, "data as y. Received: 'y_mpl'. Did you mean 'y_mlp'?"),
        ({"validation": {"mlp": ("x_val", "yval")}}, "data as validation. Received: 'yval'."),
        ({"callbacks": {"mlp": ["stpo"]}}, "a callback as callbacks. Received: 'stpo'."),
        ({"callbacks": {"mlp": "stpo"}}, "a callback as callbacks. Received: 'stpo'."),
    ],
)
@pytest.mark.parametrize("work", ["train", "benchmark"])
def test_a_name_that_was_never_there_is_refused(session, variables, change, words, work):
    variables["stop"] = keras.callbacks.EarlyStopping("loss")
    for trait, value in change.items():
        setattr(session, trait, value)
    session.refresh()
    with pytest.raises(CohortError, match=re.escape(f"Member 'mlp': expected the name of {words}")):
        getattr(session, work)()
    assert words in session.errors[work] and session.status == "idle"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": {"mpl": 3}}, "keys of `epochs` .* Received: 'mpl'. Did you mean 'mlp'?"),
        ({"x": {"zz": "x_mlp"}}, "keys of `x` .* cnn, mlp, raw. Received: 'zz'."),
        ({"bogus": 1}, "traits of a session: .*epochs.* Received: bogus=1."),
        ({"layout": "grouped", "group_factor": {"mlp": 0}}, "'mlp': .* Received: group_factor=0"),
        ({"layout": "replicated", "replicas": {"mlp": -3}}, "'mlp': .* Received: replicas=-3"),
        ({"x": {"mlp": np.zeros(3)}}, "'mlp': .* Received: an object of type ndarray; give"),
        ({"callbacks": {"mlp": [3]}}, "'mlp': .* callbacks. Received: an object of type int"),
    ],
)
def test_choices_that_cannot_be_are_refused_at_once(variables, values, words):
    with pytest.raises(CohortError, match=words.replace("?", r"\?")):
        kc.CohostSession(variables, **values)


def test_a_variables_argument_that_is_no_dict_is_refused():
    with pytest.raises(CohortError, match=r"`variables` to be a dict .* Received: 3\."):
        kc.CohostSession(3)


def test_choices_may_be_in_any_order_and_of_new_models(session, variables):
    variables["y_more"] = variables["y_mlp"]
    x, y = {"mlp": "x_mlp"}, {"mlp": "y_more"}
    for given in ({"x": x, "y": y}, {"y": y, "x": x}):
        assert kc.CohostSession(variables, **given).y["mlp"] == "y_more"
    variables["new"] = net((5,), 1, "mse")
    session.epochs = {"new": 3}  # before a refresh
    session.callbacks = {"new": "stop"}
    session.validation = {"new": 0.2}
    assert session.callbacks["new"] == ("stop",) and session.validation["new"] == (0.2,)


def test_a_name_that_is_no_models_is_refused(session):
    with pytest.raises(CohortError, match=r"Received: 'cmn'\. Did you mean 'cnn'?"):
        session.selected = ["mlp", "cmn"]
    assert session.selected == ["cnn", "mlp"]


def test_what_cohort_cannot_do_is_refused(session):
    assert session.impossible.keys() == set(UNAVAILABLE)
    for layout in UNAVAILABLE:
        with pytest.raises(traitlets.TraitError, match="not compiled"):
            session.layout = layout
    assert session.layout == "joined"


def test_a_failure_while_training_is_told_and_loses_nothing(session, variables):
    class Failing(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x):
            raise RuntimeError("broken on purpose")

    variables["broken"] = Failing()
    variables["broken"].compile("adam", "mse")
    session.refresh()
    session.selected = ["mlp", "broken"]
    session.x = session.x | {"broken": "x_mlp"}
    session.y = session.y | {"broken": "y_mlp"}
    session.train()
    assert session.wait(60) and session.status == "idle"
    assert "broken on purpose" in session.errors["train"]
    assert "'broken'" in session.errors["train"]
    session.selected = ["mlp"]
    session.train()
    assert session.wait(60) and not session.errors


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")  # Keras's, of `fit`
@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.data is TensorFlow's")
def test_datasets_are_offered_with_their_own_batches(session, variables):
    import tensorflow as tf

    pairs = (variables["x_mlp"], variables["y_mlp"])
    variables["ds"] = tf.data.Dataset.from_tensor_slices(pairs).batch(16)
    session.refresh()
    assert "ds" in session.x_options("mlp") and "ds" not in session.x_options("cnn")
    session.selected = ["mlp"]
    session.x = session.x | {"mlp": "ds"}
    assert session.y["mlp"] == "" and session.effective_batch_size == {"mlp": None}
    session.train()
    assert session.wait(60) and not session.errors
    assert len(variables["history"]["mlp"].epoch) == 3


# Data that is sure


def two_inputs():
    left, right = keras.Input((5,), name="left"), keras.Input((3,), name="right")
    made = keras.Model([left, right], layers.Dense(1)(layers.Concatenate()([left, right])))
    made.compile("adam", "mse")
    return made


def test_nothing_is_guessed_where_there_is_a_doubt(variables):
    variables |= {"x_other": variables["x_mlp"], "lazy": keras.Sequential([layers.Dense(1)])}
    variables["net"] = net((5,), 1, "mse")
    session = kc.CohostSession(variables)
    assert session.x["mlp"] == "x_mlp"  # which says so
    assert (session.x["net"], session.y["net"]) == ("", "")  # two fit, and neither says so
    assert session.x["lazy"] == "" and "x_mlp" in session.x_options("lazy")  # not built
    variables["y_more"] = variables["y_mlp"]
    session.refresh()
    session.x = session.x | {"net": "x_other"}
    assert session.y["net"] == "" and "y_mlp" in session.y_options("net")
    session.refresh()
    assert session.x["net"] == "x_other"


def test_a_part_of_x_is_never_y():
    parts = {"a": np.zeros((20, 1)), "b": np.zeros((20, 1))}
    variables = parts | {"x": parts, "y": np.zeros((20, 1))}
    inputs = {name: keras.Input((1,), name=name) for name in parts}
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(list(inputs.values()))))
    model.compile("sgd", "mse")
    session = kc.CohostSession(variables | {"model": model})
    assert (session.x["model"], session.y["model"]) == ("x", "y")
    assert session.y_options("model") == ["y", ""]


def test_arrays_are_combined_for_several_inputs(variables):
    random = np.random.default_rng(0)
    variables |= {"first": random.random((40, 5)), "second": random.random((40, 3))}
    variables |= {"both": two_inputs(), "goal": random.random((40, 1))}
    session = kc.CohostSession(variables, selected=["both"])
    assert session.x["both"] == ""
    assert [options[-2:] for options in session.each_x_options("both")][1] == ["second", ""]
    session.choose_input("both", 1, "second")
    with pytest.raises(CohortError, match="expected data to train on"):
        session.train()
    session.choose_input("both", 0, "first")
    session.choose("y", {"both": "goal"})
    assert 'x={"both": [first, second]}' in session.code
    session.train()
    assert session.wait(60) and not session.errors, session.errors
    assert len(variables["history"]["both"].epoch) == 5


# Many models


def test_models_in_lists_and_dicts_have_names(variables):
    folds = {"a": net((5,), 1, "mse"), 3: net((5,), 1, "mse")}
    seeds = [net((5,), 1, "mse") for _ in range(3)]
    mixed = [variables["cnn"], 3]
    variables |= {"folds": folds, "seeds": seeds, "again": [variables["mlp"]], "mixed": mixed}
    variables |= {"model": seeds[-1], "In": ["for model in seeds: pass"]}
    session = kc.CohostSession(variables)
    named = ["folds['a']", "folds[3]", "seeds[0]", "seeds[1]", "seeds[2]"]
    assert list(session.models) == ["cnn", "mlp", "raw", *named]
    assert session.models["seeds[2]"] is seeds[2]
    session.selected = ["seeds"]  # all of it
    assert session.selected == named[2:]
    session.selected = ["model"]  # as the user calls it
    assert "model" in session.models and "seeds[2]" not in session.models


@pytest.mark.parametrize(
    "cell",
    [
        "%%cohost -q\nfor model in seeds:\n    !ls\n",
        "%%time\nfor model in seeds: pass\n",
        "%%time\n%%cohost\nfor model in seeds: pass\n",
        "with kc.cohost():\n    for model in seeds: pass\n",
        "if True:\n    for i, model in enumerate(seeds): pass\n",
    ],
)
def test_what_a_loop_leaves_is_no_name_of_a_model(cell):
    model = net((5,), 1, "mse")
    source = TransformerManager().transform_cell(cell)
    bash = TransformerManager().transform_cell("%%bash\nfor model in $(ls); do cat; done\n")
    variables = {"seeds": [model], "model": model, "In": ["", bash, "for it (", source]}
    assert list(kc.CohostSession(variables).models) == ["seeds[0]"]
    inside = "def train():\n    for model in seeds: pass\n"
    assert list(kc.CohostSession(variables | {"In": ["", bash, inside]}).models) == ["model"]


@pytest.mark.parametrize("run", [run_code, run_cell])
def test_a_list_and_a_dict_are_trained_as_their_code_does(variables, run):
    variables |= {"seeds": kc.clones(variables["mlp"], 3, seed=0)}
    variables |= {"folds": dict(zip("ab", kc.clones(variables["mlp"], 2, seed=1), strict=True))}
    before = [m.get_weights() for m in (*variables["seeds"], *variables["folds"].values())]
    session = kc.CohostSession(variables, selected=["seeds", "folds"])
    session.choose("epochs", dict.fromkeys(session.selected, 2))
    assert "for i, model in enumerate(seeds)}" in session.code and "x=x_mlp" in session.code
    assert session.cell.count(".fit(") == 2

    def trained():
        for model, weights in zip(session.models.values(), before_of(session), strict=True):
            model.set_weights(weights)
            model.compile("adam", "mse")
        keras.utils.set_random_seed(11)

    def before_of(session):
        named = dict(zip(["seeds[0]", "seeds[1]", "seeds[2]", "folds['a']", "folds['b']"], before,
                         strict=True))  # fmt: skip
        return [named.get(name, model.get_weights()) for name, model in session.models.items()]

    variables.pop("raw")
    session.refresh()
    trained()
    session.train()
    assert session.wait(120) and not session.errors, session.errors
    ours = [session.models[name].get_weights() for name in session.selected]
    trained()
    run(session, variables)
    theirs = [session.models[name].get_weights() for name in session.selected]
    for one, other in zip(ours, theirs, strict=True):
        for mine, its in zip(one, other, strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-6)


def test_copies_are_a_sweep_of_learning_rates(session, variables):
    session.copies("mlp", 3, [0.1, 0.01, 0.001])
    assert session.selected == ["cnn", "mlp_copies[0]", "mlp_copies[1]", "mlp_copies[2]"]
    rates = [float(model.optimizer.learning_rate) for model in variables["mlp_copies"]]
    assert rates == pytest.approx([0.1, 0.01, 0.001])
    assert session.x["mlp_copies[2]"] == "x_mlp" and session.epochs["mlp_copies[2]"] == 3
    line = "mlp_copies = kc.clones(mlp, 3, seed=0, learning_rate=[0.1, 0.01, 0.001])"
    assert line in session.code and line in session.cell
    variables["taken"] = 3
    with pytest.raises(CohortError, match="Received: 'taken', which holds a int"):
        session.copies("mlp", 2, into="taken")
    assert "taken" in session.errors["copies"]
    for n in (1, "x"):
        with pytest.raises(CohortError, match=f"two copies or more. Received: n={n!r}."):
            session.copies("mlp", n)
    with pytest.raises(CohortError, match=r"one of the models: .* 'mpl'\. Did you mean 'mlp'\?"):
        session.copies("mpl", 2)


def test_copies_made_again_leave_the_first_ones(session, variables):
    session.copies("mlp", 3)
    first = variables["mlp_copies"]
    session.copies("mlp", 2)
    assert variables["mlp_copies"] is first and len(variables["mlp_copies_2"]) == 2
    of_first = [f"mlp_copies[{i}]" for i in range(3)]
    assert session.selected == ["cnn", *of_first, "mlp_copies_2[0]", "mlp_copies_2[1]"]
    assert "mlp_copies_2 = kc.clones(mlp, 2, seed=0)" in session.code
    with pytest.raises(CohortError, match="Received: 'mlp_copies', which holds a list"):
        session.copies("mlp", 2, into="mlp_copies")
    del variables["mlp_copies"]
    session.copies("mlp", 2)
    assert sorted(session.selected) == sorted(set(session.selected))


def test_callbacks_of_the_namespace_can_be_picked(session, variables):
    variables["stop"] = keras.callbacks.EarlyStopping("loss", min_delta=100.0)
    session.refresh()
    session.selected = ["mlp"]
    session.choose("epochs", {"mlp": 9})
    session.choose("callbacks", {"mlp": ("stop",)})
    assert 'callbacks={"mlp": [stop]}' in session.code and "callbacks=[stop]" in session.cell
    session.train()
    assert session.wait(60) and not session.errors
    assert len(variables["history"]["mlp"].epoch) == 2
    assert session.progress["members"]["mlp"]["state"] == "ended"
    del variables["stop"]
    session.refresh()
    assert session.callbacks["mlp"] == ()


def test_numbers_are_checked(session):
    for value in (0, -1, 2.5, None, "4"):
        with pytest.raises(CohortError, match=r"Member 'mlp': .*whole number of at least 1"):
            session.set_choice("epochs", {"mlp": value})
    assert session.epochs["mlp"] == 3 and "epochs" in session.errors["models"]


def test_nan_is_said(session, variables):
    variables["y_mlp"][:] = np.nan
    session.selected = ["mlp"]
    session.choose("validation", {"mlp": ()})
    session.train()
    assert session.wait(60)
    assert session.progress["members"]["mlp"]["note"] == "loss is NaN since epoch 1"
    assert session.curves["mlp"]["loss"] == [(1, None), (2, None), (3, None)]


def test_the_curves_of_earlier_trainings_are_kept(session):
    session.selected = ["mlp"]
    for _ in range(4):
        session.train()
        assert session.wait(60)
    assert len(session.earlier) == 2 and len(session.earlier[0]["mlp"]["loss"]) == 3


def test_long_curves_are_thinned():
    training = live.LiveTraining(["mlp"], lambda: 0)
    values = [float(i) for i in range(100_000)]
    training.members["mlp"]["values"] = {"loss": ([*range(1, 100_001)], values)}
    [points] = training.curves()["mlp"].values()
    assert len(points) < 20_000 and points[0] == (1, 0.0) and points[-1] == (100_000, 99_999.0)
