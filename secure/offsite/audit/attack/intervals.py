"""Measured shares and means with their intervals, and tests against chance.

    clopper_pearson   a share of independent trials; covers with at least the stated confidence
    difference        of two shares; each at half the error, so the same holds for both together
    auc               area under the ROC curve, with a percentile bootstrap of either side by itself
    permutation       how often chance alone gives such an area; exact for exchangeable rows
    erlang_tail       P[sum of k standard exponentials >= x], for Fisher's combination of p-values

Nothing here knows what is measured. Sources: Clopper and Pearson, Biometrika 26 (1934); Fisher,
Statistical Methods for Research Workers (1932), section 21.1; Phipson and Smyth, Permutation
p-values should never be zero (2010), for the +1 in the p-value.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from offsite.audit.bounds.independent import clopper_pearson_lower, clopper_pearson_upper
from offsite.emulator.strict_json import JsonObject

Floats: TypeAlias = npt.NDArray[np.float64]

_CHUNK_VALUES = 4_000_000
"""Most values that resampling holds at once, 32 MB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value, and the bounds between which the true one lies at some confidence."""

    value: float
    low: float
    high: float

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def clopper_pearson(successes: int, trials: int, confidence: float) -> Interval:
    """The share of ``successes``, with its exact two-sided interval; ``trials`` at least 1."""
    tail = (1 - confidence) / 2
    return Interval(
        successes / trials,
        clopper_pearson_lower(successes, trials, tail),
        clopper_pearson_upper(successes, trials, tail),
    )


def difference(hits: tuple[int, int], alarms: tuple[int, int], confidence: float) -> Interval:
    """The first share less the second, each (successes, trials); conservative."""
    each = 1 - (1 - confidence) / 2
    of, less = clopper_pearson(*hits, each), clopper_pearson(*alarms, each)
    return Interval(of.value - less.value, of.low - less.high, of.high - less.low)


def area(members: Floats, others: Floats) -> float:
    """The share of pairs in which the member's score is larger; a tie counts half."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, members, "left")
    ties = np.searchsorted(ranked, members, "right") - below
    return float((below + ties / 2).mean() / len(others))


def auc(
    members: Floats, others: Floats, confidence: float, resamples: int, random: np.random.Generator
) -> Interval:
    """The area under the ROC curve with its bootstrap interval."""
    wins = (members[:, None] > others) + 0.5 * (members[:, None] == others)  # (members, others)
    n, m = len(members), len(others)
    areas = [
        np.einsum(
            "bi,ij,bj->b",
            random.multinomial(n, np.full(n, 1 / n), size),
            wins,
            random.multinomial(m, np.full(m, 1 / m), size),
            optimize=True,
        )
        / (n * m)
        for size in _chunks(resamples, n + m)
    ]
    low, high = _percentiles(np.concatenate(areas), confidence)
    return Interval(area(members, others), low, high)


def mean(
    values: Floats, confidence: float, resamples: int, random: np.random.Generator
) -> Interval:
    """The mean of at least one value with its bootstrap interval."""
    n = len(values)
    weights = [random.multinomial(n, np.full(n, 1 / n), size) for size in _chunks(resamples, n)]
    low, high = _percentiles(np.concatenate(weights) @ values / n, confidence)
    return Interval(float(values.mean()), low, high)


def _percentiles(values: Floats, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def permutation(
    members: Floats, others: Floats, resamples: int, random: np.random.Generator
) -> float:
    """The probability that chance alone ranks members at least as high: a p-value, never 0.

    Guarantees: where members and others are exchangeable it is at most p with probability at most
    p, whatever the scores and their number (`test_the_test_against_chance_is_honest`).
    """
    pooled = np.concatenate([members, others])
    ranks = _mid_ranks(pooled)
    found = ranks[: len(members)].sum()
    as_high = 0
    for size in _chunks(resamples, len(pooled)):
        shuffled = random.permuted(np.broadcast_to(ranks, (size, len(ranks))), axis=1)
        sums = shuffled[:, : len(members)].sum(axis=1)
        as_high += int((sums >= found - 1e-6).sum())
    return (1 + as_high) / (1 + resamples)


def _mid_ranks(values: Floats) -> Floats:
    ranked = np.sort(values)
    left, right = np.searchsorted(ranked, values, "left"), np.searchsorted(ranked, values, "right")
    ranks: Floats = (left + right) / 2
    return ranks


def _chunks(total: int, width: int) -> list[int]:
    """Sizes that add up to ``total``, each of at most `_CHUNK_VALUES` values."""
    size = max(1, _CHUNK_VALUES // width)
    return [min(size, total - start) for start in range(0, total, size)]


def erlang_tail(shape: int, x: float) -> float:
    """P[sum of ``shape`` independent standard exponentials >= x]."""
    term = total = math.exp(-x)
    for i in range(1, shape):
        term *= x / i
        total += term
    return min(1.0, total)
