"""Signed notes: text, a blank line, and signatures by named keys.

    text, ending in a line break
    (blank line)
    U+2014 | " " | key name | " " | base64( key id (4) | signature ) | line break    one or more

    key id = SHA-256( name | 0x0A | type | public key )[:4]
    verifier key = name | "+" | key id in hex | "+" | base64( type | public key )

Type 1 signs the text. Type 4 is a *cosignature*: "on this day I had seen this log grow to this
size"; it signs `cosignature/v1`, a time, and the text, and carries the time with it.

An identity key also signs envelopes. These begin with "OFFSITE/1", cosignatures with
"cosignature/v1", checkpoints with "offsite/ledger/": none can pass for another.

Source: C2SP signed-note v1.0.0 and tlog-cosignature (Ed25519), `golang.org/x/mod/sumdb/note`.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from offsite.secure.errors import IntegrityError, SignatureError
from offsite.secure.identity import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    IdentityKey,
    IdentityPublicKey,
)

NOTE_BYTES: Final = 16 * 1024
MOST_SIGNATURES: Final = 16
KEY_ID_BYTES: Final = 4
_DASH: Final = "— "
_TIME_BYTES: Final = 8
_MOST_TIME: Final = 2**63 - 1


class SignatureType(IntEnum):
    """What a key signs, and how."""

    TEXT = 1
    COSIGNATURE = 4

    @property
    def signature_bytes(self) -> int:
        return SIGNATURE_BYTES + (_TIME_BYTES if self is SignatureType.COSIGNATURE else 0)


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A key that a verifier trusts, under its name and for one type of signature."""

    name: str
    type: SignatureType
    key: IdentityPublicKey

    def __post_init__(self) -> None:
        _check_name(self.name)

    @property
    def key_id(self) -> bytes:
        named = self.name.encode() + b"\n" + bytes([self.type])
        return hashlib.sha256(named + self.key.raw).digest()[:KEY_ID_BYTES]

    def to_text(self) -> str:
        """The verifier key that other tools read."""
        material = base64.b64encode(bytes([self.type]) + self.key.raw).decode("ascii")
        return f"{self.name}+{self.key_id.hex()}+{material}"

    @classmethod
    def from_text(cls, text: str) -> "NoteKey":
        """Reads a verifier key.

        Raises:
            IntegrityError: it is none, or of a type that is not known here.
        """
        name, _, rest = text.partition("+")
        material = _decoded(rest.partition("+")[2])
        known = [int(item) for item in SignatureType]
        if len(material) != 1 + PUBLIC_KEY_BYTES or material[0] not in known:
            raise IntegrityError(f"expected a verifier key of Ed25519, found {text[:120]!r}")
        found = cls(name, SignatureType(material[0]), IdentityPublicKey(material[1:]))
        if found.to_text() != text:
            raise IntegrityError(f"expected a verifier key with its key id, found {text[:120]!r}")
        return found


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One line below a note. `signature` begins with the time if it is a cosignature."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """Text and signatures, as they came; nothing is trusted before `verify` returned."""

    text: str
    signatures: tuple[NoteSignature, ...] = ()

    def to_bytes(self) -> bytes:
        """The note as a file."""
        lines = (
            f"{_DASH}{item.name} {_encoded(item.key_id + item.signature)}\n"
            for item in self.signatures
        )
        return f"{self.text}\n{''.join(lines)}".encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Note":
        """Reads a signed note.

        Raises:
            IntegrityError: it is none, has no signature or more than 16, or another form of one.
        """
        if len(data) > NOTE_BYTES:
            raise IntegrityError(
                f"expected a note of at most {NOTE_BYTES} bytes, found {len(data)}"
            )
        try:
            whole = data.decode("utf-8")
        except UnicodeDecodeError:
            raise _no_note("its text is not UTF-8") from None
        text, blank, below = whole.rpartition("\n\n")
        if not blank or not text or not below.endswith("\n"):
            raise _no_note("there is no blank line between text and signatures")
        if any(char < " " for char in whole.replace("\n", " ")):
            raise _no_note("it has a control character")
        found = cls(text + "\n", tuple(_signature(line) for line in below[:-1].split("\n")))
        if len(found.signatures) > MOST_SIGNATURES or found.to_bytes() != data:
            raise _no_note(f"more than {MOST_SIGNATURES} signatures, or base64 in another form")
        return found

    def signed_by(self, key: IdentityKey, name: str) -> "Note":
        """The note with one more signature over its text."""
        signer = NoteKey(name, SignatureType.TEXT, key.public)
        return self._with(signer, key.sign(self.text.encode()))

    def cosigned_by(self, key: IdentityKey, name: str, time_unix_s: int) -> "Note":
        """The note with one more cosignature; the caller checked that the log only grew."""
        signer = NoteKey(name, SignatureType.COSIGNATURE, key.public)
        if not 0 <= time_unix_s <= _MOST_TIME:
            raise IntegrityError(f"expected a time from 0 to 2^63 - 1, found {time_unix_s}")
        signature = key.sign(_cosigned(self.text, time_unix_s))
        return self._with(signer, time_unix_s.to_bytes(_TIME_BYTES, "big") + signature)

    def verify(self, key: NoteKey) -> int | None:
        """When `key` cosigned this note, or None if it is a key that signs the text alone.

        Raises:
            SignatureError: no signature of that key, or one that does not verify.

        Guarantees: a changed bit of text or signature is refused
            (`test_any_bit_change_in_a_note_is_refused`).
        """
        found = [
            item.signature
            for item in self.signatures
            if (item.name, item.key_id) == (key.name, key.key_id)
        ]
        if not found:
            raise SignatureError(
                f"expected a note signed by {key.name} ({key.key_id.hex()}), found signatures of "
                f"{[item.name for item in self.signatures]}"
            )
        times = [_check(self.text, signature, key) for signature in found]
        return times[-1]

    def _with(self, signer: NoteKey, signature: bytes) -> "Note":
        added = NoteSignature(signer.name, signer.key_id, signature)
        return Note(self.text, (*self.signatures, added))


def _check(text: str, signature: bytes, key: NoteKey) -> int | None:
    if len(signature) != key.type.signature_bytes:
        raise SignatureError(
            f"expected a signature of {key.type.signature_bytes} bytes by {key.name}, found "
            f"{len(signature)}"
        )
    if key.type is SignatureType.TEXT:
        key.key.verify(text.encode(), signature)
        return None
    time_unix_s = int.from_bytes(signature[:_TIME_BYTES], "big")
    key.key.verify(_cosigned(text, time_unix_s), signature[_TIME_BYTES:])
    return time_unix_s


def _cosigned(text: str, time_unix_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_unix_s}\n{text}".encode()


def _signature(line: str) -> NoteSignature:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    blob = _decoded(encoded)
    if not line.startswith(_DASH) or not space or len(blob) <= KEY_ID_BYTES:
        raise _no_note("a line below it is no signature")
    _check_name(name)
    return NoteSignature(name, blob[:KEY_ID_BYTES], blob[KEY_ID_BYTES:])


def _check_name(name: str) -> None:
    if not name or "+" in name or any(char.isspace() or char < " " for char in name):
        raise IntegrityError(
            f"expected a key name without spaces and plus signs, found {name[:120]!r}"
        )


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _no_note(problem: str) -> IntegrityError:
    return IntegrityError(f"expected a signed note, found something else: {problem}")
