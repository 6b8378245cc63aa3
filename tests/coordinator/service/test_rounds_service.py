"""Instructions and replies over the real service: long poll, resume, take-over, strangers."""

import asyncio
import hashlib
import queue
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tests.loopback import Loopback, Post, round_service, serving

from offsite.coordinator.mailbox import CampaignStatus, Outgoing, Phase
from offsite.coordinator.service import rounds
from offsite.coordinator.service.rounds import _unless_withdrawn
from offsite.secure import limits
from offsite.secure.errors import ERROR_KEY
from offsite.v1 import rounds_pb2 as pb
from offsite.v1.rounds_pb2_grpc import RoundServiceStub

ID = "a" * 32
INSTRUCTION = bytes(range(256)) * 2500  # two and a half chunks
REPLY = bytes(reversed(range(256))) * 2500
DIGEST = hashlib.sha256(REPLY).digest()


@pytest.fixture
def post(tmp_path: Path) -> Post:
    return Post(tmp_path, "anna", "ben")


@pytest.fixture
def loopback(post: Post) -> Iterator[Loopback]:
    with serving(round_service(post.mailbox)) as running:
        yield running


@pytest.fixture
def anna(loopback: Loopback) -> Iterator[RoundServiceStub]:
    with loopback.channel("anna") as channel:
        yield RoundServiceStub(channel)


def send_instruction(post: Post) -> None:
    post.mailbox.post(1, "1.1", [Outgoing(ID, "anna", [INSTRUCTION], time.time() + 60, 1 << 20)])


def header(offset: int = 0, data: bytes = REPLY) -> pb.UploadRequest:
    digest = hashlib.sha256(data).digest()
    return pb.UploadRequest(
        header=pb.UploadHeader(
            reply_to_message_id=ID, size_bytes=len(data), sha256=digest, offset=offset
        )
    )


def parts(data: bytes, offset: int = 0) -> Iterator[pb.UploadRequest]:
    yield header(offset, data)
    for start in range(offset, len(data), limits.CHUNK_BYTES):
        yield pb.UploadRequest(data=data[start : start + limits.CHUNK_BYTES])


def stored(stub: RoundServiceStub, digest: bytes = DIGEST) -> pb.GetUploadResponse:
    return stub.GetUpload(pb.GetUploadRequest(reply_to_message_id=ID, sha256=digest), timeout=30)


def error_name(failure: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    return dict(failure.value.trailing_metadata())[ERROR_KEY]


def test_a_waiting_client_gets_an_instruction_at_once(post: Post, anna: RoundServiceStub) -> None:
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(anna.Await, pb.AwaitRequest(status="waiting"), timeout=60)
        while "anna" not in post.mailbox._listeners:
            assert not waiting.done()
        post.mailbox.set_status(CampaignStatus(Phase.RUNNING))
        send_instruction(post)
        answer = waiting.result()
    assert answer.phase == pb.CAMPAIGN_PHASE_RUNNING
    assert answer.instruction.message_id == ID
    assert answer.instruction.sha256 == hashlib.sha256(INSTRUCTION).digest()
    client = post.store.clients.get("anna")
    assert client is not None and client.doing == "waiting"


def test_a_long_poll_ends_without_an_instruction(post: Post) -> None:
    with serving(round_service(post.mailbox, 0.0)) as loopback, loopback.channel("anna") as line:
        answer = RoundServiceStub(line).Await(pb.AwaitRequest(), timeout=30)
    assert answer.phase == pb.CAMPAIGN_PHASE_WAITING and not answer.HasField("instruction")


def test_waiting_clients_hear_the_end_and_why(post: Post, anna: RoundServiceStub) -> None:
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(anna.Await, pb.AwaitRequest(), timeout=60)
        while "anna" not in post.mailbox._listeners:
            assert not waiting.done()
        assert post.mailbox.told == frozenset()
        post.mailbox.set_status(CampaignStatus(Phase.FAILED, "too few updates"))
        answer = waiting.result()
    assert (answer.phase, answer.reason) == (pb.CAMPAIGN_PHASE_FAILED, "too few updates")
    assert post.mailbox.told == {"anna"}


def test_a_call_that_was_given_up_tells_nobody_the_end(post: Post, anna: RoundServiceStub) -> None:
    pulse = anna.Await.future(pb.AwaitRequest(status="tuning"), timeout=60)
    while "anna" not in post.mailbox._listeners:
        assert not pulse.done()
    pulse.cancel()  # as a busy edge does when its work is done
    while "anna" in post.mailbox._listeners:
        pass
    post.mailbox.set_status(CampaignStatus(Phase.ENDED))
    assert post.mailbox.told == frozenset()
    anna.Await(pb.AwaitRequest(), timeout=30)
    assert post.mailbox.told == {"anna"}


def test_an_edge_that_sends_its_update_after_the_end_is_told_again(
    post: Post, anna: RoundServiceStub
) -> None:
    send_instruction(post)
    post.mailbox.close(1, "1.1")
    post.mailbox.set_status(CampaignStatus(Phase.ENDED))
    anna.Await(pb.AwaitRequest(status="tuning"), timeout=30)
    with pytest.raises(grpc.RpcError, match="not known to you"):
        stored(anna)
    assert post.mailbox.told == frozenset()
    anna.Await(pb.AwaitRequest(status="waiting"), timeout=30)
    assert post.mailbox.told == {"anna"}


def test_an_abandoned_instruction_is_closed_with_its_stream(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    async def stream_file(path: Path, offset: int) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            yield b"second"
        finally:
            closed.append(path.name)

    async def abandon() -> None:
        stream = _unless_withdrawn(post.spool.instruction(ID), 0)
        assert await anext(stream) == b"first"
        await stream.aclose()
        assert closed == ["instruction"]  # at once, not when it is collected

    monkeypatch.setattr(rounds, "stream_file", stream_file)
    asyncio.run(abandon())


def test_an_instruction_is_streamed_from_any_chunk(post: Post, anna: RoundServiceStub) -> None:
    send_instruction(post)
    for offset in (0, limits.CHUNK_BYTES, len(INSTRUCTION)):
        request = pb.FetchMessageRequest(message_id=ID, offset=offset)
        found = [part.data for part in anna.FetchMessage(request, timeout=30)]
        assert b"".join(found) == INSTRUCTION[offset:]
        assert all(len(part) == limits.CHUNK_BYTES for part in found[:-1])


@pytest.mark.parametrize("offset", [1, limits.CHUNK_BYTES - 1, len(INSTRUCTION) + 1, 1 << 62])
def test_an_offset_within_a_chunk_is_refused(
    post: Post, anna: RoundServiceStub, offset: int
) -> None:
    send_instruction(post)
    with pytest.raises(grpc.RpcError, match="expected an offset") as failure:
        list(anna.FetchMessage(pb.FetchMessageRequest(message_id=ID, offset=offset), timeout=30))
    assert error_name(failure) == "PeerError"


def test_a_reply_is_acknowledged_when_it_is_durable(post: Post, anna: RoundServiceStub) -> None:
    send_instruction(post)
    assert anna.Upload(parts(REPLY), timeout=30).sha256 == DIGEST
    row = post.again().mailbox.get(ID)
    assert row is not None and row.reply_sha256 == DIGEST
    assert post.spool.reply(ID).read_bytes() == REPLY


def test_the_same_reply_again_gets_the_same_receipt(post: Post, anna: RoundServiceStub) -> None:
    send_instruction(post)
    receipts = {anna.Upload(parts(REPLY), timeout=30).sha256 for _ in range(2)}
    assert receipts == {DIGEST} and stored(anna).accepted


def test_another_reply_is_refused(post: Post, anna: RoundServiceStub) -> None:
    send_instruction(post)
    anna.Upload(parts(REPLY), timeout=30)
    with pytest.raises(grpc.RpcError, match="only the first counts") as failure:
        anna.Upload(parts(b"another"), timeout=30)
    assert error_name(failure) == "PeerError"
    assert post.spool.reply(ID).read_bytes() == REPLY


def test_a_cut_upload_goes_on_where_it_was(post: Post, anna: RoundServiceStub) -> None:
    send_instruction(post)
    sent: queue.Queue[pb.UploadRequest | None] = queue.Queue()
    for part in list(parts(REPLY))[:3]:
        sent.put(part)
    cut = anna.Upload.future(iter(sent.get, None), timeout=30)
    while stored(anna).stored_bytes < 2 * limits.CHUNK_BYTES:
        assert not cut.done()
    cut.cancel()
    sent.put(None)
    assert anna.Upload(parts(REPLY, stored(anna).stored_bytes), timeout=30).sha256 == DIGEST
    assert post.spool.reply(ID).read_bytes() == REPLY


def test_an_upload_takes_over_from_a_connection_that_is_dead(
    post: Post, anna: RoundServiceStub
) -> None:
    send_instruction(post)
    silent: queue.Queue[pb.UploadRequest | None] = queue.Queue()
    for part in list(parts(REPLY))[:2]:
        silent.put(part)
    older = anna.Upload.future(iter(silent.get, None), timeout=60)  # never sends the rest
    while stored(anna).stored_bytes < limits.CHUNK_BYTES:
        assert not older.done()
    assert anna.Upload(parts(REPLY, limits.CHUNK_BYTES), timeout=30).sha256 == DIGEST
    with pytest.raises(grpc.RpcError, match="took over"):
        older.result()
    silent.put(None)


def test_the_first_surplus_byte_stops_an_upload(post: Post, anna: RoundServiceStub) -> None:
    send_instruction(post)

    def surplus() -> Iterator[pb.UploadRequest]:
        yield header(0, REPLY)
        while True:  # the server's refusal ends it
            yield pb.UploadRequest(data=bytes(limits.CHUNK_BYTES))

    with pytest.raises(grpc.RpcError, match="found more: the upload was stopped"):
        anna.Upload(surplus(), timeout=60)
    assert not post.spool.reply(ID).exists()


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([], "expected the header"),
        ([pb.UploadRequest(data=b"x")], "expected the header"),
        ([header(), pb.UploadRequest(data=b"")], "empty or second header"),
        ([header(), header()], "empty or second header"),
        ([header(4)], "go on at byte 0"),
        ([header()], "resume the upload"),
    ],
)
def test_an_upload_out_of_order_is_refused(
    post: Post, anna: RoundServiceStub, requests: list[pb.UploadRequest], words: str
) -> None:
    send_instruction(post)
    with pytest.raises(grpc.RpcError, match=words) as failure:
        anna.Upload(iter(requests), timeout=30)
    assert error_name(failure) == "PeerError"


def test_a_late_reply_is_refused_clearly(post: Post, anna: RoundServiceStub) -> None:
    send_instruction(post)
    post.offset_s = 100
    for call in (lambda: stored(anna), lambda: anna.Upload(parts(REPLY), timeout=30)):
        with pytest.raises(grpc.RpcError, match="goes on without it") as failure:
            call()
        assert error_name(failure) == "ExpiredError"


def test_a_stranger_may_neither_fetch_nor_reply(post: Post, loopback: Loopback) -> None:
    send_instruction(post)
    with loopback.channel("ben") as line:
        ben = RoundServiceStub(line)
        for call in (
            lambda: list(ben.FetchMessage(pb.FetchMessageRequest(message_id=ID), timeout=30)),
            lambda: stored(ben),
            lambda: ben.Upload(parts(REPLY), timeout=30),
        ):
            with pytest.raises(grpc.RpcError, match="not known to you"):
                call()
    assert not post.spool.reply(ID).exists()
