"""What a data owner demands of a secure sum; set on its own machine, never by the coordinator.

A coordinator proposes the terms of a round. A client compares them with its floor before it makes
a single key, and takes no part where they fall short: a smaller cohort would make its update a
larger part of what the coordinator sees, a wider clip would let a crafted model put more of one
example into it, and an unsigned downgrade of suite or keystream is no longer the same protocol.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from offsite.secure.aggregation.keystream import Generator
from offsite.secure.aggregation.round_config import MOST_MEMBERS, RoundConfig
from offsite.secure.errors import ConfigError, TermsRefusedError

LEAST_COHORT: Final = 5
"""Default: with two, each member learns the other's update from the published sum."""


@dataclass(frozen=True, slots=True)
class PolicyFloor:
    """Bounds that a round configuration may not cross."""

    least_cohort: int = LEAST_COHORT
    most_coordinate_bound: float = 16.0
    most_norm_bound: float = math.inf
    least_noise_sigma: float = 0.0
    most_vector_values: int = 1 << 31
    generators: frozenset[Generator] = field(default_factory=lambda: frozenset(Generator))

    def __post_init__(self) -> None:
        if not 2 <= self.least_cohort <= MOST_MEMBERS:
            raise ConfigError(
                f"least_cohort: expected 2 to {MOST_MEMBERS}, found {self.least_cohort}"
            )
        for name in ("most_coordinate_bound", "most_norm_bound"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected above 0, found {getattr(self, name)}")

    def check(self, config: RoundConfig) -> None:
        """Raises TermsRefusedError that names every term below the floor."""
        broken = [(name, text) for name, is_broken, text in self._terms(config) if is_broken]
        if broken:
            raise TermsRefusedError(
                "this machine's policy refuses the round: "
                + "; ".join(text for _, text in broken)
                + ". Talk to the coordinator's owner, or change the policy if you agree",
                "this machine's policy refuses these terms of the round: "
                + ", ".join(name for name, _ in broken),
            )

    def _terms(self, config: RoundConfig) -> list[tuple[str, bool, str]]:
        point = config.fixed_point
        return [
            (
                "least_members",
                config.least_members < self.least_cohort,
                (
                    f"a cohort of {config.least_members} is enough for it, at least "
                    f"{self.least_cohort} are demanded here"
                ),
            ),
            (
                "coordinate_bound",
                point.coordinate_bound > self.most_coordinate_bound,
                (
                    f"coordinates up to {point.coordinate_bound:g}, at most "
                    f"{self.most_coordinate_bound:g} are allowed here"
                ),
            ),
            (
                "norm_bound",
                point.norm_bound > self.most_norm_bound,
                (
                    f"updates of norm up to {point.norm_bound:g}, at most {self.most_norm_bound:g} "
                    "are allowed here"
                ),
            ),
            (
                "noise_sigma",
                config.noise_sigma < self.least_noise_sigma,
                (
                    f"noise of {config.noise_sigma:g} steps, at least {self.least_noise_sigma:g} "
                    "are demanded here"
                ),
            ),
            (
                "values",
                config.values > self.most_vector_values,
                f"{config.values} values, at most {self.most_vector_values} are allowed here",
            ),
            (
                "keystream",
                config.generator not in self.generators,
                f"masks by {config.generator.name}, which is not allowed here",
            ),
        ]
