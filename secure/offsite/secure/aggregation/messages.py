"""Every message of a secure sum, as bytes. All are signed (`offsite.secure.envelope`) over the
exact bytes that travel, under a media type of their own.

    phase  from         message        says
    1      member       Advertisement  public keys, commitment to b
    2      member       Sharing        Merkle root over one part for every roster member
    2b     member       Acknowledgement   whose shares opened and fit, and whose did not
    3      coordinator  Members        U2: over whom masks are taken
    3      member       Upload         digest and length of the masked vector
    4      coordinator  (all signed Upload headers of U3)
    4      member       Confirmation   hash of U2 and U3
    5      member       Reveal         one half of a share for every member of U2
    6      coordinator  Result         digest of the sum, total weight, root of the transcript

Parts of a Sharing travel beside it, each with its inclusion proof: the signed message has a few
hundred bytes at any size of the cohort, and a member receives only what is meant for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, Self, TypeVar

from offsite.secure import sealing
from offsite.secure.aggregation.encoding import (
    DIGEST_BYTES,
    Reader,
    digest,
    integer,
    pack,
    pack_list,
)
from offsite.secure.aggregation.keys import (
    MLKEM_PUBLIC_BYTES,
    SECRET_BYTES,
    SEED_BYTES,
    X25519_PUBLIC_BYTES,
)
from offsite.secure.aggregation.keystream import MOST_WORDS
from offsite.secure.aggregation.pair_seeds import WRAP_BYTES
from offsite.secure.aggregation.round_config import MOST_MEMBERS
from offsite.secure.envelope import Envelope, from_bytes, sign, to_bytes, verify
from offsite.secure.errors import IntegrityError
from offsite.secure.identity import IdentityKey, IdentityPublicKey
from offsite.secure.limits import CLIENT_NAME_CHARS

MESSAGE_BYTES: Final = 256 * 1024
"""The largest signed message; a list of 255 names and digests takes a tenth of it."""
SEALED_SHARE_BYTES: Final = 8 + sealing.SEGMENT_OVERHEAD_BYTES + SECRET_BYTES
PART_BYTES: Final = 4096
_TYPE: Final = "application/vnd.offsite.secagg."
B_HALF: Final = b"b"
SIGMA_HALF: Final = b"s"


class Message(Protocol):
    """What can be signed: bytes of one form, under one media type."""

    TYPE: ClassVar[str]

    def to_bytes(self) -> bytes: ...

    @classmethod
    def from_bytes(cls, data: bytes) -> Self: ...


M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Advertisement:
    """Phase 1: the public keys of one member, and its commitment to its self-mask seed."""

    TYPE: ClassVar[str] = _TYPE + "advertisement"
    config: bytes  # rc
    client_id: str
    channel_public: bytes
    x25519_public: bytes
    mlkem_public: bytes
    self_commitment: bytes
    nonce: bytes

    def to_bytes(self) -> bytes:
        return pack(
            (
                self.config,
                self.client_id.encode(),
                self.channel_public,
                self.x25519_public,
                self.mlkem_public,
                self.self_commitment,
                self.nonce,
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, "advertisement")
        message = cls(
            reader.exactly("config", DIGEST_BYTES),
            reader.text("client_id", CLIENT_NAME_CHARS),
            reader.exactly("channel_public", sealing.PUBLIC_KEY_BYTES),
            reader.exactly("x25519_public", X25519_PUBLIC_BYTES),
            reader.exactly("mlkem_public", MLKEM_PUBLIC_BYTES),
            reader.exactly("self_commitment", DIGEST_BYTES),
            reader.exactly("nonce", SEED_BYTES),
        )
        reader.close()
        return message


@dataclass(frozen=True, slots=True)
class Part:
    """What one dealer has for one holder; a leaf of the dealer's Merkle tree.

    For the dealer itself `sealed` is empty (it knows its own share); `wrap` is there only if the
    dealer stands before the holder in the roster.
    """

    sealed: bytes
    wrap: bytes
    b_commitment: bytes
    sigma_commitment: bytes

    def to_bytes(self) -> bytes:
        return pack((self.sealed, self.wrap, self.b_commitment, self.sigma_commitment))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, "part of a sharing")
        part = cls(
            reader.field("sealed", SEALED_SHARE_BYTES),
            reader.field("wrap", WRAP_BYTES),
            reader.exactly("b_commitment", DIGEST_BYTES),
            reader.exactly("sigma_commitment", DIGEST_BYTES),
        )
        reader.close()
        return part

    def commitment(self, half: bytes) -> bytes:
        return self.b_commitment if half == B_HALF else self.sigma_commitment


@dataclass(frozen=True, slots=True)
class Sharing:
    """Phase 2: what a dealer signs about the parts that it has made, in roster order."""

    TYPE: ClassVar[str] = _TYPE + "sharing"
    roster: bytes
    client_id: str
    parts_root: bytes

    def to_bytes(self) -> bytes:
        return pack((self.roster, self.client_id.encode(), self.parts_root))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, "sharing")
        message = cls(
            reader.exactly("roster", DIGEST_BYTES),
            reader.text("client_id", CLIENT_NAME_CHARS),
            reader.exactly("parts_root", DIGEST_BYTES),
        )
        reader.close()
        return message


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Phase 2b: the dealers whose parts fit, and those whose did not; in roster order."""

    TYPE: ClassVar[str] = _TYPE + "acknowledgement"
    roster: bytes
    client_id: str
    accepted: tuple[str, ...]
    complaints: tuple[str, ...]

    def to_bytes(self) -> bytes:
        lists = (_names(self.accepted), _names(self.complaints))
        return pack((self.roster, self.client_id.encode(), *lists))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, "acknowledgement")
        message = cls(
            reader.exactly("roster", DIGEST_BYTES),
            reader.text("client_id", CLIENT_NAME_CHARS),
            _read_names(reader, "accepted"),
            _read_names(reader, "complaints"),
        )
        reader.close()
        return message


@dataclass(frozen=True, slots=True)
class Members:
    """Phase 3: U2, over whom masks are taken; in roster order."""

    TYPE: ClassVar[str] = _TYPE + "members"
    roster: bytes
    client_ids: tuple[str, ...]

    @property
    def digest(self) -> bytes:
        """H(U2)."""
        return digest("members", self.roster, *(name.encode() for name in self.client_ids))

    def to_bytes(self) -> bytes:
        return pack((self.roster, _names(self.client_ids)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, "members")
        message = cls(reader.exactly("roster", DIGEST_BYTES), _read_names(reader, "client_ids"))
        reader.close()
        return message


@dataclass(frozen=True, slots=True)
class Upload:
    """Phase 3: what a member signs about the masked vector that it sends."""

    TYPE: ClassVar[str] = _TYPE + "upload"
    roster: bytes
    members: bytes  # H(U2)
    client_id: str
    words: int
    sha256: bytes  # of the masked words, little-endian

    def to_bytes(self) -> bytes:
        fields = (self.roster, self.members, self.client_id.encode())
        return pack((*fields, integer(self.words), self.sha256))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, "upload")
        message = cls(
            reader.exactly("roster", DIGEST_BYTES),
            reader.exactly("members", DIGEST_BYTES),
            reader.text("client_id", CLIENT_NAME_CHARS),
            reader.integer("words", 2, MOST_WORDS),
            reader.exactly("sha256", DIGEST_BYTES),
        )
        reader.close()
        return message


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Phase 4: a member's word on who is in the sum; it gives it once in a roster."""

    TYPE: ClassVar[str] = _TYPE + "confirmation"
    roster: bytes
    client_id: str
    survivors: bytes  # H(U2, U3 with their upload headers)

    def to_bytes(self) -> bytes:
        return pack((self.roster, self.client_id.encode(), self.survivors))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, "confirmation")
        message = cls(
            reader.exactly("roster", DIGEST_BYTES),
            reader.text("client_id", CLIENT_NAME_CHARS),
            reader.exactly("survivors", DIGEST_BYTES),
        )
        reader.close()
        return message


@dataclass(frozen=True, slots=True)
class Reveal:
    """Phase 5: for every member of U2 one half of the holder's share: b of U3, sigma of the rest."""

    TYPE: ClassVar[str] = _TYPE + "reveal"
    roster: bytes
    client_id: str
    survivors: bytes
    halves: tuple[bytes, ...]  # in the order of U2; which half follows from U3

    def to_bytes(self) -> bytes:
        fields = (self.roster, self.client_id.encode(), self.survivors)
        return pack((*fields, pack_list(self.halves)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, "reveal")
        message = cls(
            reader.exactly("roster", DIGEST_BYTES),
            reader.text("client_id", CLIENT_NAME_CHARS),
            reader.exactly("survivors", DIGEST_BYTES),
            reader.items("halves", MOST_MEMBERS, SEED_BYTES),
        )
        reader.close()
        if any(len(half) != SEED_BYTES for half in message.halves):
            raise IntegrityError(f"reveal: expected halves of {SEED_BYTES} bytes, found another")
        return message


@dataclass(frozen=True, slots=True)
class Result:
    """Phase 6: what was learnt, and the root of everything that led to it."""

    TYPE: ClassVar[str] = _TYPE + "result"
    config: bytes
    roster: bytes
    survivors: bytes
    sum_sha256: bytes  # of the unmasked words, little-endian
    transcript_root: bytes

    def to_bytes(self) -> bytes:
        return pack(
            (self.config, self.roster, self.survivors, self.sum_sha256, self.transcript_root)
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        reader = Reader(data, "result")
        names = ("config", "roster", "survivors", "sum_sha256", "transcript_root")
        message = cls(*(reader.exactly(name, DIGEST_BYTES) for name in names))
        reader.close()
        return message


def signed(message: Message, key: IdentityKey) -> bytes:
    """The message in an envelope, as it travels."""
    return to_bytes(sign(message.TYPE, message.to_bytes(), key))


def claimed(kind: type[M], data: bytes) -> tuple[Envelope, M]:
    """What an envelope says, before anybody's signature was checked: to learn whose it must be."""
    envelope = from_bytes(data, MESSAGE_BYTES)
    return envelope, kind.from_bytes(envelope.payload)


def opened(kind: type[M], data: bytes, key: IdentityPublicKey) -> M:
    """The message of an envelope that `key` has signed.

    Raises:
        SignatureError: another key, another type, or changed bytes.
        IntegrityError: no envelope, or no such message in it.
    """
    return kind.from_bytes(verify(from_bytes(data, MESSAGE_BYTES), kind.TYPE, key))


def roster_digest(config: bytes, advertisements: Sequence[bytes]) -> bytes:
    """The hash of all signed advertisements, in order of client id."""
    return digest("roster", config, *advertisements)


def survivors_digest(members: bytes, uploads: Sequence[bytes]) -> bytes:
    """H(U2, U3): the signed upload headers of all who are in the sum, in roster order."""
    return digest("survivors", members, *uploads)


def _names(client_ids: Sequence[str]) -> bytes:
    return pack_list([name.encode() for name in client_ids])


def _read_names(reader: Reader, field: str) -> tuple[str, ...]:
    found = reader.texts(field, MOST_MEMBERS, CLIENT_NAME_CHARS)
    if list(found) != sorted(set(found)):
        raise IntegrityError(f"{field}: expected names in order, each once")
    return found
