"""Intervals against published values and by enumeration; tests against chance by counting."""

import math

import numpy as np
import pytest

from offsite.audit.attack.exposure import fisher
from offsite.audit.attack.intervals import (
    area,
    auc,
    clopper_pearson,
    difference,
    erlang_tail,
    mean,
    permutation,
)
from offsite.secure.errors import ConfigError


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),  # 1 - 0.025^(1/10)
        (10, 10, 0.6915, 1.0),
        (5, 10, 0.1871, 0.8129),  # table of R's binom.test
        (1, 20, 0.0013, 0.2487),
        (15, 15, 0.7820, 1.0),
    ],
)
def test_clopper_pearson_is_the_published_one(
    successes: int, trials: int, low: float, high: float
) -> None:
    found = clopper_pearson(successes, trials, 0.95)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert found.value == successes / trials


@pytest.mark.parametrize("trials", [1, 7, 30])
def test_clopper_pearson_covers_every_share(trials: int) -> None:
    bounds = [clopper_pearson(count, trials, 0.9) for count in range(trials + 1)]
    for share in np.linspace(0, 1, 101):
        covered = sum(
            math.comb(trials, count) * share**count * (1 - share) ** (trials - count)
            for count, found in enumerate(bounds)
            if found.low <= share <= found.high
        )
        assert covered >= 0.9 - 1e-9


def test_many_trials_do_not_overflow() -> None:
    found = clopper_pearson(50_000, 100_000, 0.95)
    assert found.low == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(100_000), abs=1e-5)


def test_a_difference_is_as_wide_as_both_bounds_together() -> None:
    found = difference((30, 40), (10, 40), 0.95)
    hits, alarms = clopper_pearson(30, 40, 0.975), clopper_pearson(10, 40, 0.975)
    assert found.value == 0.5
    assert found.low == pytest.approx(hits.low - alarms.high)
    assert found.high == pytest.approx(hits.high - alarms.low)
    with pytest.raises(ConfigError, match="of the trials"):
        clopper_pearson(3, 2, 0.95)


def test_the_area_counts_pairs() -> None:
    random = np.random.default_rng(0)
    inside, outside = (random.integers(0, 6, n).astype(float) for n in (13, 17))
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    assert area(inside, outside) == pytest.approx(np.mean(pairs))


def test_bootstrap_intervals_hold_the_truth_about_as_often_as_stated() -> None:
    random = np.random.default_rng(1)
    truth = (1 + math.erf(0.5)) / 2  # of scores one standard deviation apart
    areas = means = 0
    for _ in range(200):
        inside, outside = random.normal(1, 1, 60), random.normal(0, 1, 60)
        found = auc(inside, outside, 0.9, 300, random)
        areas += found.low <= truth <= found.high
        middle = mean(inside, 0.9, 300, random)
        means += middle.low <= 1 <= middle.high
    # 180 expected; below 150 or above 198 has a probability under 1e-6
    assert 150 < areas < 199 and 150 < means < 199


def test_the_test_against_chance_is_honest() -> None:
    """P[p <= a] <= a for scores that say nothing, few and with ties; and it sees those that do."""
    random = np.random.default_rng(2)
    trials, level = 600, 0.1
    by_chance = sum(
        permutation(*random.integers(0, 5, (2, 12)).astype(float), 199, random) <= level
        for _ in range(trials)
    )
    assert by_chance <= 111  # P[Bin(600, 0.1) > 111] < 1e-9
    seen = sum(
        permutation(random.normal(1, 1, 40), random.normal(0, 1, 40), 199, random) <= level
        for _ in range(50)
    )
    assert seen > 40


def test_a_p_value_is_never_0() -> None:
    random = np.random.default_rng(3)
    assert permutation(np.arange(50.0) + 100, np.arange(50.0), 99, random) == 1 / 100


def test_the_erlang_tail_is_that_of_sums_of_exponentials() -> None:
    sums = np.random.default_rng(4).exponential(size=(40_000, 3)).sum(axis=1)
    for x in (0.5, 3.0, 8.0):
        assert erlang_tail(3, x) == pytest.approx((sums >= x).mean(), abs=0.015)
    assert erlang_tail(1, 2.0) == pytest.approx(math.exp(-2))


def test_ranks_by_chance_are_rarely_significant() -> None:
    random = np.random.default_rng(5)
    found = sum(fisher(list(random.integers(1, 33, 6)), 32) <= 0.05 for _ in range(1000))
    assert found <= 96  # P[Bin(1000, 0.05) > 96] < 1e-9
    assert fisher([1] * 6, 32) < 1e-4 and fisher([32] * 6, 32) == 1.0
