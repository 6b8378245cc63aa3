"""The log of published results: a Merkle tree over them, its head signed by the coordinator.

    log    every signed result, in order, each behind its length
    head   size and root of the tree over them, signed

A head alone promises nothing. Kept by somebody else than the coordinator, it shows later that the log
only grew (`check_grew`), and that no result was taken out or exchanged.

Source: RFC 6962, sections 2.1 and 3.5 (signed tree heads).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from offsite.secure import envelope
from offsite.secure.aggregation import merkle
from offsite.secure.aggregation.encoding import DIGEST_BYTES, Reader, integer, pack, pack_list
from offsite.secure.errors import IntegrityError
from offsite.secure.identity import IdentityKey, IdentityPublicKey

HEAD_TYPE: Final = "application/vnd.offsite.secagg.log-head"
MOST_RESULTS: Final = 1 << 32
RESULT_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Head:
    """What the coordinator says the log is."""

    size: int
    root: bytes


def log_bytes(results: Sequence[bytes]) -> bytes:
    """The file of a log."""
    return pack_list(results)


def read_log(data: bytes) -> list[bytes]:
    """The results in a log's file. Raises IntegrityError for anything else."""
    reader, found = Reader(data, "log"), list[bytes]()
    while not reader.is_done:
        found.append(reader.field("result", RESULT_BYTES))
    return found


def head_of(results: Sequence[bytes]) -> Head:
    """The head over these results."""
    return Head(len(results), merkle.root([merkle.leaf_digest(leaf) for leaf in results]))


def sign_head(head: Head, key: IdentityKey) -> bytes:
    """The file of a head."""
    return envelope.to_bytes(envelope.sign(HEAD_TYPE, pack((integer(head.size), head.root)), key))


def open_head(data: bytes, coordinator: IdentityPublicKey) -> Head:
    """The head in a file. Raises PeerError unless that coordinator signed it."""
    payload = envelope.verify(envelope.from_bytes(data), HEAD_TYPE, coordinator)
    reader = Reader(payload, "log head")
    found = Head(reader.integer("size", 0, MOST_RESULTS), reader.exactly("root", DIGEST_BYTES))
    reader.close()
    return found


def check_log(results: Sequence[bytes], head: Head) -> None:
    """Raises IntegrityError unless the head is over these very results."""
    if head_of(results) != head:
        raise IntegrityError(
            f"expected a log of {head.size} results that leads to the signed head, found one of "
            f"{len(results)} that does not: a result was changed, added or taken out, or the two "
            "files were copied while one was being written: copy both again"
        )


def check_grew(results: Sequence[bytes], older: Head) -> None:
    """Raises IntegrityError unless an older head was over a beginning of these results."""
    if older.size > len(results) or head_of(results[: older.size]) != older:
        raise IntegrityError(
            f"expected a log that continues the one of {older.size} results whose head was kept, "
            f"found {len(results)} results that do not: the coordinator rewrote its log"
        )
