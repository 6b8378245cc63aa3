"""The policy of a campaign, as its rounds use it."""

from dataclasses import dataclass, field

from offsite.coordinator.policy.eligibility import Eligibility
from offsite.coordinator.policy.sampling import Sample
from offsite.coordinator.policy.schedule import Schedule


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """By default everybody who is there is asked, as soon as there are enough."""

    sample: Sample = field(default_factory=Sample)
    min_cohort: int = 0
    """Clients asked for each sum, at least; 0: as many as a sum needs."""
    eligibility: Eligibility = field(default_factory=Eligibility)
    schedule: Schedule = field(default_factory=Schedule)
    least_gain: float = 0.0
    """What a round's gate must gain to count against `patience`."""
