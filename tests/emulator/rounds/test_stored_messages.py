"""Messages that go to and come from a file without their arrays in memory."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.emulator.rounds import file_window, messages, stored_array
from offsite.emulator.rounds.flower_internals import message_with_metadata
from offsite.emulator.rounds.messages import (
    message_from_bytes,
    message_from_file,
    message_to_bytes,
    message_to_parts,
)
from offsite.emulator.rounds.stored_array import StoredArray
from offsite.secure.errors import IntegrityError, PeerError
from offsite.v1 import rounds_pb2 as pb

METADATA = Metadata(9, "m1", 1, 2**62, "", "3.1", 1.7e9 + 0.25, 60.5, "train.mask")

arrays = st.builds(
    lambda stype, data: Array("uint8", (len(data),), stype, data),
    st.sampled_from(["offsite.masked", "x"]),
    st.binary(max_size=300),
)
records = st.one_of(
    st.dictionaries(st.text(max_size=5), arrays, max_size=4).map(ArrayRecord),
    st.dictionaries(st.text(max_size=5), st.binary(max_size=200), max_size=3).map(ConfigRecord),
)
contents = st.dictionaries(st.text(min_size=1, max_size=5), records, max_size=4).map(RecordDict)


def _protobuf(message: Message) -> bytes:
    """The reference: everything through protobuf's own objects."""
    wire = pb.RoundMessage(metadata=messages._wire_metadata(message.metadata))
    wire.content.SetInParent()
    for name, record in message.content.items():
        found = messages._wire_record(name, record)
        if isinstance(found, pb.Record):
            wire.content.records[name].CopyFrom(found)
            continue
        target = wire.content.records[name].arrays
        target.SetInParent()
        for key, a in found.items():
            target.arrays.add(name=key, dtype=a.dtype, shape=a.shape, stype=a.stype, data=a.data)
    return wire.SerializeToString(deterministic=True)


@settings(max_examples=200, deadline=None)
@given(contents)
def test_protobuf_reads_the_parts_as_what_it_would_have_written(content: RecordDict) -> None:
    message = message_with_metadata(METADATA, content)
    ours, reference = b"".join(message_to_parts(message)), _protobuf(message)
    assert len(ours) == len(reference)
    assert pb.RoundMessage.FromString(ours) == pb.RoundMessage.FromString(reference)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "STORED_BYTES", 20)
    monkeypatch.setattr(stored_array, "PIECE_BYTES", 64)
    monkeypatch.setattr(file_window, "WINDOW_BYTES", 7)


@pytest.mark.usefixtures("_small")
def test_a_message_in_a_file_is_the_same_message(tmp_path: Path) -> None:
    path = tmp_path / "message"

    @settings(max_examples=200, deadline=None)
    @given(contents)
    def check(content: RecordDict) -> None:
        data = message_to_bytes(message_with_metadata(METADATA, content))
        path.write_bytes(data)
        found = message_from_file(path)
        assert message_to_bytes(found) == data
        for record in found.content.array_records.values():
            for array in record.values():
                assert isinstance(array, StoredArray) is (stored_array.size_of(array) >= 20)

    check()


@pytest.mark.usefixtures("_small")
def test_an_array_of_numpy_is_read_and_its_header_checked(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.float32)
    content = RecordDict({"a": ArrayRecord({"w": Array(values)})})
    data = bytearray(message_to_bytes(message_with_metadata(METADATA, content)))
    path = tmp_path / "message"
    path.write_bytes(data)
    assert np.array_equal(message_from_file(path).content["a"]["w"].numpy(), values)
    path.write_bytes(data.replace(b"NUMPY", b"NUMPX"))
    with pytest.raises(PeerError, match="unreadable NumPy header"):
        message_from_file(path)


@pytest.mark.usefixtures("_small")
def test_whoever_repeats_its_parts_gets_what_protobuf_makes_of_them(tmp_path: Path) -> None:
    """Protobuf merges what stands twice; a mark never stands for another array's bytes."""
    array = Array("uint8", (40,), "x", bytes(range(40)))
    content = RecordDict({"a": ArrayRecord({"w": array, "v": array})})
    data = message_to_bytes(message_with_metadata(METADATA, content))
    other = Array("uint8", (50,), "x", bytes(range(50)))
    again = message_with_metadata(METADATA, RecordDict({"a": ArrayRecord({"u": other})}))
    path = tmp_path / "message"
    path.write_bytes(data + message_to_bytes(again))
    expected, found = message_from_bytes(path.read_bytes()), message_from_file(path)
    assert message_to_bytes(found) == message_to_bytes(expected)


@pytest.mark.usefixtures("_small")
def test_any_cut_or_changed_byte_is_what_it_is_in_memory(tmp_path: Path) -> None:
    array = Array("uint8", (40,), "x", bytes(40))
    content = RecordDict({"a": ArrayRecord({"w": array}), "c": ConfigRecord({"k": b"v"})})
    data = message_to_bytes(message_with_metadata(METADATA, content))
    path = tmp_path / "message"

    def outcome(read) -> object:  # type: ignore[no-untyped-def]
        try:
            return message_to_bytes(read())
        except PeerError as error:
            return type(error)

    for at in range(len(data)):
        for changed in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            path.write_bytes(changed)
            in_memory = outcome(lambda c=changed: message_from_bytes(c))  # type: ignore[misc]
            assert outcome(lambda: message_from_file(path)) == in_memory, at


def test_an_error_goes_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(message_to_bytes(message_with_metadata(METADATA, Error(2, "no"))))
    assert message_from_file(path).error.reason == "no"


@pytest.mark.usefixtures("_small")
def test_a_file_that_is_cut_meanwhile_is_noticed(tmp_path: Path) -> None:
    array = Array("uint8", (400,), "x", bytes(400))
    path = tmp_path / "message"
    path.write_bytes(
        message_to_bytes(
            message_with_metadata(METADATA, RecordDict({"a": ArrayRecord({"w": array})}))
        )
    )
    found = message_from_file(path).content["a"]["w"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="became shorter"):
        found.data  # noqa: B018
