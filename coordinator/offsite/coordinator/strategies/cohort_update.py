"""What a strategy gets of a cohort: its mean, never a single update."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class CohortUpdate:
    """The members' weighted mean."""

    name: str
    delta: Mapping[str, Tensor]
    """Tuned adapter minus the round's, fp32, by adapter name."""
    weight: float
    """The sum of the members' weights, in examples."""
