"""What passes to the SuperLink behind our port, and what does not."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from offsite.coordinator.engines.flower.node_keys import NodeKeys
from offsite.coordinator.engines.flower.tunnel import FRAME_BYTES, Bell, FleetTunnel
from offsite.emulator.engines.flower.children import BoundedLog
from offsite.emulator.engines.flower.fleet_wire import (
    BODY_BYTES,
    PULL_MESSAGES,
    PUSH_OBJECT,
    FleetAnswer,
    FleetCall,
)
from offsite.secure.errors import IdentityError, PeerError, PolicyError

NOTHING = FleetAnswer(200, "application/x-protobuf", b"")
MESSAGE = FleetAnswer(200, "application/x-protobuf", b"a message")


def public_pem(curve: ec.EllipticCurve | None = None) -> bytes:
    key = ec.generate_private_key(curve or ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signed(pem: bytes) -> dict[str, str]:
    return {
        "content-type": "application/x-protobuf",
        "flwr-public-key": base64.b64encode(pem).decode(),
        "flwr-timestamp": "2026-11-24T00:00:00+00:00",
        "flwr-signature": "c2lnbmVk",
    }


class SuperLinkStub:
    """Answers with what was put into it, then with nothing."""

    def __init__(self) -> None:
        self.answers: list[FleetAnswer] = []
        self.calls: list[FleetCall] = []

    def __call__(self, call: FleetCall) -> FleetAnswer:
        self.calls.append(call)
        return self.answers.pop(0) if self.answers else NOTHING


class Place:
    """A tunnel with two clients that told their keys."""

    def __init__(self, folder: Path, hold_s: float = 0.0) -> None:
        self.keys = NodeKeys(folder / "nodes")
        self.pems = {name: self.keys.set(name, public_pem()) for name in ("a", "b")}
        self.superlink, self.bell = SuperLinkStub(), Bell()
        self.let_in: list[tuple[bytes, str]] = []
        self.log = folder / "tunnel.log"
        self.audit = BoundedLog(self.log)
        self.tunnel = FleetTunnel(
            self.superlink,
            lambda pem, name: self.let_in.append((pem, name)),
            self.keys,
            self.bell,
            self.audit,
            most_reply_bytes=1000,
            hold_s=hold_s,
        )

    def ask(self, name: str, path: str, body: bytes = b"") -> FleetAnswer:
        headers = signed(self.pems[name])
        self.tunnel.check(name, path, headers)
        return asyncio.run(self.tunnel.answer(name, FleetCall(path, headers, body)))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.tunnel.close()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages HTTP/1.1\r\nHost: x",
        "/V1/FLEET/PULL-MESSAGES",
        "/docs",
        "/openapi.json",
        "",
    ],
)
def test_nothing_passes_but_the_calls_of_a_node(place: Place, path: str) -> None:
    with pytest.raises(PeerError, match="Fleet API"):
        place.ask("a", path)
    assert place.superlink.calls == []


@pytest.mark.parametrize(
    "more",
    [
        {"authorization": "Bearer x"},
        {"flwr-task-token": "x"},
        {"flwr-superexec-signature": "x"},
        {"flwr-signature": "x\r\nhost: elsewhere"},
        {"flwr-signature": "x" * 2000},
    ],
)
def test_no_header_passes_but_those_that_a_node_signs_with(
    place: Place, more: dict[str, str]
) -> None:
    with pytest.raises(PeerError, match="headers"):
        place.tunnel.check("a", PULL_MESSAGES, signed(place.pems["a"]) | more)


def test_a_call_with_another_clients_key_is_refused_and_noted(place: Place) -> None:
    with pytest.raises(IdentityError, match="node key of a"):
        place.tunnel.check("a", PULL_MESSAGES, signed(place.pems["b"]))
    assert "a /v1/fleet/pull-messages 0 bytes up, refused" in place.log.read_text()


def test_a_call_without_a_key_or_of_a_client_that_told_none_is_refused(place: Place) -> None:
    for name, headers in (("a", {}), ("a", {"flwr-public-key": "no base64"}), ("c", {})):
        with pytest.raises(IdentityError):
            place.tunnel.check(name, PULL_MESSAGES, headers)


def test_every_call_is_a_line_of_the_audit(place: Place) -> None:
    place.superlink.answers = [MESSAGE]
    place.ask("a", PULL_MESSAGES, b"question")
    line = place.log.read_text().splitlines()[-1]
    assert line.split(maxsplit=1)[1] == f"a {PULL_MESSAGES} 8 bytes up, 200, 9 bytes down"


def test_a_question_is_held_until_there_is_a_message(tmp_path: Path) -> None:
    place = Place(tmp_path, hold_s=600.0)

    async def scene() -> FleetAnswer:
        headers = signed(place.pems["a"])
        asked = asyncio.create_task(
            place.tunnel.answer("a", FleetCall(PULL_MESSAGES, headers, b""))
        )
        while not place.superlink.calls:
            await asyncio.sleep(0)
        place.superlink.answers = [MESSAGE]
        while not asked.done():
            place.bell.ring()
            await asyncio.sleep(0)
        return await asked

    assert asyncio.run(scene()) == MESSAGE
    place.tunnel.close()


def test_a_question_is_not_held_for_ever(place: Place) -> None:
    assert place.ask("a", PULL_MESSAGES) == NOTHING


def test_between_two_instructions_a_client_pushes_no_more_than_a_reply(place: Place) -> None:
    part = b"x" * (FRAME_BYTES // 2)
    place.ask("a", PUSH_OBJECT, part)
    place.ask("a", PUSH_OBJECT, part)
    with pytest.raises(PolicyError, match="wait for the next"):
        place.ask("a", PUSH_OBJECT, part)
    place.ask("b", PUSH_OBJECT, part)  # every client has its own
    place.superlink.answers = [MESSAGE]
    place.ask("a", PULL_MESSAGES)
    place.ask("a", PUSH_OBJECT, part)


def test_a_body_above_the_limit_is_refused(place: Place) -> None:
    with pytest.raises(PeerError, match="at most"):
        place.ask("a", PUSH_OBJECT, bytes(BODY_BYTES + 1))


def test_a_key_is_kept_and_shown_to_the_superlink(place: Place, tmp_path: Path) -> None:
    pem = public_pem()
    asyncio.run(place.tunnel.register("c", pem))
    assert place.let_in == [(pem, "c")]
    assert NodeKeys(tmp_path / "nodes").of("c") == pem  # also after a restart


def test_nobody_takes_another_clients_key(place: Place) -> None:
    with pytest.raises(IdentityError, match="another client"):
        place.keys.set("a", place.pems["b"])
    assert place.keys.of("a") == place.pems["a"]


@pytest.mark.parametrize(
    "pem", [b"", b"no key", b"x" * 5000, public_pem(ec.SECP256R1()), b"-----BEGIN PUBLIC KEY-----"]
)
def test_only_keys_of_p384_are_taken(place: Place, pem: bytes) -> None:
    with pytest.raises(IdentityError, match="P-384"):
        place.keys.set("a", pem)
