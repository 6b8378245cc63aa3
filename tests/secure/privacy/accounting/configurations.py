"""Random histories for the accountants, drawn from one seed: the ranges of `docs/privacy.md`."""

import math
import random
from fractions import Fraction

from offsite.secure.privacy.accounting import rdp
from offsite.secure.privacy.accounting.composition import merged
from offsite.secure.privacy.accounting.view import MOST_EPSILON
from offsite.secure.privacy.mechanisms import (
    Gaussian,
    Mechanism,
    PoissonGaussian,
    TruncatedPoissonGaussian,
)
from offsite.secure.privacy.units import Unit

History = tuple[Mechanism, ...]


def random_histories(count: int, seed: int) -> list[tuple[History, float]]:
    """`count` pairs of a history and a delta; every fourth is heterogeneous, a fifth truncated."""
    draw = random.Random(seed)
    found: list[tuple[History, float]] = []
    while len(found) < count:
        history = tuple(_mechanism(draw) for _ in range(draw.choice((1, 1, 1, 3))))
        delta = 10 ** draw.uniform(-8, -5)
        if rdp.epsilon(merged(history), delta) <= MOST_EPSILON:
            found.append((history, delta))
    return found


def _mechanism(draw: random.Random) -> Mechanism:
    sigma = math.exp(draw.uniform(math.log(0.4), math.log(8)))
    steps = round(math.exp(draw.uniform(0, math.log(5000))))
    rate = Fraction(math.exp(draw.uniform(math.log(0.001), math.log(0.5)))).limit_denominator(10**6)
    kind = draw.choice(("poisson", "poisson", "poisson", "truncated", "gaussian"))
    if kind == "gaussian":
        return Gaussian(sigma, 1 + steps // 50, Unit.RECORD)
    if kind == "poisson":
        return PoissonGaussian(sigma, rate, steps, Unit.RECORD)
    units = draw.randint(100, 20_000)
    batch = float(rate) * units
    cap = min(units, math.ceil(batch + draw.uniform(2, 6) * math.sqrt(batch)))
    return TruncatedPoissonGaussian(sigma, rate, steps, units, cap, Unit.RECORD)
