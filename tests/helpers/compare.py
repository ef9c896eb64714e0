"""Trains models twice, apart and as a cohort, and compares all that training leaves behind."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import pytest

import kerascohost as kc

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


class Member:
    """A model and its fit, in a form that can be made twice.

    Args:
        build: Makes the compiled model.
        apart: Arguments of `fit` that separate training gets instead.
        **fit: Arguments of `fit`. A callable is called to make a value of its own for each of the
            two trainings, as callbacks and generators need.
    """

    def __init__(self, build: Callable[[], keras.Model], apart: dict | None = None, **fit: Any):
        self.build = build
        self.fit = fit
        self.apart = apart or {}

    def arguments(self, **changes: Any) -> dict[str, Any]:
        fit = {**self.fit, **changes}
        return {name: value() if callable(value) else value for name, value in fit.items()}


@dataclasses.dataclass
class Trained:
    """A trained model and the `History` that its training returned."""

    model: keras.Model
    history: keras.callbacks.History

    def variables(self) -> dict[str, np.ndarray]:
        """All that training changes, by a name that is the same for twins."""
        kinds = {
            "model": self.model.variables,
            "optimizer": self.model.optimizer.variables if self.model.optimizer else [],
            "metric": self.model.metrics_variables,
        }
        return {
            f"{kind} variable {i} ({variable.path})": keras.ops.convert_to_numpy(variable.value)
            for kind, variables in kinds.items()
            for i, variable in enumerate(variables)
        }


def built(member: Member, seed: int = 7) -> keras.Model:
    """The member's model, with the same initial weights each time."""
    keras.utils.set_random_seed(seed)
    return member.build()


def train_apart(members: Mapping[str, Member], seed: int = 7) -> dict[str, Trained]:
    """Every member by its own `fit`."""
    trained = {}
    for name, member in members.items():
        model = built(member, seed)
        optimizer = model.optimizer
        has_epochs = member.fit.get("epochs", 1) > member.fit.get("initial_epoch", 0)
        if has_epochs and model.built and optimizer is not None and not optimizer.built:
            # While it builds one, `fit` on TensorFlow traces its step twice.
            optimizer.build(model.trainable_variables)
        keras.utils.set_random_seed(seed)
        trained[name] = Trained(model, model.fit(**member.arguments(verbose=0, **member.apart)))
    return trained


def train_together(
    members: Mapping[str, Member],
    seed: int = 7,
    shared: Mapping[str, Any] | None = None,
    **cohort: Any,
) -> dict[str, Trained]:
    """All members by one `Cohort.fit`; `shared` are arguments given as one value for all."""
    cohort_ = kc.Cohort({name: built(m, seed) for name, m in members.items()}, **cohort)
    keras.utils.set_random_seed(seed)
    history = cohort_.fit(verbose=0, **by_argument(members), **(shared or {}))
    assert list(history) == list(members)
    return {name: Trained(model, history[name]) for name, model in cohort_.members.items()}


def by_argument(members: Mapping[str, Member]) -> dict[str, dict[str, Any]]:
    """The members' arguments as `Cohort.fit` takes them: per argument a dict by member."""
    arguments: dict[str, dict[str, Any]] = {}
    for name, member in members.items():
        for argument, value in member.arguments().items():
            arguments.setdefault(argument, {})[name] = value
    return arguments


def assert_parity(
    members: Mapping[str, Member], tolerance: float | None = None, **together: Any
) -> float:
    """Asserts that each member ends in a cohort as it ends by its own `fit`.

    Returns:
        The largest difference found.
    """
    return assert_same(train_apart(members), train_together(members, **together), tolerance)


def in_one_process(names: Iterable[str], group: str) -> list:
    """Parameters whose tests share a training: pytest-xdist keeps them in one process."""
    return [pytest.param(name, marks=pytest.mark.xdist_group(group)) for name in names]


def assert_member(name: str, names: Iterable[str], make: Callable[[str], Member]) -> None:
    """Asserts parity of one member of the cohort `names`, which is trained once for all of them.

    Args:
        name: The member.
        names: All members of the cohort.
        make: Makes a member by its name.
    """
    apart, together = _trained(tuple(names), make, keras.config.floatx())
    difference = assert_same({name: apart[name]}, {name: together[name]})
    print(f"{name}: largest difference {difference:.1e}")


@functools.cache
def _trained(names: tuple[str, ...], make: Callable, floatx: str) -> tuple[dict, dict]:
    members = {name: make(name) for name in names}
    return train_apart(members), train_together(members)


def assert_same(
    apart: Mapping[str, Trained], together: Mapping[str, Trained], tolerance: float | None = None
) -> float:
    """Asserts that two trainings left the same variables and histories.

    Returns:
        The largest difference found.
    """
    assert list(apart) == list(together)
    largest = [_compare(name, apart[name], together[name], tolerance) for name in apart]
    return max(largest)


def _compare(name: str, apart: Trained, together: Trained, tolerance: float | None) -> float:
    tolerance = TOLERANCE[keras.config.floatx()] if tolerance is None else tolerance
    expected, actual = apart.variables(), together.variables()
    assert len(expected) == len(actual), f"{name}: {len(expected)} != {len(actual)} variables"
    differences = [
        _difference(value, other, f"{name}: {key}", tolerance)
        for (key, value), other in zip(expected.items(), actual.values(), strict=True)
    ]
    return max([0.0, *differences, _compare_histories(name, apart, together, tolerance)])


def _compare_histories(name: str, apart: Trained, together: Trained, tolerance: float) -> float:
    expected, actual = apart.history, together.history
    assert expected.epoch == actual.epoch, f"{name}: {expected.epoch} != {actual.epoch}"
    assert list(expected.history) == list(actual.history), f"{name}: other metrics"
    return max(
        0.0,
        *(
            _difference(values, actual.history[key], f"{name}: history of {key}", tolerance)
            for key, values in expected.history.items()
        ),
        0.0,
    )


def _difference(expected: Any, actual: Any, what: str, tolerance: float) -> float:
    expected, actual = np.asarray(expected), np.asarray(actual)
    assert expected.shape == actual.shape, f"{what}: shape {actual.shape} != {expected.shape}"
    assert expected.dtype == actual.dtype, f"{what}: dtype {actual.dtype} != {expected.dtype}"
    if not np.issubdtype(expected.dtype, np.floating):
        np.testing.assert_array_equal(actual, expected, err_msg=what)
        return 0.0
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=what)
    known = np.isfinite(expected)
    return float(np.abs(expected[known] - actual[known]).max(initial=0.0))
