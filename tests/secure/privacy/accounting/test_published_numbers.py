"""Epsilons against numbers that others computed: tables of research, not of this code.

The table is what six accountants said (Opacus 1.6.0, dp_accounting 0.6.0, prv_accountant 0.2.0);
the others are from the same report: rounds of a campaign, whole clients, one epoch of batches.
"""

from fractions import Fraction

import pytest

from offsite.secure.privacy.accounting import pld, rdp
from offsite.secure.privacy.accounting.view import epsilon_of
from offsite.secure.privacy.mechanisms import Gaussian, PoissonGaussian
from offsite.secure.privacy.units import Unit

# sigma, q, steps, delta; RDP, PRV upper, PLD 1e-4; lower and upper bound of Microsoft's PRV
TABLE = [
    (1.0, Fraction(1, 100), 1000, 1e-5, 2.101, 1.838, 1.828, 1.818, 1.838),
    (0.8, Fraction(1, 100), 1000, 1e-5, 3.695, 3.151, 3.141, 3.131, 3.151),
    (1.0, Fraction(1, 1000), 10_000, 1e-6, 0.980, 0.565, 0.555, 0.545, 0.565),
    (0.6, Fraction(1, 50), 500, 1e-5, 11.82, 10.29, 10.28, 10.27, 10.29),
    (2.0, Fraction(1, 10), 300, 1e-5, 4.564, 4.194, 4.183, 4.173, 4.194),
    (1.0, Fraction(1), 10, 1e-5, 19.05, 17.87, 17.86, 17.85, 17.87),
    (4.0, Fraction(1, 2), 100, 1e-5, 6.350, 5.879, 5.869, 5.858, 5.879),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")
def test_the_published_table(
    row: tuple[float, Fraction, int, float, float, float, float, float, float],
) -> None:
    sigma, rate, steps, delta, by_rdp, by_prv, by_pld, lower, upper = row
    view = epsilon_of([PoissonGaussian(sigma, rate, steps, Unit.RECORD)], delta)
    rounding = 0.001 if by_rdp < 10 else 0.01
    assert abs(view.pld - by_pld) <= rounding
    assert abs(view.prv - by_prv) <= rounding
    # Ours tries more orders, so it may be a little tighter, and is never looser.
    assert view.pld < view.rdp <= by_rdp + rounding and view.rdp > 0.99 * by_rdp
    assert lower - rounding <= view.pld <= upper + rounding


@pytest.mark.parametrize(("rounds", "expected"), [(1, 1.80), (10, 3.26), (50, 6.42), (100, 9.14)])
def test_rounds_compose(rounds: int, expected: float) -> None:
    one = PoissonGaussian(0.8, Fraction(1, 50), 20, Unit.RECORD)
    assert epsilon_of([one] * rounds, 1e-5).pld == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("sigma", "count", "expected"), [(1.0, 20, 28.4), (4.0, 50, 8.60), (8.0, 50, 3.80)]
)
def test_releases_without_sampling_compose(sigma: float, count: int, expected: float) -> None:
    view = epsilon_of([Gaussian(sigma, count, Unit.RECORD)], 1e-5)
    digits = 0.05 if expected > 10 else 0.005
    assert view.pld == pytest.approx(expected, abs=digits)
    assert view.closed_form == pytest.approx(view.pld, abs=1e-4)


@pytest.mark.parametrize(
    ("sigma", "expected"), [(0.5, 3.24), (0.8, 0.304), (1.0, 0.149), (2.0, 0.050)]
)
def test_one_epoch_of_small_batches(sigma: float, expected: float) -> None:
    view = epsilon_of([PoissonGaussian(sigma, Fraction(1, 1000), 1000, Unit.RECORD)], 1e-5)
    assert view.pld == pytest.approx(expected, abs=0.005 if expected > 1 else 0.0005)


@pytest.mark.parametrize(("sigma", "expected"), [(0.783, 6.88), (0.730, 7.98), (0.656, 10.06)])
def test_the_noise_that_others_chose_for_epsilon_8(sigma: float, expected: float) -> None:
    """Opacus asked for epsilon 8 by RDP, PRV and GDP: the last one is a broken promise."""
    history = (PoissonGaussian(sigma, Fraction(1, 10), 30, Unit.RECORD),)
    assert pld.epsilon(history, 1e-5) == pytest.approx(expected, abs=0.03)
    assert rdp.epsilon(history, 1e-5) > expected
