"""Who signs what: the edge every entry, as it is written.

A signature covers the exact bytes of an entry under a media type of its own, with the encoding of
`envelope.py`; so an entry can never pass for a plan or a checkpoint, nor the other way round.
Checkpoints (`checkpoint.py`) are signed as notes, by the edge and by the coordinator.
"""

from typing import Final

from offsite.secure import envelope
from offsite.secure.envelope import Envelope
from offsite.secure.identity import IdentityKey, IdentityPublicKey

ENTRY_TYPE: Final = "application/vnd.offsite.ledger-entry+json"


def sign_entry(data: bytes, key: IdentityKey) -> bytes:
    """The 64-byte signature over an entry's exact bytes."""
    return envelope.sign(ENTRY_TYPE, data, key).signature


def check_entry(data: bytes, signature: bytes, key: IdentityPublicKey) -> None:
    """Raises SignatureError unless `signature` is this key's over these bytes as an entry."""
    envelope.verify(Envelope(ENTRY_TYPE, data, key.fingerprint, signature), ENTRY_TYPE, key)
