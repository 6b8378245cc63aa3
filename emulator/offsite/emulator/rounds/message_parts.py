"""A round message as the parts of its serialisation, without a copy of its arrays.

Protobuf would copy every array into its own objects and once more into one string. Here the bytes of
arrays stand between small headers as they are, so that a message goes to the disk with nothing in
memory but the arrays it was made of. Records stand in the order of their names, fields in that of
their numbers: equal messages have equal bytes, and protobuf reads them as its own.

Source: https://protobuf.dev/programming-guides/encoding/ and `protos/offsite/v1/rounds.proto`.
"""

from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Array, ArrayRecord

from offsite.emulator.rounds.stored_array import pieces_of, size_of
from offsite.v1 import rounds_pb2 as pb

Part = bytes | memoryview
_METADATA, _CONTENT = 1, 2
_ENTRY, _KEY, _VALUE = 1, 1, 2
_ARRAYS, _ARRAY, _DATA = 1, 1, 5
_LENGTH_DELIMITED = 2


def content_parts(
    metadata: pb.RoundMetadata, records: Mapping[str, pb.Record | ArrayRecord]
) -> Iterator[Part]:
    """The parts of a message with this content; records of arrays are given as they are."""
    yield from _field(_METADATA, metadata.SerializeToString(deterministic=True))
    entries = [_Entry(name, records[name]) for name in sorted(records)]
    yield _header(_CONTENT, sum(entry.field_bytes for entry in entries))
    for entry in entries:
        yield from entry.parts()


class _Entry:
    """One record of the map, with the lengths that stand in its headers."""

    def __init__(self, name: str, record: pb.Record | ArrayRecord) -> None:
        self._key = b"".join(_field(_KEY, name.encode()))
        if isinstance(record, ArrayRecord):
            self._arrays = [(_array_head(key, array), array) for key, array in record.items()]
            self._arrays_bytes = sum(_array_field_bytes(*pair) for pair in self._arrays)
            self._record = b""
            value_bytes = _field_bytes(_ARRAYS, self._arrays_bytes)
        else:
            self._arrays, self._arrays_bytes = [], -1
            self._record = record.SerializeToString(deterministic=True)
            value_bytes = len(self._record)
        self._value_bytes = value_bytes
        self._body_bytes = len(self._key) + _field_bytes(_VALUE, value_bytes)

    @property
    def field_bytes(self) -> int:
        """The length of the whole entry."""
        return _field_bytes(_ENTRY, self._body_bytes)

    def parts(self) -> Iterator[Part]:
        yield _header(_ENTRY, self._body_bytes) + self._key + _header(_VALUE, self._value_bytes)
        if self._arrays_bytes < 0:
            yield self._record
            return
        yield _header(_ARRAYS, self._arrays_bytes)
        for head, array in self._arrays:
            yield _header(_ARRAY, _array_bytes(head, array)) + head
            if size := size_of(array):
                yield _header(_DATA, size)
                yield from pieces_of(array)


def _array_head(name: str, array: Array) -> bytes:
    """An array but for its data, whose field is the last."""
    wire = pb.NamedArray(name=name, dtype=array.dtype, shape=array.shape, stype=array.stype)
    return wire.SerializeToString(deterministic=True)


def _array_bytes(head: bytes, array: Array) -> int:
    size = size_of(array)
    return len(head) + (_field_bytes(_DATA, size) if size else 0)  # protobuf leaves out empty ones


def _array_field_bytes(head: bytes, array: Array) -> int:
    return _field_bytes(_ARRAY, _array_bytes(head, array))


def _field(number: int, value: bytes) -> Iterable[bytes]:
    return (_header(number, len(value)), value)


def _field_bytes(number: int, value_bytes: int) -> int:
    return len(_header(number, value_bytes)) + value_bytes


def _header(number: int, value_bytes: int) -> bytes:
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(value_bytes)


def varint(value: int) -> bytes:
    """An unsigned number as protobuf writes it."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
