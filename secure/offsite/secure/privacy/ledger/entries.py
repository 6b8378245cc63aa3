"""One entry of the ledger: its place in the chain, and what it says.

    {"schema":1,"seq":7,"previous":"9f..","salt":"3b..","time_unix_s":1780000000,
     "kind":"claimed","body":{..}}

`previous` is the digest of the entry before, so an entry commits to everything that ever came
before it. `salt` is fresh randomness: digests and checkpoints leave the machine, and without it
whoever knows the form of an entry could try values of q until the digest fits, and have the number
of records. It also lets an owner open one entry to an auditor and keep its neighbours closed.

Reading accepts one encoding (`canonical.py`) and one form of every field.
"""

from dataclasses import dataclass
from typing import Final, get_args

from offsite.secure.aggregation import merkle
from offsite.secure.errors import IntegrityError
from offsite.secure.privacy.ledger.bodies import (
    Aborted,
    AuditGuesses,
    AuditResult,
    Body,
    Charged,
    Claimed,
    Closed,
    Committed,
    DataSetAdded,
    LimitSet,
    Opened,
    Refused,
    ReleasedOther,
    Reserved,
    StartProof,
)
from offsite.secure.privacy.ledger.canonical import Json, canonical, parsed
from offsite.secure.privacy.ledger.fields import (
    DIGEST_BYTES,
    check_count,
    check_digest,
    check_number,
    from_json,
    to_json,
)

SCHEMA: Final = 1
SALT_BYTES: Final = 16
ENTRY_BYTES: Final = 64 * 1024
MOST_TIME_UNIX_S: Final = 253_402_300_799.0  # the end of the year 9999
NO_ENTRY: Final = bytes(DIGEST_BYTES)
"""`previous` of the first entry."""

KINDS: Final[dict[str, type[Body]]] = {
    "opened": Opened,
    "limit_set": LimitSet,
    "data_set": DataSetAdded,
    "proof": StartProof,
    "reserved": Reserved,
    "claimed": Claimed,
    "committed": Committed,
    "charged": Charged,
    "closed": Closed,
    "refused": Refused,
    "aborted": Aborted,
    "released_other": ReleasedOther,
    "audit_guesses": AuditGuesses,
    "audit_result": AuditResult,
}
_NAMES: Final = {body: name for name, body in KINDS.items()}
assert set(_NAMES) == set(get_args(Body))
_HEADER: Final = {"schema", "seq", "previous", "salt", "time_unix_s", "kind", "body"}


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands at `seq`. Time never runs backwards in a ledger."""

    seq: int
    previous: bytes
    salt: bytes
    time_unix_s: float
    body: Body

    def __post_init__(self) -> None:
        check_count("seq", self.seq)
        check_digest("previous", self.previous)
        check_digest("salt", self.salt, SALT_BYTES)
        check_number("time_unix_s", self.time_unix_s, -1.0, MOST_TIME_UNIX_S)

    @property
    def kind(self) -> str:
        return _NAMES[type(self.body)]

    def to_bytes(self) -> bytes:
        """The exact bytes that are hashed and signed."""
        return canonical(
            {
                "schema": SCHEMA,
                "seq": self.seq,
                "previous": self.previous.hex(),
                "salt": self.salt.hex(),
                "time_unix_s": self.time_unix_s,
                "kind": self.kind,
                "body": to_json(self.body),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Entry":
        """Reads what `to_bytes` wrote.

        Raises:
            IntegrityError: anything else.

        Guarantees: no two byte strings are the same entry
            (`test_an_entry_has_one_encoding`).
        """
        if len(data) > ENTRY_BYTES:
            raise IntegrityError(
                f"expected an entry of at most {ENTRY_BYTES} bytes, found {len(data)}"
            )
        entry = cls._from_json(parsed(data, "an entry"))
        if entry.to_bytes() != data:
            raise IntegrityError("expected every field of an entry in its one form")
        return entry

    @classmethod
    def _from_json(cls, document: Json) -> "Entry":
        if not isinstance(document, dict) or document.keys() != _HEADER:
            raise IntegrityError(f"expected an entry with the fields {sorted(_HEADER)}")
        if document["schema"] != SCHEMA:
            raise IntegrityError(
                f"expected an entry of schema {SCHEMA}, found {document['schema']!r}: a later "
                "version of offsite wrote it"
            )
        kind = KINDS.get(str(document["kind"]))
        if kind is None:
            raise IntegrityError(f"expected an entry of a known kind, found {document['kind']!r}")
        place = from_json(_Place, {name: document[name] for name in _PLACE})
        body: Body = from_json(kind, document["body"])
        return cls(place.seq, place.previous, place.salt, place.time_unix_s, body)


@dataclass(frozen=True, slots=True)
class _Place:
    """The header's fields, read like those of a body."""

    seq: int
    previous: bytes
    salt: bytes
    time_unix_s: float


_PLACE: Final = ("seq", "previous", "salt", "time_unix_s")


def entry_digest(data: bytes) -> bytes:
    """SHA-256(0x00 | entry): the next entry's `previous`, and the leaf of the Merkle tree."""
    return merkle.leaf_digest(data)
