"""Which records a campaign used, so that nobody spends the same ones twice under another name.

    digest(record) = HMAC-SHA-256(salt, label | record)          label: "row" or "person"
    data set       = SHA-256 over the sorted digests of its rows and of its persons

The salt is 32 random bytes of the owner's machine that never leave it: without it nobody can test
whether a record that it guesses is in the set, neither by the digests nor by the data set's name.
The ledger holds the name and a commitment to the salt; the digests lie beside it, 32 bytes a row.

Two sets overlap if they share a row or, where a column names persons, a person. A row counts as the
same if its bytes are: what was re-typed, re-ordered in its fields or translated is another row, and
only a person column sees that it concerns the same one.
"""

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from offsite.secure.errors import IntegrityError
from offsite.secure.privacy.ledger.fields import DIGEST_BYTES, check_digest

MAGIC: Final = b"offsite record digests 1\n"
SALT_BYTES: Final = 32
_COUNT_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class RecordDigests:
    """Of one data set, sorted. Equal rows give equal digests and stay as often as they occur."""

    rows: tuple[bytes, ...]
    persons: tuple[bytes, ...] = ()

    @classmethod
    def of(
        cls, salt: bytes, rows: Iterable[bytes], persons: Iterable[bytes] = ()
    ) -> "RecordDigests":
        """Digests what identifies rows, and persons where a column names them.

        Args:
            salt: 32 secret random bytes, the same for all data sets of this owner.
            rows: each row's bytes, in one form of the shell's choosing, kept for ever.
            persons: the values of the person column; each person once.
        """
        check_digest("salt", salt, SALT_BYTES)
        return cls(
            tuple(sorted(_digests(salt, b"row", rows))),
            tuple(sorted(set(_digests(salt, b"person", persons)))),
        )

    @property
    def data_set(self) -> bytes:
        """The data set's name in the ledger."""
        return hashlib.sha256(self.to_bytes()).digest()

    def shares_any(self, other: "RecordDigests") -> bool:
        """Whether a row or a person is in both."""
        rows = not set(self.rows).isdisjoint(other.rows)
        return rows or not set(self.persons).isdisjoint(other.persons)

    def to_bytes(self) -> bytes:
        """For a file beside the ledger."""
        counts = (len(self.rows), len(self.persons))
        head = MAGIC + b"".join(count.to_bytes(_COUNT_BYTES, "big") for count in counts)
        return b"".join((head, *self.rows, *self.persons))

    @classmethod
    def from_bytes(cls, data: bytes, data_set: bytes) -> "RecordDigests":
        """Reads what `to_bytes` wrote, for the data set of that name.

        Raises:
            IntegrityError: the digests of something else: overlaps could go unseen.
        """
        if hashlib.sha256(data).digest() != data_set or not data.startswith(MAGIC):
            raise IntegrityError(
                f"expected the record digests of data set {data_set.hex()[:16]}, found others: "
                "restore the file from a backup"
            )
        start = len(MAGIC) + 2 * _COUNT_BYTES
        count = int.from_bytes(data[len(MAGIC) : len(MAGIC) + _COUNT_BYTES], "big")
        items = [data[at : at + DIGEST_BYTES] for at in range(start, len(data), DIGEST_BYTES)]
        return cls(tuple(items[:count]), tuple(items[count:]))


def overlaps(new: RecordDigests, known: Mapping[bytes, RecordDigests]) -> tuple[bytes, ...]:
    """The names of the known data sets that share a record with the new one, sorted."""
    return tuple(sorted(name for name, digests in known.items() if new.shares_any(digests)))


def salt_commitment(salt: bytes) -> bytes:
    """What the ledger's first entry says about the salt."""
    check_digest("salt", salt, SALT_BYTES)
    return hashlib.sha256(b"offsite record salt" + salt).digest()


def _digests(salt: bytes, label: bytes, items: Iterable[bytes]) -> Iterator[bytes]:
    for item in items:
        yield hmac.digest(salt, label + b"\x00" + item, "sha256")
