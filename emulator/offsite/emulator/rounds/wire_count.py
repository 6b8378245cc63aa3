"""Counts what a serialised `RoundMessage` holds before protobuf makes objects of it.

Protobuf allocates while it parses: an empty `NamedArray` costs two bytes on the wire and 92 in
memory, one dimension of a packed `shape` costs one and twelve. Limits that are checked on the
parsed message come too late for a message of such parts. So the tags are walked first: nothing is
kept, and data, names and texts are stepped over, so that a large honest message costs no more than
a small one.

Rules, each violated one a `PeerError`: at most `RECORDS` records, `TENSORS` arrays, `VALUES` values
per record on average, `DIMENSIONS` per array and `FIELDS` fields in all, counted over the whole
message, so that parts which protobuf would merge do not start again from nothing; every length
stays inside its parent; no groups.

Source: https://protobuf.dev/programming-guides/encoding/ and `protos/offsite/v1/rounds.proto`.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, overload

from offsite.emulator.rounds.message_parts import varint
from offsite.secure.errors import PeerError
from offsite.secure.limits import TENSORS

RECORDS = 64
VALUES = 1_000
DIMENSIONS = 32
FIELDS = 12 * TENSORS
"""An array of four dimensions is ten: itself, five fields and what the shape holds."""

_MAX_VARINT_BYTES = 10
_MAX_LENGTH = 2**31 - 1
_SHAPE = 3
_DATA = 5
_LENGTH_DELIMITED = 2


class _Kind(enum.Enum):
    """The messages that are walked into."""

    MESSAGE = "messages"
    METADATA = "metadata"
    ERROR = "errors"
    RECORDS = "record dicts"
    ENTRY = "records"
    RECORD = "bodies of records"
    ARRAYS = "array records"
    ARRAY = "arrays"
    NUMBERS = "metric or config records"
    NUMBER = "values"
    SCALAR = "scalars"


_PARTS: dict[_Kind, dict[int, _Kind]] = {
    _Kind.MESSAGE: {1: _Kind.METADATA, 2: _Kind.RECORDS, 3: _Kind.ERROR},
    _Kind.RECORDS: {1: _Kind.ENTRY},
    _Kind.ENTRY: {2: _Kind.RECORD},
    _Kind.RECORD: {1: _Kind.ARRAYS, 2: _Kind.NUMBERS, 3: _Kind.NUMBERS},
    _Kind.ARRAYS: {1: _Kind.ARRAY},
    _Kind.NUMBERS: {1: _Kind.NUMBER},
    _Kind.NUMBER: {2: _Kind.SCALAR},
}
"""Field number -> message, by the message that it stands in; everything else is stepped over."""

_HOLD_ARRAYS = frozenset({_Kind.RECORDS, _Kind.ENTRY, _Kind.RECORD, _Kind.ARRAYS, _Kind.ARRAY})

_MOST = {_Kind.ENTRY: RECORDS, _Kind.ARRAY: TENSORS, _Kind.NUMBER: RECORDS * VALUES}


class Window(Protocol):
    """Bytes that may lie in a file."""

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> bytes: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of an array lie in a message."""

    offset: int
    size: int


def without_large_arrays(
    data: Window, least_bytes: int, token: bytes
) -> tuple[bytes, dict[bytes, Extent]]:
    """The message with a mark in the place of each array's data of `least_bytes` or more.

    To be called after `check_field_count`. A mark is `token`, which the message's author cannot
    know, and a number; so whatever the message does with its parts, a mark stands for one extent.

    Returns the message, and where the data of each mark lie.
    """
    extents: dict[bytes, Extent] = {}

    def mark(start: int, end: int) -> bytes:
        found = token + len(extents).to_bytes(8, "big")
        extents[found] = Extent(start, end - start)
        return found

    return _Walk(data).reduced(_Kind.MESSAGE, 0, len(data), least_bytes, mark), extents


def check_field_count(data: Window) -> None:
    """Refuses a message that would take far more memory than it has bytes.

    Raises:
        PeerError: too many parts, or no serialised `RoundMessage`.
    """
    _Walk(data).message(_Kind.MESSAGE, 0, len(data))


class _Walk:
    """One pass over the tags of a message, depth first; as deep as the format is, not the data."""

    def __init__(self, data: Window) -> None:
        self._data = data
        self._fields = 0
        self._found = dict.fromkeys(_MOST, 0)

    def message(self, kind: _Kind, at: int, end: int) -> None:
        """The fields of one message in `data[at:end]`."""
        dimensions = 0
        while at < end:
            self._count(1)
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            shape = kind is _Kind.ARRAY and number == _SHAPE
            start, at = self._value(wire, at, end)
            if shape:
                dimensions += self._dimensions(start, at) if wire == 2 else 1
                if dimensions > DIMENSIONS:
                    raise PeerError(
                        f"round message: expected at most {DIMENSIONS} dimensions, found more"
                    )
            inner = _PARTS.get(kind, {}).get(number)
            if inner is not None and wire == 2:
                self._enter(inner)
                self.message(inner, start, at)

    def reduced(
        self, kind: _Kind, at: int, end: int, least: int, mark: Callable[[int, int], bytes]
    ) -> bytes:
        """The same message with `mark` for large data, and the lengths that follow from it."""
        parts: list[bytes] = []
        while at < end:
            field = at
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            start, at = self._value(wire, at, end)
            inner = _PARTS.get(kind, {}).get(number) if wire == _LENGTH_DELIMITED else None
            is_data = (kind, number, wire) == (_Kind.ARRAY, _DATA, _LENGTH_DELIMITED)
            if is_data and at - start >= least:
                value = mark(start, at)
            elif inner in _HOLD_ARRAYS:
                value = self.reduced(inner, start, at, least, mark)
            else:
                parts.append(self._data[field:at])
                continue
            parts += [varint(tag), varint(len(value)), value]
        return b"".join(parts)

    def _enter(self, kind: _Kind) -> None:
        if kind in _MOST:
            self._found[kind] += 1
            if self._found[kind] > _MOST[kind]:
                raise PeerError(
                    f"round message: expected at most {_MOST[kind]} {kind.value}, found more"
                )

    def _count(self, fields: int) -> None:
        self._fields += fields
        if self._fields > FIELDS:
            raise PeerError(f"round message: expected at most {FIELDS} fields, found more")

    def _dimensions(self, start: int, end: int) -> int:
        """The varints of a packed shape; one that is too long is not looked at."""
        if end - start > DIMENSIONS * _MAX_VARINT_BYTES:
            return DIMENSIONS + 1
        found = sum(byte < 0x80 for byte in self._data[start:end])
        self._count(found)
        return found

    def _value(self, wire: int, at: int, end: int) -> tuple[int, int]:
        """Where the value at `at` starts and ends, without looking at it."""
        start = at
        match wire:
            case 0:
                _, at = self._varint(at, end)
            case 1:
                at += 8
            case 2:
                size, start = self._varint(at, end)
                at = start + min(size, _MAX_LENGTH)
            case 5:
                at += 4
            case _:
                raise _malformed()
        if at > end:
            raise _malformed()
        return start, at

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
            if at >= end:
                break
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise _malformed()


def _malformed() -> PeerError:
    return PeerError("round message: not a serialised RoundMessage")
