"""Where a SuperNode believes its SuperLink to be: a server on loopback with our channel behind."""

import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from tests.loopback import serving

from offsite.edge_client.engines.flower.shim import Shim
from offsite.emulator.engines.flower.fleet_wire import (
    BODY_BYTES,
    HEADERS,
    PULL_MESSAGES,
    PUSH_OBJECT,
    chunks,
)
from offsite.emulator.engines.flower.loopback_tls import HOST, LoopbackTls, make_loopback_tls
from offsite.secure.errors import IdentityError
from offsite.v1 import fleet_pb2 as pb
from offsite.v1.fleet_pb2_grpc import FleetServiceServicer, add_FleetServiceServicer_to_server

SIGNED = {
    "content-type": "application/x-protobuf",
    "flwr-public-key": "a2V5",
    "flwr-timestamp": "2026-11-24T00:00:00+00:00",
    "flwr-signature": "c2lnbmVk",
}


class Coordinator(FleetServiceServicer):
    """Echoes a call, unless a test says otherwise."""

    def __init__(self) -> None:
        self.seen: list[pb.TunnelCall] = []
        self.refuses: grpc.StatusCode | None = None
        self.status = 200

    async def Tunnel(self, request_iterator, context):  # type: ignore[no-untyped-def]
        call, body = None, b""
        async for part in request_iterator:
            if part.HasField("call"):
                call = part.call
            else:
                body += part.data
        self.seen.append(call)
        if self.refuses is not None:
            await context.abort(self.refuses, "no")
        yield pb.TunnelResponse(answer=pb.TunnelAnswer(status=self.status, content_type="x/y"))
        for data in chunks(body):
            yield pb.TunnelResponse(data=data)


class Place:
    def __init__(self, shim: Shim, tls: LoopbackTls, coordinator: Coordinator) -> None:
        self.shim, self.tls, self.coordinator = shim, tls, coordinator

    def post(
        self, path: str, body: bytes = b"", headers: dict[str, str] = SIGNED
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(
            HOST, self.shim.port, timeout=60, context=self.tls.client_context()
        )
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    coordinator = Coordinator()
    tls = make_loopback_tls(tmp_path, time.time())
    with (
        serving(lambda server: add_FleetServiceServicer_to_server(coordinator, server)) as running,
        running.channel("a") as channel,
        Shim(channel, tls.server_context()) as shim,
    ):
        yield Place(shim, tls, coordinator)


def test_a_call_passes_with_its_body_and_the_headers_that_count(place: Place) -> None:
    body = bytes(range(256)) * 4096
    more = SIGNED | {"authorization": "Bearer x", "accept": "*/*", "cookie": "y"}
    assert place.post(PUSH_OBJECT, body, more) == (200, body)
    (call,) = place.coordinator.seen
    assert call.path == PUSH_OBJECT and dict(call.headers) == SIGNED
    assert set(call.headers) <= HEADERS


def test_several_calls_use_one_connection(place: Place) -> None:
    connection = http.client.HTTPSConnection(
        HOST, place.shim.port, timeout=60, context=place.tls.client_context()
    )
    for number in range(3):
        connection.request("POST", PULL_MESSAGES, b"%d" % number, SIGNED)
        assert connection.getresponse().read() == b"%d" % number
    connection.close()


@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/fleet/../runtime/x", "/docs", "/"])
def test_what_is_no_call_of_a_node_ends_here(place: Place, path: str) -> None:
    assert place.post(path) == (400, b"")
    assert place.coordinator.seen == []


def test_a_body_above_the_limit_ends_here_unread(place: Place) -> None:
    headers = SIGNED | {"content-length": str(BODY_BYTES + 1)}
    assert place.post(PUSH_OBJECT, b"", headers) == (400, b"")


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED]
)
def test_a_coordinator_that_cannot_answer_is_to_be_tried_again(
    place: Place, code: grpc.StatusCode
) -> None:
    place.coordinator.refuses = code
    assert place.post(PULL_MESSAGES) == (503, b"")
    place.shim.check()


def test_an_edge_that_was_revoked_hears_of_it_and_its_supernode_does_not(place: Place) -> None:
    place.coordinator.refuses = grpc.StatusCode.PERMISSION_DENIED
    assert place.post(PULL_MESSAGES) == (503, b"")
    with pytest.raises(IdentityError):
        place.shim.check()


def test_what_the_superlink_says_reaches_the_node(place: Place) -> None:
    place.coordinator.status = 401
    assert place.post(PULL_MESSAGES, b"x") == (401, b"x")


def test_silence_is_measured_from_the_last_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic() + 1000.0]
    clock: Callable[[], float] = lambda: now[0]
    monkeypatch.setattr("offsite.edge_client.engines.flower.shim.time.monotonic", clock)
    assert place.shim.silent_s >= 999.0
    place.post(PULL_MESSAGES)
    assert place.shim.silent_s == 0.0
