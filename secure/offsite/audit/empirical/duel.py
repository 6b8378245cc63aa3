"""The duel: one canary against the worst rest of the data, in many small runs of their own.

In a crowd canaries hide one another: where the batch is clipped instead of the example, each of
them leaks little. Here the data set is one opponent, known to be in, whose gradient is long and
points the other way, and the canary, longer still. Clipped one by one they cancel; clipped together
the canary turns the whole sum round, which is twice what the noise was made for.

Every run starts as the product starts one, all steps with the full batch, so the truth is exactly
Gaussian and independent from run to run: rates, Clopper-Pearson, no loss. Some runs with known
labels come first. They decide where between "in" and "out" the threshold lies, and so they find
runs that all begin with the same noise.
"""

import math
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.audit.empirical.crowd import Report
from offsite.audit.empirical.guesses import GuessSheet
from offsite.audit.empirical.mechanism import Doubles, MechanismFactory, Terms
from offsite.audit.empirical.scores import alternating_sign
from offsite.secure.privacy.randomness.poisson import Units

_VALUES: Final = 8
_OPPONENT_NORM: Final = 3.0
_CANARY_NORM: Final = 30.0
_MOST_STEPS: Final = 64


def duel_terms(terms: Terms) -> Terms:
    """The same noise and clip norm, full batches, and an even number of steps for mu about 1."""
    steps = min(_MOST_STEPS, 2 * math.ceil(terms.noise_multiplier**2 / 2))
    return Terms(terms.noise_multiplier, Fraction(1), steps, terms.clip_norm)


class DuelProblem:
    """Unit 0 is the opponent, unit 1 the canary, where it is in."""

    values = _VALUES

    def __init__(self, terms: Terms, included: bool) -> None:
        self.units = 2 if included else 1
        self._clip_norm = terms.clip_norm
        self._step = 0

    @property
    def direction(self) -> Doubles:
        """Of the canary in this step, of length 1."""
        return np.full(_VALUES, alternating_sign(self._step) / math.sqrt(_VALUES))

    def gradients(self, units: Units) -> Doubles:
        lengths = self._clip_norm * np.array([-_OPPONENT_NORM, _CANARY_NORM])
        return np.outer(lengths[units], self.direction)

    def advance(self, release: Doubles) -> None:
        self._step += 1


def run_duels(
    start: MechanismFactory, terms: Terms, included: NDArray[np.bool_], report: Report
) -> Doubles:
    """The score of every run: the sum of its releases along the canary, in units of C."""
    scores = np.zeros(len(included))
    for run, is_in in enumerate(included):
        problem = DuelProblem(terms, bool(is_in))
        mechanism = start(terms, problem)
        for _ in range(terms.steps):
            release = mechanism.release(problem)
            scores[run] += float(problem.direction @ release) / terms.clip_norm
            problem.advance(release)
        report(run + 1, len(included))
    return scores


def duel_threshold(scores: Doubles, labels: NDArray[np.bool_]) -> float:
    """Half way between runs that are known to be in and those known to be out."""
    return float(scores[labels].mean() + scores[~labels].mean()) / 2


def guess_by_threshold(scores: Doubles, threshold: float) -> GuessSheet:
    """Everybody is guessed: above the threshold in, the others out."""
    return GuessSheet(
        tuple(np.flatnonzero(scores > threshold).tolist()),
        tuple(np.flatnonzero(scores <= threshold).tolist()),
    )
