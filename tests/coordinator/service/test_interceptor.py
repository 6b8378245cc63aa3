"""What a handler holds, and for how long: of streams that a client abandons, of requests that
never come."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest
from tests.loopback import Post, round_service, serving

from offsite.coordinator.service.interceptor import CALLS_PER_CLIENT
from offsite.coordinator.service.server import CALLS_PER_CONNECTION
from offsite.edge_client.channel import translated
from offsite.secure import limits
from offsite.secure.errors import PeerError, TransportError
from offsite.v1.rounds_pb2 import AwaitRequest
from offsite.v1.rounds_pb2_grpc import RoundServiceStub


@pytest.fixture
def post(tmp_path: Path) -> Post:
    return Post(tmp_path, "anna")


class Endless:
    """A method that streams for ever, and knows when it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.kept: list[AsyncIterator[bytes]] = []

    def stream(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        self.kept.append(self._blocks())  # so that no collector closes it
        return self.kept[-1]

    async def _blocks(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1024)
        finally:
            self.closed.set()

    def register(self, server: grpc.aio.Server) -> None:
        handlers = {"Stream": grpc.unary_stream_rpc_method_handler(self.stream)}
        handler = grpc.method_handlers_generic_handler("test.Endless", handlers)
        server.add_generic_rpc_handlers((handler,))


def test_an_abandoned_stream_is_closed_and_not_left_to_the_collector() -> None:
    endless = Endless()
    with serving(endless.register) as loopback, loopback.channel("anna") as channel:
        stream = channel.unary_stream("/test.Endless/Stream")(b"", timeout=60)
        assert next(iter(stream)) == bytes(1024)
        stream.cancel()
        assert endless.closed.wait(10)


@pytest.fixture
def silence() -> Iterator[Callable[[], Iterator[bytes]]]:
    """Requests of a client that sends headers and then nothing, until the test is over."""
    over = threading.Event()

    def make() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    yield make
    over.set()


@pytest.mark.parametrize("method", ["/test.Endless/Stream", "/offsite.v1.RoundService/Await"])
def test_headers_without_a_request_hold_a_call_for_the_deadline_only(
    post: Post,
    silence: Callable[[], Iterator[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    monkeypatch.setattr(limits, "CALL_DEADLINE_S", 0.01)
    with (
        serving(Endless().register, round_service(post.mailbox)) as loopback,
        loopback.channel("anna") as channel,
        pytest.raises(TransportError, match="expected the request within"),
        translated(),
    ):
        list(channel.stream_stream(method)(silence(), timeout=10))


@pytest.mark.parametrize(
    ("requests", "text"), [((), "found none"), ((b"\xff\xff",), "found other bytes")]
)
def test_a_request_that_is_none_is_the_peers_fault(
    post: Post, requests: tuple[bytes, ...], text: str
) -> None:
    with (
        serving(round_service(post.mailbox)) as loopback,
        loopback.channel("anna") as channel,
        pytest.raises(PeerError, match=text),
        translated(),
    ):
        channel.stream_unary("/offsite.v1.RoundService/Await")(iter(requests), timeout=10)


def test_the_calls_of_one_connection_leave_room_for_all_that_an_edge_does(post: Post) -> None:
    with (
        serving(Endless().register, round_service(post.mailbox, 0.2)) as loopback,
        loopback.channel("anna") as channel,
    ):
        stub = RoundServiceStub(channel)
        stream = channel.unary_stream("/test.Endless/Stream")(b"", timeout=60)
        polls = [stub.Await.future(AwaitRequest(status="waiting"), timeout=60) for _ in range(2)]
        assert next(iter(stream)) == bytes(1024)
        assert all(poll.result() is not None for poll in polls)
        stream.cancel()
    assert CALLS_PER_CONNECTION > CALLS_PER_CLIENT
