"""The coordinator's receipts for the data owners' privacy ledgers.

An edge shows a checkpoint of its ledger; if it continues the one before, the coordinator counter-signs
and keeps it. So of two histories of one ledger at most one has a receipt, and an edge whose ledger was
put back to an older state is found out by its own next call.

Rules: one ledger for a client, for ever (a new one would forget what was spent); decided under the
lock of the database, so that two calls at once cannot both continue the same checkpoint. What a
checkpoint does not fit is never counter-signed, and costs nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from offsite.coordinator.store import Store
from offsite.secure.errors import IdentityError, PeerError
from offsite.secure.identity import IdentityKey, IdentityPublicKey
from offsite.secure.privacy.ledger.checkpoint import Checkpoint, countersign, open_checkpoint
from offsite.secure.privacy.ledger.notes import NOTE_BYTES, Note

MOST_PROOF: Final = 64
"""Digests of a consistency proof: a tree of 2^53 entries needs fewer."""
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Receipts:
    """Decides what is counter-signed; safe to call from any thread."""

    store: Store
    key: IdentityKey
    clock: Callable[[], float]

    def last(self, client_id: str) -> bytes:
        """The newest receipt of a client; empty before the first."""
        return self.store.receipts.last(client_id) or b""

    def countersign(self, client_id: str, checkpoint: bytes, proof: Sequence[bytes]) -> bytes:
        """The note with this coordinator's signature, which is kept.

        Raises:
            PeerError: it is no checkpoint of this client's ledger, or does not continue the last one.

        Guarantees: two different histories never both get a receipt
            (`test_of_two_histories_one_gets_a_receipt`).
        """
        if len(checkpoint) > NOTE_BYTES:
            raise PeerError(f"expected a note of at most {NOTE_BYTES} bytes, found more")
        if len(proof) > MOST_PROOF or any(len(item) != _DIGEST_BYTES for item in proof):
            raise PeerError(f"expected a proof of at most {MOST_PROOF} digests, found another")
        with self.store.transaction():
            last, now_unix_s = self.store.receipts.last(client_id), self.clock()
            known = None if last is None else Checkpoint.from_text(Note.from_bytes(last).text)
            edge = self._key_of(client_id)
            if last is not None and open_checkpoint(checkpoint, edge) == known:
                return last  # asked again, it costs no row
            receipt = countersign(checkpoint, edge, known, proof, self.key, int(now_unix_s))
            self.store.receipts.add(client_id, receipt, now_unix_s)
        return receipt

    def _key_of(self, client_id: str) -> IdentityPublicKey:
        row = self.store.clients.get(client_id)
        if row is None:
            raise IdentityError(f"expected an enrolled client, found {client_id!r}")
        return IdentityPublicKey(row.identity_key)
