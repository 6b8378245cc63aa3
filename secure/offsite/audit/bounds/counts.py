"""What was counted after the labels were opened, and how sure one wants to be."""

from dataclasses import dataclass

from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Guesses:
    """Of `canaries` whose membership is a fair coin each, `guessed` were guessed, `right` rightly.

    Guesses of "in" and of "out" count alike; the others are abstentions.
    """

    canaries: int
    guessed: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.guessed <= self.canaries or self.canaries < 1:
            raise ConfigError(
                "audit: expected 0 <= right <= guessed <= canaries and at least one canary, found "
                f"{self.right}, {self.guessed}, {self.canaries}"
            )


@dataclass(frozen=True, slots=True)
class Rates:
    """Guesses at one fixed threshold, one canary a run: of those in, and of those out."""

    inside: int
    inside_found: int
    outside: int
    outside_accused: int

    def __post_init__(self) -> None:
        if not 0 <= self.inside_found <= self.inside or self.inside < 1:
            raise ConfigError(
                "audit: expected from 0 to all of at least one run with the canary found, found "
                f"{self.inside_found} of {self.inside}"
            )
        if not 0 <= self.outside_accused <= self.outside or self.outside < 1:
            raise ConfigError(
                "audit: expected from 0 to all of at least one run without the canary accused, "
                f"found {self.outside_accused} of {self.outside}"
            )


@dataclass(frozen=True, slots=True)
class Level:
    """At which delta, and how often a bound may be wrong: 0.05 for 95 % confidence."""

    significance: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.significance < 0.5:
            raise ConfigError(
                f"audit: expected a significance between 0 and 0.5, found {self.significance}"
            )
        if not 0 <= self.delta < 1:
            raise ConfigError(f"audit: expected a delta of [0, 1), found {self.delta}")

    def shared(self, tests: int) -> "Level":
        """The level of each of `tests` tests of which none may be wrong (Bonferroni)."""
        return Level(self.significance / tests, self.delta)
