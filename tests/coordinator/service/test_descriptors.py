"""Connections cost descriptors: the server takes some of them, never all."""

import resource
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest
from tests.loopback import serving

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


def test_one_connection_too_many_is_closed_and_a_silent_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "connections_within", lambda descriptors: 4)
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 0.5)
    with serving() as loopback, ExitStack() as opened:
        port = loopback.running.port
        silent = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            for _ in range(12)
        ]
        first, _, _ = select.select(silent, [], [], 10)
        assert 0 < len(first) <= 8  # those that were too many
        for one in silent:
            one.settimeout(20)
            assert ended(one)
        # They hold nothing any more.
        with loopback.channel("anna") as channel:
            server_ready(channel)


def ended(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def server_ready(channel: grpc.Channel) -> None:
    grpc.channel_ready_future(channel).result(10)
