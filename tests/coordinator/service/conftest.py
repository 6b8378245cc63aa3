"""A real coordinator service on loopback, and edges that join it over mutual TLS."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from offsite.coordinator.authority import Authority
from offsite.coordinator.gatekeeper import Gatekeeper
from offsite.coordinator.keys import ServerCertificate, create_keys
from offsite.coordinator.service.enrolment import EnrolmentService
from offsite.coordinator.service.server import Register, RunningServer, ServerTls, start_server
from offsite.coordinator.state import StateFolder
from offsite.coordinator.store import Store
from offsite.edge_client.enrol import enrol
from offsite.edge_client.state import EdgeState
from offsite.secure import names
from offsite.secure.token import JoinToken
from offsite.v1.enrolment_pb2_grpc import add_EnrolmentServiceServicer_to_server


class Clock:
    """The real time plus an offset that a test moves."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset_s


class Coordinator:
    """State folder, authority and running server; everything a test may look into."""

    def __init__(self, root: Path, services: tuple[Register, ...] = ()) -> None:
        self.clock = Clock()
        self.state = StateFolder.create(root)
        self.keys = create_keys(self.state, self.clock())
        self.store = Store(self.state.database)
        self.authority = Authority(self.keys, self.store, self.clock)
        self.certificate = ServerCertificate(self.state, self.keys, self.clock)
        self.server = self._start(services)

    def _start(self, services: tuple[Register, ...]) -> RunningServer:
        gatekeeper = Gatekeeper(self.authority, self.store, self.keys.bootstrap_ca_pem, self.clock)
        enrolment = EnrolmentService(self.authority)
        return start_server(
            "127.0.0.1:0",
            ServerTls(self.certificate.current, self.keys.client_roots_pem),
            gatekeeper,
            (lambda server: add_EnrolmentServiceServicer_to_server(enrolment, server), *services),
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def invite(self, client_id: str) -> JoinToken:
        return self.authority.invite(client_id, self.address)

    def close(self) -> None:
        self.server.stop(0.0)
        self.store.close()
        self.state.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Coordinator]]:
    """Starts coordinators, each with its own state, with further services if given."""
    started: list[Coordinator] = []

    def make(*services: Register) -> Coordinator:
        started.append(Coordinator(tmp_path / f"coordinator-{len(started)}", services))
        return started[-1]

    yield make
    for coordinator in started:
        coordinator.close()


@pytest.fixture
def coordinator(start: Callable[..., Coordinator]) -> Coordinator:
    return start()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Callable[[str], EdgeState]]:
    """Opens edge state folders by name."""
    opened: list[EdgeState] = []

    def make(name: str) -> EdgeState:
        opened.append(EdgeState.open(tmp_path / f"edge-{name}"))
        return opened[-1]

    yield make
    for state in opened:
        state.close()


@pytest.fixture
def join(
    edge: Callable[[str], EdgeState],
) -> Callable[[Coordinator, str], EdgeState]:
    """Invites and enrols an edge."""

    def make(coordinator: Coordinator, client_id: str) -> EdgeState:
        state = edge(client_id)
        enrol(coordinator.invite(client_id), state)
        return state

    return make


@pytest.fixture
def dial(coordinator: Coordinator) -> Iterator[Callable[[bytes, bytes], grpc.Channel]]:
    """Channels with any certificate and key (PEM) to `coordinator`, with no limits of their own."""
    channels: list[grpc.Channel] = []

    def make(cert_pem: bytes, key_pem: bytes) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(coordinator.keys.ca.cert_pem, key_pem, cert_pem)
        options = [
            ("grpc.ssl_target_name_override", names.SERVER_NAME),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
        ]
        channels.append(grpc.secure_channel(coordinator.address, credentials, options))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()
