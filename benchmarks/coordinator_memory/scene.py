"""What both processes of a measurement find in the work folder: certificates and names."""

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from offsite.coordinator.gatekeeper import Gatekeeper, Peer, PeerRole
from offsite.coordinator.mailbox import Mailbox
from offsite.coordinator.service.rounds import RoundService
from offsite.coordinator.service.server import RunningServer, ServerTls, start_server
from offsite.coordinator.spool import Spool
from offsite.coordinator.store import Store
from offsite.coordinator.tables.clients import CertificateRef
from offsite.edge_client.channel import channel_options
from offsite.secure import certificates, names
from offsite.v1.rounds_pb2_grpc import add_RoundServiceServicer_to_server

LIFE_S = 86_400.0


class Guests(Gatekeeper):
    """Believes the certificates of the CA: enrolment is not what is measured."""

    def __init__(self) -> None:
        """Needs no database."""

    def identify(self, cert_pem: bytes) -> Peer:
        client_id = certificates.client_id_of(cert_pem)
        assert client_id is not None
        return Peer(PeerRole.CLIENT, client_id)


def client_name(index: int) -> str:
    """The clients of a measurement."""
    return f"edge-{index:03}"


def write_certificates(work: Path, clients: int) -> None:
    """A CA, the server's certificate, and one for each client."""
    now = time.time()
    authority = certificates.create_authority(secrets.token_bytes(32), secrets.token_bytes(16), now)
    key = certificates.tls_key_from_seed(secrets.token_bytes(32))
    server_pem = certificates.issue_server(
        authority,
        key.public_key(),
        [names.SERVER_NAME, "127.0.0.1"],
        secrets.token_bytes(16),
        now,
    )
    (work / "ca.pem").write_bytes(authority.cert_pem)
    (work / "server.pem").write_bytes(server_pem)
    (work / "server.key").write_bytes(certificates.tls_key_pem(key))
    for index in range(clients):
        name = client_name(index)
        key = certificates.tls_key_from_seed(secrets.token_bytes(32))
        request = certificates.make_csr(key)
        cert_pem = certificates.issue_client(authority, request, name, secrets.token_bytes(16), now)
        pair = {"key": certificates.tls_key_pem(key).decode(), "cert": cert_pem.decode()}
        (work / f"{name}.json").write_text(json.dumps(pair))


@contextmanager
def connected(work: Path, port: int, name: str) -> Iterator[grpc.Channel]:
    """The channel of one client."""
    pair = json.loads((work / f"{name}.json").read_text())
    credentials = grpc.ssl_channel_credentials(
        (work / "ca.pem").read_bytes(), pair["key"].encode(), pair["cert"].encode()
    )
    options = channel_options()
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        yield channel


def open_store(work: Path, clients: int) -> Store:
    """A database in which every client is enrolled."""
    store = Store(work / "coordinator.sqlite")
    now = time.time()
    for index in range(clients):
        name = client_name(index)
        if store.clients.get(name) is None:
            store.clients.add(
                name, name.encode().ljust(32), CertificateRef(name.encode(), now + LIFE_S), now
            )
    return store


def serve(work: Path, store: Store) -> tuple[RunningServer, Mailbox]:
    """The service of the rounds over mutual TLS."""
    mailbox = Mailbox(store, Spool(work / "spool"))
    credential = certificates.Credential(
        (work / "server.pem").read_bytes(), (work / "server.key").read_bytes()
    )
    tls = ServerTls(lambda: credential, (work / "ca.pem").read_bytes())
    register = [lambda server: add_RoundServiceServicer_to_server(RoundService(mailbox), server)]
    return start_server("127.0.0.1:0", tls, Guests(), register), mailbox
