"""What was guessed about each canary, and how many guesses to make.

How many is part of the plan: it is chosen by simulating, with labels of its own, the mechanism that
an audit must at least find, one with half the noise. Guessing fewer is surer and proves less.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.audit.bounds.counts import Guesses
from offsite.audit.bounds.f_dp import gaussian_mu
from offsite.audit.empirical.mechanism import Doubles, Terms
from offsite.audit.empirical.scores import Reading, Scores
from offsite.secure.errors import ConfigError

_SHARES: Final = (0.01, 0.02, 0.05, 0.1, 0.2)
_TRIALS: Final = 3
_SIMULATED_NOISE: Final = 0.5
"""Of what is claimed."""


@dataclass(frozen=True, slots=True)
class GuessCounts:
    """How many are guessed to be in, and how many out; the rest are abstentions."""

    inside: int
    outside: int


@dataclass(frozen=True, slots=True)
class GuessSheet:
    """Indices of canaries, ascending."""

    inside: tuple[int, ...]
    outside: tuple[int, ...]

    def __post_init__(self) -> None:
        for part in (self.inside, self.outside):
            ascends = all(a < b for a, b in pairwise(part))
            if not ascends or min(part, default=0) < 0:
                raise ConfigError("guess sheet: expected ascending indices from 0 on")
        if set(self.inside) & set(self.outside):
            raise ConfigError("guess sheet: expected one guess a canary, found one in and out")

    def count(self, labels: NDArray[np.bool_]) -> Guesses:
        """How many guesses are right."""
        most = max((*self.inside[-1:], *self.outside[-1:]), default=0)
        if most >= len(labels):
            raise ConfigError(f"guess sheet: expected {len(labels)} canaries, found number {most}")
        inside, outside = np.array(self.inside, np.intp), np.array(self.outside, np.intp)
        right = int(labels[inside].sum()) + int((~labels[outside]).sum())
        return Guesses(len(labels), len(inside) + len(outside), right)


def guess_extremes(scores: Doubles, counts: GuessCounts) -> GuessSheet:
    """In: those with the highest scores. Out: those with the lowest."""
    order = np.argsort(scores, kind="stable")
    inside = order[len(order) - counts.inside :]
    outside = order[: counts.outside]
    return GuessSheet(tuple(np.sort(inside).tolist()), tuple(np.sort(outside).tolist()))


def plan_counts(terms: Terms, canaries: int, reading: Reading, significance: float) -> GuessCounts:
    """The counts that bound mu best on simulated runs with half the noise."""
    options = [
        GuessCounts(guessed, guessed if both else 0)
        for share in _SHARES
        for guessed in [max(1, round(share * canaries))]
        for both in (False, True)
    ]
    totals = np.zeros(len(options))
    random = np.random.default_rng(0)  # of a simulation; nothing secret depends on it
    for _ in range(_TRIALS):
        labels, scores = _simulated(terms, canaries, reading, random)
        for i, counts in enumerate(options):
            totals[i] += gaussian_mu(guess_extremes(scores, counts).count(labels), significance)
    return options[int(np.argmax(totals))]


def _simulated(
    terms: Terms, canaries: int, reading: Reading, random: np.random.Generator
) -> tuple[NDArray[np.bool_], Doubles]:
    labels = random.random(canaries) < 0.5
    scores = Scores(terms, canaries)
    noise, rate = _SIMULATED_NOISE * terms.noise_multiplier, float(terms.sampling)
    for _ in range(terms.steps):
        drawn = labels & (random.random(canaries) < rate)
        noised = scores.sign * drawn + noise * random.standard_normal(canaries)
        scores.observe(noised)
    return labels, scores.of(reading)
