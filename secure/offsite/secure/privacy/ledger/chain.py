"""Entries as signed lines of a file, each bound to the one before it.

    line = entry (canonical JSON) | " " | signature (128 lower-case hex digits) | "\\n"

A ledger is a text file that only grows. Canonical JSON has no raw line break, so a line is an
entry. What follows the last line break is an append that a crash cut: the write-ahead rule (synced
before anything is done) says that nothing was done because of it, so it may be cut off.
"""

from dataclasses import dataclass
from typing import Final

from offsite.secure.aggregation import merkle
from offsite.secure.errors import IntegrityError
from offsite.secure.identity import SIGNATURE_BYTES, IdentityKey
from offsite.secure.privacy.ledger.bodies import Body
from offsite.secure.privacy.ledger.entries import ENTRY_BYTES, NO_ENTRY, Entry, entry_digest
from offsite.secure.privacy.ledger.signing import sign_entry

_HEX_CHARS: Final = 2 * SIGNATURE_BYTES
LINE_BYTES: Final = ENTRY_BYTES + 1 + _HEX_CHARS + 1


@dataclass(frozen=True, slots=True)
class Record:
    """A signed entry, with the exact bytes that were signed. Not verified by being made."""

    entry: Entry
    data: bytes
    signature: bytes
    digest: bytes

    def to_line(self) -> bytes:
        """For the file."""
        return b"".join((self.data, b" ", self.signature.hex().encode("ascii"), b"\n"))

    @classmethod
    def from_line(cls, line: bytes) -> "Record":
        """Reads what `to_line` wrote, without its line break.

        Raises:
            IntegrityError: anything else.
        """
        data, _, digits = line[:LINE_BYTES].rpartition(b" ")
        text = digits.decode("ascii", "replace")
        try:
            signature = bytes.fromhex(text)
        except ValueError:
            signature = b""
        if len(signature) != SIGNATURE_BYTES or signature.hex() != text:
            raise IntegrityError(
                f"expected an entry, a space and {_HEX_CHARS} hex digits of a signature on a line"
            )
        return cls(Entry.from_bytes(data), data, signature, entry_digest(data))


@dataclass(frozen=True, slots=True)
class Tip:
    """Where the next entry goes."""

    seq: int = 0
    previous: bytes = NO_ENTRY
    time_unix_s: float = 0.0

    @classmethod
    def after(cls, record: Record) -> "Tip":
        entry = record.entry
        return cls(entry.seq + 1, record.digest, entry.time_unix_s)


def next_record(tip: Tip, body: Body, key: IdentityKey, now_unix_s: float, salt: bytes) -> Record:
    """The signed entry that follows `tip`; `salt` is 16 fresh random bytes.

    A clock that went back is written as standing still.
    """
    entry = Entry(tip.seq, tip.previous, salt, max(now_unix_s, tip.time_unix_s), body)
    data = entry.to_bytes()
    return Record(entry, data, sign_entry(data, key), entry_digest(data))


def split_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole lines of a ledger file, and what a cut append left behind them."""
    *lines, torn = data.split(b"\n")
    return lines, torn


def root_of(digests: list[bytes], size: int) -> bytes:
    """The root of the Merkle tree over the first `size` entries."""
    return merkle.root(digests[:size])
