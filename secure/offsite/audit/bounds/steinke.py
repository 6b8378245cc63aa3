"""The one-run bound: many canaries in one run of an (epsilon, delta)-DP mechanism.

With r guesses, v of them right, m canaries and q = e^epsilon / (1 + e^epsilon):

    p(v) = beta + 2 m delta alpha       beta  = P[Bin(r, q) >= v]
                                        alpha = max over 1 <= i <= v of (P[Bin(r, q) >= v - i] - beta) / i

The bound is the largest epsilon whose p is at most the significance. It needs no assumption about
the mechanism, nor that the canaries do not disturb one another.

Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023,
arXiv 2305.08846v1, theorem 5.2.
"""

import numpy as np
from scipy.special import bdtrc, expit

from offsite.audit.bounds.counts import Guesses, Level
from offsite.audit.bounds.search import largest_rejected


def one_run_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """How probable so many right guesses are, at most, for an (epsilon, delta)-DP mechanism."""
    chance, guessed, right = expit(epsilon), guesses.guessed, guesses.right
    beta = float(_at_least(np.asarray([right]), guessed, chance)[0])
    if delta == 0 or right == 0:
        return beta
    i = np.arange(1, right + 1)
    alpha = float(np.max((_at_least(right - i, guessed, chance) - beta) / i, initial=0.0))
    return min(1.0, beta + 2 * guesses.canaries * delta * alpha)


def one_run_epsilon(guesses: Guesses, level: Level) -> float:
    """The largest epsilon that the guesses reject at `level`, 0 if none.

    Guarantees: for an (epsilon, delta)-DP mechanism it exceeds epsilon with a probability of at
    most the significance (`test_the_one_run_bound_covers_randomised_response_exactly`).
    """
    return largest_rejected(
        lambda epsilon: one_run_p_value(guesses, epsilon, level.delta) <= level.significance
    )


def _at_least(counts: np.ndarray, trials: int, chance: float) -> np.ndarray:
    """P[Bin(trials, chance) >= count] of every count."""
    tail: np.ndarray = np.where(counts <= 0, 1.0, bdtrc(np.maximum(counts - 1, 0), trials, chance))
    return tail
