"""The samples of many steps are Poisson: rates, pairs, sizes, steps, restarts and clients.

    total      all units' count of T steps is Binomial(n T, q)
    rate       each unit's count of T steps is Binomial(T, q)
    pairs      each pair's joint count is Binomial(T, q²)
    sizes      batches within one deviation of the mean are Binomial(T, p), p exact
    steps      units in two following steps are Binomial(n T/2, q²)
    clients    the same units at two clients in the same step are Binomial(n T, q²)

Every defect below passes with a probability under 1e-9 where it says so, and all comparisons of
one test together alarm falsely with one under 1e-9; both are asserted from closed forms.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.secure.privacy.randomness.streams import FALSE_ALARM, MISS, entropy, source

from offsite.secure.privacy.randomness import goodness
from offsite.secure.privacy.randomness.poisson import (
    PoissonSampler,
    Sampler,
    TruncatedPoissonSampler,
)

STEPS = 4000
CONFIGURATIONS = [(200, Fraction(1, 20)), (60, Fraction(1, 4)), (40, Fraction(7, 9))]
Members = NDArray[np.bool_]


@cache
def members(sampler: Sampler, *names: str) -> Members:
    """Who is in, bool (T, n); every step has entropy of its own."""
    inside = np.zeros((STEPS, sampler.units), np.bool_)
    for step in range(STEPS):
        inside[step, sampler.draw(source(*names, step).sampling())] = True
    return inside


def joint(inside: Members) -> NDArray[np.int64]:
    """In how many steps each pair of units was in together."""
    whole = inside.astype(np.float64)
    counts = (whole.T @ whole)[np.triu_indices(inside.shape[1], 1)]
    return counts.astype(np.int64)


def verdicts(inside: Members, q: float) -> dict[str, goodness.Verdict]:
    """The comparisons within one client."""
    n, each = inside.shape[1], FALSE_ALARM / 5
    least, most, usual = goodness.size_within_one_deviation(n, q)
    sizes = inside.sum(axis=1)
    within = np.array([((least <= sizes) & (sizes <= most)).sum()])
    both = np.array([(inside[0::2] & inside[1::2]).sum()])
    return {
        "total": goodness.rates(np.array([inside.sum()]), inside.size, q, each),
        "rate": goodness.rates(inside.sum(axis=0), STEPS, q, each),
        "pairs": goodness.rates(joint(inside), STEPS, q * q, each),
        "sizes": goodness.rates(within, STEPS, usual, each),
        "steps": goodness.rates(both, n * STEPS // 2, q * q, each),
    }


@pytest.mark.parametrize(("units", "rate"), CONFIGURATIONS)
def test_samples_are_poisson(units: int, rate: Fraction) -> None:
    found = verdicts(members(PoissonSampler(units, rate), "poisson"), float(rate))
    assert all(verdict.passed for verdict in found.values()), found


def test_restarts_and_clients_are_independent() -> None:
    sampler = PoissonSampler(*CONFIGURATIONS[1])
    q, each = float(sampler.sampling), FALSE_ALARM / 3
    one, other, again = (members(sampler, name) for name in ("poisson", "client 2", "restart"))
    for left, right in ((one, other), (one, again), (other, again)):
        together = np.array([(left & right).sum()])
        assert goodness.rates(together, left.size, q * q, each).passed
    # 4 % of the units following the other client would be found
    linked = q * q + 0.04 * q * (1 - q)
    assert goodness.rates_miss(one.size, q * q, linked, 1, each) < MISS


def draws(name: str) -> np.random.Generator:
    return np.random.default_rng(list(entropy(name)))


def shuffled_epochs(n: int, size: int) -> Members:
    """What most loaders do: every unit once an epoch, batches of one size."""
    inside, epoch = np.zeros((STEPS, n), np.bool_), n // size
    for first in range(0, STEPS, epoch):
        order = draws(f"epoch {first}").permutation(n).reshape(epoch, size)
        for step, batch in enumerate(order[: STEPS - first]):
            inside[first + step, batch] = True
    return inside


def fixed_size(n: int, size: int) -> Members:
    """A fresh subset of one size in every step."""
    random = draws("fixed")
    return np.stack([random.permutation(n) < size for _ in range(STEPS)])


def independent(n: int, q: float, name: str) -> Members:
    return draws(name).random((STEPS, n)) < q


def two_together(n: int, q: float) -> Members:
    inside = independent(n, q, "together")
    inside[:, 7] = inside[:, 3]
    return inside


def one_too_often(n: int, q: float) -> Members:
    inside = independent(n, q, "often")
    inside[:, 5] |= draws("more").random(STEPS) < 0.1
    return inside


def in_blocks(n: int, q: float) -> Members:
    """One decision for ten neighbours."""
    return np.repeat(independent(n // 10, q, "blocks"), 10, axis=1)


def seed_repeated(n: int, q: float) -> Members:
    return np.repeat(independent(n, q, "seed")[::2], 2, axis=0)


BROKEN: dict[str, tuple[Callable[[int, float], Members], str]] = {
    "shuffled epochs": (lambda n, q: shuffled_epochs(n, round(n * q)), "sizes steps"),
    "batches of one size": (lambda n, q: fixed_size(n, round(n * q)), "sizes"),
    "everybody too often": (lambda n, q: independent(n, 1.07 * q, "rate"), "total"),
    "one too often": (one_too_often, "rate"),
    "two always together": (two_together, "pairs"),
    "blocks of neighbours": (in_blocks, "pairs sizes"),
    "a seed repeated in the next step": (seed_repeated, "steps"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_sampling_is_found(broken: str) -> None:
    units, rate = CONFIGURATIONS[0]
    draw, by = BROKEN[broken]
    found = verdicts(draw(units, float(rate)), float(rate))
    assert not any(found[name].passed for name in by.split()), found


def test_the_power_is_as_stated() -> None:
    units, rate = CONFIGURATIONS[0]
    q, each = float(rate), FALSE_ALARM / 5
    pairs, following = units * (units - 1) // 2, units * STEPS // 2
    least, most, usual = goodness.size_within_one_deviation(units, q)
    misses = {
        "everybody at 1.07 q": goodness.rates_miss(units * STEPS, q, 1.07 * q, 1, each),
        "everybody at 0.93 q": goodness.rates_miss(units * STEPS, q, 0.93 * q, 1, each),
        "one unit at 2.2 q": goodness.rates_miss(STEPS, q, 2.2 * q, units, each),
        "one unit at 0.2 q": goodness.rates_miss(STEPS, q, 0.2 * q, units, each),
        "a pair always together": goodness.rates_miss(STEPS, q * q, q, pairs, each),
        "every batch of one size": goodness.rates_miss(STEPS, usual, 1.0, 1, each),
        "never in twice in a row": goodness.rates_miss(following, q * q, 0.0, 1, each),
        "3 % follow the last step": goodness.rates_miss(following, q * q, 1.57 * q * q, 1, each),
    }
    assert least < units * q < most
    assert all(miss < MISS for miss in misses.values()), misses


def sizes_of(n: int, q: float) -> list[float]:
    """Probabilities of the sizes 0 to n of a Poisson batch."""
    return [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]


CAPS = [12, 15, 18, 25]


@pytest.mark.parametrize("cap", CAPS)
def test_a_capped_sample_is_a_random_subset_of_a_poisson_one(cap: int) -> None:
    """Rates and pairs from the exact law of min(S, cap); every subset is equally likely."""
    n, rate = CONFIGURATIONS[1]
    inside = members(TruncatedPoissonSampler(n, rate, cap), "capped")
    kept = [(min(k, cap), p) for k, p in enumerate(sizes_of(n, float(rate)))]
    once = sum(k * p for k, p in kept) / n
    twice = sum(k * (k - 1) * p for k, p in kept) / (n * (n - 1))
    full = sum(p for k, p in kept if k == cap)
    each, sizes = FALSE_ALARM / 3, inside.sum(axis=1)
    assert sizes.max() <= cap
    assert goodness.rates(inside.sum(axis=0), STEPS, once, each).passed
    assert goodness.rates(joint(inside), STEPS, twice, each).passed
    assert goodness.rates(np.array([(sizes == cap).sum()]), STEPS, full, each).passed


def test_keeping_the_first_of_a_capped_batch_is_found() -> None:
    """The same sizes, but who comes late in the file is hardly ever in."""
    n, rate = CONFIGURATIONS[1]
    inside = members(PoissonSampler(n, rate), "poisson").copy()
    inside &= np.cumsum(inside, axis=1) <= 12
    once = sum(min(k, 12) * p for k, p in enumerate(sizes_of(n, float(rate)))) / n
    assert not goodness.rates(inside.sum(axis=0), STEPS, once).passed
