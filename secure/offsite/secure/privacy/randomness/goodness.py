"""Tests of noise and sampling whose false alarms and misses are bounded in closed form.

Each takes the chance of a false alarm and gives the range in which an honest statistic lies; each
has a `..._miss` that bounds the chance that a stated defect passes. All bounds hold for every size
(none is a limit), so a test can be chosen by its power and never be flaky.

    variance      Σ x² / s² of n values               Laurent and Massart 2000, lemma 1
    shape         Kolmogorov-Smirnov distance         Dvoretzky-Kiefer-Wolfowitz, Massart 1990
    correlation   Σ x y / s² of n independent pairs   Chernoff, E exp(λ x y) = (1 - λ²)^(-1/2)
    rates         counts of n trials                  Chernoff, n KL(k/n ‖ p), Bonferroni over counts

The bounds are looser than exact tails and need nothing but this file, which is what a proof on an
owner's machine should need.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Counts = NDArray[np.int64]

FALSE_ALARM: Final = 1e-9
_BISECTIONS: Final = 100


@dataclass(frozen=True, slots=True)
class Verdict:
    """A statistic, and between what it lies unless something is wrong."""

    statistic: float
    least: float
    most: float

    @property
    def passed(self) -> bool:
        return self.least <= self.statistic <= self.most


def variance(values: Doubles, scale: float, false_alarm: float = FALSE_ALARM) -> Verdict:
    """Whether the mean square of independent N(0, scale²) values (n,) is scale²."""
    n = len(values)
    least, most = _variance_range(n, false_alarm)
    return Verdict(float(np.dot(values, values)) / scale**2 / n, least, most)


def variance_miss(n: int, ratio: float, false_alarm: float = FALSE_ALARM) -> float:
    """At most this chance that noise of `ratio` times the stated scale passes."""
    least, most = (n * bound / ratio**2 for bound in _variance_range(n, false_alarm))
    if least > n:
        root = (math.sqrt(2 * least - n) - math.sqrt(n)) / 2
        return math.exp(-root * root)
    return math.exp(-((n - most) ** 2) / (4 * n)) if most < n else 1.0


def _variance_range(n: int, false_alarm: float) -> tuple[float, float]:
    x = math.log(2 / false_alarm)
    return 1 - 2 * math.sqrt(x / n), 1 + 2 * math.sqrt(x / n) + 2 * x / n


def shape(values: Doubles, scale: float, false_alarm: float = FALSE_ALARM) -> Verdict:
    """Kolmogorov-Smirnov distance of independent values (n,) from N(0, scale²)."""
    n = len(values)
    ordered = np.sort(values) / (-math.sqrt(2) * scale)
    expected = np.fromiter(map(math.erfc, ordered.tolist()), np.float64, n) / 2
    ranks = np.arange(n)
    above = ((ranks + 1) / n - expected).max()
    below = (expected - ranks / n).max()
    return Verdict(float(max(above, below)), 0.0, _shape_bound(n, false_alarm))


def shape_miss(n: int, distance: float, false_alarm: float = FALSE_ALARM) -> float:
    """At most this chance that a distribution so far from the Gaussian passes."""
    spare = distance - _shape_bound(n, false_alarm)
    return min(1.0, 2 * math.exp(-2 * n * spare * spare)) if spare > 0 else 1.0


def _shape_bound(n: int, false_alarm: float) -> float:
    return math.sqrt(math.log(2 / false_alarm) / (2 * n))


def correlation(
    left: Doubles, right: Doubles, scale: float, false_alarm: float = FALSE_ALARM
) -> Verdict:
    """Whether two vectors (n,) of independent N(0, scale²) are independent of each other."""
    n = len(left)
    bound = _correlation_bound(n, false_alarm)
    return Verdict(float(np.dot(left, right)) / scale**2 / n, -bound, bound)


def correlation_miss(n: int, correlated: float, false_alarm: float = FALSE_ALARM) -> float:
    """At most this chance that vectors of this correlation, in (0, 1], pass."""
    bound = _correlation_bound(n, false_alarm)
    # Chernoff: every λ gives a bound, the best of a thousand is taken.
    lambdas = np.linspace(0, 1 / max(1 - correlated, 1e-3), 1002)[1:-1]
    with_sum = np.log1p(lambdas * (1 + correlated))
    exponents = lambdas * bound - (with_sum + np.log1p(-lambdas * (1 - correlated))) / 2
    return min(1.0, math.exp(n * float(exponents.min())))


def _correlation_bound(n: int, false_alarm: float) -> float:
    def exponent(t: float) -> float:
        best = (math.sqrt(1 + 4 * t * t) - 1) / (2 * t)
        return best * t + math.log1p(-best * best) / 2

    return _first(lambda t: n * exponent(t) >= math.log(2 / false_alarm), 1e-12, 1e6)


def rates(
    counts: Counts, trials: int, probability: float, false_alarm: float = FALSE_ALARM
) -> Verdict:
    """Whether all counts (m,) of `trials` independent events have this probability, in (0, 1).

    The counts may depend on one another. The statistic is the rate farthest from the stated one.
    """
    rate = counts / trials
    farthest = float(rate.flat[np.abs(rate - probability).argmax()])
    return Verdict(farthest, *_rate_range(trials, probability, false_alarm / counts.size))


def rates_miss(
    trials: int,
    probability: float,
    actual: float,
    counts: int = 1,
    false_alarm: float = FALSE_ALARM,
) -> float:
    """At most this chance that a count whose probability is `actual` passes among `counts`."""
    least, most = _rate_range(trials, probability, false_alarm / counts)
    if least <= actual <= most:
        return 1.0
    return math.exp(-trials * _divergence(most if actual > most else least, actual))


def _rate_range(trials: int, probability: float, false_alarm: float) -> tuple[float, float]:
    enough = math.log(2 / false_alarm) / trials

    def unlikely(rate: float) -> bool:
        return _divergence(rate, probability) >= enough

    least = 1 - _first(lambda rate: unlikely(1 - rate), 1 - probability, 1.0)
    return least, _first(unlikely, probability, 1.0)


def _divergence(rate: float, probability: float) -> float:
    """KL(rate ‖ probability) of two coins."""
    if probability in (0.0, 1.0):
        return 0.0 if rate == probability else math.inf
    heads = rate * math.log(rate / probability) if rate > 0 else 0.0
    tails = (1 - rate) * math.log((1 - rate) / (1 - probability)) if rate < 1 else 0.0
    return heads + tails


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition begins to hold between two bounds; `high` if it never does."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def size_within_one_deviation(units: int, sampling: float) -> tuple[int, int, float]:
    """Sizes that a Poisson batch has most often: least, most, and their exact probability.

    A sampler of fixed size is always inside, one that draws units together mostly outside.
    """
    mean, deviation = units * sampling, math.sqrt(units * sampling * (1 - sampling))
    least, most = math.ceil(mean - deviation), math.floor(mean + deviation)
    return least, most, sum(_size_probability(units, sampling, k) for k in range(least, most + 1))


def _size_probability(units: int, sampling: float, size: int) -> float:
    ways = math.lgamma(units + 1) - math.lgamma(size + 1) - math.lgamma(units - size + 1)
    inside, outside = size * math.log(sampling), (units - size) * math.log1p(-sampling)
    return math.exp(ways + inside + outside)
