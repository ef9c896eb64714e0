"""Stacks that are spread over several devices equal those on one, to the last bit."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import kerascohost as kc

BACKEND = keras.backend.backend()
layers = keras.layers


def trained(size, devices):
    """Returns all that a stack of this many members leaves, with steps of a part of them, too."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 5)).astype("float32"), rng.normal(size=(100, 1)).astype("float32")
    keras.utils.set_random_seed(0)
    models = {}
    for i in range(size):
        net = keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(8, activation="relu"),
                layers.BatchNormalization(),
                layers.Dropout(0.1, seed=i),
                layers.Dense(1),
            ]
        )
        net.compile(keras.optimizers.Adam(0.01 * (i + 1)), "mse", metrics=["mae"])
        models[f"m{i}"] = net
    cohort = kc.Cohort(models, layout="stacked", devices=devices)
    epochs = {name: 2 + i % 2 for i, name in enumerate(models)}
    own = {name: x + i for i, name in enumerate(models)}
    history = cohort.fit(own, y, epochs=epochs, validation_split=0.2, verbose=0)
    assert cohort.plan.frame["layout"].eq("stacked").all()
    (stack,) = cohort._scheduler.stacks.active_stacks
    assert len(stack.compiled.state.values[0].devices()) == (len(devices) if devices else 1)
    stack.release()
    found = [v.numpy() for net in models.values() for v in net.variables]
    found += [v.numpy() for net in models.values() for v in net.optimizer.variables]
    own = {str(v.value.devices()) for net in models.values() for v in net.variables}
    assert len(own) == 1
    return found, [one.history for one in history.values()]


@pytest.mark.skipif(BACKEND != "jax", reason="stacks are spread over devices on JAX only")
def test_members_on_four_devices_end_as_on_one():
    """In a process of its own, as the number of devices is known when JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run([sys.executable, __file__], env={**os.environ, "XLA_FLAGS": flags})
    assert done.returncode == 0


@pytest.mark.skipif(BACKEND == "jax", reason="JAX spreads them")
def test_devices_are_refused_with_a_way_out():
    with pytest.raises(kc.CohortError, match=r"on JAX only.*2 devices.*RayWorkers"):
        trained(2, ["one", "two"])


@pytest.mark.parametrize("devices", [4, True, "cpu", print])
def test_what_is_no_list_of_devices_is_refused(devices):
    with pytest.raises(kc.CohortError, match=r"`devices` to be a list .* Received: devices="):
        trained(2, devices)


@pytest.mark.skipif(BACKEND != "jax", reason="stacks are spread over devices on JAX only")
def test_devices_that_cannot_be_are_refused():
    import jax

    one = jax.devices()[0]
    with pytest.raises(
        kc.CohortError, match=r"as `jax.devices\(\)` returns them. Received: 'gpu'\."
    ):
        trained(2, ["gpu"])
    with pytest.raises(kc.CohortError, match=r"one device or more, .* Received: none\."):
        trained(2, [])
    with pytest.raises(kc.CohortError, match="the same one twice"):
        trained(2, [one, one])
    net = keras.Sequential([layers.Dense(1)])
    net.compile("adam", "mse")
    with pytest.raises(kc.CohortError, match="layout='joined' with `devices`"):
        kc.Cohort([net], devices=[one])


if __name__ == "__main__":
    import jax

    assert len(jax.devices()) == 4
    for size in (2, 6):  # with copies of the first
        alone, spread = trained(size, None), trained(size, jax.devices())
        assert alone[1] == spread[1]
        assert all(map(np.array_equal, alone[0], spread[0]))
