"""Each accountant against another derivation: direct integrals, other packages, closed forms."""

import dataclasses
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.secure.errors import PolicyError
from offsite.secure.privacy.accounting import closed_form, pld, prv, rdp
from offsite.secure.privacy.accounting.composition import (
    MOST_GROUPS,
    MOST_STEPS,
    directions,
    merged,
)
from offsite.secure.privacy.accounting.dominating import Pair, pairs_of, rate_above, truncation
from offsite.secure.privacy.mechanisms import (
    Gaussian,
    Mechanism,
    PoissonGaussian,
    TruncatedPoissonGaussian,
)
from offsite.secure.privacy.units import Unit

SIGMAS = st.floats(0.3, 20.0)
RATES = st.fractions(Fraction(1, 2000), Fraction(9, 10), max_denominator=5000)


def poisson(sigma: float, rate: Fraction, steps: int = 1) -> PoissonGaussian:
    return PoissonGaussian(sigma, rate, steps, Unit.RECORD)


def hockey_stick(pairs: tuple[Pair, ...], epsilon: float) -> float:
    """The delta of one draw, by definition: the integral of max(0, P - e^epsilon·Q), summed."""
    total = 0.0
    for pair in pairs:
        x = np.linspace(-14 * pair.sigma - 2, 2 + 14 * pair.sigma, 400_001)

        def normal(mean: float, x: np.ndarray = x, pair: Pair = pair) -> np.ndarray:
            density: np.ndarray = np.exp(-((x - mean) ** 2) / (2 * pair.sigma**2))
            return density / (pair.sigma * math.sqrt(2 * math.pi))

        rate, shift = pair.rate, pair.shift
        upper = (1 - rate) * normal(0) + rate * normal(shift)
        lower = (1 - rate) * normal(0) + rate * normal(-shift) if pair.both_move else normal(0)
        excess = np.maximum(upper - math.exp(epsilon) * lower, 0)
        total += pair.weight * float(np.trapezoid(excess, x))
    return total


@pytest.mark.parametrize(
    "once",
    [
        poisson(0.7, Fraction(1, 5)),
        poisson(2.0, Fraction(1, 2)),
        poisson(1.0, Fraction(1)),
        Gaussian(1.5, 1, Unit.RECORD),
        TruncatedPoissonGaussian(0.8, Fraction(1, 20), 1, 400, 24, Unit.RECORD),
        TruncatedPoissonGaussian(1.2, Fraction(1, 4), 1, 12, 4, Unit.RECORD),
    ],
    ids=repr,
)
def test_one_use_by_definition(once: Mechanism) -> None:
    """PLD and PRV of one use against the definition of (epsilon, delta)."""
    history = (once,)
    for delta in (1e-3, 1e-5):
        worst = max(
            hockey_stick(pairs_of(one), pld.epsilon(history, delta))
            for (one,) in directions(history)
        )
        assert worst == pytest.approx(delta, rel=2e-3)
        assert prv.epsilon(history, delta).estimate == pytest.approx(
            pld.epsilon(history, delta), abs=1e-3
        )


@settings(max_examples=40, deadline=None)
@given(SIGMAS, RATES, st.sampled_from((1.5, 2.0, 3.3, 8.0, 31.0, 64.0, 256.0)))
def test_a_divergence_is_what_google_computes(sigma: float, rate: Fraction, order: float) -> None:
    """For whole orders. For others it adds up an alternating series without its signs, or gives up:
    an upper bound of ours."""
    from dp_accounting.rdp import rdp_privacy_accountant as google

    expected = google._compute_rdp_poisson_subsampled_gaussian(float(rate), sigma, [order])[0]
    found = rdp.divergence(poisson(sigma, rate), order)
    if order.is_integer():
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-11)
    else:
        assert found <= expected * (1 + 1e-6) + 1e-11


@pytest.mark.parametrize(
    ("sigma", "rate", "order"),
    [
        *((1.0, Fraction(1, 2000), order) for order in (1.1, 1.5, 3.3, 9.7)),
        *((0.6, Fraction(1, 10), order) for order in (1.1, 1.5, 3.3, 9.7)),
        *((5.0, Fraction(2, 5), order) for order in (1.1, 1.5, 3.3, 9.7)),
        (0.08, Fraction(1, 10), 1.5),  # close to the least noise that is integrated
    ],
)
def test_a_divergence_of_fractional_order_by_adaptive_quadrature(
    sigma: float, rate: Fraction, order: float
) -> None:
    from scipy.integrate import quad
    from scipy.stats import norm

    q = float(rate)

    def excess(x: float) -> float:
        ratio = (1 - q) + q * math.exp((2 * x - 1) / (2 * sigma**2))
        return float((ratio**order - 1 - order * (ratio - 1)) * norm.pdf(x, scale=sigma))

    area, _ = quad(excess, -9 * sigma, order + 9 * sigma, epsabs=0, epsrel=1e-9, limit=400)
    expected = math.log1p(area) / (order - 1)  # the expected ratio is 1
    assert rdp.divergence(poisson(sigma, rate), order) == pytest.approx(
        expected, rel=1e-5, abs=1e-13
    )


@settings(max_examples=40, deadline=None)
@given(SIGMAS, RATES, st.integers(2, 40))
def test_a_divergence_of_whole_order_is_a_finite_sum(
    sigma: float, rate: Fraction, order: int
) -> None:
    """Mironov, Talwar, Zhang, arXiv 1908.10530, section 3.3, in exact binomials."""
    q = float(rate)
    logs = [
        math.log(math.comb(order, k))
        + k * math.log(q)
        + (order - k) * math.log1p(-q)
        + (k * k - k) / (2 * sigma**2)
        for k in range(order + 1)
    ]
    expected = float(np.logaddexp.reduce(logs)) / (order - 1)
    found = rdp.divergence(poisson(sigma, rate), order)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-11)


@given(st.floats(0.1, 20), st.floats(1.01, 500))
def test_a_divergence_without_sampling_is_order_over_twice_the_variance(
    sigma: float, order: float
) -> None:
    found = rdp.divergence(Gaussian(sigma, 3, Unit.RECORD), order)
    assert found == pytest.approx(3 * order / (2 * sigma**2), rel=1e-9)


@given(st.floats(0.01, 50), st.floats(1.05, 200), st.floats(1e-10, 0.1))
def test_a_budget_inverts_the_conversion(epsilon: float, order: float, delta: float) -> None:
    budget = rdp.budget_at(epsilon, order, delta)
    assert rdp.epsilon_at(budget, order, delta) == pytest.approx(epsilon, rel=1e-9, abs=1e-9)


@given(SIGMAS, RATES)
def test_our_distribution_function_is_the_packages(sigma: float, rate: Fraction) -> None:
    from prv_accountant import PoissonSubsampledGaussianMechanism as Package

    losses = np.linspace(-8, 8, 801)
    expected = Package(sampling_probability=rate_above(rate), noise_multiplier=sigma).cdf(losses)
    found = prv.cdf(pairs_of(poisson(sigma, rate)), losses)
    assert np.abs(found - np.asarray(expected, np.float64)).max() < 1e-11


@given(SIGMAS, RATES, st.booleans())
def test_points_invert_losses(sigma: float, rate: Fraction, both: bool) -> None:
    pair = Pair(1.0, sigma, float(rate), 2.0 if both else 1.0, both_move=both)
    points = np.linspace(-3, 3, 61) * sigma + 0.5
    losses = pair.losses(points)
    clear = np.abs(np.gradient(losses, points)) > 1e-4  # flat stretches cannot be inverted
    assert np.allclose(pair.point_of(losses)[clear], points[clear], atol=1e-6)


def test_the_packages_own_accountant_agrees() -> None:
    """Where its mean is right. At (0.73, 0.1, 30) it is 0.0035 off, within the tolerance."""
    from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

    for sigma, rate, steps in ((1.0, Fraction(1, 100), 1000), (0.73, Fraction(1, 10), 30)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = PRVAccountant(
                PoissonSubsampledGaussianMechanism(float(rate), sigma),
                max_self_compositions=steps,
                eps_error=0.01,
                delta_error=1e-8,
            ).compute_epsilon(1e-5, [steps])
        ours = prv.epsilon((poisson(sigma, rate, steps),), 1e-5)
        assert package == pytest.approx((ours.lower, ours.estimate, ours.upper), abs=0.005)


@pytest.mark.parametrize("uses", [1, 2, 3, 29, 30, 1000])
def test_prv_estimates_what_pld_reports(uses: int) -> None:
    """Odd and even counts: a domain that is off by one cell would show in one of them."""
    history = (poisson(0.9, Fraction(1, 20), uses),)
    assert prv.epsilon(history, 1e-5).estimate == pytest.approx(
        pld.epsilon(history, 1e-5), abs=5e-4
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 20), st.integers(1, 20)), min_size=1, max_size=4))
def test_gaussians_compose_to_a_gaussian(parts: list[tuple[float, int]]) -> None:
    from scipy.stats import norm

    history = tuple(Gaussian(sigma, count, Unit.RECORD) for sigma, count in parts)
    mu = math.sqrt(sum(count / sigma**2 for sigma, count in parts))
    epsilon = closed_form.epsilon(history, 1e-5)
    assert epsilon is not None
    delta = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(1e-5, rel=1e-6)


def test_nothing_is_closed_where_something_is_sampled() -> None:
    whole, part = poisson(3.0, Fraction(1)), poisson(3.0, Fraction(1, 2))
    assert closed_form.epsilon([whole], 1e-5) is not None
    assert closed_form.epsilon([whole, part], 1e-5) is None


@pytest.mark.parametrize(
    ("mechanism", "worse"),
    [
        (TruncatedPoissonGaussian(1.0, Fraction(1, 50), 40, 500, 15, Unit.RECORD), 501),
        (TruncatedPoissonGaussian(1.0, Fraction(1, 10), 9, 500, 30, Unit.RECORD), 500),
    ],
    ids=["a full batch is an exception", "a full batch is the rule"],
)
def test_the_worse_of_both_neighbours_counts(
    mechanism: TruncatedPoissonGaussian, worse: int
) -> None:
    """One unit more makes a batch fuller, but then each unit is less likely to be kept."""
    sizes = (500, 501)
    alone = {
        size: pld._composed((dataclasses.replace(mechanism, units=size),), 1e-4) for size in sizes
    }
    epsilons = {size: found.get_epsilon_for_delta(1e-5) for size, found in alone.items()}
    assert max(epsilons, key=epsilons.__getitem__) == worse
    assert pld.epsilon((mechanism,), 1e-5) == epsilons[worse]
    assert prv.epsilon((mechanism,), 1e-5).estimate == pytest.approx(epsilons[worse], abs=1e-3)


def test_too_little_noise_is_infinite_at_once() -> None:
    """A ledger from elsewhere cannot make an accountant allocate without end."""
    assert rdp.epsilon([poisson(1e-6, Fraction(1, 2))], 1e-5) == math.inf
    assert rdp.epsilon([Gaussian(1e-6, 1, Unit.RECORD)], 1e-5) > 1e11


def test_truncation_by_counting() -> None:
    """w and r from all subsets of a small data set, drawn one unit at a time."""
    mechanism = TruncatedPoissonGaussian(1.0, Fraction(1, 3), 1, 6, 2, Unit.RECORD)
    q, others, cap = 1 / 3, 5, 2
    full = kept = 0.0
    for size in range(others + 1):
        chance = math.comb(others, size) * q**size * (1 - q) ** (others - size)
        if size >= cap:
            full += chance
            kept += chance * q * cap / (size + 1)
    assert truncation(mechanism) == pytest.approx((full, kept / full))


def test_a_cap_that_is_never_reached_costs_nothing() -> None:
    capped = TruncatedPoissonGaussian(1.0, Fraction(1, 1000), 100, 1000, 900, Unit.RECORD)
    free = poisson(1.0, Fraction(1, 1000), 100)
    assert truncation(capped) == (0.0, 0.0)
    assert pld.epsilon((capped,), 1e-5) == pld.epsilon((free,), 1e-5)


@given(st.integers(1, 2**53 - 1), st.integers(1, 2**53 - 1))
def test_a_rate_is_never_rounded_down(a: int, b: int) -> None:
    rate = Fraction(min(a, b), max(a, b))
    found = rate_above(rate)
    assert Fraction(found) >= rate and found <= math.nextafter(float(rate), 2)


def test_equal_mechanisms_are_merged_in_order_of_appearance() -> None:
    a, b = poisson(1.0, Fraction(1, 10), 3), poisson(2.0, Fraction(1, 10), 4)
    assert merged([a, b, a.repeated(7)]) == (a.repeated(10), b)
    assert merged([]) == ()


def test_too_many_steps_are_refused() -> None:
    step = poisson(2.0, Fraction(1, 10**6), MOST_STEPS)
    assert merged([step, Gaussian(2.0, 9, Unit.RECORD)])[0].uses == MOST_STEPS
    with pytest.raises(PolicyError, match="at most 4194304 steps"):
        merged([step, step.repeated(1)])


def test_too_many_different_mechanisms_are_refused() -> None:
    history = [poisson(1 + k / 1024, Fraction(1, 10)) for k in range(MOST_GROUPS + 1)]
    with pytest.raises(PolicyError, match="at most 512 different mechanisms"):
        merged(history)
    assert len(merged(history[1:])) == MOST_GROUPS
