"""Calibration: the least noise, at the edge and one notch beyond it."""

from fractions import Fraction

import pytest

from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.accounting import pld
from offsite.secure.privacy.accounting.view import epsilon_of
from offsite.secure.privacy.calibration import GRID, LOWEST, noise_for, schedule
from offsite.secure.privacy.units import Unit

DELTA = 1e-5


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps"),
    [
        (8.0, Fraction(1, 10), 30),
        (3.0, Fraction(1, 50), 200),
        (0.1, Fraction(1, 50), 500),
        (20.0, Fraction(1), 5),
    ],
)
def test_calibrated_noise_is_the_least_that_fits(
    epsilon: float, rate: Fraction, steps: int
) -> None:
    sigma = noise_for(epsilon, DELTA, rate, steps, Unit.RECORD)
    assert (sigma * GRID).is_integer()
    run = schedule(sigma, rate, steps, Unit.RECORD)
    less = schedule(sigma - 1 / GRID, rate, steps, Unit.RECORD)
    assert epsilon_of([run], DELTA).pld <= epsilon < pld.epsilon((less,), DELTA)


def test_the_least_noise_is_kept_for_any_epsilon() -> None:
    assert noise_for(200.0, DELTA, Fraction(1, 1000), 1, Unit.RECORD) == LOWEST / GRID


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 1e9, float("nan")])
def test_epsilons_out_of_range_are_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="epsilon: expected"):
        noise_for(epsilon, DELTA, Fraction(1, 10), 1, Unit.RECORD)


def test_noise_beyond_the_grid_is_refused() -> None:
    with pytest.raises(PolicyError, match="no noise multiplier up to 4096"):
        noise_for(1e-4, 1e-10, Fraction(1, 2), 10_000, Unit.RECORD)
