"""What a message holds is counted before protobuf makes objects of it."""

import tracemalloc

import pytest

from offsite.emulator.rounds import wire_count
from offsite.emulator.rounds.messages import message_from_bytes
from offsite.emulator.rounds.wire_count import check_field_count
from offsite.secure.errors import PeerError
from offsite.secure.limits import MIB, TENSORS
from offsite.v1 import rounds_pb2 as pb

SHAPE_FIELD = b"\x18\x01"


def _varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _message(record: bytes) -> bytes:
    metadata = pb.RoundMetadata(message_type="train").SerializeToString()
    return _field(1, metadata) + _field(2, _field(1, _field(1, b"u") + _field(2, record)))


def _arrays(*arrays: bytes) -> bytes:
    return _message(_field(1, b"".join(_field(1, array) for array in arrays)))


HOSTILE = {
    "empty arrays": (_message(_field(1, b"\x0a\x00" * MIB)), "arrays"),
    "empty arrays, over many records": (
        _field(2, _field(1, _field(2, _field(1, b"\x0a\x00" * (TENSORS // 2)))) * 3),
        "arrays",
    ),
    "empty records": (_field(2, b"\x0a\x00" * MIB), "64 records"),
    "empty metrics": (_message(_field(2, b"\x0a\x00" * MIB)), "values"),
    "empty settings": (_message(_field(3, b"\x0a\x00" * MIB)), "values"),
    "packed shape": (_arrays(_field(3, b"\x01" * MIB)), "dimensions"),
    "shape in single fields": (_arrays(SHAPE_FIELD * MIB), "dimensions"),
    "packed shape in pieces": (_arrays(_field(3, b"\x01" * 8) * 5), "32 dimensions"),
    "contents that are merged": (b"\x12\x00" * (wire_count.FIELDS + 1), "fields"),
    "unknown fields": (_field(1, b"\x78\x01" * wire_count.FIELDS), "fields"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_message_of_countless_parts_is_refused_before_anything_is_allocated(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, said = HOSTILE[case]
    monkeypatch.setattr(pb, "RoundMessage", None)  # nobody may parse it
    with pytest.raises(PeerError, match=f"round message: expected at most .*{said}, found more"):
        message_from_bytes(data)


def test_counting_keeps_nothing() -> None:
    data = _arrays(*[b""] * 20_000)
    tracemalloc.start()
    try:
        check_field_count(data)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_bulk_data_is_stepped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = pb.RoundMessage()
    for i in range(10):
        wire.content.records["a"].arrays.arrays.add(
            name=f"t{i}", dtype="F32", shape=[1024, 1024], stype="x", data=b"\x0a" * (10 * MIB)
        )
    data = wire.SerializeToString()
    monkeypatch.setattr(wire_count, "FIELDS", 100)  # 100 MiB in so few steps
    check_field_count(data)


def test_as_much_as_the_limits_allow_passes() -> None:
    wire = pb.RoundMessage()
    for i in range(wire_count.RECORDS - 1):
        for j in range(20):
            wire.content.records[f"r{i}"].metrics.values[f"v{j}"].integer = j
    arrays = wire.content.records["a"].arrays.arrays
    for i in range(500):
        arrays.add(name=str(i), shape=[2**63] * wire_count.DIMENSIONS, data=b"x")
    check_field_count(wire.SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05ab",
        b"\x0b\x0c",
        b"\x0f",
        b"\x09\x01",
        b"\x0d\x01",
        b"\xff" * 11,
        b"\x0a" + b"\xff" * 9 + b"\x01",
        _field(2, b"\x0a\x7f"),
    ],
)
def test_what_is_malformed_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="not a serialised RoundMessage"):
        check_field_count(data)
