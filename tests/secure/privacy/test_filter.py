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


def uses_that_fit(found: RenyiFilter, mechanism: Mechanism) -> int:
    """How often a mechanism may run, by trying."""
    low, high = 0, 1
    while found.charged([mechanism.repeated(high)]).is_kept:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = found.charged([mechanism.repeated(middle)]).is_kept
        low, high = (middle, high) if fits else (low, middle)
    return low


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(CHOICES), max_size=60))
def test_a_filter_never_exceeds_its_budget(wanted: list[Mechanism]) -> None:
    """Whatever is asked for in whatever order; what it keeps is also within epsilon by RDP."""
    found, admitted = FILTER, []
    for mechanism in wanted:
        after = found.charged([mechanism])
        if after.is_kept:
            found = after
            admitted.append(mechanism)
    assert found.spent <= found.budget * (1 + 1e-12)
    assert found.epsilon_spent <= FILTER.epsilon
    assert found == FILTER.charged(admitted)
    total = sum(rdp.divergence(m, FILTER.order) for m in admitted)
    assert found.spent == pytest.approx(total, rel=1e-9) and found.spent >= total * (1 - 1e-15)
    assert rdp.epsilon(merged(admitted), 1e-5) <= FILTER.epsilon


@pytest.mark.parametrize("mechanism", CHOICES, ids=repr)
def test_what_is_kept_is_within_epsilon_and_one_more_use_is_not_kept(mechanism: Mechanism) -> None:
    uses = uses_that_fit(FILTER, mechanism)
    full = FILTER.charged([mechanism.repeated(uses)])
    assert uses > 0 and full.is_kept and not full.charged([mechanism.repeated(1)]).is_kept
    assert full.spent <= FILTER.budget < full.charged([mechanism.repeated(1)]).spent
    assert pld.epsilon((mechanism.repeated(uses),), 1e-5) <= 4.0


def test_asking_spends_nothing() -> None:
    assert not FILTER.charged([STEP.repeated(10**6)]).is_kept
    assert FILTER.spent == 0 and FILTER.epsilon_spent == 0.0 and FILTER.is_kept


def test_the_order_is_the_one_that_lets_the_plan_run_longest() -> None:
    ours = uses_that_fit(FILTER, STEP)
    for order in rdp.ORDERS:
        if rdp.budget_at(4.0, order, 1e-5) > 0:
            other = RenyiFilter(4.0, 1e-5, order, Unit.RECORD)
            assert not other.charged([STEP.repeated(ours + 1)]).is_kept


def test_the_order_does_not_follow_what_is_spent() -> None:
    """The theorem is for one order. A filter that took the best one afterwards would keep more."""
    uses = uses_that_fit(FILTER, CHOICES[3])
    full = FILTER.charged([CHOICES[3].repeated(uses)])
    assert full.order == FILTER.order
    assert any(
        RenyiFilter(4.0, 1e-5, order, Unit.RECORD).charged([CHOICES[3].repeated(uses + 1)]).is_kept
        for order in rdp.ORDERS
        if rdp.budget_at(4.0, order, 1e-5) > 0
    )


def test_other_units_are_refused() -> None:
    other = PoissonGaussian(2.0, Fraction(1, 10), 1, Unit.PERSON)
    with pytest.raises(PolicyError, match="expected a mechanism for record"):
        FILTER.charged([other])


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
