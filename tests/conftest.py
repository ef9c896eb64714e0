"""What all tests share."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import keras
import pytest

BACKEND = keras.backend.backend()
ROOT = Path(__file__).parents[1]

# Warnings of others that no test can avoid; every other warning is an error (pyproject).
FOREIGN_WARNINGS = [
    # Keras 3.15 calls `np.array(tf.Variable)` in `get_weights`; TensorFlow 2.21 lacks `copy`.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    # KerasTuner 1.4 asks for the thread's name as before Python 3.10.
    r"ignore:currentThread\(\) is deprecated:DeprecationWarning",
    r"ignore:getName\(\) is deprecated:DeprecationWarning",
]


# What tells backends apart: how members train, step by step. All else, which is Python around it,
# is run on every change with the default backend only.
OF_EACH_BACKEND = {
    "cases",
    "parity",
    "training",
    "test_held_fits_equal_separate_training",
    "test_mixed_kinds_of_data_draw_their_own_random_numbers",
    "test_a_second_fit_of_a_model_continues_its_first",
    "test_a_training_that_fails_early_is_told_and_costs_the_others_nothing",
}
# Of these, Python around it, too: cases, and how arguments, waves and timing are dealt with.
OF_ONE_BACKEND = {
    f"test_{name}.py"
    for name in (
        *("deferred_guard", "deferred_reads", "notebook", "threads"),
        *("fit_arguments", "mutants", "timing", "waves"),
    )
}


def pytest_collection_modifyitems(items):
    for item in items:
        parts = {*item.path.relative_to(ROOT).parts, getattr(item, "originalname", "")}
        is_of_each = "tests" in parts and not OF_EACH_BACKEND.isdisjoint(parts)
        is_of_each = is_of_each and OF_ONE_BACKEND.isdisjoint(parts)
        if BACKEND != "tensorflow" and not is_of_each:
            item.add_marker(pytest.mark.nightly)


def pytest_configure(config):
    for line in FOREIGN_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture
def put(monkeypatch):
    """The shapes of what is put on the device to stay there."""
    from kerascohost.backends import resident

    shapes = []
    usual = resident._put

    def recorded(arrays):
        shapes.append([array.shape for array in arrays])
        return usual(arrays)

    monkeypatch.setattr(resident, "_put", recorded)
    return shapes


@pytest.fixture
def float64():
    """Keras computes in float64."""
    before = keras.config.floatx()
    x64 = None
    if BACKEND == "jax":
        import jax

        x64 = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(before)
        if x64 is not None:
            jax.config.update("jax_enable_x64", x64)


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same seed and the same automatic names."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
