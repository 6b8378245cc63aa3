"""What an epsilon means, against its definition and a mechanism that is known."""

import math

import numpy as np
import pytest

from offsite.audit.privacy_report.plots.frame import Axis
from offsite.audit.privacy_report.words import (
    epsilon_words,
    most_advantage,
    most_posterior,
    most_true_positives,
    percent,
    small,
)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0, 8.0])
def test_randomised_response_reaches_what_epsilon_allows(epsilon: float) -> None:
    """It answers truly with probability e^eps / (1 + e^eps) and is as leaky as epsilon lets it be."""
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert most_posterior(epsilon, 0.5) == pytest.approx(truth)
    assert most_true_positives(epsilon, 0.0, 1 - truth) == pytest.approx(truth)
    assert most_advantage(epsilon, 0.0) == pytest.approx(2 * truth - 1)


def test_the_largest_advantage_is_that_of_the_curve() -> None:
    rates = np.linspace(0, 1, 20_001)
    for epsilon, delta in ((0.3, 0.01), (2.0, 1e-5), (5.0, 0.1)):
        best = max(most_true_positives(epsilon, delta, float(x)) - x for x in rates)
        assert most_advantage(epsilon, delta) == pytest.approx(best, abs=1e-3)


def test_huge_epsilons_promise_nothing() -> None:
    assert most_posterior(1e9, 0.5) == most_posterior(math.inf, 0.5) == 1.0
    assert most_true_positives(math.inf, 0.0, 0.0) == 1.0
    assert most_posterior(3.0, 0.0) == 0.0 and most_posterior(3.0, 1.0) == 1.0


def test_numbers_are_never_rounded_to_certainty() -> None:
    assert percent(most_posterior(8.0, 0.5)) == "99.9664 %"
    assert percent(most_posterior(16.0, 0.5)) == "99.999988 %"
    assert percent(0.5) == "50.0 %" and percent(0.0) == "0.0 %" and percent(1.0) == "100.0 %"
    assert percent(0.0002) == "less than 0.1 %"
    assert small(1e-5) == "10⁻⁵" and small(2.5e-6) == "2.5 · 10⁻⁶" and small(0.01) == "0.01"
    assert "at most 99.9664 % sure" in epsilon_words(8.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 8.4), (0.0, 0.0), (-0.3, 0.7), (3.0, 3e6)])
def test_axes_cover_their_values_with_few_round_ticks(low: float, high: float) -> None:
    axis = Axis.over("x", low, high)
    assert axis.low <= low and axis.high >= high
    assert 2 <= len(axis.ticks) <= 8
    steps = np.diff(axis.ticks)
    assert np.allclose(steps, steps[0])
