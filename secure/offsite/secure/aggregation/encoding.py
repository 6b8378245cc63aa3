"""How everything that is hashed or signed becomes bytes: one encoding for one value.

    H(label, fields) = SHA-256( "OTSA/1 " | label | fields, each behind its length as u64 big-endian )

A label says what is hashed, so a hash of one kind never equals one of another; lengths make it
impossible to move a byte from one field into the next. Messages are sequences of the same
length-prefixed fields, and a reader accepts nothing but what the writer would write: no trailing
bytes, no other order, no second form of a number.

Source: the encoding rules of DSSE and of draft-irtf-cfrg-vdaf, section 3 (TLS presentation).
"""

import hashlib
from collections.abc import Iterable, Sequence

from offsite.secure.errors import IntegrityError

DIGEST_BYTES = 32
PROTOCOL = b"OTSA/1"
_LENGTH_BYTES = 8
_INTEGER_BYTES = 8


def digest(label: str, *fields: bytes) -> bytes:
    """H(label, fields). 32 bytes."""
    state = hashlib.sha256(PROTOCOL + b" " + label.encode("ascii"))
    for field in fields:
        state.update(len(field).to_bytes(_LENGTH_BYTES, "big"))
        state.update(field)
    return state.digest()


def info(label: str, *fields: bytes) -> bytes:
    """The `info` of a key derivation or an encryption: a label and its context, unambiguous."""
    return PROTOCOL + b" " + label.encode("ascii") + pack(fields)


def integer(value: int) -> bytes:
    """A number from 0 to 2^64 - 1 as 8 bytes, big-endian."""
    return value.to_bytes(_INTEGER_BYTES, "big")


def pack(fields: Iterable[bytes]) -> bytes:
    """Fields, each behind its length."""
    return b"".join(len(field).to_bytes(_LENGTH_BYTES, "big") + field for field in fields)


def pack_list(items: Sequence[bytes]) -> bytes:
    """A list as one field: its items, each behind its length."""
    return pack(items)


class Reader:
    """Reads the fields of one message, each within a bound, and then nothing more.

    Raises IntegrityError that names the message and the field.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        self._position = 0

    def field(self, name: str, most: int) -> bytes:
        """The next field, of at most `most` bytes."""
        start = self._position + _LENGTH_BYTES
        length = int.from_bytes(self._data[self._position : start], "big")
        if len(self._data) < start or length > most or start + length > len(self._data):
            raise self._wrong(name, f"at most {most} bytes", "more, or a cut message")
        self._position = start + length
        return self._data[start : self._position]

    def exactly(self, name: str, size: int) -> bytes:
        """The next field, of exactly `size` bytes."""
        found = self.field(name, size)
        if len(found) != size:
            raise self._wrong(name, f"{size} bytes", str(len(found)))
        return found

    def integer(self, name: str, low: int, high: int) -> int:
        """The next field as a number in [low, high]."""
        value = int.from_bytes(self.exactly(name, _INTEGER_BYTES), "big")
        if not low <= value <= high:
            raise self._wrong(name, f"{low} to {high}", str(value))
        return value

    def text(self, name: str, most: int) -> str:
        """The next field as printable ASCII of 1 to `most` characters."""
        return self._text(name, self.field(name, most), most)

    def items(self, name: str, most: int, each: int) -> tuple[bytes, ...]:
        """The next field as a list of at most `most` items of at most `each` bytes."""
        packed = self.field(name, most * (each + _LENGTH_BYTES))
        reader = Reader(packed, f"{self._name}: {name}")
        found: list[bytes] = []
        while not reader.is_done:
            if len(found) == most:
                raise self._wrong(name, f"at most {most} items", "more")
            found.append(reader.field("item", each))
        return tuple(found)

    def texts(self, name: str, most: int, each: int) -> tuple[str, ...]:
        """The next field as a list of at most `most` texts of at most `each` characters."""
        return tuple(self._text(name, item, each) for item in self.items(name, most, each))

    @property
    def is_done(self) -> bool:
        """Whether every byte was read."""
        return self._position == len(self._data)

    def close(self) -> None:
        """Nothing may follow."""
        if not self.is_done:
            left = len(self._data) - self._position
            raise self._wrong("end", "nothing after the last field", f"{left} more bytes")

    def _text(self, name: str, raw: bytes, most: int) -> str:
        value = raw.decode("latin-1")
        if not (value and value.isascii() and value.isprintable()):
            raise self._wrong(name, f"1 to {most} printable ASCII characters", repr(value[:40]))
        return value

    def _wrong(self, field: str, expected: str, found: str) -> IntegrityError:
        return IntegrityError(f"{self._name}: {field}: expected {expected}, found {found}")
