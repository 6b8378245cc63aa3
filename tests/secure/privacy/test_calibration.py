"""Calibration: the least noise and the most steps, at the edge and one beyond it."""

from collections.abc import Sequence
from fractions import Fraction

import pytest

from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.accounting import pld
from offsite.secure.privacy.accounting.composition import merged
from offsite.secure.privacy.accounting.view import epsilon_of
from offsite.secure.privacy.calibration import (
    GRID,
    LOWEST,
    Truncation,
    noise_for,
    schedule,
    steps_that_fit,
)
from offsite.secure.privacy.mechanisms import (
    Gaussian,
    Mechanism,
    PoissonGaussian,
    TruncatedPoissonGaussian,
)
from offsite.secure.privacy.units import Unit

DELTA = 1e-5
SPENT = [PoissonGaussian(1.0, Fraction(1, 100), 1000, Unit.RECORD), Gaussian(30.0, 2, Unit.RECORD)]


def cost(history: Sequence[Mechanism]) -> float:
    return pld.epsilon(merged(history), DELTA)


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps", "truncation", "before"),
    [
        (8.0, Fraction(1, 10), 30, None, ()),
        (3.0, Fraction(1, 50), 200, None, ()),
        (0.1, Fraction(1, 50), 500, None, ()),
        (20.0, Fraction(1), 5, None, ()),
        (2.5, Fraction(1, 50), 100, None, SPENT),
        (4.0, Fraction(1, 25), 60, Truncation(units=400, cap=30), ()),
    ],
)
def test_calibrated_noise_is_the_least_that_fits(
    epsilon: float,
    rate: Fraction,
    steps: int,
    truncation: Truncation | None,
    before: Sequence[Mechanism],
) -> None:
    sigma = noise_for(
        epsilon, DELTA, rate, steps, Unit.RECORD, truncation=truncation, before=before
    )
    assert (sigma * GRID).is_integer()
    run = schedule(sigma, rate, steps, Unit.RECORD, truncation)
    less = schedule(sigma - 1 / GRID, rate, steps, Unit.RECORD, truncation)
    assert epsilon_of([*before, run], DELTA).pld <= epsilon < cost([*before, less])


@pytest.mark.parametrize("before", [(), SPENT], ids=["nothing before", "after a campaign"])
@pytest.mark.parametrize(
    "mechanism",
    [
        PoissonGaussian(0.9, Fraction(1, 20), 7, Unit.RECORD),
        PoissonGaussian(3.0, Fraction(1, 50), 7, Unit.RECORD),
        Gaussian(6.0, 1, Unit.RECORD),
        # dp_accounting computes such a distribution point by point, in Python, for ten seconds.
        pytest.param(
            TruncatedPoissonGaussian(1.0, Fraction(1, 25), 7, 300, 24, Unit.RECORD),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda mechanism: type(mechanism).__name__,
)
def test_steps_that_fit_are_the_most_that_fit(
    mechanism: Mechanism, before: Sequence[Mechanism]
) -> None:
    steps = steps_that_fit(3.0, DELTA, mechanism, before=before)
    assert steps > 0
    assert epsilon_of([*before, mechanism.repeated(steps)], DELTA).pld <= 3.0
    assert cost([*before, mechanism.repeated(steps + 1)]) > 3.0


def test_noise_and_steps_invert_each_other() -> None:
    sigma = noise_for(5.0, DELTA, Fraction(1, 40), 150, Unit.PERSON)
    run = schedule(sigma, Fraction(1, 40), 150, Unit.PERSON)
    assert 150 <= steps_that_fit(5.0, DELTA, run) <= 151


def test_no_step_fits_where_one_costs_too_much() -> None:
    assert steps_that_fit(0.5, DELTA, Gaussian(1.0, 1, Unit.RECORD)) == 0
    assert steps_that_fit(1.5, DELTA, SPENT[0], before=SPENT) == 0


def test_a_spent_budget_leaves_no_noise_that_helps() -> None:
    with pytest.raises(PolicyError, match=r"have spent epsilon 1\.8.* nothing is left"):
        noise_for(1.5, DELTA, Fraction(1, 100), 10, Unit.RECORD, before=SPENT)


def test_the_least_noise_is_kept_for_any_epsilon() -> None:
    assert noise_for(200.0, DELTA, Fraction(1, 1000), 1, Unit.RECORD) == LOWEST / GRID


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 1e9, float("nan")])
def test_epsilons_out_of_range_are_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="epsilon: expected"):
        noise_for(epsilon, DELTA, Fraction(1, 10), 1, Unit.RECORD)
    with pytest.raises(ConfigError, match="epsilon: expected"):
        steps_that_fit(epsilon, DELTA, SPENT[0])


def test_noise_beyond_the_grid_is_refused() -> None:
    with pytest.raises(PolicyError, match="no noise multiplier up to 4096"):
        noise_for(1e-4, 1e-10, Fraction(1, 2), 10_000, Unit.RECORD)
