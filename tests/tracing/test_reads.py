"""The walk through what a fit reads: what it finds, what it copies, and who meets whom."""

import collections
import contextlib
import importlib
import random
import types
from typing import NamedTuple
from unittest import mock

import keras
import numpy as np
import pandas as pd
import pytest

import kerascohost as kc
from kerascohost.deferred.fits import DeferredFit
from kerascohost.tracing import copies, reads


def net(loss="mse", **compiled):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss, **compiled)
    return model


def fit_of(model, x=None, **given):
    arguments = dict.fromkeys(["y", "sample_weight", "validation_data", "callbacks"])
    return DeferredFit(model, {"x": np.ones((4, 2)) if x is None else x, **arguments, **given})


def test_a_variable_is_found_as_it_was_inside_and_as_it_is_outside():
    factor = 1.0
    fit = fit_of(net(lambda y, p: factor * keras.ops.mean((y - p) ** 2)))
    factor = 2.0
    fit.snapshot.check("m")
    with fit.snapshot.as_read():
        assert factor == 1.0
    assert factor == 2.0


def test_what_the_training_sets_is_kept_for_its_next_turn():
    class Setting:
        value = 1

    setting = Setting()
    setting.value = 1
    fit = fit_of(net(lambda y, p: setting.value * keras.ops.mean(p)))
    setting.value = 5
    fit.snapshot.check("m")
    with fit.snapshot.as_read():
        setting.value += 1
    assert setting.value == 5
    with fit.snapshot.as_read():
        assert setting.value == 2


def test_variables_that_nothing_reads_are_no_places():
    unread = 1
    fit = fit_of(net(lambda y, p: keras.ops.mean(p)))
    before = fit.snapshot.restored()
    unread += 1
    fit.snapshot.check("m")
    assert fit.snapshot.restored() == before


class Slotted:
    """An object without a `__dict__`."""

    __slots__ = ("value",)


class Pair(NamedTuple):
    """A tuple with names."""

    a: np.ndarray
    b: int


def append(held):
    held.append(9)


def reorder(held):
    held["z"] = 9
    held.move_to_end("a")
    del held["b"]


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: [1, 2], append),
        (lambda: collections.deque([1, 2], maxlen=2), append),
        (lambda: {1, 2}, lambda held: held.discard(1)),
        (lambda: {"a": 1, "b": 2}, lambda held: held.update(z=held.pop("a"))),
        (lambda: collections.OrderedDict(a=1, b=2), reorder),
    ],
    ids=["list", "deque", "set", "dict", "OrderedDict"],
)
def test_containers_are_inside_as_they_were_and_outside_as_they_are(make, change):
    held, changed = make(), make()
    fit = fit_of(net(lambda y, p: len(held) * keras.ops.mean(p)))
    change(held)
    change(changed)
    fit.snapshot.check("m")
    assert fit.snapshot.restored() != fit_of(net()).snapshot.restored()
    with fit.snapshot.as_read():
        assert list(held) == list(make()) and repr(held) == repr(make())
    assert list(held) == list(changed) and repr(held) == repr(changed)


def test_attributes_in_slots_and_names_without_a_value():
    slotted = Slotted()
    slotted.value = 1
    fit = fit_of(net(lambda y, p: slotted.value * keras.ops.mean(p) if p is None else later))
    later, slotted.value = 5, 2
    fit.snapshot.check("m")
    with fit.snapshot.as_read():
        assert slotted.value == 1
        with pytest.raises(NameError):
            print(later)
    assert (slotted.value, later) == (2, 5)


class Appending(keras.callbacks.Callback):
    """A callback that changes an object which the program may change, too."""

    def __init__(self, held):
        super().__init__()
        self.held = held

    def on_epoch_end(self, epoch, logs=None):
        self.held.append(epoch)


class Assigning(Appending):
    """A callback that sets an attribute of an object."""

    def on_epoch_end(self, epoch, logs=None):
        self.held.value = epoch


def counted():
    yield from range(9)


def named():
    while True:
        yield 1
        seen = 1  # noqa: F841  # a name that is there from the second iteration on


def switched():
    on = True
    while True:
        yield 1
        on = not on


def slotted(value=1):
    held = Slotted()
    held.value = value
    return held


@pytest.mark.parametrize(
    ("make", "change", "told"),
    [
        (lambda: [1], append, "the items of .*: 1 at the call, 2 now, and callbacks or data may"),
        (lambda: [1], lambda a: a.__setitem__(0, [2]), r": 1 at the call, a list now, at \[0\]"),
        (
            lambda: {"k": append},
            lambda a: a.update(k=3),
            r"a function of line \d+ at .*, 3 now, at",
        ),
        (lambda: {1: 2, 3: 4}, lambda a: a.update({1: a.pop(1)}), "others now than at the call"),
        (lambda: np.random.default_rng(0), lambda a: a.random(), "drawn from, or seeded, since"),
        (lambda: np.random.RandomState(0), lambda a: a.rand(), "drawn from, or seeded, since"),
        (lambda: random.Random(0), lambda a: a.random(), "drawn from.* Give each fit one of its"),
        (lambda: np.zeros(3), lambda a: a.fill(1), "changed in place since .* array of its own"),
        (
            lambda: pd.DataFrame({"a": [1.0, 2.0]}),
            lambda frame: frame.loc.__setitem__((0, "a"), 3.0),
            "changed in place since the call. Change it before its `fit`",
        ),
        (counted, next, "advanced since the call"),
        (named, lambda a: [next(a), next(a)], "advanced since the call"),
        (switched, lambda a: [next(a), next(a)], "advanced since the call"),
    ],
)
def test_what_cannot_be_restored_is_told(make, change, told):
    held = make()
    fit = fit_of(net(), callbacks=[Appending(held)])
    fit.snapshot.check("m")
    change(held)
    with pytest.raises(kc.CohortError, match=rf"^Member 'm': .*{told}"):
        fit.snapshot.check("m")


def test_a_generator_at_the_place_where_it_was_is_told_by_what_differs():
    one, other = named(), switched()
    for each in (one, other):
        next(each)
    fits = [fit_of(net(), callbacks=[Appending(each)]) for each in (one, other)]
    for each in (one, other):
        next(each)
    with pytest.raises(kc.CohortError, match="advanced since the call"):
        fits[0].snapshot.check("m")
    with pytest.raises(kc.CohortError, match="`on` was True at the call and is False now"):
        fits[1].snapshot.check("m")


def test_what_the_training_sets_and_the_program_changes_is_told():
    held = slotted()
    fit = fit_of(net(), callbacks=[Assigning(held)])
    fit.snapshot.check("m")
    held.value = Slotted()
    with pytest.raises(
        kc.CohortError, match="1 at the call, a Slotted now, and the training sets it too"
    ):
        fit.snapshot.check("m")
    del held.value
    with pytest.raises(kc.CohortError, match="1 at the call, nothing now, and the training sets"):
        fit.snapshot.check("m")


def test_callbacks_in_a_list_of_keras_and_data_of_every_form_are_those_of_the_call():
    held = [1]
    given = keras.callbacks.CallbackList([Appending(held)])
    sparse = pytest.importorskip("scipy.sparse").csr_matrix(np.eye(4))
    x = {"pair": Pair(np.ones((4, 2)), 2), "sparse": sparse, "words": np.array(["a"], object)}
    fit = fit_of(net(), x, callbacks=given)
    assert fit.arguments["callbacks"] is given
    copied = fit.arguments["x"]
    assert isinstance(copied["pair"], Pair) and copied["pair"].a is not x["pair"].a
    sparse.data[0] = 9.0
    assert copied["sparse"].data[0] == 1.0
    assert fit_of(net(), x).arguments["x"]["words"] is not copied["words"]  # it may have changed
    held.append(2)
    with pytest.raises(kc.CohortError, match=r"the items of .*: 1 at the call, 2 now"):
        fit.snapshot.check("m")


def test_arrays_are_copied_once_for_all_fits_that_use_them():
    x = np.ones((4, 2))
    fits = [fit_of(net(), x) for _ in range(2)]
    assert fits[0].arguments["x"] is fits[1].arguments["x"] is not x
    x[0, 0] = 9.0
    assert fit_of(net(), x).arguments["x"][0, 0] == 9.0
    assert fits[0].arguments["x"][0, 0] == 1.0


def test_arrays_beyond_the_budget_are_compared_and_a_change_is_refused(monkeypatch):
    monkeypatch.setattr(copies, "_COPIED_BYTES", 0)
    x = np.ones((4, 2))
    fit = fit_of(net(), x)
    assert fit.arguments["x"] is x
    fit.snapshot.check("m")
    x[0, 0] = 9.0
    with pytest.raises(kc.CohortError, match=r"Member 'm': .*`x`: changed in place since the call"):
        fit.snapshot.check("m")


def test_a_script_that_waits_for_its_fit_has_nothing_copied():
    x = np.ones((4, 2))
    arguments = {"x": x, "callbacks": None}
    assert DeferredFit(net(), arguments, is_deferred=False).arguments["x"] is x


def test_a_shuffling_dataset_lets_the_fits_of_all_that_is_made_from_it_wait():
    tf = pytest.importorskip("tensorflow")
    rows = tf.data.Dataset.from_tensor_slices((np.ones((4, 2)), np.ones((4, 1))))
    shuffled = rows.shuffle(4, seed=1)
    one, other = fit_of(net(), shuffled.batch(2)), fit_of(net(), shuffled.batch(1))
    assert one.conflicts_with(other)
    assert not one.conflicts_with(fit_of(net(), rows.shuffle(4, seed=1).batch(2)))
    assert not fit_of(net(), rows.batch(2)).conflicts_with(fit_of(net(), rows.batch(1)))


def test_a_seeded_layer_in_two_datasets_lets_their_fits_wait():
    tf = pytest.importorskip("tensorflow")
    images = tf.data.Dataset.from_tensor_slices(np.ones((4, 8, 8, 1), "float32")).batch(2)
    layers = [keras.layers.RandomTranslation(0.3, 0.3, seed=3) for _ in range(2)]
    one, other, apart = (
        fit_of(net(), images.map(lambda a, layer=layer: layer(a, training=True)))
        for layer in (layers[0], layers[0], layers[1])
    )
    assert one.conflicts_with(other)
    assert not one.conflicts_with(apart)


def test_a_metric_compiled_into_two_models_lets_their_fits_wait():
    metric = keras.metrics.TruePositives()
    assert fit_of(net(metrics=[metric])).conflicts_with(fit_of(net(metrics=[metric])))
    assert not fit_of(net(metrics=["mae"])).conflicts_with(fit_of(net(metrics=["mae"])))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="profiles on TensorFlow")
def test_profilers_and_one_file_let_fits_wait(tmp_path):
    boards = [
        keras.callbacks.TensorBoard(str(tmp_path / name), profile_batch=batch)
        for name, batch in (("a", 2), ("b", 2), ("c", 0), ("c", 0))
    ]
    first, second, third, fourth = (fit_of(net(), callbacks=[board]) for board in boards)
    assert first.conflicts_with(second)
    assert not first.conflicts_with(third)
    assert third.conflicts_with(fourth)


def test_students_of_one_teacher_do_not_wait_for_each_other():
    teacher = net()
    students = [fit_of(net(lambda y, p: keras.ops.mean(p - teacher(p)))) for _ in range(2)]
    assert not students[0].conflicts_with(students[1])
    assert fit_of(teacher).conflicts_with(students[0])


def test_installed_code_is_not_followed():
    code = reads.names_of(test_installed_code_is_not_followed.__code__)
    assert "reads" in code.globals
    walk = reads._Walk(may_write=False)
    walk.walk(contextlib.nullcontext, "x")
    assert not walk.places


def test_packages_installed_into_a_folder_are_not_followed(tmp_path, monkeypatch):
    """As `pip install --target` does it."""
    (tmp_path / "installed.py").write_text("rates = [1.0]\ndef loss(y, p): return p * rates[0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    own, installed = reads._Walk(may_write=False), reads._Walk(may_write=False)
    module = importlib.import_module("installed")
    own.walk(module.loss, "loss")
    assert own.places
    (tmp_path / "installed-1.0.dist-info").mkdir()
    reads._is_installed.cache_clear()
    reads._holds_packages.cache_clear()
    installed.walk(module.loss, "loss")
    assert not installed.places
    reads._is_installed.cache_clear()


def test_a_module_is_not_asked_for_what_it_lacks(tmp_path, monkeypatch):
    """It might warn, or import."""
    lazy = types.ModuleType("lazy")
    exec("def __getattr__(name): raise RuntimeError(name)", vars(lazy))
    monkeypatch.setitem(globals(), "lazy", lazy)
    model = net(lambda y, p: keras.ops.mean(p - (lazy.rate if y is None else y)))
    assert not fit_of(model).conflicts_with(fit_of(net()))


def test_a_mock_has_not_every_attribute_that_it_is_asked_for():
    model = net()
    with mock.patch.object(model.optimizer, "assign_sub", autospec=True):
        assert not fit_of(model).conflicts_with(fit_of(net()))
