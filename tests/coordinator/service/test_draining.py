"""A service that is stopped: what is coming in ends, nothing else begins, nothing is lost."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from tests.loopback import Loopback, Post, serving

from offsite.coordinator.mailbox import Outgoing
from offsite.coordinator.service.draining import drained
from offsite.coordinator.service.rounds import RoundService
from offsite.v1 import rounds_pb2 as pb
from offsite.v1.rounds_pb2_grpc import RoundServiceStub, add_RoundServiceServicer_to_server

DATA = bytes(range(256)) * 4096
SHA256 = sha256(DATA).digest()


class Stopped:
    """A service with one message to anna; `stop` interrupts it as a signal would."""

    def __init__(self, folder: Path) -> None:
        self.post = Post(folder, "anna", "ben")
        self.rounds = RoundService(self.post.mailbox)
        outgoing = Outgoing("a" * 32, "anna", [b"instruction"], self.post.clock() + 3600, len(DATA))
        self.post.mailbox.post(1, "1.1", [outgoing])
        self.said: list[str] = []

    def stop(self, loopback: Loopback, drain_s: float) -> None:
        with (
            pytest.raises(KeyboardInterrupt),
            drained(loopback.running, self.rounds, self.said.append, drain_s),
        ):
            raise KeyboardInterrupt


@pytest.fixture
def stopped(tmp_path: Path) -> Stopped:
    return Stopped(tmp_path)


class Slow:
    """An upload whose second half is sent when it may be."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def __iter__(self) -> Iterator[pb.UploadRequest]:
        header = pb.UploadHeader(
            reply_to_message_id="a" * 32, size_bytes=len(DATA), sha256=SHA256, offset=0
        )
        half = len(DATA) // 2
        yield pb.UploadRequest(header=header)
        for start in range(0, half, 1 << 18):
            yield pb.UploadRequest(data=DATA[start : start + (1 << 18)])
        self.may_end.wait(60)
        for start in range(half, len(DATA), 1 << 18):
            yield pb.UploadRequest(data=DATA[start : start + (1 << 18)])


def _until(condition) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it never came to that")


def _stored(stopped: Stopped) -> int | None:
    return stopped.post.mailbox.stored_bytes("anna", "a" * 32, SHA256)


def test_an_upload_under_way_ends_and_nothing_new_begins(stopped: Stopped) -> None:
    slow = Slow()
    with (
        serving(lambda s: add_RoundServiceServicer_to_server(stopped.rounds, s)) as loopback,
        loopback.channel("anna") as channel,
        loopback.channel("ben") as bens,
        ThreadPoolExecutor(3) as pool,
    ):
        upload = pool.submit(lambda: RoundServiceStub(channel).Upload(iter(slow)))
        waiting = pool.submit(lambda: RoundServiceStub(bens).Await(pb.AwaitRequest()))
        _until(lambda: _stored(stopped) == len(DATA) // 2)
        stopping = pool.submit(stopped.stop, loopback, 60.0)
        # Who waits is told at once; while the first upload goes on, a second one is refused.
        with pytest.raises(grpc.RpcError) as told:
            waiting.result(60)
        with pytest.raises(grpc.RpcError) as refused:
            RoundServiceStub(bens).Upload(iter(Slow()), timeout=60)
        slow.may_end.set()
        assert upload.result(60).sha256 == SHA256
        stopping.result(60)
    assert told.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refused.value.code() is not grpc.StatusCode.OK
    assert _stored(stopped) is None  # accepted
    assert stopped.said == ["stopping: 1 uploads may end, within 60 s"]


def test_an_upload_that_takes_too_long_is_cut_and_resumed(stopped: Stopped) -> None:
    slow = Slow()
    with (
        serving(lambda s: add_RoundServiceServicer_to_server(stopped.rounds, s)) as loopback,
        loopback.channel("anna") as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        upload = pool.submit(lambda: RoundServiceStub(channel).Upload(iter(slow)))
        _until(lambda: _stored(stopped) == len(DATA) // 2)
        stopped.stop(loopback, 0.01)
        with pytest.raises(grpc.RpcError):
            upload.result(60)
        slow.may_end.set()
    again = stopped.post.again()
    assert again.mailbox.stored_bytes("anna", "a" * 32, SHA256) == len(DATA) // 2
    assert "cut" in stopped.said[-1]
