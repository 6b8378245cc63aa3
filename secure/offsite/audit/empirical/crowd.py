"""The crowd: many canaries in one run of DP-SGD, each in or out by its own coin.

A canary is a gradient, not a text: it points along an axis of its own and is ten times as long as
the clip norm, so that clipping matters. Whoever can choose gradients is the attacker that the
accountant assumes, so the bound comes as close to the claim as one run lets it. Among the canaries
other units are trained on, whose gradients get in the way as they do in earnest.

`VectorProblem` needs no model and runs anywhere. Any other `CanaryProblem` may take its place.
"""

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from offsite.audit.empirical.mechanism import Doubles, MechanismFactory, Problem, Terms
from offsite.audit.empirical.scores import Scores, alternating_sign
from offsite.secure.privacy.randomness.poisson import Units

Report = Callable[[int, int], None]

CANARY_NORM: Final = 10.0
"""In units of C."""
_SPARE_VALUES: Final = 64
_LEARNING_RATE: Final = 0.1


class CanaryProblem(Problem, Protocol):
    """A problem with canaries among its units."""

    def along_canaries(self, release: Doubles) -> Doubles:
        """The release along every canary, in or out, in units of C."""
        ...


CanaryProblemMaker = Callable[[Terms, NDArray[np.bool_]], CanaryProblem]
"""Of terms and of who is in."""


class VectorProblem:
    """Least squares on a vector: unit u pulls the parameters to a point of its own.

    Canaries come first among the units, then `others`.
    """

    def __init__(self, terms: Terms, included: NDArray[np.bool_], others: int) -> None:
        self._clip_norm = terms.clip_norm
        self._axes = np.flatnonzero(included)
        self._canaries = len(included)
        self.units = len(self._axes) + others
        self.values = len(included) + _SPARE_VALUES
        random = np.random.default_rng(len(included))  # public: what others train on is known
        self._points = random.standard_normal((others, self.values))
        self._parameters = np.zeros(self.values)
        self._rate = _LEARNING_RATE / float(terms.sampling * max(1, others))
        self._step = 0

    def gradients(self, units: Units) -> Doubles:
        rows = np.zeros((len(units), self.values))
        are_canaries = units < len(self._axes)
        length = alternating_sign(self._step) * CANARY_NORM * self._clip_norm
        rows[are_canaries, self._axes[units[are_canaries]]] = length
        points = self._points[units[~are_canaries] - len(self._axes)]
        rows[~are_canaries] = self._parameters - points
        return rows

    def advance(self, release: Doubles) -> None:
        self._parameters -= self._rate * release
        self._step += 1

    def along_canaries(self, release: Doubles) -> Doubles:
        return release[: self._canaries] / self._clip_norm


def run_crowd(
    start: MechanismFactory,
    terms: Terms,
    included: NDArray[np.bool_],
    problem_of: CanaryProblemMaker,
    report: Report,
) -> Scores:
    """One run, and what its releases say about every canary."""
    problem = problem_of(terms, included)
    mechanism = start(terms, problem)
    scores = Scores(terms, len(included))
    for step in range(terms.steps):
        release = mechanism.release(problem)
        scores.observe(problem.along_canaries(release))
        problem.advance(release)
        report(step + 1, terms.steps)
    return scores
