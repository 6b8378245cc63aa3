"""Dominating pairs: each mechanism as two mixtures of Gaussians on a line.

A pair (P, Q) dominates a mechanism when no outcome on any neighbouring data sets tells them apart
better than one draw tells P from Q. Everything an accountant needs is in the pair. With noise
sigma (units of the clip norm) and sampling rate q:

    Gaussian          P = N(1, σ²)                          Q = N(0, σ²)
    PoissonGaussian   P = (1-q)·N(0, σ²) + q·N(1, σ²)       Q = N(0, σ²)
    truncated         with probability 1-w the pair of PoissonGaussian, and with probability w
                      P = (1-r)·N(0, σ²) + r·N(2, σ²)       Q = (1-r)·N(0, σ²) + r·N(-2, σ²)

where the draw also shows which of the two it was; w is the probability that the batch is full
without the unit, and r the probability that the unit is in a full batch. Then it displaces another
one, and the sum moves by up to 2 C.

P is the data set with the unit, so a pair is for its removal; the other way round it is swapped (Zhu, Dong,
Wang, AISTATS 2022, arXiv 2106.08567v4, Thm 11). With Gaussian noise removal has always been found
the worse one, but composed that is not proven. PLD follows both and PRV and RDP removal alone, so
a case where addition is worse would show as a disagreement. The truncated pair is that of Ganesh,
arXiv 2508.15089; `units` is n, or one more (`directions`).

This file is independent of dp_accounting, which computes the PLD from its own formulas.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.secure.privacy.mechanisms import (
    Gaussian,
    Mechanism,
    TruncatedPoissonGaussian,
)

Reals = NDArray[np.float64]

_TAIL: Final = 12.0
"""Standard deviations beyond which a Gaussian holds less than 10^-32."""
LEAST_SIGMA: Final = 0.05
"""With sampling, less noise has no divergence here but infinity: the grid would grow as 1/σ²."""
NEVER_FULL: Final = 1e-30
"""A batch less likely to be full than this is treated as never full."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair: P moves to `shift` with probability `rate`, Q to `-shift` or not at all."""

    weight: float  # probability that this pair is the one that is drawn from
    sigma: float
    rate: float  # of being in the batch: q or r
    shift: float  # 1, or 2 where another unit is displaced
    both_move: bool  # whether Q moves too

    def losses(self, points: Reals) -> Reals:
        """ln P(x)/Q(x), increasing in x."""
        result: Reals = self._log_mixture(points, self.shift) - self._log_lower(points)
        return result

    def point_of(self, losses: Reals) -> Reals:
        """x where the loss is the given one; minus infinity below the smallest loss."""
        return self._replaced(losses) if self.both_move else self._removed(losses)

    def upper_cdf(self, points: Reals) -> Reals:
        """P(X ≤ x) for X drawn from P."""
        from scipy.special import ndtr

        stays = ndtr(points / self.sigma)
        moves = ndtr((points - self.shift) / self.sigma)
        result: Reals = (1 - self.rate) * stays + self.rate * moves
        return result

    def divergence(self, order: float) -> float:
        """ln of the integral of P^order · Q^(1-order): (order - 1) times the Rényi divergence."""
        if self.rate == 1:
            return order * (order - 1) * self._distance**2 / 2
        if self.sigma < LEAST_SIGMA:
            return math.inf
        points, step = self._grid(order)
        logs = order * self._log_mixture(points, self.shift)
        logs = logs + (1 - order) * self._log_lower(points)
        peak = float(logs.max())
        total = float(np.exp(logs - peak).sum()) * step / (self.sigma * math.sqrt(2 * math.pi))
        return peak + math.log(total)

    def mean_loss(self) -> float:
        """The expectation of the loss under P, the Kullback-Leibler divergence."""
        if self.rate == 1:
            return self._distance**2 / 2
        points, step = self._grid(1.0)
        density = np.exp(self._log_mixture(points, self.shift))
        scale = step / (self.sigma * math.sqrt(2 * math.pi))
        return float(np.dot(density, self.losses(points))) * scale

    @property
    def _distance(self) -> float:
        """Between the means of P and Q where both are Gaussians, in standard deviations."""
        return (2 if self.both_move else 1) * self.shift / self.sigma

    def _grid(self, order: float) -> tuple[Reals, float]:
        """Nodes of the trapezoid rule, which converges exponentially on such integrands.

        The integrand is analytic in a strip of half-width π σ²/shift around the real line, and
        its Gaussians lie between 0 and order·shift + (order-1)·shift.
        """
        step = min(self.sigma / 4, self.sigma**2 / (2 * self.shift))
        least = -_TAIL * self.sigma - self.shift
        most = max(2 * order - 1, 1.0) * self.shift if self.both_move else order * self.shift
        count = math.ceil((most + _TAIL * self.sigma - least) / step)
        return least + step * np.arange(count + 1, dtype=np.float64), step

    def _log_mixture(self, points: Reals, shift: float) -> Reals:
        """ln of the density at the points, without the factor 1/(σ √(2π))."""
        moves = math.log(self.rate) - (points - shift) ** 2 / (2 * self.sigma**2)
        if self.rate == 1:
            return moves
        stays = math.log1p(-self.rate) - points**2 / (2 * self.sigma**2)
        result: Reals = np.logaddexp(stays, moves)
        return result

    def _log_lower(self, points: Reals) -> Reals:
        if self.both_move:
            return self._log_mixture(points, -self.shift)
        result: Reals = -(points**2) / (2 * self.sigma**2)
        return result

    def _removed(self, losses: Reals) -> Reals:
        """Inverts ln(1 - q + q·e^((2x-1)/2σ²)), shift 1."""
        small = losses < 1  # apart, since e^loss overflows where expm1 is exact enough to be needed
        result: Reals = np.empty_like(losses)
        with np.errstate(divide="ignore"):
            result[small] = np.log(np.maximum(np.expm1(losses[small]) + self.rate, 0.0))
        large = losses[~small]
        result[~small] = large + np.log1p(-(1 - self.rate) * np.exp(-large))
        return 0.5 + self.sigma**2 * (result - math.log(self.rate))

    def _replaced(self, losses: Reals) -> Reals:
        """Inverts the loss of the pair that moves both ways.

        With s the shift, e^loss = (α + e^(sx/σ²)) / (α + e^(-sx/σ²)), α = e^(s²/2σ²)·(1-r)/r,
        which gives s·x/σ² = loss/2 + asinh(α·sinh(loss/2)).
        """
        half = np.abs(losses) / 2
        if self.rate == 1:
            bend = half
        else:
            log_alpha = self.shift**2 / (2 * self.sigma**2)
            log_alpha += math.log1p(-self.rate) - math.log(self.rate)
            with np.errstate(divide="ignore"):
                log_sinh = half + np.log(-np.expm1(-2 * half)) - math.log(2)
            exponent = log_alpha + log_sinh
            bend = np.where(
                exponent > 20, exponent + math.log(2), np.arcsinh(np.exp(np.minimum(exponent, 20)))
            )
        result: Reals = np.sign(losses) * (half + bend) * self.sigma**2 / self.shift
        return result


@lru_cache(maxsize=256)
def pairs_of(once: Mechanism) -> tuple[Pair, ...]:
    """The dominating pairs of one use, their weights adding up to 1."""
    sigma = once.noise_multiplier
    if isinstance(once, Gaussian):
        return (Pair(1.0, sigma, 1.0, 1.0, both_move=False),)
    rate = rate_above(once.sampling)
    if not isinstance(once, TruncatedPoissonGaussian):
        return (Pair(1.0, sigma, rate, 1.0, both_move=False),)
    full, kept = truncation(once)
    plain = Pair(1.0 - full, sigma, rate, 1.0, both_move=False)
    return (plain, Pair(full, sigma, kept, 2.0, both_move=True)) if full else (plain,)


def truncation(mechanism: TruncatedPoissonGaussian) -> tuple[float, float]:
    """(w, r): how likely the batch is full without the unit, and the unit then in it.

    w = P[Bin(n-1, q) ≥ cap];  r = P[the unit is drawn, is kept, and the batch is full] / w, where
    a batch above the cap keeps each of its units with probability cap / its size, so that
    w·r = cap/n · P[Bin(n, q) > cap]. Both are 0 where the cap is never reached.
    """
    from scipy.stats import binom

    units, cap = mechanism.units, mechanism.cap
    rate = rate_above(mechanism.sampling)
    full = float(binom.sf(cap - 1, units - 1, rate))
    if full < NEVER_FULL:
        return 0.0, 0.0
    return full, min(1.0, float(binom.sf(cap, units, rate)) * cap / (full * units))


def rate_above(sampling: Fraction) -> float:
    """The least float that is not below the exact rate: rounding never hides a use."""
    rate = float(sampling)
    return rate if Fraction(rate) >= sampling else math.nextafter(rate, 1.0)
