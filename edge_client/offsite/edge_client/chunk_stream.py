"""Receiving a file or a message as a stream of chunks: exactly the bytes asked for.

Notable: `FetchResponse` and `FetchMessageResponse` have one field, `bytes data = 1`, which protobuf
copies twice on the way out; that is a quarter of what receiving a chunk costs. A response in the
form that every encoder writes is cut without a copy; anything else goes to protobuf, so nothing is
parsed differently (`test_a_response_is_cut_as_protobuf_parses_it`).

Rules it enforces: every chunk has the agreed size; the first surplus byte ends the stream, and so
does whoever stops reading it.
"""

from collections.abc import Iterator
from typing import Final

import grpc

from offsite.secure import limits
from offsite.secure.errors import PeerError, TransportError
from offsite.v1 import artefacts_pb2, rounds_pb2

_FETCH: Final = "/offsite.v1.ArtefactService/Fetch"
_FETCH_MESSAGE: Final = "/offsite.v1.RoundService/FetchMessage"
_DATA_TAG: Final = b"\x0a"
"""Field 1, length-delimited."""
_LONGEST_VARINT: Final = 5


def artefact_chunks(
    channel: grpc.Channel, sha256: bytes, offset: int, size: int
) -> Iterator[memoryview]:
    """The bytes of a file of the release from `offset` to its end."""
    request = artefacts_pb2.FetchRequest(sha256=sha256, offset=offset)
    return _chunks(channel, _FETCH, request, offset, size)


def message_chunks(
    channel: grpc.Channel, message_id: str, offset: int, size: int
) -> Iterator[memoryview]:
    """The bytes of an instruction from `offset` to its end."""
    request = rounds_pb2.FetchMessageRequest(message_id=message_id, offset=offset)
    return _chunks(channel, _FETCH_MESSAGE, request, offset, size)


def _chunks(
    channel: grpc.Channel,
    method: str,
    request: artefacts_pb2.FetchRequest | rounds_pb2.FetchMessageRequest,
    offset: int,
    size: int,
) -> Iterator[memoryview]:
    """
    Raises:
        PeerError: a surplus byte, or chunks of another size than agreed.
        TransportError: the stream ended early.
    """
    open_stream = channel.unary_stream(
        method, request_serializer=_serialized, response_deserializer=chunk_of
    )
    stream = open_stream(request, timeout=limits.STREAM_DEADLINE_S)
    try:
        for chunk in stream:
            expected = min(limits.CHUNK_BYTES, size - offset)
            if len(chunk) != expected or not expected:
                raise PeerError(
                    f"expected a chunk of {expected} bytes at byte {offset}, found {len(chunk)}: "
                    "the coordinator does not follow the protocol"
                )
            offset += expected
            yield chunk
    finally:
        stream.cancel()
    if offset != size:
        raise TransportError(f"the stream ended at byte {offset} of {size}")


def chunk_of(message: bytes) -> memoryview:
    """The field `data` of a serialised response."""
    start = _start_of_data(message)
    if start is not None:
        return memoryview(message)[start:]
    return memoryview(artefacts_pb2.FetchResponse.FromString(message).data)


def _start_of_data(message: bytes) -> int | None:
    """Where `data` begins if it is the only field and reaches to the end."""
    if message[:1] != _DATA_TAG:
        return None
    length = 0
    for index, byte in enumerate(message[1 : 1 + _LONGEST_VARINT]):
        length |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            start = index + 2
            return start if start + length == len(message) else None
    return None


def _serialized(request: artefacts_pb2.FetchRequest | rounds_pb2.FetchMessageRequest) -> bytes:
    return request.SerializeToString()
