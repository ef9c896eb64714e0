"""`fuse` and its layers: the founding answer's programs, and what they must not change."""

import zipfile

import keras
import numpy as np
import pytest
from keras import layers
from numpy.testing import assert_allclose

import kerascohost as kc


def founding_pair():
    """The two "existing" models of the founding answer."""
    keras.utils.set_random_seed(0)
    model1 = keras.Sequential(
        [
            keras.Input((20, 20, 3)),
            layers.Conv2D(10, 3, activation="tanh"),
            layers.Flatten(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model2 = keras.Sequential([keras.Input((2,)), layers.Dense(20), layers.Dense(3)])
    return {"model1": model1, "model2": model2}


def data(samples, shape, outputs, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(samples, *shape)).astype("float32")
    return x, random.normal(size=(samples, outputs)).astype("float32")


def test_two_models_side_by_side_train_and_predict_as_one():
    models = founding_pair()
    fused = kc.fuse(models)
    fused.compile(optimizer="adam", loss="mse")
    (x1, y1), (x2, y2) = data(30, (20, 20, 3), 1), data(30, (2,), 3)
    history = fused.fit([x1, x2], [y1, y2], epochs=3, verbose=0)
    predicted = fused.predict([x1, x2], verbose=0)
    assert set(history.history) == {"loss", "model1_loss", "model2_loss"}
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert_allclose(predicted[0], models["model1"].predict(x1, verbose=0), atol=1e-6)
    assert_allclose(predicted[1], models["model2"].predict(x2, verbose=0), atol=1e-6)


def test_a_grouped_model_takes_twice_the_samples():
    fused = kc.fuse(founding_pair(), group_factor={"model2": 2})
    fused.compile(optimizer="adam", loss="mse")
    (x1, y1), (x2, y2) = data(300, (20, 20, 3), 1), data(600, (2,), 3)
    history = fused.fit([x1, kc.group(x2, 2)], [y1, kc.group(y2, 2)], verbose=0)
    predicted = fused.predict([x1, kc.group(x2, 2)], verbose=0)
    assert set(history.history) == {"loss", "model1_loss", "model2_loss"}
    assert kc.ungroup(predicted[1]).shape == y2.shape


def test_a_replicated_model_has_a_named_loss_for_every_replica():
    models = founding_pair()
    fused = kc.fuse(models, replicas={"model2": 2})
    fused.compile(optimizer="adam", loss="mse")
    (x1, y1), (x2, y2), (x3, y3) = (
        data(30, (20, 20, 3), 1),
        data(30, (2,), 3),
        data(30, (2,), 3, seed=1),
    )
    history = fused.fit([x1, x2, x3], [y1, y2, y3], epochs=2, verbose=0)
    assert set(history.history) == {"loss", "model1_loss", "model2_loss", "model2_1_loss"}
    weights = sum(len(model.trainable_variables) for model in models.values())
    assert len(fused.trainable_variables) == weights


def test_one_step_of_sgd_equals_each_model_trained_alone():
    together, alone = founding_pair(), founding_pair()
    pairs = {"model1": data(32, (20, 20, 3), 1), "model2": data(64, (2,), 3)}
    fused = kc.fuse(together, group_factor={"model2": 2})
    fused.compile(keras.optimizers.SGD(0.1), loss="mse")
    (x1, y1), (x2, y2) = pairs.values()
    inputs, targets = [x1, kc.group(x2, 2)], [y1, kc.group(y2, 2)]
    fused.fit(inputs, targets, batch_size=8, shuffle=False, verbose=0)
    for name, model in alone.items():
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
        size = 16 if name == "model2" else 8
        model.fit(*pairs[name], batch_size=size, shuffle=False, verbose=0)
        for one, other in zip(model.weights, together[name].weights, strict=True):
            assert_allclose(to_numpy(one), to_numpy(other), atol=1e-6)


def to_numpy(variable):
    return keras.ops.convert_to_numpy(variable.value)


def test_a_fused_model_is_saved_and_loaded_whole(tmp_path):
    fused = kc.fuse(founding_pair(), group_factor={"model2": 2}, replicas={"model2": 2})
    x1, (x2, _) = data(4, (20, 20, 3), 1)[0], data(8, (2,), 3)
    inputs = [x1, kc.group(x2, 2), kc.group(x2, 2)]
    fused.save(tmp_path / "fused.keras")
    loaded = keras.saving.load_model(tmp_path / "fused.keras")
    for one, other in zip(
        fused.predict(inputs, verbose=0), loaded.predict(inputs, verbose=0), strict=True
    ):
        assert_allclose(one, other, atol=1e-6)


def test_a_file_of_a_version_whose_layers_stood_in_another_module_is_loaded(tmp_path):
    pair = {name: keras.Sequential([keras.Input((3,)), layers.Dense(2)]) for name in ("a", "b")}
    kc.fuse(pair, group_factor={"b": 2}).save(tmp_path / "now.keras")
    now_there, then_there = b"kerascohost.models.fusion", b"kerascohost.fusion"
    with (
        zipfile.ZipFile(tmp_path / "now.keras") as now,
        zipfile.ZipFile(tmp_path / "then.keras", "w") as then,
    ):
        for name in now.namelist():
            then.writestr(name, now.read(name).replace(now_there, then_there))
    loaded = keras.saving.load_model(tmp_path / "then.keras")
    x = [np.ones((4, 3)), np.ones((4, 2, 3))]
    expected = keras.saving.load_model(tmp_path / "now.keras").predict(x, verbose=0)
    for one, other in zip(loaded.predict(x, verbose=0), expected, strict=True):
        assert_allclose(one, other)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's format"
)
def test_a_fused_model_is_exported_as_a_saved_model(tmp_path):
    import tensorflow as tf

    fused = kc.fuse(founding_pair(), group_factor={"model2": 2})
    x1, (x2, _) = data(4, (20, 20, 3), 1)[0], data(8, (2,), 3)
    fused.export(tmp_path / "exported", verbose=False)
    artifact = tf.saved_model.load(tmp_path / "exported")
    served = artifact.serve([x1, kc.group(x2, 2)])
    expected = fused.predict([x1, kc.group(x2, 2)], verbose=0)
    assert_allclose(served[1], expected[1], atol=1e-5)


def test_models_with_several_inputs_and_outputs_keep_their_names():
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    joined = layers.concatenate([a, b])
    outputs = [layers.Dense(2, name="left")(joined), layers.Dense(1, name="right")(joined)]
    model = keras.Model({"a": a, "b": b}, outputs, name="two")
    fused = kc.fuse([model, keras.Sequential([keras.Input((5,)), layers.Dense(1)], name="one")])
    assert fused.output_names == ["two_left", "two_right", "one"]
    assert [tuple(tensor.shape) for tensor in fused.inputs] == [(None, 3), (None, 4), (None, 5)]


def test_group_and_ungroup_are_inverse_on_nested_structures():
    x = {"a": np.arange(24).reshape(12, 2), "b": [np.arange(12)]}
    there = kc.group(x, 3)
    assert there["a"].shape == (4, 3, 2) and there["b"][0].shape == (4, 3)
    back = kc.ungroup(there)
    assert_allclose(back["a"], x["a"])
    assert_allclose(back["b"][0], x["b"][0])
    assert np.shares_memory(there["a"], x["a"])


def test_a_length_that_does_not_divide_names_the_remainder():
    with pytest.raises(kc.CohortError, match=r"Received: 7 samples.*first 6.*last 1 apart"):
        kc.group(np.arange(7), 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kc.group("abc", 1), r"shape \(n \* k, ...\). Received: 'abc'"),
        (lambda: kc.group(np.float32(3), 1), r"shape \(n \* k, ...\). Received: shape \(\)"),
        (lambda: kc.ungroup({"a": "abc"}), r"shape \(n, k, ...\). Received: 'abc'"),
        (lambda: kc.ungroup(np.zeros(3)), r"shape \(n, k, ...\). Received: shape \(3,\)"),
    ],
)
def test_what_has_no_such_axes_is_refused(call, message):
    with pytest.raises(kc.CohortError, match=message):
        call()


@pytest.mark.parametrize("other", ["m_1", "m_model", "m_input"])
@pytest.mark.parametrize("swapped", [False, True])
def test_members_whose_layers_would_have_one_name_are_refused(other, swapped):
    names = [other, "m"] if swapped else ["m", other]
    models = dict(zip(names, founding_pair().values(), strict=True))
    with pytest.raises(kc.CohortError, match=rf"Received: '{other}\w*' for layers of '"):
        kc.fuse(models, replicas={"m": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "at least one model"),
        ({"models": 3}, "dict or a list"),
        ({"models": {"a": "model"}}, "'a' to be a keras.Model"),
        ({"models": {"a": keras.Model()}}, "Member 'a': expected a model that knows its inputs"),
        ({"group_factor": {"model1": 0}}, "Member 'model1': expected `group_factor`"),
        ({"replicas": 1.5}, "expected `replicas` to be a whole number"),
        ({"replicas": {"modell2": 2}}, "Did you mean 'model2'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    arguments = {"models": founding_pair(), **arguments}
    with pytest.raises(kc.CohortError, match=message):
        kc.fuse(**arguments)
