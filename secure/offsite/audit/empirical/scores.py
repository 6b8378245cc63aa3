"""How much a run's releases speak for a canary being in; no label is ever an argument here.

A canary's gradient changes its sign from step to step. With x_t the release of step t along the
canary, in units of C and with that sign taken away:

    likelihood ratio   Σ_t ln( 1 - q + q exp( (x_t - 1/2) / sigma² ) )     the best test of the claim
    alternating sum    Σ_t x_t      noise that is the same in every step cancels, the canary does not
"""

from enum import StrEnum

import numpy as np

from offsite.audit.empirical.mechanism import Doubles, Terms


class Reading(StrEnum):
    """Which score; all are guessed from, each at its share of the significance."""

    LIKELIHOOD_RATIO = "likelihood_ratio"
    ALTERNATING_SUM = "alternating_sum"


class Scores:
    """Scores of many canaries, step by step."""

    def __init__(self, terms: Terms, canaries: int) -> None:
        self._ratio = np.zeros(canaries)
        self._sum = np.zeros(canaries)
        self._variance = terms.noise_multiplier**2
        rate = float(terms.sampling)
        self._log_rate = np.log(rate)
        self._log_rest = np.log1p(-rate) if rate < 1 else -np.inf
        self._steps = 0

    @property
    def sign(self) -> int:
        """Of the gradient of every canary in the coming step."""
        return alternating_sign(self._steps)

    def observe(self, along: Doubles) -> None:
        """Takes the release along every canary, in units of C."""
        x = self.sign * along
        self._ratio += np.logaddexp(self._log_rest, self._log_rate + (x - 0.5) / self._variance)
        self._sum += x
        self._steps += 1

    def of(self, reading: Reading) -> Doubles:
        """The scores so far; higher speaks for "in"."""
        return self._ratio if reading is Reading.LIKELIHOOD_RATIO else self._sum


def alternating_sign(step: int) -> int:
    """+1 in even steps, -1 in odd ones."""
    return 1 - 2 * (step % 2)
