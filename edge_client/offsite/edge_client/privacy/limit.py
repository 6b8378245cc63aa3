"""What the data owner allows to be spent on its data: `edge-client join --epsilon 8 --delta 1e-5`.

Kept in the state folder, so that it holds for every campaign until its owner changes it. No peer can
change it: nothing of it is ever sent, and nothing that arrives is compared with it but to refuse.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from offsite.emulator.durable import write_atomic
from offsite.secure.errors import ConfigError
from offsite.secure.privacy.units import Unit

NAME: Final = "privacy.json"
DEFAULT_DELTA: Final = 1e-5
MOST_EPSILON: Final = 1000.0
"""Beyond it nothing is promised that words could say."""


@dataclass(frozen=True, slots=True)
class PrivacyLimit:
    """At most epsilon at delta, ever, for every data set of this edge."""

    epsilon: float
    delta: float = DEFAULT_DELTA
    campaign_epsilon: float | None = None
    """What one campaign may spend of it; None: whatever is left."""
    person_column: str | None = None
    """The column that names whom a row is about; None: every row is a unit of its own."""

    def __post_init__(self) -> None:
        numbers = (self.epsilon, self.delta, self.campaign_epsilon)
        is_odd = any(isinstance(n, bool) or not isinstance(n, int | float | None) for n in numbers)
        if is_odd or not isinstance(self.person_column, str | None):
            raise ConfigError("a privacy limit: expected numbers, and a column's name")
        _require_epsilon("--epsilon", self.epsilon)
        if self.campaign_epsilon is not None:
            _require_epsilon("--campaign-epsilon", self.campaign_epsilon)
        if not 0 < self.delta < 1:
            raise ConfigError(f"--delta: expected more than 0 and less than 1, found {self.delta}")

    @property
    def unit(self) -> Unit:
        """Whose presence is hidden."""
        return Unit.RECORD if self.person_column is None else Unit.PERSON

    def check_units(self, units: int) -> None:
        """Raises ConfigError where delta is too large for so many units to mean anything.

        With delta of 1/n a mechanism may publish one of n records whole and keep its promise.
        """
        if self.delta * units >= 1:
            raise ConfigError(
                f"--delta: expected less than 1/{units}, one over the number of {self.unit.value}s "
                f"in the data, found {self.delta:g}; a tenth of that is usual"
            )

    def describe(self) -> str:
        """For a person."""
        campaign = (
            "" if self.campaign_epsilon is None else f", {self.campaign_epsilon:g} a campaign"
        )
        return (
            f"at most epsilon {self.epsilon:g} at delta {self.delta:g} for any {self.unit.value} "
            f"of this data, over all campaigns{campaign}"
        )


def read_limit(root: Path) -> PrivacyLimit | None:
    """The limit in a state folder; None where there is none.

    Raises:
        ConfigError: the file is damaged. It is never taken for no limit.
    """
    path = root / NAME
    try:
        return PrivacyLimit(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, ConfigError) as error:
        raise ConfigError(
            f"{path} cannot be read as a privacy limit; give --epsilon and --delta again: {error}"
        ) from error


def settled(
    before: PrivacyLimit | None,
    epsilon: float | None,
    delta: float | None,
    campaign_epsilon: float | None,
    person_column: str | None,
) -> PrivacyLimit | None:
    """The limit after what the owner says now; None: as it was, or as by default.

    Raises:
        ConfigError: something of a limit is given and no epsilon, now or before; or another unit
            than before: what was spent by one says nothing about the other.
    """
    if before is None and epsilon is None:
        if (delta, campaign_epsilon, person_column) != (None, None, None):
            raise ConfigError(
                "expected --epsilon beside --delta, --campaign-epsilon and --person-column"
            )
        return None
    if before is not None and person_column not in (None, before.person_column):
        raise ConfigError(
            f"--person-column: expected {before.person_column or 'none'}, as before, found "
            f"{person_column}: what was spent by one unit says nothing about the other"
        )
    old = before or PrivacyLimit(epsilon or 0.0)
    return PrivacyLimit(
        old.epsilon if epsilon is None else epsilon,
        old.delta if delta is None else delta,
        old.campaign_epsilon if campaign_epsilon is None else campaign_epsilon,
        person_column or old.person_column,
    )


def save_limit(root: Path, limit: PrivacyLimit) -> None:
    """Store a limit in place of the one before."""
    write_atomic(root / NAME, json.dumps(asdict(limit), indent=2).encode() + b"\n")


def _require_epsilon(flag: str, value: float) -> None:
    if not (math.isfinite(value) and 0 < value <= MOST_EPSILON):
        raise ConfigError(
            f"{flag}: expected more than 0 and at most {MOST_EPSILON:g}, found {value}"
        )
