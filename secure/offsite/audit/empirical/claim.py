"""What is claimed: the epsilon and the whole trade-off curve of Poisson-sampled Gaussian steps.

The curve is the accountant's: pessimistic, both directions of adding and removing. A test that
rejects it refutes the claim, without assuming anything about the mechanism.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from offsite.audit.bounds.trade_off import GaussianTradeOff, ProfileTradeOff, TradeOff
from offsite.audit.empirical.mechanism import Terms
from offsite.secure.privacy.accounting import pld

_DELTAS: Final = np.concatenate([np.geomspace(1e-9, 0.05, 17), np.linspace(0.08, 0.9, 16)])
"""Where the curve is taken: each costs a tenth of a second, more of them gain nothing."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Epsilon at delta, and the curve that says more."""

    epsilon: float
    delta: float
    curve: TradeOff


@lru_cache(maxsize=32)
def claim_of(terms: Terms, delta: float) -> Claim:
    """What DP-SGD with these terms claims; epsilon is the figure of record (PLD)."""
    if terms.sampling == 1:
        gaussian = GaussianTradeOff(math.sqrt(terms.steps) / terms.noise_multiplier)
        return Claim(gaussian.epsilon(delta), delta, gaussian)
    history = (terms.mechanism,)
    epsilons = np.array([pld.epsilon(history, float(delta)) for delta in _DELTAS])
    there = np.isfinite(epsilons)
    curve = ProfileTradeOff(epsilons[there], _DELTAS[there])
    return Claim(pld.epsilon(history, delta), delta, curve)
