"""Sends a reply to the coordinator, as often as it takes, never twice.

    GetUpload ──> accepted? done
        └── bytes stored there ──> Upload from that byte ──> receipt with the digest

The reply is a file and stays one until the receipt is here: a kill at any moment only means that
the next run asks again how much the coordinator has. Nothing is held in memory but a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from offsite.edge_client.resume import Persistence
from offsite.emulator.durable import sha256_of
from offsite.emulator.progress import Report, silent
from offsite.secure import limits
from offsite.secure.errors import IntegrityError
from offsite.v1 import rounds_pb2 as pb
from offsite.v1 import rounds_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply on the disk."""

    message_id: str
    path: Path
    size: int
    sha256: bytes

    @classmethod
    def of(cls, message_id: str, path: Path) -> "Reply":
        """Reads the file once, for its digest."""
        return cls(message_id, path, path.stat().st_size, sha256_of(path))


def upload_reply(
    channel: grpc.Channel, reply: Reply, persistence: Persistence, report: Report = silent
) -> None:
    """Returns once the coordinator has acknowledged the reply as durable.

    Raises:
        ExpiredError: the deadline has passed; the round goes on without this edge.
        PeerError: the message was withdrawn, or answered differently before.
        TransportError: the coordinator cannot be reached.
    """
    stub = pb_grpc.RoundServiceStub(channel)
    stored = 0

    def send() -> None:
        nonlocal stored
        question = pb.GetUploadRequest(reply_to_message_id=reply.message_id, sha256=reply.sha256)
        known = stub.GetUpload(question, timeout=limits.CALL_DEADLINE_S)
        stored = known.stored_bytes
        if not known.accepted:
            parts = _parts(reply, stored, report)
            receipt = stub.Upload(parts, timeout=limits.STREAM_DEADLINE_S)
            if receipt.sha256 != reply.sha256:
                raise IntegrityError(
                    "expected a receipt for the reply that was sent, found another"
                )
        report(reply.size, reply.size)

    try:
        persistence.run(send, lambda: stored)
    except IntegrityError:
        # What a power cut left on the coordinator's disk was not what it seemed: it dropped that,
        # and a second time would be another reason.
        persistence.run(send, lambda: stored)


def _parts(reply: Reply, offset: int, report: Report) -> Iterator[pb.UploadRequest]:
    """The header, then the bytes from `offset` on; read by a thread of gRPC at the peer's pace."""
    yield pb.UploadRequest(
        header=pb.UploadHeader(
            reply_to_message_id=reply.message_id,
            size_bytes=reply.size,
            sha256=reply.sha256,
            offset=offset,
        )
    )
    with reply.path.open("rb", buffering=0) as file:
        file.seek(offset)
        while data := file.read(limits.CHUNK_BYTES):
            offset += len(data)
            yield pb.UploadRequest(data=data)
            report(offset, reply.size)
