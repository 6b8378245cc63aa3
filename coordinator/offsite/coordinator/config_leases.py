"""The settings `[leases]`: when a round stops waiting for a client that is gone."""

from dataclasses import dataclass
from typing import Annotated

from offsite.coordinator.config_problems import Problems

MAX_LEAVE_S = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class LeaseSection:
    """When a round stops waiting for a client that is gone (docs/scale.md)."""

    leave_s: Annotated[
        float,
        "seconds without a sign of life after which a round goes on without a client, if enough "
        "others have tuned (0: it waits until the deadline)",
    ] = 0.0

    def __post_init__(self) -> None:
        problems = Problems()
        problems.unless(
            self.leave_s == 0 or 60 <= self.leave_s <= MAX_LEAVE_S,
            f"leave_s: expected 0, or 60 to {MAX_LEAVE_S}, found {self.leave_s}: an edge that is "
            "there gives a sign of life every 20 seconds",
        )
        problems.report()
