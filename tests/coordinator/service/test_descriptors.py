"""Connections cost descriptors: the server takes some of them, never all."""

import resource
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from tests.loopback import Loopback, serving

from offsite.coordinator.service import server
from offsite.coordinator.service.descriptors import (
    CONNECTIONS,
    connections_within,
    raise_descriptor_limit,
)
from offsite.secure import limits


@pytest.fixture
def soft_limit() -> Iterator[int]:
    """A soft limit below the hard one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, before[1]))
    yield lower
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_server_lifts_its_soft_limit(soft_limit: int) -> None:
    with serving():
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft > soft_limit or soft == hard
        assert raise_descriptor_limit() == soft


@pytest.mark.parametrize("descriptors", [256, 1024, 20_000, 65_536])
def test_connections_leave_half_of_the_descriptors(descriptors: int) -> None:
    assert 0 < connections_within(descriptors) <= min(descriptors // 2, CONNECTIONS)
    assert connections_within(65_536) >= limits.CLIENTS


def test_connections_that_are_too_many_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "connections_within", lambda descriptors: 4)
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 60.0)
    with serving() as loopback, silent(loopback, 12) as connections:
        closed: set[socket.socket] = set()
        while len(closed) < 8:
            found, _, _ = select.select(
                [one for one in connections if one not in closed], (), (), 10
            )
            assert found
            closed.update(found)
        assert all(has_ended(one) for one in closed)
        assert len(closed) == 8


def test_a_connection_that_stays_silent_gives_its_place_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "connections_within", lambda descriptors: 4)
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 0.2)
    with serving() as loopback, silent(loopback, 4) as connections:
        assert all(has_ended(one) for one in connections)
        with loopback.channel("anna") as channel:
            grpc.channel_ready_future(channel).result(10)


def test_a_handshake_exchanges_nothing_while_the_certificate_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []
    configuration = server._configuration
    monkeypatch.setattr(
        server, "_configuration", lambda *tls: made.append(tls) or configuration(*tls)
    )
    with serving() as loopback:
        for client_id in ("anna", "ben"):
            with loopback.channel(client_id) as channel:
                grpc.channel_ready_future(channel).result(10)
    assert len(made) == 1


@contextmanager
def silent(loopback: Loopback, count: int) -> Iterator[list[socket.socket]]:
    """Connections that never begin their handshake."""
    address = ("127.0.0.1", loopback.running.port)
    with ExitStack() as opened:
        yield [opened.enter_context(socket.create_connection(address, 10)) for _ in range(count)]


def has_ended(connection: socket.socket) -> bool:
    """Whether the server closes it within ten seconds."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
