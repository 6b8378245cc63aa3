"""Which data this is, and which other data it shares records with, without keeping the data.

A record's digest is HMAC-SHA256 of its content under a salt that never leaves this machine, cut to
16 bytes; a person's likewise. Two data sets overlap where they share a digest of either kind, whatever
the order of their rows and whatever file they lie in. The fingerprint of a data set is the SHA-256
over its sorted record digests, so a row that was added, taken out or changed makes another data set,
and one that overlaps the first.

Notable: digests are of exact content. A row that was reworded counts as another record: that is the
limit of what can be recognised, and `docs/sharp-edges.md` says so.
"""

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass

from offsite.edge_client.data import Data, Row
from offsite.secure.errors import IntegrityError

DIGEST_BYTES = 16
"""Two of 2^32 different records collide with a chance of 2^-64."""
_MAGIC = b"offsite record digests 1\n"


@dataclass(frozen=True, slots=True)
class DataIdentity:
    """The digests of one data set's records, and of the persons that they are about."""

    digests: frozenset[bytes]
    fingerprint: str
    """64 hexadecimal digits."""

    @classmethod
    def of(cls, data: Data, salt: bytes) -> "DataIdentity":
        """The identity of these rows under this machine's salt."""
        records = {_digest(salt, "record", _content(row)) for row in data.rows}
        persons = {_digest(salt, "person", name.encode()) for name in data.persons or ()}
        fingerprint = hashlib.sha256(b"".join(sorted(records))).hexdigest()
        return cls(frozenset(records | persons), fingerprint)

    def overlaps(self, other: "DataIdentity") -> bool:
        """Whether they share a record or a person."""
        return not self.digests.isdisjoint(other.digests)

    def to_bytes(self) -> bytes:
        """For a file in the state folder."""
        return _MAGIC + bytes.fromhex(self.fingerprint) + b"".join(sorted(self.digests))

    @classmethod
    def from_bytes(cls, data: bytes) -> "DataIdentity":
        """Read what `to_bytes` wrote. Raises IntegrityError for anything else."""
        start = len(_MAGIC) + hashlib.sha256().digest_size
        if not data.startswith(_MAGIC) or len(data) < start or (len(data) - start) % DIGEST_BYTES:
            raise IntegrityError("expected the record digests of a data set, found another file")
        places = range(start, len(data), DIGEST_BYTES)
        digests = frozenset(data[place : place + DIGEST_BYTES] for place in places)
        return cls(digests, data[len(_MAGIC) : start].hex())


def _digest(salt: bytes, kind: str, content: bytes) -> bytes:
    message = kind.encode() + b"\x00" + content
    return hmac.new(salt, message, hashlib.sha256).digest()[:DIGEST_BYTES]


def _content(row: Row) -> bytes:
    """What a row says, without where it stands."""
    fields = asdict(row)
    del fields["line"]
    return json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()
