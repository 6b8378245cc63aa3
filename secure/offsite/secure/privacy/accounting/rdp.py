"""RDP accountant: Rényi divergences by order, which add up; the cross-check from above.

The divergence of one use is integrated numerically from the dominating pair, at every order and
for truncated sampling too, where dp_accounting drops orders or has no formula. Composition is
Mironov, arXiv 1702.07476v3, Prop 1. The conversion to epsilon is Canonne, Kamath, Steinke, arXiv
2004.00010v4, Prop 12:

    epsilon = min over α of  D_α + ln(1 - 1/α) - ln(δ α)/(α - 1)

and epsilon = 0 where already δ ≥ sqrt(1 - e^(-KL)) (Bretagnolle-Huber). It is an upper bound by
theory, 1.2 times too large as a rule, and composes under adaptively chosen parameters (`filter`).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.secure.privacy.accounting.composition import directions
from offsite.secure.privacy.accounting.dominating import pairs_of
from offsite.secure.privacy.mechanisms import Mechanism

ORDERS: Final[tuple[float, ...]] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *map(float, range(11, 64)),
    *map(float, (64, 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024, 2048)),
)
"""The orders tried, all above 1. Any set is valid; a richer one is tighter."""


def divergence(mechanism: Mechanism, order: float) -> float:
    """D_order of all uses of the mechanism, for the worse of both kinds of neighbours."""
    each = [_once(once, order) for (once,) in directions((mechanism.repeated(1),))]
    return mechanism.uses * max(each)


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """The upper bound of epsilon at delta, 0 for no mechanism."""
    totals = [
        sum((m.uses * _curve(m.repeated(1)) for m in history), np.zeros(len(ORDERS)))
        for history in directions(tuple(mechanisms))
    ]
    return max(least_epsilon(total, delta) for total in totals)


def least_epsilon(divergences: NDArray[np.float64], delta: float) -> float:
    """The best conversion over `ORDERS`."""
    if delta**2 + math.expm1(-float(divergences.min())) > 0:
        return 0.0
    found = (epsilon_at(d, a, delta) for d, a in zip(divergences, ORDERS, strict=True))
    return max(0.0, float(min(found)))


def epsilon_at(divergence: float, order: float, delta: float) -> float:
    """The epsilon that (order, divergence)-RDP implies at delta. May be below 0."""
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def budget_at(epsilon: float, order: float, delta: float) -> float:
    """The divergence at the order that still implies (epsilon, delta)-DP: inverts `epsilon_at`."""
    return epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


@lru_cache(maxsize=1024)
def _curve(once: Mechanism) -> NDArray[np.float64]:
    curve = np.array([_once(once, order) for order in ORDERS])
    curve.setflags(write=False)
    return curve


@lru_cache(maxsize=4096)
def _once(once: Mechanism, order: float) -> float:
    """D_order of one use, at least 0.

    Which of several pairs was drawn is shown, so the integrals add up with their weights.
    """
    logs = [
        math.log(pair.weight) + pair.divergence(order) for pair in pairs_of(once) if pair.weight
    ]
    return max(0.0, float(np.logaddexp.reduce(logs)) / (order - 1))
