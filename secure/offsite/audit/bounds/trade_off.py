"""Trade-off curves: what no test between "in" and "out" can do better than.

A curve f gives the least false-negative rate f(x) of a test whose false-positive rate is x. Every
curve here is symmetric, so that one method is enough: an event of probability p under one
hypothesis has at least the probability `least(p)` = f(1 - p) under the other.

Source: Dong, Roth, Su, "Gaussian Differential Privacy", JRSS-B 2022, arXiv 1905.02383v3:
definition 2.6, proposition 2.4 (of (epsilon, delta)), equation 6 and corollary 2.13 (Gaussian).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri

from offsite.audit.bounds.search import largest_rejected
from offsite.secure.errors import ConfigError


class TradeOff(Protocol):
    """A symmetric curve."""

    def least(self, probability: float) -> float:
        """The least probability, under the other hypothesis, of an event of this one."""
        ...


@dataclass(frozen=True, slots=True)
class GaussianTradeOff:
    """Of N(0, 1) against N(mu, 1)."""

    mu: float

    def least(self, probability: float) -> float:
        return float(ndtr(ndtri(probability) - self.mu))

    def epsilon(self, delta: float) -> float:
        """The epsilon that it has at `delta`, which must not be 0."""
        if not 0 < delta < 1:
            raise ConfigError(f"audit: expected a delta between 0 and 1, found {delta}")
        if self.mu <= 0:
            return 0.0
        return largest_rejected(lambda epsilon: self._log_delta(epsilon) > math.log(delta))

    def _log_delta(self, epsilon: float) -> float:
        above = float(log_ndtr(-epsilon / self.mu + self.mu / 2))
        below = epsilon + float(log_ndtr(-epsilon / self.mu - self.mu / 2))
        return above + math.log1p(-math.exp(below - above)) if below < above else -math.inf


@dataclass(frozen=True, slots=True)
class ApproximateTradeOff:
    """Of every (epsilon, delta)-DP mechanism."""

    epsilon: float
    delta: float

    def least(self, probability: float) -> float:
        there = 1 - self.delta - math.exp(self.epsilon) * (1 - probability)
        back = math.exp(-self.epsilon) * (probability - self.delta)
        return max(0.0, there, back)


@dataclass(frozen=True, slots=True)
class ProfileTradeOff:
    """Of a mechanism with many (epsilon, delta) at once, as an accountant computes them.

    Each pair is a line that the curve lies above; more pairs make it tighter, none too few makes it
    wrong, as long as every delta is an upper bound for both directions of adjacency.
    """

    epsilons: NDArray[np.float64]
    deltas: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.epsilons.shape != self.deltas.shape or self.epsilons.ndim != 1:
            raise ConfigError(
                "audit: expected as many deltas as epsilons, found shapes "
                f"{self.epsilons.shape} and {self.deltas.shape}"
            )

    def least(self, probability: float) -> float:
        there = 1 - self.deltas - np.exp(self.epsilons) * (1 - probability)
        back = np.exp(-self.epsilons) * (probability - self.deltas)
        return float(max(0.0, np.max(there, initial=0.0), np.max(back, initial=0.0)))
