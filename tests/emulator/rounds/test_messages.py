"""A message comes back exactly as it was, or is refused."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.emulator.rounds import messages
from offsite.emulator.rounds.flower_internals import message_with_metadata
from offsite.emulator.rounds.messages import message_from_bytes, message_to_bytes
from offsite.secure.errors import ConfigError, PeerError
from offsite.v1 import rounds_pb2 as pb


def _metadata(message_type: str = "train") -> Metadata:
    return Metadata(9, "m1", 1, 2**62, "", "3.1", 1.7e9 + 0.25, 60.5, message_type)


def _content() -> RecordDict:
    fortran = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    return RecordDict(
        {
            "arrays": ArrayRecord(
                {
                    "w": Array(np.array([[1.5, -0.0]], dtype=np.float32)),
                    "scalar": Array(np.array(math.nan)),
                    "empty": Array(np.zeros((0, 4), dtype=np.int8)),
                    "fortran": Array(fortran),
                    "sealed": Array("uint8", (3,), "offsite.sealed", b"\0\1\2"),
                }
            ),
            "metrics": MetricRecord({"n": -5, "loss": 0.1, "big": 2**62}),
            "config": ConfigRecord(
                {"plan": b"\xff", "round": 3, "on": True, "text": "ü", "rate": 1e-300}
            ),
            "nothing": ArrayRecord(),
        }
    )


def _message() -> Message:
    return message_with_metadata(_metadata("train.local"), _content())


def test_round_trip_is_exact() -> None:
    found = message_from_bytes(message_to_bytes(_message()))
    assert found.metadata.__dict__ | {"delivered_at": ""} == _message().metadata.__dict__ | {
        "delivered_at": ""
    }
    assert found.content == _content()
    assert type(found.content["config"]["on"]) is bool
    assert found.content["arrays"]["w"].data == _content()["arrays"]["w"].data
    assert list(found.content["arrays"]) == list(_content()["arrays"])


def test_the_same_message_gives_the_same_bytes() -> None:
    assert message_to_bytes(_message()) == message_to_bytes(_message())


def test_an_error_travels() -> None:
    message = message_with_metadata(_metadata(), Error(-3, "x" * 900))
    found = message_from_bytes(message_to_bytes(message))
    assert (found.error.code, found.error.reason) == (-3, "x" * 500)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_refused_or_a_message(data: bytes) -> None:
    try:
        message_from_bytes(data)
    except PeerError:
        pass


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_never_raises_anything_else(position: int, bit: int) -> None:
    data = bytearray(message_to_bytes(_message()))
    data[position % len(data)] ^= 1 << bit
    try:
        message_from_bytes(bytes(data))
    except PeerError:
        pass


def _tampered(change: Callable[[pb.RoundMessage], None]) -> bytes:
    wire = pb.RoundMessage.FromString(message_to_bytes(_message()))
    change(wire)
    return wire.SerializeToString()


def _named(wire: pb.RoundMessage, name: str) -> pb.NamedArray:
    return next(a for a in wire.content.records["arrays"].arrays.arrays if a.name == name)


def _set_shape(wire: pb.RoundMessage) -> None:
    _named(wire, "w").shape[:] = [2, 1]


def _set_dtype(wire: pb.RoundMessage) -> None:
    _named(wire, "w").dtype = "float64"


def _cut_data(wire: pb.RoundMessage) -> None:
    array = _named(wire, "w")
    array.data = array.data[:-1]


def _append_data(wire: pb.RoundMessage) -> None:
    _named(wire, "w").data += b"\0"


def _pickle(wire: pb.RoundMessage) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([object()], dtype=object), allow_pickle=True)
    array = _named(wire, "w")
    array.data, array.dtype = buffer.getvalue(), "object"
    array.shape[:] = [1]


def _long_header(wire: pb.RoundMessage) -> None:
    header = b"(" * 60_000
    _named(wire, "w").data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def _twice(wire: pb.RoundMessage) -> None:
    arrays = wire.content.records["arrays"].arrays.arrays
    arrays.add().CopyFrom(arrays[0])


def _too_many_records(wire: pb.RoundMessage) -> None:
    for i in range(messages.RECORDS + 1):
        wire.content.records[f"r{i}"].metrics.SetInParent()


def _too_many_values(wire: pb.RoundMessage) -> None:
    for i in range(messages.VALUES + 1):
        wire.content.records["metrics"].metrics.values[f"v{i}"].integer = i


def _kindless_record(wire: pb.RoundMessage) -> None:
    wire.content.records["x"].SetInParent()


def _kindless_value(wire: pb.RoundMessage) -> None:
    wire.content.records["metrics"].metrics.values["x"].SetInParent()


def _system_type(wire: pb.RoundMessage) -> None:
    wire.metadata.message_type = "system"


def _bad_type(wire: pb.RoundMessage) -> None:
    wire.metadata.message_type = "train.not an identifier"


def _infinite_ttl(wire: pb.RoundMessage) -> None:
    wire.metadata.ttl_s = math.inf


def _long_id(wire: pb.RoundMessage) -> None:
    wire.metadata.message_id = "x" * 65


def _no_body(wire: pb.RoundMessage) -> None:
    wire.ClearField("content")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set_shape, "array arrays.w: shape"),
        (_set_dtype, "array arrays.w: dtype"),
        (_cut_data, "expected 8 bytes, found 7"),
        (_append_data, "expected 8 bytes, found 9"),
        (_pickle, "array arrays.w: dtype 'object' is not allowed"),
        (_long_header, "array arrays.w: unreadable"),
        (_twice, "arrays.w appears twice"),
        (_too_many_records, "at most 64 records"),
        (_too_many_values, "at most 1000 values"),
        (_kindless_record, "record 'x' has no kind"),
        (_kindless_value, "value metrics.x has no kind"),
        (_system_type, "'system'"),
        (_bad_type, "Invalid message type"),
        (_infinite_ttl, "must be finite"),
        (_long_id, "at most 64 characters of message_id"),
        (_no_body, "found neither"),
    ],
)
def test_what_is_malformed_is_refused(change: Callable[[pb.RoundMessage], None], said: str) -> None:
    with pytest.raises(PeerError, match=said):
        message_from_bytes(_tampered(change))


def test_too_many_arrays_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "TENSORS", 4)
    with pytest.raises(PeerError, match="at most 4 arrays, found 5"):
        message_from_bytes(message_to_bytes(_message()))


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = message_to_bytes(_message())
    monkeypatch.setattr(messages, "MESSAGE_BYTES", len(data) - 1)
    with pytest.raises(PeerError, match="at most"):
        message_from_bytes(data)


def test_a_message_past_the_limit_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MESSAGE_BYTES", 10)
    with pytest.raises(ConfigError, match="at most 10 bytes"):
        message_to_bytes(_message())


@pytest.mark.parametrize(
    "record", [MetricRecord({"a": [1, 2]}), ConfigRecord({"a": ["x"]}), MetricRecord({"a": 2**70})]
)
def test_what_a_message_cannot_carry_is_a_clear_error(record: MetricRecord | ConfigRecord) -> None:
    with pytest.raises(ConfigError, match=r"expected|cannot carry"):
        message_to_bytes(message_with_metadata(_metadata(), RecordDict({"r": record})))
