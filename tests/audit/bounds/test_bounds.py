"""The bounds hold where the truth is known, reach what theory allows, and one may not choose later."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import expit, ndtr
from scipy.stats import binom

from offsite.audit.bounds.counts import Guesses, Level, Rates
from offsite.audit.bounds.f_dp import (
    approximate_epsilon,
    f_dp_p_value,
    f_dp_rejects,
    gaussian_epsilon,
    gaussian_mu,
)
from offsite.audit.bounds.independent import (
    clopper_pearson_epsilon,
    clopper_pearson_lower,
    clopper_pearson_upper,
    independent_gaussian_mu,
    rates_p_value,
    rates_reject,
)
from offsite.audit.bounds.search import largest_rejected
from offsite.audit.bounds.steinke import one_run_epsilon, one_run_p_value
from offsite.audit.bounds.trade_off import (
    ApproximateTradeOff,
    GaussianTradeOff,
    ProfileTradeOff,
    TradeOff,
)
from offsite.secure.errors import ConfigError

LEVEL = Level(0.05, 1e-5)


def outcomes(guessed: int, chance: float) -> list[tuple[int, float]]:
    """Every count of right guesses and its exact probability."""
    return [(right, float(binom.pmf(right, guessed, chance))) for right in range(guessed + 1)]


# The one-run bound.


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("guessed", [20, 60])
@pytest.mark.parametrize("bound", [one_run_epsilon, approximate_epsilon])
def test_the_one_run_bound_covers_randomised_response_exactly(
    bound: Callable[[Guesses, Level], float], epsilon: float, guessed: int
) -> None:
    """Of the mechanism that leaks the most at epsilon, by summation and not by sampling."""
    wrong = [
        probability
        for right, probability in outcomes(guessed, float(expit(epsilon)))
        if bound(Guesses(guessed, guessed, right), Level(0.05, 0.0)) > epsilon
    ]
    assert 0 < sum(wrong) <= 0.05


@pytest.mark.parametrize("guessed", [1, 10, 100])
def test_perfect_guesses_are_bounded_in_closed_form(guessed: int) -> None:
    """At delta 0: q^r = significance."""
    found = one_run_epsilon(Guesses(1000, guessed, guessed), Level(0.05, 0.0))
    chance = 0.05 ** (1 / guessed)
    assert found == pytest.approx(max(0.0, math.log(chance / (1 - chance))), abs=1e-6)


@pytest.mark.parametrize(
    ("canaries", "most"), [(100, 3.49), (500, 5.10), (1000, 5.78), (5000, 7.28), (10_000, 7.83)]
)
def test_the_ceiling_of_perfect_guesses(canaries: int, most: float) -> None:
    """What no attack can exceed, however good, at 95 % and delta 1e-5."""
    every = Guesses(canaries, canaries, canaries)
    assert one_run_epsilon(every, LEVEL) == pytest.approx(most, abs=0.006)


def test_delta_weakens_a_bound_and_more_right_guesses_strengthen_it() -> None:
    epsilons = [one_run_epsilon(Guesses(1000, 100, 95), Level(0.05, d)) for d in (0, 1e-5, 1e-3)]
    assert epsilons[0] > epsilons[1] > epsilons[2] > 0
    rising = [one_run_epsilon(Guesses(1000, 100, right), LEVEL) for right in range(60, 101, 5)]
    assert rising == sorted(rising) and rising[0] < rising[-1]
    assert one_run_p_value(Guesses(1000, 100, 0), 0.0, 1e-5) == 1.0


# The f-DP bound.


def gaussian_counts(mu: float, canaries: int, guessed: int, seed: int) -> Guesses:
    """Canaries of an exactly Gaussian mechanism; the highest and lowest scores are guessed."""
    random = np.random.default_rng(seed)
    labels = random.random(canaries) < 0.5
    order = np.argsort(mu * labels + random.standard_normal(canaries))
    half = guessed // 2
    right = int(labels[order[-half:]].sum() + (~labels[order[:half]]).sum())
    return Guesses(canaries, 2 * half, right)


@pytest.mark.parametrize("mu", [0.5, 1.5])
def test_the_f_dp_bound_covers_a_gaussian_mechanism(mu: float) -> None:
    """60 runs at 5 %: more than 12 wrong ones are rarer than 1e-5."""
    runs = [gaussian_mu(gaussian_counts(mu, 500, 100, seed), 0.05) for seed in range(60)]
    assert sum(found > mu for found in runs) <= 12
    assert np.mean(runs) > mu / 4  # and it is no bound of 0


def test_the_f_dp_bound_is_the_tighter_one() -> None:
    for seed in range(5):
        counts = gaussian_counts(1.5, 1000, 100, seed)
        assert gaussian_epsilon(counts, LEVEL) > one_run_epsilon(counts, LEVEL) > 0.5


def test_without_the_gaussian_family_it_is_near_the_one_run_bound() -> None:
    for right in (60, 80, 95, 100):
        counts = Guesses(1000, 100, right)
        assert approximate_epsilon(counts, LEVEL) == pytest.approx(
            one_run_epsilon(counts, LEVEL), abs=0.05
        )


def test_a_p_value_is_where_rejection_begins() -> None:
    curve, counts = GaussianTradeOff(0.5), Guesses(2000, 100, 80)
    p_value = f_dp_p_value(curve, counts)
    assert 1e-12 < p_value < 1
    assert f_dp_rejects(curve, counts, p_value) and not f_dp_rejects(curve, counts, p_value / 1.01)
    assert f_dp_p_value(curve, Guesses(2000, 100, 40)) == 1.0
    assert f_dp_p_value(GaussianTradeOff(0.0), Guesses(2000, 100, 100)) == 1e-12


# Trade-off curves.


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
def test_a_gaussian_curve_has_the_epsilon_of_the_gaussian_mechanism(mu: float) -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    for delta in (1e-3, 1e-5, 1e-8):
        exact = dp_accounting.get_epsilon_gaussian(1 / mu, delta)
        assert GaussianTradeOff(mu).epsilon(delta) == pytest.approx(exact, abs=1e-5)
    assert GaussianTradeOff(1e-7).epsilon(1e-5) == GaussianTradeOff(0.0).epsilon(1e-5) == 0.0
    with pytest.raises(ConfigError, match="a delta between 0 and 1"):
        GaussianTradeOff(mu).epsilon(0.0)


def profile_of(mu: float) -> ProfileTradeOff:
    epsilons = np.linspace(0.0, 8.0, 400)
    below = np.exp(epsilons) * ndtr(-epsilons / mu - mu / 2)
    return ProfileTradeOff(epsilons, ndtr(-epsilons / mu + mu / 2) - below)


def test_a_profile_is_the_curve_from_below() -> None:
    exact, lines = GaussianTradeOff(1.0), profile_of(1.0)
    for probability in np.linspace(0.001, 0.999, 200):
        assert 0 <= exact.least(probability) - lines.least(probability) + 1e-12 < 2e-3


@pytest.mark.parametrize(
    "curve", [GaussianTradeOff(1.0), ApproximateTradeOff(1.0, 1e-3), profile_of(1.0)]
)
def test_every_curve_is_a_symmetric_trade_off(curve: TradeOff) -> None:
    """Rising and below the diagonal; what `least` gives is undone by what it leaves."""
    grid = np.linspace(0.0, 1.0, 101)
    values = np.array([curve.least(float(p)) for p in grid])
    assert (np.diff(values) >= -1e-12).all() and (values <= grid + 1e-12).all()
    assert (np.diff(values, 2) >= -1e-9).all()  # convex
    for probability, value in zip(grid, values, strict=True):
        assert curve.least(1 - value) <= 1 - probability + 1e-9


def test_a_profile_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ConfigError, match="as many deltas as epsilons"):
        ProfileTradeOff(np.zeros(3), np.zeros(4))


# Independent runs.


def test_clopper_pearson_limits_are_the_published_ones() -> None:
    """0 of n: 1 - a^(1/n); and the two-sided 95 % interval of 4 of 20 (Clopper and Pearson 1934)."""
    assert clopper_pearson_upper(0, 20, 0.05) == pytest.approx(1 - 0.05 ** (1 / 20))
    assert clopper_pearson_lower(4, 20, 0.025) == pytest.approx(0.0573, abs=1e-4)
    assert clopper_pearson_upper(4, 20, 0.025) == pytest.approx(0.4366, abs=1e-4)
    assert clopper_pearson_upper(20, 20, 0.05) == 1.0 and clopper_pearson_lower(0, 9, 0.05) == 0.0
    with pytest.raises(ConfigError, match="found 3 of 2"):
        clopper_pearson_upper(3, 2, 0.05)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_clopper_pearson_bound_covers_randomised_response_exactly(epsilon: float) -> None:
    """30 runs in, 30 out, summed over every outcome."""
    chance, level = float(expit(epsilon)), Level(0.05, 0.0)
    wrong = [
        found_probability * accused_probability
        for found, found_probability in outcomes(30, chance)
        for accused, accused_probability in outcomes(30, 1 - chance)
        if clopper_pearson_epsilon(Rates(30, found, 30, accused), level) > epsilon
    ]
    assert 0 < sum(wrong) <= 0.05


def test_the_gaussian_bound_covers_a_gaussian_mechanism_exactly() -> None:
    """At the threshold half way: right with Phi(mu / 2) on both sides."""
    mu, chance = 1.0, float(ndtr(0.5))
    results = [
        (found_probability * accused_probability, Rates(40, found, 40, accused))
        for found, found_probability in outcomes(40, chance)
        for accused, accused_probability in outcomes(40, 1 - chance)
    ]
    wrong = sum(p for p, rates in results if independent_gaussian_mu(rates, 0.05) > mu)
    refused = sum(p for p, rates in results if rates_reject(GaussianTradeOff(mu), rates, 0.05))
    assert 0 < wrong <= 0.05
    assert refused == pytest.approx(wrong, abs=1e-9)  # two ways to say it


def test_rates_reject_a_claim_where_they_exceed_its_curve() -> None:
    rates = Rates(1000, 690, 1000, 310)  # of mu = 1
    assert rates_reject(GaussianTradeOff(0.5), rates, 0.05)
    assert not rates_reject(GaussianTradeOff(1.0), rates, 0.05)
    assert rates_p_value(GaussianTradeOff(0.5), rates) < 1e-6
    assert rates_p_value(GaussianTradeOff(2.0), rates) == 1.0
    assert not rates_reject(profile_of(1.0), rates, 0.05)


# What the bounds are not for.


def test_a_threshold_chosen_after_the_labels_is_wrong_far_too_often() -> None:
    """Why guesses are committed: scores that say nothing about membership, 60 times."""
    chosen = fixed = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        order = np.argsort(random.standard_normal(400))
        labels = random.random(400) < 0.5
        right = np.cumsum(labels[order[::-1]])
        bounds = [
            one_run_epsilon(Guesses(400, k, int(right[k - 1])), LEVEL) for k in range(5, 401, 5)
        ]
        chosen += max(bounds) > 0
        fixed += bounds[7] > 0
    assert chosen >= 15 and fixed <= 12  # 25 % and more; at most what 5 % exceeds once in 1e5


def test_a_search_without_end_is_an_error() -> None:
    with pytest.raises(ConfigError, match="a test without end"):
        largest_rejected(lambda _: True)
