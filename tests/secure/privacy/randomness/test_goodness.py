"""The closed forms bound the exact tails: no test alarms or misses more often than it says."""

import math

import numpy as np
import pytest
from scipy import special, stats

from offsite.secure.privacy.randomness import goodness

ALARMS = [1e-3, 1e-9, 1e-12]


@pytest.mark.parametrize("false_alarm", ALARMS)
@pytest.mark.parametrize("n", [20, 1000, 10**6])
def test_variance_alarms_and_misses_no_more_than_stated(n: int, false_alarm: float) -> None:
    verdict = goodness.variance(np.ones(n), 1.0, false_alarm)
    exact = stats.chi2(n).cdf(n * verdict.least) + stats.chi2(n).sf(n * verdict.most)
    assert exact <= false_alarm
    for ratio in (0.3, 0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        within = n * np.array([verdict.least, verdict.most]) / ratio**2
        passes = np.diff(stats.chi2(n).cdf(within))[0]
        assert passes <= goodness.variance_miss(n, ratio, false_alarm) + 1e-14


@pytest.mark.parametrize("false_alarm", ALARMS)
@pytest.mark.parametrize("n", [20, 1000, 100_000])
def test_shape_alarms_no_more_than_stated(n: int, false_alarm: float) -> None:
    values = special.ndtri((np.arange(n) + 0.5) / n) * 3.0
    verdict = goodness.shape(values, 3.0, false_alarm)
    assert verdict.statistic == pytest.approx(0.5 / n, rel=1e-6)
    assert verdict.most >= 1 or stats.kstwo(n).sf(verdict.most) <= false_alarm * (1 + 1e-9)


def test_shape_is_the_distance_that_scipy_finds() -> None:
    values = np.random.default_rng(0).standard_t(4, 500)
    expected = stats.kstest(values, stats.norm(scale=1.3).cdf).statistic
    assert goodness.shape(values, 1.3).statistic == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("false_alarm", ALARMS)
@pytest.mark.parametrize("n", [20, 1000])
def test_correlation_alarms_no_more_than_stated(n: int, false_alarm: float) -> None:
    """Σ x y of n pairs is √χ²_n times a normal: its tail is an integral over one variable."""
    bound = goodness.correlation(np.ones(n), np.ones(n), 1.0, false_alarm).most
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    lengths = np.sqrt(stats.chi2(n).ppf(quantiles))
    exact = 2 * special.ndtr(-n * bound / lengths).mean()
    assert exact <= false_alarm


@pytest.mark.parametrize("correlated", [0.3, 0.9, 1.0])
def test_correlation_misses_no_more_than_stated(correlated: float) -> None:
    n, false_alarm, runs = 60, 1e-3, 20_000
    stated = goodness.correlation_miss(n, correlated, false_alarm)
    draws = np.random.default_rng(1).normal(size=(2, runs, n))
    other = correlated * draws[0] + math.sqrt(1 - correlated**2) * draws[1]
    bound = goodness.correlation(np.ones(n), np.ones(n), 1.0, false_alarm).most
    missed = int(((draws[0] * other).mean(axis=1) <= bound).sum())
    # (the count of misses could exceed its expectation by chance: once in 10^9)
    assert missed <= stats.binom(runs, stated).ppf(1 - 1e-9)


@pytest.mark.parametrize("false_alarm", ALARMS)
@pytest.mark.parametrize("trials", [50, 4000, 10**6])
@pytest.mark.parametrize("probability", [0.0025, 0.05, 0.5, 0.97])
def test_rates_alarm_and_miss_no_more_than_stated(
    trials: int, probability: float, false_alarm: float
) -> None:
    verdict = goodness.rates(np.array([1]), trials, probability, false_alarm)
    law = stats.binom(trials, probability)
    least, most = trials * verdict.least, trials * verdict.most
    # (counts on the very bound pass; 1e-6 of a count keeps rounding on the safe side)
    exact = law.cdf(math.ceil(least - 1e-6) - 1) + law.sf(math.floor(most + 1e-6))
    assert exact <= false_alarm
    for actual in (0.001, 0.1, 0.4, 0.99):
        other = stats.binom(trials, actual)
        passes = other.cdf(math.floor(most + 1e-6)) - other.cdf(math.ceil(least - 1e-6) - 1)
        assert passes <= goodness.rates_miss(trials, probability, actual, 1, false_alarm) + 1e-14


def test_rates_report_the_farthest_and_allow_for_their_number() -> None:
    one = goodness.rates(np.array([50]), 100, 0.5)
    many = goodness.rates(np.array([[50, 48], [55, 51]]), 100, 0.5)
    assert many.statistic == 0.55 and one.statistic == 0.5
    assert many.least < one.least and one.most < many.most


@pytest.mark.parametrize(("units", "sampling"), [(30, 0.5), (200, 0.05), (10_000, 0.0032)])
def test_usual_sizes_have_their_exact_probability(units: int, sampling: float) -> None:
    least, most, probability = goodness.size_within_one_deviation(units, sampling)
    law = stats.binom(units, sampling)
    assert probability == pytest.approx(law.cdf(most) - law.cdf(least - 1), rel=1e-9)
    assert 0.5 < probability < 0.85
