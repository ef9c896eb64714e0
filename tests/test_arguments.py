"""One value for all members or a dict by member: split in one place, for every public function."""

import keras
import numpy as np
import pytest

import kerascohost as kc
from kerascohost.arguments import counts_per_member, per_member

NAMES = ["small", "large"]


@pytest.fixture
def models():
    made = {}
    for units, name in enumerate(NAMES, 1):
        made[name] = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)], name=name)
        made[name].compile("sgd", "mse")
    return made


@pytest.mark.parametrize(
    ("argument", "value", "split"),
    [
        ("epochs", 3, [3, 3]),
        ("epochs", {"large": 3}, [1, 3]),
        ("epochs", {"large": 3, "small": 2}, [2, 3]),
        ("epochs", {}, [1, 1]),
        ("x", {"image": 0, "text": 1}, [{"image": 0, "text": 1}] * 2),
        ("class_weight", {0: 1.0, 1: 2.0}, [{0: 1.0, 1: 2.0}] * 2),
        ("x", {"small": 5, "large": 6}, [5, 6]),
    ],
)
def test_a_value_for_all_or_by_member(argument, value, split):
    assert per_member(argument, value, NAMES, 1) == dict(zip(NAMES, split, strict=True))


def test_numpy_integers_become_python_ones():
    assert type(counts_per_member("replicas", np.int64(2), NAMES)["small"]) is int


CALLS = {
    "Cohort, group_factor": lambda m, v: kc.Cohort(m, group_factor=v),
    "Cohort, replicas": lambda m, v: kc.Cohort(m, replicas=v),
    "fuse, group_factor": lambda m, v: kc.fuse(m, group_factor=v),
    "fuse, replicas": lambda m, v: kc.fuse(m, replicas=v),
    "estimate_memory, batch_size": lambda m, v: kc.estimate_memory(m, batch_size=v),
    "benchmark, batch_size": lambda m, v: kc.benchmark(m, batch_size=v),
    "benchmark, group_factor": lambda m, v: kc.benchmark(m, group_factor=v),
    "benchmark, replicas": lambda m, v: kc.benchmark(m, replicas=v),
    "Cohort.fit, batch_size": lambda m, v: kc.Cohort(m).fit(
        np.ones((4, 3)), {"small": np.ones((4, 1)), "large": np.ones((4, 2))}, batch_size=v
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_name_that_is_no_members_is_refused_with_the_nearest_one(call, models):
    argument = call.split(", ")[1]
    expected = f"`{argument}` to be names of members: small, large. Received: 'smal'. Did you mean"
    with pytest.raises(kc.CohortError, match=expected):
        CALLS[call](models, {"smal": 2})


@pytest.mark.parametrize("call", [call for call in CALLS if "fit" not in call])
@pytest.mark.parametrize("value", [0, 1.5, "2", True])
def test_what_is_no_count_is_refused_with_the_members_name(call, value, models):
    argument = call.split(", ")[1]
    with pytest.raises(kc.CohortError, match=rf"Member 'large'.*`{argument}` to be a whole number"):
        CALLS[call](models, {"large": value})


def test_data_for_some_members_only_is_refused_before_training(models):
    x = np.ones((4, 3))
    for call in (
        lambda: kc.Cohort(models).fit({"small": x}, x),
        lambda: kc.benchmark(models, {"small": x}, x),
    ):
        with pytest.raises(kc.CohortError, match=r"`x` to hold data for every member\..*'large'"):
            call()


def test_memory_is_predicted_of_a_cohorts_own_steps(models):
    factors, replicas = {"small": 4}, {"large": 3}
    cohort = kc.Cohort(models, group_factor=factors, replicas=replicas)
    by_hand = kc.estimate_memory(models, batch_size={"small": 4 * 8, "large": 3 * 8})
    assert kc.estimate_memory(cohort, batch_size=8).frame.equals(by_hand.frame)
    unnamed = kc.estimate_memory(models, batch_size={"small": 64})
    assert unnamed.frame.equals(kc.estimate_memory(models, {"small": 64, "large": 32}).frame)


@pytest.mark.nightly
def test_a_cohort_is_measured_with_its_own_factors(models):
    cohort = kc.Cohort(models, group_factor={"small": 3}, replicas={"large": 4})
    layouts = ["grouped", "replicated"]
    result = kc.benchmark(cohort, batch_size=4, layouts=layouts, steps=12, repeats=1, budget_s=0)
    sizes = result.frame.set_index("layout")["batch_size"]
    assert sizes["grouped"] == "small: 12, large: 4"
    assert sizes["replicated"] == "small: 4, large: 16"


@pytest.mark.parametrize(
    ("layout", "factor"), [("grouped", "group_factor"), ("replicated", "replicas")]
)
def test_a_benchmarks_layouts_are_arguments_of_a_cohort(layout, factor, models):
    with pytest.raises(kc.CohortError, match=f"layout='joined' with `{factor}`"):
        kc.Cohort(models, layout=layout)


@pytest.mark.parametrize("layout", [{"small": "stacked"}, ["joined"], None])
def test_what_is_no_layout_is_refused(layout, models):
    with pytest.raises(kc.CohortError, match="`layout` to be one of"):
        kc.Cohort(models, layout=layout)
