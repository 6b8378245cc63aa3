"""What a member received and sent in a secure sum, step by step: enough to go on after a crash.

The shell stores the journal (encrypted or in a folder of mode 0700: with the entropy it holds every
secret of the round) after each step and before anything is sent, and erases it when the round is
over. What was sent is kept as it was: sealing draws fresh randomness, so a share made again would
be other bytes than those that the coordinator already has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from offsite.secure.aggregation.dealing import Delivery
from offsite.secure.aggregation.encoding import (
    DIGEST_BYTES,
    Reader,
    integer,
    pack,
    pack_list,
)
from offsite.secure.aggregation.messages import MESSAGE_BYTES, PART_BYTES
from offsite.secure.aggregation.round_config import MOST_MEMBERS
from offsite.secure.errors import IntegrityError
from offsite.secure.limits import CLIENT_NAME_CHARS

JOURNAL_BYTES: Final = 64 << 20
_PROOF_DIGESTS: Final = 8
_DELIVERY_BYTES: Final = CLIENT_NAME_CHARS + MESSAGE_BYTES + PART_BYTES + 1024


class Step(Enum):
    """What a member does next."""

    ADVERTISE = 0
    SHARE = 1
    ACKNOWLEDGE = 2
    MASK = 3
    CONFIRM = 4
    REVEAL = 5
    DONE = 6

    @property
    def after(self) -> "Step":
        return Step(self.value + 1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One step that was taken: what came, and what went out. `repr` hides it."""

    step: Step
    received: tuple[bytes, ...]
    sent: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"Entry({self.step.name})"


def journal_to_bytes(entries: Sequence[Entry]) -> bytes:
    """For a file."""
    packed = [
        pack((integer(entry.step.value), pack_list(entry.received), pack_list(entry.sent)))
        for entry in entries
    ]
    return pack_list(packed)


def journal_from_bytes(data: bytes) -> list[Entry]:
    """Reads what `journal_to_bytes` wrote. Raises IntegrityError for anything else."""
    entries = []
    reader = Reader(pack((data,)), "journal")
    for item in reader.items("entries", len(Step), JOURNAL_BYTES):
        fields = Reader(item, "journal entry")
        step = Step(fields.integer("step", 0, Step.REVEAL.value))
        received = fields.items("received", MOST_MEMBERS, _DELIVERY_BYTES)
        sent = fields.items("sent", MOST_MEMBERS + 1, MESSAGE_BYTES)
        fields.close()
        entries.append(Entry(step, received, sent))
    reader.close()
    return entries


def pack_deliveries(deliveries: Mapping[str, Delivery]) -> tuple[bytes, ...]:
    """Deliveries by dealer, one field each."""
    return tuple(
        pack((dealer.encode(), given.sharing, given.part, pack_list(given.proof)))
        for dealer, given in sorted(deliveries.items())
    )


def unpack_deliveries(packed: Sequence[bytes]) -> dict[str, Delivery]:
    """What `pack_deliveries` packed. Raises IntegrityError for anything else."""
    found: dict[str, Delivery] = {}
    for item in packed:
        fields = Reader(item, "delivery")
        dealer = fields.text("dealer", CLIENT_NAME_CHARS)
        sharing = fields.field("sharing", MESSAGE_BYTES)
        part = fields.field("part", PART_BYTES)
        proof = fields.items("proof", _PROOF_DIGESTS, DIGEST_BYTES)
        fields.close()
        if found and dealer <= max(found):
            raise IntegrityError(f"expected deliveries in order, each dealer once; found {dealer}")
        found[dealer] = Delivery(sharing, part, proof)
    return found
