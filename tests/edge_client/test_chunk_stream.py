"""Cutting a response without protobuf gives what protobuf gives."""

import pytest
from google.protobuf.message import DecodeError

from offsite.edge_client.chunk_stream import chunk_of
from offsite.v1 import artefacts_pb2, rounds_pb2


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 262143, 262144, 2_097_152])
@pytest.mark.parametrize("kind", [artefacts_pb2.FetchResponse, rounds_pb2.FetchMessageResponse])
def test_a_response_is_cut_as_protobuf_parses_it(kind: type, size: int) -> None:
    data = bytes(size % 251 for size in range(size))
    assert chunk_of(kind(data=data).SerializeToString()) == data


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x0a\x83\x00abc",  # a length in more bytes than it needs
        b"\x0a\x03abc\x0a\x02de",  # the field twice: the last one counts
        b"\x0a\x03abc\x12\x01x",  # an unknown field behind it
        b"\x10\x01\x0a\x03abc",  # and before it
    ],
)
def test_an_unusual_response_is_parsed_by_protobuf(message: bytes) -> None:
    assert chunk_of(message) == artefacts_pb2.FetchResponse.FromString(message).data


@pytest.mark.parametrize(
    "message", [b"\x0a", b"\x0a\x04abc", b"\x0a\xff\xff\xff\xff\xff\xff", b"x"]
)
def test_a_broken_response_is_refused(message: bytes) -> None:
    with pytest.raises(DecodeError):
        chunk_of(message)
