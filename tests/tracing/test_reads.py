"""The walk through what a fit reads: what it finds, what it copies, and who meets whom."""

import contextlib
import importlib
import types
from unittest import mock

import keras
import numpy as np
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
