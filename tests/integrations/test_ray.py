"""Cohorts trained by workers of Ray: each model ends as by its own `fit` here.

Ray starts once for all tests, as that takes longer than they do.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np
import pytest

import kerascohost as kc
from tests.helpers.compare import Member, assert_parity, assert_same, train_apart, train_together

pytestmark = [
    pytest.mark.xdist_group("ray"),
    # Ray's own, in its threads and of its processes that it leaves to the system to end.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

layers = keras.layers
# On JAX a member may differ from its `fit` in the last bits, as XLA fuses loops differently.
EXACT = 0.0 if keras.backend.backend() == "tensorflow" else 1e-5
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(96, 4)).astype("float32")
Y = RANDOM.normal(size=(96, 1)).astype("float32")


@pytest.fixture(scope="session")
def workers(tmp_path_factory):
    # Each of Ray's own processes imports jsonschema, which, where Jupyter has installed it, first
    # builds a grammar for three seconds: on a busy machine Ray then gives up. It can do without.
    folder = tmp_path_factory.mktemp("ray")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with kc.RayWorkers(num_workers=2) as started:
            yield started


@pytest.fixture(autouse=True)
def _each_epoch(workers):
    """What a test sets is as usual in the next one."""
    yield
    workers.sync_every, workers.max_failures = "epoch", 3


def mlp(units=8, rate=0.01):
    net = keras.Sequential(
        [keras.Input((4,)), layers.Dense(units, activation="relu"), layers.Dense(1)]
    )
    net.compile(keras.optimizers.Adam(rate), "mse", metrics=["mae"])
    return net


def with_state():
    """A model with statistics, seeds, a loss of its own, excluded weights and a moving average."""

    def loss(y, p):
        return keras.ops.mean(keras.ops.abs(y - p)) * 1.5

    net = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, activation=lambda x: keras.ops.tanh(x)),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(1),
        ]
    )
    net.compile(keras.optimizers.AdamW(0.01, weight_decay=0.01, use_ema=True), loss)
    net.optimizer.exclude_from_weight_decay([net.layers[0].bias])
    return net


class Counting(keras.Model):
    """A model that is built in its first step, and counts the traces of its steps."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1, kernel_initializer=keras.initializers.GlorotNormal(seed=3))
        self.traces = []

    def call(self, x):
        return self.dense(x)

    def train_step(self, *given):
        self.traces.append(len(self.traces))
        return super().train_step(*given)


def counting():
    net = Counting()
    net.compile("sgd", "mse")
    return net


class Recording(keras.callbacks.Callback):
    """Fills a list of the test's, and stops its model after some epochs."""

    def __init__(self, epochs=100):
        super().__init__()
        self.seen = []
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, logs["loss"]))
        if len(self.seen) == self.epochs:
            self.model.stop_training = True


def shuffled(build=mlp, **fit):
    return Member(build, x=X, y=Y, **{"epochs": 3, "validation_split": 0.25, **fit})


def test_unlike_models_end_as_by_their_own_fit(workers):
    members = {
        "mlp": shuffled(epochs=4, batch_size=16),
        "state": shuffled(with_state, shuffle="batch"),
        "counting": shuffled(counting, class_weight=None, steps_per_epoch=2),
        "frame": Member(mlp, x=X.astype("float64"), y=Y, initial_epoch=1, epochs=3),
    }
    assert assert_parity(members, workers=workers) <= EXACT


def test_stacks_end_as_by_their_own_fit(workers):
    members = {f"m{i}": shuffled(lambda i=i: mlp(rate=0.01 * (i + 1))) for i in range(4)}
    assert_parity(members, 1e-4, workers=workers, layout="stacked")


@pytest.mark.nightly
def test_objects_are_those_of_the_program(workers):
    keras.utils.set_random_seed(0)
    models = {"stops": mlp(), "counting": counting()}
    seen = Recording(2).seen
    callbacks = {"stops": [Recording(2), keras.callbacks.EarlyStopping("loss", patience=50)]}
    callbacks["stops"][0].seen = seen
    kernel, optimizer = models["stops"].layers[0].kernel, models["stops"].optimizer
    history = kc.Cohort(models, workers=workers).fit(
        X, Y, epochs={"stops": 5, "counting": 3}, callbacks=callbacks, verbose=0
    )
    assert models["stops"].stop_training and history["stops"].epoch == [0, 1]
    assert callbacks["stops"][0].seen is seen
    assert seen == list(enumerate(history["stops"].history["loss"]))
    assert callbacks["stops"][0].model is models["stops"]
    assert np.isfinite(callbacks["stops"][1].best)
    assert models["stops"].layers[0].kernel is kernel and models["stops"].optimizer is optimizer
    assert models["counting"].built and models["counting"].traces
    assert history["stops"] is models["stops"].history
    assert history["stops"].model is models["stops"]
    # They go on here.
    assert len(models["counting"].fit(X, Y, epochs=2, verbose=0).epoch) == 2


class Filling(keras.callbacks.Callback):
    """Changes a large array of its own in place."""

    def __init__(self):
        super().__init__()
        self.seen = np.zeros(20_000)

    def on_epoch_end(self, epoch, logs=None):
        self.seen[epoch] = logs["loss"]


@pytest.mark.nightly
def test_each_large_array_is_stored_once(workers, monkeypatch):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9000, 4)).astype("float32"), rng.normal(size=(9000, 2))
    stored = []
    put = workers.put
    monkeypatch.setattr(workers, "put", lambda array: stored.append(array) or put(array))
    rows = np.arange(9000) % 3 != 0
    filling = {}

    def watched(name):
        return lambda: filling.setdefault(name, []).append(Filling()) or filling[name][-1]

    fit = {"batch_size": 500, "epochs": 2}
    members = {
        "whole": Member(mlp, x=x, y=y, callbacks=watched("whole"), **fit),
        "again": Member(mlp, x=x, y=y, validation_data=(x, y), **fit),
        "fold": Member(
            mlp,
            x=kc.Subset(x, rows),
            y=kc.Subset(y, rows),
            apart={"x": x[rows], "y": y[rows]},
            **fit,
        ),
    }
    assert assert_parity(members, workers=workers) <= EXACT
    assert len(stored) == 2 and all(array is x or array is y for array in stored)
    here, there = (one.seen for one in filling["whole"])
    assert np.array_equal(here, there) and there[1] > 0


class Squares(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X[i * 32 : (i + 1) * 32], Y[i * 32 : (i + 1) * 32]


def test_datasets_of_the_program_are_read_there(workers):
    members = {
        "squares": Member(mlp, x=lambda: Squares(workers=1), epochs=2),
        "arrays": shuffled(),
    }
    assert assert_parity(members, workers=workers) <= EXACT


class Shown(kc.Progress):
    """Writes down what it is told."""

    told: ClassVar = []

    def on_epoch_end(self, epoch, logs=None):
        self.told.append((self._name, epoch, sorted(logs)))

    def advance(self, kind, steps, logs):
        self.told.append((self._name, kind, steps))


def test_progress_and_prints_are_shown_here(workers, capsys):
    cohort = kc.Cohort({"a": mlp(), "b": mlp()}, workers=workers)
    Shown.told = []
    cohort.progress = Shown
    printing = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: print("at", epoch))
    cohort.fit(X, Y, epochs=2, verbose=0, callbacks={"b": [printing]})
    for name in ("a", "b"):
        own = [told for told in Shown.told if told[0] == name]
        assert [told[1] for told in own if told[1] != "train"] == [0, 1]
        assert sum(told[2] for told in own if told[1] == "train") == 6
    assert "b: at 0\nb: at 1" in capsys.readouterr().out
    assert isinstance(print, types.BuiltinFunctionType)  # not one of Ray's


def test_what_cannot_be_sent_is_named_before_anything_starts(workers):
    models = {"a": mlp(), "b": mlp()}
    before = models["a"].get_weights()
    callback = keras.callbacks.Callback()
    callback.files = {"log": Path(os.devnull).open("w")}  # noqa: SIM115
    cohort = kc.Cohort(models, workers=workers)
    with callback.files["log"], pytest.raises(kc.CohortError) as raised:
        cohort.fit(X, Y, callbacks={"b": [callback]}, verbose=0)
    assert str(raised.value).startswith("Member 'b': expected what can be sent to a worker.")
    assert "callbacks[0].files['log'], a TextIOWrapper" in str(raised.value)
    with pytest.raises(kc.CohortError, match=r"x, a generator.*`keras.utils.PyDataset`"):
        cohort.fit({"a": ((X, Y) for _ in range(3)), "b": X}, {"a": None, "b": Y}, verbose=0)
    assert all(map(np.array_equal, before, models["a"].get_weights()))


class Failing(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise KeyError("of the program")


def test_an_exception_keeps_its_type_and_names_its_member(workers):
    models = {"a": mlp(), "b": mlp()}
    with pytest.raises(KeyError, match="of the program") as raised:
        kc.Cohort(models, workers=workers).fit(
            X, Y, epochs=2000, verbose=0, callbacks={"b": [Failing()]}
        )
    assert "member 'b'" in "".join(raised.value.__notes__)
    assert models["b"].history.epoch == [0]
    assert len(models["a"].history.epoch) < 2000


class Interrupting(kc.Progress):
    """Acts as a user who presses a key, when the first epoch is shown."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1 and self._name == "a":
            self.press()


def test_stop_and_interrupts_end_workers_at_whole_steps(workers):
    models = {"a": mlp(), "b": mlp()}
    cohort = kc.Cohort(models, workers=workers)

    class Stopping(Interrupting):
        def press(self):
            cohort.stop()

    cohort.progress = Stopping
    history = cohort.fit(X, Y, epochs=3000, verbose=0)
    assert 2 <= len(history["a"].epoch) < 3000
    assert 1 <= len(history["b"].epoch) < 3000

    class Breaking(Interrupting):
        def press(self):
            raise KeyboardInterrupt

    cohort.progress = Breaking
    before = int(models["a"].optimizer.iterations)
    with pytest.raises(KeyboardInterrupt):
        cohort.fit(X, Y, epochs=3000, verbose=0)
    steps = int(models["a"].optimizer.iterations) - before
    assert 6 <= steps < 9000
    # The steps of an epoch may be done that has not ended.
    assert steps // 3 - len(cohort.history["a"].epoch) in (0, 1)


def assert_close(one, other):
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=EXACT, atol=EXACT), one, other
    )


def fold(i):
    """Draws, trains with draws, and draws again: in a loop each begins where the last one ended."""
    if i != 1:  # 1 begins where 0 ends
        keras.utils.set_random_seed(i)
    rows = np.random.permutation(len(X))[:64]
    net = with_state() if i % 2 else mlp(rate=0.01 * (i + 1))
    history = net.fit(X[rows], Y[rows], epochs=2, validation_split=0.25, verbose=0)
    drawn = np.random.random(), float(keras.random.uniform(()))
    net.fit(X, Y, initial_epoch=2, epochs=3, verbose=0, callbacks=[Recording(3)])
    return history.history["val_loss"], net.evaluate(X, Y, verbose=0), drawn, net.get_weights()


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*drew random numbers before")
def test_functions_in_turn_train_there(workers):
    plain = list(map(fold, range(4)))
    fused = kc.map(fold, range(4), layout="joined", verbose=0, workers=workers)
    for one, other in zip(plain, fused, strict=True):
        assert_close(one, other)


def test_a_function_that_fails_there_ends_no_other(workers):
    def train(i):
        keras.utils.set_random_seed(i)
        net = mlp()
        net.fit(X, Y if i else Y[:5], epochs=2, verbose=0, callbacks=[Failing()] if i == 2 else [])
        ended.append(i)

    ended = []
    with pytest.raises(ValueError, match="cardinality") as raised:
        kc.together([lambda i=i: train(i) for i in range(4)], verbose=0, workers=workers)
    assert ended == [1, 3]
    assert "function[2] failed, too: KeyError('of the program')" in "".join(raised.value.__notes__)


def test_a_function_whose_fit_cannot_be_sent_ends_no_other(workers):
    def train(i):
        keras.utils.set_random_seed(i)
        callback = keras.callbacks.Callback()
        with Path(os.devnull).open("w") as file:
            callback.file = file if i == 0 else None
            return len(mlp().fit(X, Y, epochs=2, verbose=0, callbacks=[callback]).epoch)

    def tried(i):
        try:
            return train(i)
        except kc.CohortError as error:
            return str(error)

    refused, *trained = kc.map(tried, range(3), verbose=0, workers=workers)
    assert "Received: callbacks[0].file, a TextIOWrapper" in refused and trained == [2, 2]


def test_a_block_trains_there_with_what_its_calls_saw(workers):
    def program():
        keras.utils.set_random_seed(0)
        models = [mlp(), mlp(4), mlp(4)]
        for scale, net in enumerate(models):
            net.compile("sgd", lambda y, p: keras.ops.mean(abs(y - p)) * scale)  # noqa: B023
            net.fit(X, Y, epochs=2, verbose=0)
        models[0].fit(X, Y, epochs=1, verbose=0)
        return models

    plain = program()
    with kc.cohost(workers=workers) as run:
        fused = program()
    for one, other in zip(plain, fused, strict=True):
        assert_close(one.get_weights(), other.get_weights())
        assert_close(one.history.history, other.history.history)
    assert [len(history.epoch) for history in run.history.values()] == [2, 2, 2, 1]


@pytest.mark.nightly
def test_a_search_trains_there(workers):
    from sklearn.model_selection import GridSearchCV

    from kerascohost.integrations.sklearn import KerasRegressor, fused

    def build(X, y, units=4):  # noqa: N803
        keras.utils.set_random_seed(units)
        return mlp(units)

    def searched():
        grid = {"units": [2, 4], "batch_size": [16, 32]}
        return GridSearchCV(KerasRegressor(build, epochs=2, verbose=0), grid, cv=3).fit(X, Y[:, 0])

    plain = searched()
    with fused(layout="joined", verbose=0, workers=workers):
        search = searched()
    scores = (one.cv_results_["mean_test_score"] for one in (plain, search))
    assert_close(*scores)
    with pytest.raises(kc.CohortError, match=r"Expected `workers`.*Received: workers=2"):
        kc.cohost(workers=2)


def test_steps_stay_as_they_were_first_traced(workers):
    def program(fit):
        keras.utils.set_random_seed(0)
        net = mlp()
        scale = 1.0
        net.compile("sgd", lambda y, p: keras.ops.mean(abs(y - p)) * scale)
        fit(net, epochs=2)
        scale = 3.0
        fit(net, epochs=1)
        return net.get_weights(), net.history.history

    def there(net, epochs):
        kc.Cohort({"net": net}, workers=workers).fit(X, Y, epochs=epochs, verbose=0)

    plain = program(lambda net, epochs: net.fit(X, Y, epochs=epochs, verbose=0))
    assert_close(plain, program(there))

    def beside_another(net, epochs):
        kc.Cohort({"net": net, "other": mlp()}, workers=workers).fit(X, Y, epochs=epochs, verbose=0)

    with pytest.raises(kc.CohortError, match=r"Member .net.: .* `compile` the model again"):
        program(beside_another)


def test_a_cell_trains_there(workers, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    from kerascohost.notebook import magic

    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "kerascohost")
    monkeypatch.setattr(magic, "_workers", lambda count: {2: workers, None: None}[count])
    net = mlp()
    shell.user_ns |= {"net": net, "X": X, "Y": Y}
    jobs = []
    start = workers.start
    monkeypatch.setattr(workers, "start", lambda *given: jobs.append(given) or start(*given))
    shell.run_cell_magic("cohost", "--quiet --workers 2", "h = net.fit(X, Y, epochs=2, verbose=0)")
    assert len(jobs) == 1 and len(shell.user_ns["h"].epoch) == 2
    with pytest.raises(Exception, match="Expected no `--workers` with `--loops`"):
        shell.run_cell_magic("cohost", "--workers 2 --loops", "pass")
    InteractiveShell.clear_instance()


@pytest.mark.nightly
def test_an_executor_and_a_study_train_there(workers):
    import optuna

    from kerascohost.integrations.optuna import optimize

    def objective(trial):
        keras.utils.set_random_seed(trial.number)
        net = mlp(rate=trial.suggest_float("rate", 0.001, 0.1))
        return net.fit(X, Y, epochs=2, verbose=0).history["loss"][-1]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = [optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)) for _ in range(2)]
    studies[0].optimize(objective, n_trials=3)
    optimize(studies[1], objective, 3, layout="joined", verbose=0, workers=workers)
    assert_close(*([trial.value for trial in study.trials] for study in studies))
    with kc.Executor(layout="joined", workers=workers) as executor:
        future = executor.submit(fold, 2)
    assert_close(future.result()[1], fold(2)[1])


class Dying(keras.callbacks.Callback):
    """Kills its process at an epoch, once: files in the folder say so, and how often it began."""

    def __init__(self, epoch, folder):
        super().__init__()
        self.epoch, self.folder = epoch, folder
        self.begun = 0

    def on_train_begin(self, logs=None):
        self.begun += 1
        with (self.folder / "begun").open("a") as file:
            file.write("x")

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            time.sleep(1)  # what was sent before arrives
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("sync_every", "begins"), [(2, "x"), pytest.param("60s", "xx", marks=pytest.mark.nightly)]
)
def test_members_of_a_worker_that_dies_are_trained_on(workers, tmp_path, sync_every, begins):
    workers.sync_every = sync_every
    dying = Dying(3, tmp_path)
    fit = {"epochs": 6, "batch_size": 16, "steps_per_epoch": 2, "validation_split": 0}
    members = {  # whose epochs are parts of a pass over the data
        "dies": shuffled(with_state, callbacks=lambda: [dying, Recording()], **fit),
        "lives": shuffled(epochs=6),
    }
    (tmp_path / "died").touch()
    apart = train_apart(members)
    (tmp_path / "died").unlink()
    (tmp_path / "begun").unlink()
    dying.begun = 0
    with pytest.warns(UserWarning, match="A worker died; dies are trained on"):
        together = train_together(members, workers=workers)
    assert assert_same(apart, together) <= EXACT
    # From the third epoch on, or anew: either way as if it had begun once.
    assert dying.begun == 1 and (tmp_path / "begun").read_text() == begins


class Telling(keras.callbacks.Callback):
    """Writes the number of its process into a folder, and makes an epoch take a while."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def on_epoch_end(self, epoch, logs=None):
        (self.folder / str(os.getpid())).touch()
        time.sleep(0.05)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(8))
def test_members_of_a_worker_that_is_killed_at_any_moment_are_trained_on(workers, tmp_path, seed):
    drawn = random.Random(seed)
    workers.sync_every = drawn.choice([1, 3, "epoch", "0.2s"])
    members = {
        "state": shuffled(with_state, epochs=30, callbacks=lambda: [Telling(tmp_path / "a")]),
        "batches": shuffled(epochs=20, batch_size=8, callbacks=lambda: [Telling(tmp_path / "b")]),
        "stops": shuffled(epochs=30, callbacks=lambda: [Recording(17), Telling(tmp_path / "c")]),
    }
    apart = train_apart(members)
    for file in tmp_path.glob("*/*"):
        file.unlink()

    def kill():
        while not (found := list(tmp_path.glob("*/*"))):
            time.sleep(0.01)
        time.sleep(drawn.uniform(0, 1))
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(drawn.choice(found).name), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with warnings.catch_warnings():  # if it came in time
        warnings.filterwarnings("ignore", "A worker died", UserWarning)
        together = train_together(members, workers=workers)
    killer.join()
    assert assert_same(apart, together) <= EXACT


@pytest.mark.nightly
def test_members_that_kill_each_worker_are_named(workers, tmp_path):
    workers.max_failures = 0
    models = {"a": mlp(), "b": mlp()}

    class Killing(Dying):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                time.sleep(1)
                os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        kc.CohortError, match=r"to train b to the end.*last synchronisation: {'b': 2}"
    ):
        kc.Cohort(models, workers=workers).fit(
            X, Y, epochs=4, verbose=0, callbacks={"b": [Killing(2, tmp_path)]}
        )
    assert models["a"].history.epoch == [0, 1, 2, 3]
    assert models["b"].history.epoch == [0, 1]


def test_options_that_cannot_be_are_refused():
    for option, error in (
        ({"num_workers": 0}, "num_workers"),
        ({"sync_every": "often"}, "sync_every"),
        ({"sync_every": 0}, "sync_every"),
        ({"sync_every": "infs"}, "sync_every='infs'"),
        ({"sync_every": True}, "sync_every=True"),
        ({"max_failures": -1}, "max_failures"),
        ({"use_gpu": "yes"}, "use_gpu='yes'"),
        ({"resources_per_worker": [1]}, r"resources_per_worker=\[1\]"),
        ({"resources_per_worker": {"CPU": -1}}, "{'CPU': -1}"),
        ({"resources_per_worker": {"CPU": "1"}}, "{'CPU': '1'}"),
        ({"resources_per_worker": {1: 1}}, "{1: 1}"),
        ({"address": 5}, "address=5"),
        ({"address": ""}, "address=''"),
    ):
        with pytest.raises(kc.CohortError, match=error):
            kc.RayWorkers(**option)


def test_workers_show_the_options_that_are_given():
    assert repr(kc.RayWorkers(3)) == "RayWorkers(num_workers=3)"
    options = "use_gpu=True, resources_per_worker={'CPU': 2}, sync_every=4, max_failures=0"
    made = kc.RayWorkers(
        use_gpu=True, resources_per_worker={"CPU": 2}, sync_every=4, max_failures=0
    )
    assert repr(made) == f"RayWorkers(num_workers=2, {options})"


TWICE = """
import keras, numpy as np, ray
import kerascohost as kc

net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
net.compile("sgd", "mse")
for _ in range(2):
    workers = kc.RayWorkers(num_workers=1)
    kc.Cohort({"net": net}, workers=workers).fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
    assert not ray.is_initialized()
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
print("started")
"""


@pytest.mark.nightly
def test_ray_is_started_again_in_one_process(workers, tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_AUTH_TOKEN", None)
    command = [sys.executable, "-c", TWICE]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "started", ended.stderr
    assert not (tmp_path / ".ray").exists()


@pytest.mark.nightly
@pytest.mark.skipif(find_spec("pyarrow") is None, reason="`make nightly` installs ray[tune]")
def test_the_recipe_for_ray_tune_runs(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "guides" / "beyond.md").read_text()
    program = page.partition("## Ray Tune")[2].partition("```python")[2].partition("```")[0]
    (tmp_path / "recipe.py").write_text(program)
    ended = subprocess.run(
        [sys.executable, "recipe.py"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-2] in ("4", "16")
