"""What a mechanism is to the audit: something that makes one noised sum of a step, and no more.

The audit hands over a problem, which knows gradients, and gets back what such a step releases. How
units are drawn, clipped, summed and noised is the mechanism's. So the same audit runs on the
product's training step (`product.py`), on a model of one's own, and on the broken mechanisms of the
tests.

Axes: ``P`` values of a gradient, ``U`` units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from offsite.secure.errors import ConfigError
from offsite.secure.privacy.mechanisms import PoissonGaussian
from offsite.secure.privacy.randomness.poisson import Units
from offsite.secure.privacy.units import Unit

MOST_CLIP_NORM: Final = 1e6
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Terms:
    """DP-SGD as it is claimed: `steps` Poisson-sampled Gaussian steps, adjacency zero-out."""

    noise_multiplier: float
    sampling: Fraction
    steps: int
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.clip_norm, float) and 0 < self.clip_norm <= MOST_CLIP_NORM):
            raise ConfigError(
                f"clip_norm: expected a float above 0 and at most {MOST_CLIP_NORM:g}, found "
                f"{self.clip_norm!r}"
            )
        assert self.mechanism.steps == self.steps  # it checks the others

    @property
    def mechanism(self) -> PoissonGaussian:
        """As a ledger has it; an audit's units are records."""
        return PoissonGaussian(self.noise_multiplier, self.sampling, self.steps, Unit.RECORD)


class Problem(Protocol):
    """What is trained, seen from one step; canaries and other units look alike."""

    @property
    def units(self) -> int:
        """Units that are in the data set; they are numbered from 0."""
        ...

    @property
    def values(self) -> int:
        """P."""
        ...

    def gradients(self, units: Units) -> Doubles:
        """Gradients [U, P] at this step, not clipped."""
        ...

    def advance(self, release: Doubles) -> None:
        """Take the released sum [P] as a step of training."""
        ...


class Mechanism(Protocol):
    """One run of DP-SGD."""

    def release(self, problem: Problem) -> Doubles:
        """The noised sum [P] of the next step, not divided by anything."""
        ...


MechanismFactory = Callable[[Terms, Problem], Mechanism]
"""Starts a run as the product starts one: a campaign, a restart, another client."""
