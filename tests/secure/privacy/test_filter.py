"""The RDP filter: one order and one budget, fixed before anything is seen."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.accounting import pld, rdp
from offsite.secure.privacy.accounting.composition import merged
from offsite.secure.privacy.filter import RenyiFilter
from offsite.secure.privacy.mechanisms import Gaussian, Mechanism, PoissonGaussian
from offsite.secure.privacy.units import Unit

STEP = PoissonGaussian(0.9, Fraction(1, 20), 10, Unit.RECORD)
CHOICES: list[Mechanism] = [
    STEP,
    PoissonGaussian(2.0, Fraction(1, 10), 1, Unit.RECORD),
    PoissonGaussian(0.7, Fraction(1, 100), 25, Unit.RECORD),
    Gaussian(4.0, 1, Unit.RECORD),
]
FILTER = RenyiFilter.for_plan(4.0, 1e-5, [STEP.repeated(200)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(CHOICES), max_size=60))
def test_a_filter_never_exceeds_its_budget(wanted: list[Mechanism]) -> None:
    """Whatever is asked for in whatever order; what it admits is also within epsilon by RDP."""
    found, admitted = FILTER, []
    for mechanism in wanted:
        try:
            found = found.admit(mechanism)
        except PolicyError:
            assert found.uses_left(mechanism) < mechanism.uses
        else:
            admitted.append(mechanism)
    assert found.spent <= found.budget
    assert found.epsilon_spent <= FILTER.epsilon
    assert found == FILTER.admit_all(admitted)
    total = sum(rdp.divergence(m, FILTER.order) for m in admitted)
    assert found.spent == pytest.approx(total, rel=1e-9) and found.spent >= total * (1 - 1e-15)
    assert rdp.epsilon(merged(admitted), 1e-5) <= FILTER.epsilon


@pytest.mark.parametrize("mechanism", CHOICES, ids=repr)
def test_what_is_left_is_admitted_and_one_more_is_not(mechanism: Mechanism) -> None:
    left = FILTER.uses_left(mechanism)
    full = FILTER.admit(mechanism.repeated(left))
    assert full.uses_left(mechanism) == 0 and full.spent <= full.budget
    with pytest.raises(PolicyError, match=f"of order .* {left} would fit"):
        FILTER.admit(mechanism.repeated(left + 1))
    assert pld.epsilon((mechanism.repeated(left),), 1e-5) <= 4.0


def test_refusing_spends_nothing() -> None:
    almost = FILTER.admit(STEP.repeated(FILTER.uses_left(STEP)))
    with pytest.raises(PolicyError, match="0 would fit"):
        almost.admit(STEP)
    assert FILTER.spent == 0 and FILTER.epsilon_spent == 0.0


def test_the_order_is_the_one_that_lets_the_plan_run_longest() -> None:
    for order in rdp.ORDERS:
        if rdp.budget_at(4.0, order, 1e-5) > 0:
            other = RenyiFilter(4.0, 1e-5, order, Unit.RECORD)
            assert other.uses_left(STEP) <= FILTER.uses_left(STEP)


def test_the_order_does_not_follow_what_is_spent() -> None:
    """The theorem is for one order. A filter that took the best one afterwards would admit more."""
    full = FILTER.admit(CHOICES[3].repeated(FILTER.uses_left(CHOICES[3])))
    assert full.order == FILTER.order
    best = max(
        RenyiFilter(4.0, 1e-5, order, Unit.RECORD).uses_left(CHOICES[3])
        for order in rdp.ORDERS
        if rdp.budget_at(4.0, order, 1e-5) > 0
    )
    assert FILTER.uses_left(CHOICES[3]) < best


def test_other_units_are_refused() -> None:
    other = PoissonGaussian(2.0, Fraction(1, 10), 1, Unit.PERSON)
    for call in (FILTER.admit, FILTER.uses_left):
        with pytest.raises(PolicyError, match="expected a mechanism for record"):
            call(other)


def test_filters_without_a_budget_are_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no budget"):
        RenyiFilter(1.0, 1e-5, 1.1, Unit.RECORD)
    with pytest.raises(ConfigError, match="expected a plan"):
        RenyiFilter.for_plan(1.0, 1e-5, [])
    with pytest.raises(ConfigError, match="no Rényi order"):
        RenyiFilter.for_plan(1e-4, 1e-10, [STEP])
    for order in (1.0, 0.5, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="order"):
            RenyiFilter(8.0, 1e-5, order, Unit.RECORD)
