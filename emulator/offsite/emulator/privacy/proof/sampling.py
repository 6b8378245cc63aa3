"""Whether units are drawn as they are accounted: each with probability q, independently.

    rate     how often all units together, and each one, were drawn
    pairs    how often two units were drawn together: fixed groups are, strata are not
    steps    how often a unit was drawn in two steps on end: never, of a shuffled epoch
    sizes    how often a batch had a size within one deviation: always, of batches of fixed size

Pairs of units and of steps are disjoint, so all counts are sums of independent events and the bounds
of `offsite.secure.privacy.randomness.goodness` hold. Chances under truncation follow from the exact
distribution of the size before it. Steps are few where units are many, so that the proof takes
seconds; each check says what it would miss.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offsite.emulator.privacy.proof.mechanism import Mechanism
from offsite.emulator.privacy.proof.report import Check
from offsite.secure.privacy.randomness import goodness
from offsite.secure.privacy.randomness.poisson import Sampler, TruncatedPoissonSampler

_MOST_DECISIONS = 1 << 22
_STEPS = (16, 2048)
_FAR = 12
"""Deviations beyond which a size is as good as impossible: once in 10^32."""


def sampling_checks(mechanism: Mechanism) -> Iterator[Check]:
    """Yield the checks of one series of steps."""
    chances = Chances.of(mechanism.terms.sampler)
    steps = min(max(_MOST_DECISIONS // chances.units, _STEPS[0]), _STEPS[1]) // 2 * 2
    drawn = np.zeros((steps, chances.units), np.bool_)
    for row in drawn:
        row[mechanism.draw()] = True
    if chances.cap < chances.units:
        yield _largest(drawn, chances)
    if chances.one == 1:  # every unit in every step
        yield Check("sampling.all", float(drawn.mean()), 1, 1, 0.0, "units that are left out")
        return
    yield from _rates(drawn, chances)
    yield from _together(drawn, chances)
    yield from _sizes(drawn, chances)


@dataclass(frozen=True, slots=True)
class Chances:
    """What an honest sampler of ``units`` does."""

    units: int
    cap: int
    one: float
    """That a unit is drawn."""
    two: float
    """That two units are drawn together."""
    sizes: NDArray[np.float64]
    """That a batch has each size, [units + 1]."""

    @classmethod
    def of(cls, sampler: Sampler) -> "Chances":
        """Work them out from the exact distribution of sizes."""
        units, q = sampler.units, float(sampler.sampling)
        cap = min(sampler.cap, units) if isinstance(sampler, TruncatedPoissonSampler) else units
        sizes = _binomial(units, q)
        sizes[cap] += sizes[cap + 1 :].sum()
        sizes[cap + 1 :] = 0
        size = np.arange(units + 1)
        one = q if cap == units else float((sizes * size).sum()) / units
        others = max(units - 1, 1)
        two = q * q if cap == units else float((sizes * size * (size - 1)).sum()) / units / others
        return cls(units, cap, one, two, sizes)


def _binomial(units: int, q: float) -> NDArray[np.float64]:
    chances = np.zeros(units + 1)
    if q == 1:
        chances[units] = 1
        return chances
    mean, far = units * q, _FAR * math.sqrt(units * q) + _FAR**2
    for size in range(max(0, math.floor(mean - far)), min(units, math.ceil(mean + far)) + 1):
        ways = math.lgamma(units + 1) - math.lgamma(size + 1) - math.lgamma(units - size + 1)
        chances[size] = math.exp(ways + size * math.log(q) + (units - size) * math.log1p(-q))
    return chances


def _largest(drawn: NDArray[np.bool_], chances: Chances) -> Check:
    largest = int(drawn.sum(1).max())
    return Check("sampling.largest", largest, 0, chances.cap, 0.0, "a batch beyond its cap")


def _rates(drawn: NDArray[np.bool_], chances: Chances) -> Iterator[Check]:
    steps, units = drawn.shape
    of_each = drawn.sum(0).astype(np.int64)
    wrong = "a unit that is always or never drawn"
    miss = min(goodness.rates_miss(steps, chances.one, actual, units) for actual in (0.0, 1.0))
    yield _rate("sampling.rate_of_one", of_each, steps, chances.one, miss, wrong)
    counts, trials = _counted(drawn, chances)
    wrong = "a rate of 1.2 times the one that is accounted"
    miss = goodness.rates_miss(trials, chances.one, min(1.0, 1.2 * chances.one), counts.size)
    yield _rate("sampling.rate", counts, trials, chances.one, miss, wrong)


def _together(drawn: NDArray[np.bool_], chances: Chances) -> Iterator[Check]:
    units, one = chances.units, chances.one
    if units > 1:
        even = units // 2 * 2
        in_both = drawn[:, 0:even:2] & drawn[:, 1:even:2]
        counts, trials = _counted(in_both, chances)
        miss = goodness.rates_miss(trials, chances.two, one, counts.size)
        wrong = "units that are drawn together"
        yield _rate("sampling.pairs", counts, trials, chances.two, miss, wrong)
    counts, trials = _counted(drawn[0::2] & drawn[1::2], chances)
    miss = goodness.rates_miss(trials, one * one, 0.0, counts.size)
    wrong = "epochs that are shuffled, in which no unit comes twice"
    yield _rate("sampling.steps", counts, trials, one * one, miss, wrong)


def _counted(events: NDArray[np.bool_], chances: Chances) -> tuple[NDArray[np.int64], int]:
    """Count events [steps, m]: together, unless units of one step depend on each other."""
    of_each = events.sum(0).astype(np.int64)
    if chances.cap < chances.units:
        return of_each, len(events)
    return of_each.sum(keepdims=True), events.size


def _sizes(drawn: NDArray[np.bool_], chances: Chances) -> Iterator[Check]:
    sizes = np.arange(chances.units + 1)
    mean = float((chances.sizes * sizes).sum())
    deviation = math.sqrt(float((chances.sizes * (sizes - mean) ** 2).sum()))
    usual = np.abs(sizes - mean) <= deviation
    chance = float(chances.sizes[usual].sum())
    if not 0 < chance < 1:
        return
    steps = len(drawn)
    counts = np.array([int(usual[drawn.sum(1)].sum())])
    miss = goodness.rates_miss(steps, chance, 1.0)
    wrong = "batches of one size"
    yield _rate("sampling.sizes", counts, steps, chance, miss, wrong)


def _rate(
    name: str, counts: NDArray[np.int64], trials: int, chance: float, miss: float, looks_for: str
) -> Check:
    verdict = goodness.rates(counts, trials, chance)
    return Check(name, verdict.statistic, verdict.least, verdict.most, min(1.0, miss), looks_for)
