"""What an empirical audit will do; all of it is fixed, and committed, before the first run."""

from dataclasses import dataclass
from typing import Final

from offsite.audit.bounds.counts import Level
from offsite.audit.empirical.mechanism import Terms
from offsite.secure.errors import ConfigError

CROWD: Final = "crowd"
DUEL: Final = "duel"
_LEAST: Final = 100
_MOST: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """Sizes, and how often the verdict may be wrong about a right mechanism.

    The significance is shared: half for the duels, a quarter for each of the crowd's two readings.
    """

    terms: Terms
    delta: float = 1e-5
    significance: float = 0.05
    canaries: int = 2000
    """Of the crowd, in or out."""
    others: int = 50
    """Units of the crowd that are no canaries."""
    duels: int = 2000
    known_duels: int = 100
    """Duels before those, half of them in; they set the threshold."""

    def __post_init__(self) -> None:
        Level(self.significance, self.delta)
        if self.delta == 0:
            raise ConfigError("audit: expected a delta above 0, found 0")
        for name in ("canaries", "duels", "known_duels"):
            if not _LEAST <= getattr(self, name) <= _MOST:
                raise ConfigError(
                    f"audit: {name}: expected {_LEAST} to {_MOST}, found {getattr(self, name)}: "
                    "fewer prove nothing"
                )
        if not 0 <= self.others <= _MOST:
            raise ConfigError(f"audit: others: expected 0 to {_MOST}, found {self.others}")

    @property
    def crowd_level(self) -> Level:
        """Of each of its two readings."""
        return Level(self.significance, self.delta).shared(4)

    @property
    def duel_level(self) -> Level:
        return Level(self.significance, self.delta).shared(2)
