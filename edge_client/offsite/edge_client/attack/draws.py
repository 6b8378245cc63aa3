"""Which rows stay out of tuning: drawn once for a campaign and its data, and remembered.

    attack/draws/<coordinator>-<campaign>-<data>.json     mode 0600

Rules: a draw is on the disk before the first step of its campaign, and never changes: a row that was
learnt once can be held out no more. It never leaves; whoever knows it knows rows that were not learnt.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from offsite.audit.attack.entropy import ENTROPY_BYTES
from offsite.audit.attack.held_out import draw_held_out
from offsite.edge_client.attack.choice import MOST_PLANTED, AttackChoice
from offsite.edge_client.data import Data
from offsite.edge_client.privacy.row_content import content
from offsite.emulator.durable import private_folder, unreadable, write_atomic
from offsite.emulator.strict_json import Fields, canonical_json, parse_json
from offsite.secure.errors import ConfigError, OffsiteError

_MOST_BYTES: Final = 4096
_MOST_UNITS: Final = 1 << 40
_NAME_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn for a campaign and its data."""

    entropy: str
    """32 bytes, hexadecimal."""
    units: int
    held_out: int
    planted: int

    @property
    def seed(self) -> bytes:
        """The entropy."""
        return bytes.fromhex(self.entropy)

    @property
    def places(self) -> frozenset[int]:
        """The units that are held out."""
        return draw_held_out(self.units, self.held_out, self.seed)

    def entropy_of(self, purpose: str) -> bytes:
        """32 bytes for something else of the same campaign, always the same."""
        return hashlib.sha256(f"offsite/attack/{purpose}|".encode() + self.seed).digest()

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` gave. Raises PeerError."""
        fields = Fields(parse_json(data, "draw", _MOST_BYTES), "draw")
        entropy = fields.sha256("entropy").hex()
        units = fields.integer("units", 2, _MOST_UNITS)
        held_out = fields.integer("held_out", 1, units - 1)
        draw = cls(entropy, units, held_out, fields.integer("planted", 0, MOST_PLANTED))
        fields.close()
        return draw


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws of one edge, in a folder."""

    root: Path
    entropy: Callable[[int], bytes] = os.urandom

    def known(self, campaign: str, data_set: str, units: int) -> Draw | None:
        """The draw of a campaign for some data, if it was made.

        Raises:
            ConfigError: it is damaged; another one could hold out rows that were learnt.
        """
        path = self._path(campaign, data_set)
        try:
            draw = Draw.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        except OffsiteError as error:
            raise ConfigError(
                f"{path} is damaged, and says which rows are held out: restore it from a backup, "
                f"or sit this campaign out ({error})"
            ) from None
        if draw.units != units:
            raise ConfigError(f"{path}: expected a draw from {units} rows, found {draw.units}")
        return draw

    def has_campaign(self, campaign: str) -> bool:
        """Whether there is a draw of this campaign for whatever data."""
        return self.root.is_dir() and any(self.root.glob(f"{campaign}-*.json"))

    def make(self, campaign: str, data_set: str, units: int, choice: AttackChoice) -> Draw:
        """A new draw, on the disk when this returns. Raises ConfigError for too few units."""
        entropy = self.entropy(ENTROPY_BYTES).hex()
        draw = Draw(entropy, units, choice.held_out(units), choice.planted_secrets)
        for folder in (self.root.parent, self.root):
            private_folder(folder)
        write_atomic(self._path(campaign, data_set), draw.to_bytes())
        return draw

    def _path(self, campaign: str, data_set: str) -> Path:
        return self.root / f"{campaign}-{data_set}.json"


def data_name(data: Data) -> str:
    """Names rows in their order, and the persons whom they are about: other data, another name."""
    digest = hashlib.sha256(b"offsite/attack/data/1|")
    parts = [content(row) for row in data.rows]
    parts += [person.encode() for person in data.persons or ()]
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:_NAME_DIGITS]
