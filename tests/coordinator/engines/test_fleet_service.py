"""The way of a SuperNode through our port, over real mutual TLS."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.coordinator.engines.test_tunnel import Place, signed
from tests.loopback import Loopback, serving

from offsite.coordinator.engines.flower.tunnel import FleetTunnel
from offsite.coordinator.service.fleet import FleetService
from offsite.coordinator.service.server import Register
from offsite.emulator.engines.flower.fleet_wire import (
    BODY_BYTES,
    PULL_MESSAGES,
    PUSH_OBJECT,
    FleetAnswer,
    chunks,
)
from offsite.secure import limits
from offsite.v1 import fleet_pb2 as pb
from offsite.v1.fleet_pb2_grpc import FleetServiceStub, add_FleetServiceServicer_to_server


def fleet_service(tunnel: FleetTunnel | None) -> Register:
    return lambda server: add_FleetServiceServicer_to_server(FleetService(tunnel), server)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.tunnel.close()


@pytest.fixture
def loopback(place: Place) -> Iterator[Loopback]:
    with serving(fleet_service(place.tunnel)) as running:
        yield running


def tunnelled(
    stub: FleetServiceStub, path: str, headers: dict[str, str], body: bytes
) -> FleetAnswer:
    def parts() -> Iterator[pb.TunnelRequest]:
        yield pb.TunnelRequest(call=pb.TunnelCall(path=path, headers=headers))
        for data in chunks(body):
            yield pb.TunnelRequest(data=data)

    first, *rest = stub.Tunnel(parts(), timeout=60)
    return FleetAnswer(
        first.answer.status, first.answer.content_type, b"".join(part.data for part in rest)
    )


def test_large_bodies_pass_both_ways_in_parts(place: Place, loopback: Loopback) -> None:
    body, answer = bytes(range(256)) * 24_000, bytes(range(255, -1, -1)) * 24_000
    place.superlink.answers = [FleetAnswer(200, "application/x-protobuf", answer)]
    with loopback.channel("a") as channel:
        found = tunnelled(FleetServiceStub(channel), PUSH_OBJECT, signed(place.pems["a"]), body)
    assert found == FleetAnswer(200, "application/x-protobuf", answer)
    assert place.superlink.calls[0].body == body


def test_what_the_superlink_refuses_reaches_the_node_as_it_was(
    place: Place, loopback: Loopback
) -> None:
    place.superlink.answers = [FleetAnswer(401, "application/json", b"{}")]
    with loopback.channel("a") as channel:
        found = tunnelled(FleetServiceStub(channel), PULL_MESSAGES, signed(place.pems["a"]), b"")
    assert found == FleetAnswer(401, "application/json", b"{}")


@pytest.mark.parametrize(
    ("path", "key", "code"),
    [
        ("/v1/control/start-run", "a", grpc.StatusCode.INVALID_ARGUMENT),
        ("/v1/runtime/acquire-task", "a", grpc.StatusCode.INVALID_ARGUMENT),
        (PULL_MESSAGES, "b", grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_what_must_not_pass_ends_before_its_body_is_read(
    place: Place, loopback: Loopback, path: str, key: str, code: grpc.StatusCode
) -> None:
    with loopback.channel("a") as channel, pytest.raises(grpc.RpcError) as raised:
        tunnelled(FleetServiceStub(channel), path, signed(place.pems[key]), bytes(1 << 20))
    assert raised.value.code() is code  # type: ignore[attr-defined]
    assert place.superlink.calls == []


def test_a_body_above_the_limit_is_cut_and_not_read_to_its_end(
    place: Place, loopback: Loopback
) -> None:
    headers, part = signed(place.pems["a"]), bytes(limits.CHUNK_BYTES)
    many, sent = 8 * BODY_BYTES // len(part), []

    def parts() -> Iterator[pb.TunnelRequest]:
        yield pb.TunnelRequest(call=pb.TunnelCall(path=PUSH_OBJECT, headers=headers))
        for number in range(many):
            sent.append(number)
            yield pb.TunnelRequest(data=part)

    with loopback.channel("a") as channel, pytest.raises(grpc.RpcError) as raised:
        list(FleetServiceStub(channel).Tunnel(parts(), timeout=60))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert place.superlink.calls == [] and len(sent) < many


def test_an_edge_learns_the_engine(loopback: Loopback) -> None:
    with loopback.channel("a") as channel:
        assert FleetServiceStub(channel).GetEngine(pb.GetEngineRequest()).engine == pb.ENGINE_FLOWER
    with serving(fleet_service(None)) as plain, plain.channel("a") as channel:
        stub = FleetServiceStub(channel)
        assert stub.GetEngine(pb.GetEngineRequest()).engine == pb.ENGINE_GRPC
        with pytest.raises(grpc.RpcError) as raised:
            tunnelled(stub, PULL_MESSAGES, {}, b"")
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_a_client_tells_its_own_key(place: Place, loopback: Loopback) -> None:
    with loopback.channel("c") as channel:
        pem = place.pems["a"]
        with pytest.raises(grpc.RpcError) as raised:
            FleetServiceStub(channel).RegisterNode(pb.RegisterNodeRequest(public_key_pem=pem))
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]
    assert place.let_in == []
