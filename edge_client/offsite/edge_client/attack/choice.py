"""What the data owner asks of the attack: `edge-client join --attack --allowed-advantage 0.1`.

Kept in the state folder, so that it holds for every campaign until its owner changes it. Nothing of
it is ever sent.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from offsite.audit.attack.membership import LEAST_ROWS
from offsite.audit.attack.settings import AttackSettings
from offsite.emulator.durable import private_folder, write_atomic
from offsite.secure.errors import ConfigError

NAME: Final = "choice.json"
MOST_PLANTED: Final = 100


@dataclass(frozen=True, slots=True)
class AttackChoice:
    """How much of an attack's success may leave, and what is held back to measure it."""

    is_on: bool = True
    held_out_share: float = 0.1
    """Of the units: rows, or persons where privacy is by person."""
    allowed_advantage: float = 0.1
    """Largest membership advantage, true minus false positive rate, with which an update leaves."""
    planted_secrets: int = 0
    """Invented secrets that join the rows; each is a row of its own."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.held_out_share) and 0 < self.held_out_share < 1):
            raise ConfigError(
                f"--attack-held-out: expected more than 0 and less than 1, found "
                f"{self.held_out_share}"
            )
        if not 0 <= self.allowed_advantage <= 1:
            raise ConfigError(
                f"--allowed-advantage: expected 0 to 1, found {self.allowed_advantage}"
            )
        if not 0 <= self.planted_secrets <= MOST_PLANTED:
            raise ConfigError(
                f"--planted-secrets: expected 0 to {MOST_PLANTED}, found {self.planted_secrets}"
            )

    @property
    def settings(self) -> AttackSettings:
        """Those of the attack."""
        return AttackSettings(allowed_advantage=self.allowed_advantage)

    def held_out(self, units: int) -> int:
        """How many of so many units are held out.

        Raises:
            ConfigError: too few of them, or of the others, to measure anything.
        """
        count = round(self.held_out_share * units)
        if min(count, units - count) < LEAST_ROWS:
            raise ConfigError(
                f"--attack-held-out {self.held_out_share:g}: expected at least {LEAST_ROWS} rows "
                f"that are held out and as many that are not, found {units} rows, of which {count} "
                "would be; give another share, or more rows"
            )
        return count

    def describe(self) -> str:
        """For a person."""
        planted = f", {self.planted_secrets} secrets are planted" if self.planted_secrets else ""
        return (
            f"attack: {100 * self.held_out_share:g} % of the rows stay out of tuning{planted}; an "
            f"update that tells which rows were used, with a sure advantage above "
            f"{self.allowed_advantage:g}, does not leave"
        )


@dataclass(frozen=True, slots=True)
class AttackWish:
    """What the command line said about the attack; None: as it was before."""

    is_on: bool | None = None
    held_out_share: float | None = None
    allowed_advantage: float | None = None
    planted_secrets: int | None = None

    @classmethod
    def of(
        cls,
        on: bool,
        off: bool,
        held_out_share: float | None,
        allowed_advantage: float | None,
        planted_secrets: int | None,
    ) -> "AttackWish":
        """From the flags. Raises ConfigError where both are given."""
        if on and off:
            raise ConfigError("expected --attack or --no-attack, found both")
        is_on = on if on or off else None
        return cls(is_on, held_out_share, allowed_advantage, planted_secrets)

    def settled(self, before: AttackChoice | None) -> AttackChoice | None:
        """The choice that holds from now on; None where there never was one.

        Raises ConfigError where something of an attack is asked for and no attack, now or before.
        """
        details = (self.held_out_share, self.allowed_advantage, self.planted_secrets)
        if before is None and not self.is_on:
            if any(value is not None for value in details):
                raise ConfigError(
                    "expected --attack beside --attack-held-out, --allowed-advantage and "
                    "--planted-secrets"
                )
            return None
        fields = asdict(before or AttackChoice())
        asked = {name: value for name, value in asdict(self).items() if value is not None}
        return AttackChoice(**fields | asked)


def read_choice(root: Path) -> AttackChoice | None:
    """The choice in an attack folder; None where there is none.

    Raises:
        ConfigError: the file is damaged. It is never taken for no attack.
    """
    path = root / NAME
    try:
        return AttackChoice(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read as what was asked of the attack; remove it and give --attack "
            f"again: {error}"
        ) from error


def save_choice(root: Path, choice: AttackChoice) -> None:
    """Store a choice in place of the one before."""
    private_folder(root)
    write_atomic(root / NAME, json.dumps(asdict(choice), indent=2).encode() + b"\n")
