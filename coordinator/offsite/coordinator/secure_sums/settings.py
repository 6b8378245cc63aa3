"""How secure sums are made in a campaign."""

import math
from dataclasses import dataclass

from offsite.secure.aggregation.keystream import Generator

FULL_WEIGHT = 4096
"""Default: clients with 16 to 4096 examples weigh by what they have."""
PHASE_S = 120.0


@dataclass(frozen=True, slots=True)
class SumSettings:
    """Terms that the coordinator's owner chooses; the others follow from the round."""

    cohorts: int = 1
    """Into how many sums the clients of a round are divided."""
    coordinate_bound: float = 1.0
    """Largest change of one value in a round; more is clipped on the edge."""
    clip_norm: float = 0.0
    """Largest L2 norm of an update, more is scaled down on the edge; 0: not clipped."""
    full_weight: int = FULL_WEIGHT
    """Examples that weigh 1. More weigh no more, fewer than 1/256 of it weigh 1/256."""
    generator: Generator = Generator.CHACHA20
    phase_s: float = PHASE_S
    """Time for each of the five exchanges after tuning."""

    @property
    def norm_bound(self) -> float:
        """As terms have it: infinity for none."""
        return self.clip_norm or math.inf
