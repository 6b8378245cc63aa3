"""What the data owner allows to be spent on its data: `edge-client join --epsilon 8 --delta 1e-5`.

It holds for every campaign until its owner changes it. The truth is the last limit of the ledger, which
this edge has signed; `privacy.json` is a copy to read, with the column that names a person. A copy that
differs changes nothing (`opening.py`). No peer can change a limit: nothing of it is ever sent, and nothing
that arrives is compared with it but to refuse.

Bounds are those within which the accountants give figures: a limit that they could not confirm would
refuse every campaign later.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from offsite.emulator.durable import write_atomic
from offsite.secure.errors import ConfigError
from offsite.secure.privacy.accounting.view import LEAST_DELTA, MOST_DELTA, MOST_EPSILON
from offsite.secure.privacy.ledger.bodies import LimitSet
from offsite.secure.privacy.units import Unit

NAME: Final = "privacy.json"
DEFAULT_DELTA: Final = 1e-5


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
            if self.campaign_epsilon > self.epsilon:
                raise ConfigError(
                    f"--campaign-epsilon: expected at most {self.epsilon:g}, which all campaigns "
                    f"together may spend, found {self.campaign_epsilon:g}: give less, or "
                    "--no-campaign-epsilon for no limit of its own"
                )
        if not LEAST_DELTA <= self.delta <= MOST_DELTA:
            raise ConfigError(
                f"--delta: expected {LEAST_DELTA:g} to {MOST_DELTA:g}, found {self.delta}"
            )

    @classmethod
    def of(cls, stated: LimitSet, person_column: str | None) -> Self:
        """The limit that stands in a ledger, with the column that does not."""
        return cls(stated.epsilon, stated.delta, stated.campaign_epsilon, person_column)

    @property
    def stated(self) -> LimitSet:
        """As it stands in a ledger."""
        return LimitSet(self.epsilon, self.delta, self.campaign_epsilon)

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


@dataclass(frozen=True, slots=True)
class PrivacyWish:
    """What the command line said about privacy; None: as it was before, or as by default."""

    epsilon: float | None = None
    delta: float | None = None
    campaign_epsilon: float | None = None
    person_column: str | None = None
    is_campaign_unlimited: bool = False

    @property
    def is_silent(self) -> bool:
        """Whether nothing was said."""
        return self == PrivacyWish()

    def settled(self, before: PrivacyLimit | None) -> PrivacyLimit | None:
        """The limit that holds from now on; None where there is none.

        Raises:
            ConfigError: something of a limit is given and no epsilon, now or before; or another unit
                than before: what was spent by one says nothing about the other.
        """
        if before is None and self.epsilon is None:
            if not self.is_silent:
                raise ConfigError(
                    "expected --epsilon beside --delta, --campaign-epsilon and --person-column"
                )
            return None
        if before is not None and self.person_column not in (None, before.person_column):
            raise ConfigError(
                f"--person-column: expected {before.person_column or 'none'}, as before, found "
                f"{self.person_column}: what was spent by one unit says nothing about the other"
            )
        old = before or PrivacyLimit(self.epsilon or 0.0)
        epsilon = old.epsilon if self.epsilon is None else self.epsilon
        return PrivacyLimit(
            epsilon,
            old.delta if self.delta is None else self.delta,
            self._campaign_epsilon(old.campaign_epsilon, epsilon),
            self.person_column or old.person_column,
        )

    def _campaign_epsilon(self, before: float | None, epsilon: float) -> float | None:
        if self.is_campaign_unlimited:
            if self.campaign_epsilon is not None:
                raise ConfigError(
                    "expected --campaign-epsilon or --no-campaign-epsilon, found both"
                )
            return None
        if self.campaign_epsilon is not None:
            return self.campaign_epsilon
        if before is not None and before > epsilon:
            raise ConfigError(
                f"--epsilon {epsilon:g} is less than the {before:g} that one campaign may spend, as "
                f"was said before: give --campaign-epsilon {epsilon:g} or less beside it, or "
                "--no-campaign-epsilon for no limit of its own"
            )
        return before


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
            f"{path} cannot be read as a privacy limit: {error}; remove it and give --epsilon again, "
            "and --person-column if it was given; the ledger remembers the limit itself"
        ) from error


def save_limit(root: Path, limit: PrivacyLimit) -> None:
    """Store a limit in place of the one before."""
    write_atomic(root / NAME, json.dumps(asdict(limit), indent=2).encode() + b"\n")


def _require_epsilon(flag: str, value: float) -> None:
    if not (math.isfinite(value) and 0 < value <= MOST_EPSILON):
        raise ConfigError(
            f"{flag}: expected more than 0 and at most {MOST_EPSILON:g}, found {value}"
        )
