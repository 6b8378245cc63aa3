"""Checkpoints: a ledger's size and root, signed by the edge and counter-signed by the coordinator.

    offsite/ledger/<digest of the ledger's first entry, hex>
    <number of entries, decimal>
    <root of the Merkle tree over them, base64>

The edge signs under the origin as its name, the coordinator adds a cosignature: what it keeps is
its receipt, what it sends back is the edge's. From then on neither can rewrite history alone: the
edge cannot, because an older receipt no longer fits; the coordinator cannot, because it has no
entry and no key of the edge.

A checkpoint tells a coordinator how many entries there are, and of what they say nothing (they are
salted, see `entries.py`).

Source: C2SP tlog-checkpoint v1.0.0 and tlog-cosignature; RFC 9162, section 2.1.4 (consistency).
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from offsite.secure.aggregation import merkle
from offsite.secure.errors import IntegrityError, PeerError
from offsite.secure.identity import IdentityKey, IdentityPublicKey
from offsite.secure.privacy.ledger.fields import DIGEST_BYTES
from offsite.secure.privacy.ledger.notes import Note, NoteKey, SignatureType

ORIGIN_PREFIX: Final = "offsite/ledger/"
COORDINATOR_NAME: Final = "offsite/coordinator"
MOST_ENTRIES: Final = 2**53 - 1
_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Size and root of one ledger, which `ledger_id`, the digest of its first entry, names."""

    ledger_id: bytes
    size: int
    root: bytes

    @property
    def origin(self) -> str:
        return ORIGIN_PREFIX + self.ledger_id.hex()

    def to_text(self) -> str:
        """The text of the note."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"

    @classmethod
    def from_text(cls, text: str) -> "Checkpoint":
        """Reads what `to_text` wrote.

        Raises:
            IntegrityError: anything else, extension lines included.
        """
        lines = text.removesuffix("\n").split("\n")
        try:
            if len(lines) != _LINES:
                raise ValueError(f"{len(lines)} lines instead of {_LINES}")
            ledger_id = bytes.fromhex(lines[0].removeprefix(ORIGIN_PREFIX))
            found = cls(ledger_id, int(lines[1]), base64.b64decode(lines[2], validate=True))
            if found.to_text() != text or not 0 < found.size <= MOST_ENTRIES:
                raise ValueError("another form, or an empty ledger")
            if (len(ledger_id), len(found.root)) != (DIGEST_BYTES, DIGEST_BYTES):
                raise ValueError("a digest that is none")
        except (ValueError, binascii.Error) as error:
            raise IntegrityError(f"expected the checkpoint of a ledger, found none: {error}") from (
                None
            )
        return found


def edge_key(ledger_id: bytes, key: IdentityPublicKey) -> NoteKey:
    """Under which name an edge signs checkpoints: the ledger's origin."""
    return NoteKey(ORIGIN_PREFIX + ledger_id.hex(), SignatureType.TEXT, key)


def coordinator_key(key: IdentityPublicKey) -> NoteKey:
    """Under which name a coordinator counter-signs."""
    return NoteKey(COORDINATOR_NAME, SignatureType.COSIGNATURE, key)


def sign_checkpoint(checkpoint: Checkpoint, key: IdentityKey) -> bytes:
    """The checkpoint as a note of the edge."""
    return Note(checkpoint.to_text()).signed_by(key, checkpoint.origin).to_bytes()


def open_checkpoint(data: bytes, edge: IdentityPublicKey) -> Checkpoint:
    """The checkpoint once the edge's signature was verified.

    Raises:
        PeerError: no checkpoint, or not this edge's.
    """
    note = Note.from_bytes(data)
    found = Checkpoint.from_text(note.text)
    note.verify(edge_key(found.ledger_id, edge))
    return found


def countersign(
    data: bytes,
    edge: IdentityPublicKey,
    known: Checkpoint | None,
    proof: Sequence[bytes],
    key: IdentityKey,
    now_unix_s: int,
) -> bytes:
    """The coordinator's receipt for a checkpoint that continues the one it `known`s.

    Args:
        known: the last checkpoint of this edge that was counter-signed, or None for its first.
        proof: of consistency between the two (`merkle.consistency_proof`); empty if there is none
            before, or if the size is the same.

    Raises:
        PeerError: another ledger, one that shrank, or one whose past was changed.

    Guarantees: of two histories of one ledger at most one is counter-signed
        (`test_a_coordinator_countersigns_one_history`).
    """
    found = open_checkpoint(data, edge)
    if known is not None:
        _check_continues(known, found, proof)
    note = Note.from_bytes(data)
    signed = note.cosigned_by(key, COORDINATOR_NAME, now_unix_s)
    return signed.to_bytes()


def check_receipt(data: bytes, expected: Checkpoint, coordinator: IdentityPublicKey) -> int:
    """When the coordinator counter-signed `expected`; for the edge, about what came back.

    Raises:
        PeerError: another checkpoint, or no counter-signature of this coordinator.
    """
    note = Note.from_bytes(data)
    if Checkpoint.from_text(note.text) != expected:
        raise IntegrityError("expected a receipt for the checkpoint that was sent, found another")
    time_unix_s = note.verify(coordinator_key(coordinator))
    assert time_unix_s is not None  # a cosignature always has one
    return time_unix_s


def _check_continues(known: Checkpoint, found: Checkpoint, proof: Sequence[bytes]) -> None:
    if known.ledger_id != found.ledger_id:
        raise PeerError(
            f"expected a checkpoint of the ledger {known.ledger_id.hex()[:16]}, found one of "
            f"{found.ledger_id.hex()[:16]}: a new ledger forgets what was spent"
        )
    if found.size < known.size:
        raise PeerError(
            f"expected a ledger of at least {known.size} entries, found {found.size}: entries are "
            "gone, restore the ledger from a backup"
        )
    merkle.check_consistency(known.root, known.size, found.root, found.size, proof)
