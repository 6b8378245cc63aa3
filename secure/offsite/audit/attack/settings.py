"""How an adapter is attacked, and how much of an attack's success its owner allows."""

from dataclasses import dataclass, fields

from offsite.emulator.strict_json import Fields, JsonObject, JsonValue
from offsite.secure.errors import ConfigError

MOST_ROWS = 100_000
MOST_CANDIDATES = 65_535
MOST_RESAMPLES = 1_000_000


@dataclass(frozen=True, slots=True)
class AttackSettings:
    """Figures of the attack, and the two limits that its verdict is about."""

    confidence: float = 0.95
    calibration_share: float = 0.5
    """Of either side; thresholds come from these rows, measured is what they do to the others."""
    low_rate: float = 0.01
    """False positive rate at which true positives are counted too."""
    allowed_advantage: float = 0.10
    """Largest membership advantage, true minus false positive rate, that may leave."""
    allowed_exposure_bits: float = 3.0
    """Largest mean exposure of planted secrets that may leave; chance alone gives 1.44 bits."""
    most_rows: int = 2_000
    """Of either side; more are drawn from at random."""
    resamples: int = 4_999
    """Permutations for the test against chance, and bootstrap samples for intervals."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value:g}; expected above 0 and below 1"
            for name, value in (
                ("confidence", self.confidence),
                ("calibration_share", self.calibration_share),
                ("low_rate", self.low_rate),
            )
            if not 0 < value < 1
        ]
        if not 0 <= self.allowed_advantage <= 1:
            problems.append(f"allowed_advantage is {self.allowed_advantage:g}; expected 0 to 1")
        if not 0 <= self.allowed_exposure_bits <= 64:
            problems.append(
                f"allowed_exposure_bits is {self.allowed_exposure_bits:g}; expected 0 to 64"
            )
        if not 4 <= self.most_rows <= MOST_ROWS:
            problems.append(f"most_rows is {self.most_rows}; expected 4 to {MOST_ROWS}")
        if not 99 <= self.resamples <= MOST_RESAMPLES:
            problems.append(f"resamples is {self.resamples}; expected 99 to {MOST_RESAMPLES}")
        if problems:
            raise ConfigError("; ".join(problems))

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, value: JsonValue) -> "AttackSettings":
        """Read what `to_json` gave. Raises PeerError or ConfigError."""
        found = Fields(value, "settings")
        settings = cls(
            confidence=found.number("confidence", 0, 1),
            calibration_share=found.number("calibration_share", 0, 1),
            low_rate=found.number("low_rate", 0, 1),
            allowed_advantage=found.number("allowed_advantage", 0, 1),
            allowed_exposure_bits=found.number("allowed_exposure_bits", 0, 64),
            most_rows=found.integer("most_rows", 4, MOST_ROWS),
            resamples=found.integer("resamples", 99, MOST_RESAMPLES),
        )
        found.close()
        return settings
