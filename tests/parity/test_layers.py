"""Members of every layer family end as their own `fit` would have left them."""

import pytest

from tests.helpers import compare, layer_families


@pytest.mark.parametrize(
    "family",
    [
        # A joined program holds the models' own steps, whatever their layers: one cohort shows it.
        pytest.param(
            *parameter.values, marks=[*parameter.marks, *([pytest.mark.nightly] if i else [])]
        )
        for i, cohort in enumerate(layer_families.COHORTS)
        for parameter in compare.in_one_process(cohort, f"layers {i}")
    ],
)
def test_a_layer_family_in_a_cohort_ends_as_by_its_own_fit(family):
    cohort = next(cohort for cohort in layer_families.COHORTS if family in cohort)
    compare.assert_member(family, cohort, layer_families.member)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "family", compare.in_one_process(layer_families.IN_DOUBLE_PRECISION, "layers in float64")
)
def test_a_layer_family_agrees_to_1e_12_in_float64(family, float64):
    compare.assert_member(family, layer_families.IN_DOUBLE_PRECISION, layer_families.member)
