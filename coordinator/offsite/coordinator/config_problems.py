"""Everything that is wrong with a section of the settings, so that all of it can be said at once."""

import math

from offsite.secure.errors import ConfigError

NAME_CHARS = 200
"""What manifests can hold."""


class Problems(list[str]):
    """Everything that is wrong with a section, so that all of it can be said at once."""

    def unless(self, condition: bool, problem: str) -> None:
        if not condition:
            self.append(problem)

    def outside(self, name: str, value: float, low: float, high: float) -> None:
        """For a number that has to be in [low, high]; NaN is nowhere."""
        self.unless(low <= value <= high, f"{name}: expected {low} to {high}, found {value}")

    def not_positive(self, name: str, value: float) -> None:
        """For a number that has to be finite and more than 0."""
        self.unless(
            0 < value < math.inf, f"{name}: expected a finite number above 0, found {value}"
        )

    def no_ratio(self, name: str, value: float) -> None:
        """For a share of parameters."""
        self.unless(0 < value <= 1, f"{name}: expected a share in (0, 1], found {value}")

    def no_placement(self, bottom: int, top: int, spread: int) -> None:
        """For the adapter's slots."""
        self.unless(
            min(bottom, top, spread) >= 0, "bottom, top and spread: expected 0 or more blocks"
        )
        self.unless(bottom + top + spread > 0, "bottom, top and spread: expected at least one slot")

    def no_name(self, name: str, value: str) -> None:
        """For a name that data owners are shown."""
        self.unless(
            0 < len(value) <= NAME_CHARS and value.isprintable(),
            f"{name}: expected 1 to {NAME_CHARS} printable characters, found {value[:80]!a}",
        )

    def report(self) -> None:
        """Raises ConfigError if there are any."""
        if self:
            raise ConfigError("; ".join(self))
