"""A real service on loopback over mutual TLS, whose peers are known by their certificate alone."""

import hashlib
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from offsite.coordinator.gatekeeper import Gatekeeper, Peer, PeerRole
from offsite.coordinator.mailbox import Mailbox
from offsite.coordinator.service.quotas import Quotas
from offsite.coordinator.service.rounds import RoundService
from offsite.coordinator.service.server import Register, RunningServer, ServerTls, start_server
from offsite.coordinator.spool import Spool
from offsite.coordinator.store import Store
from offsite.coordinator.tables.clients import CertificateRef
from offsite.secure import certificates, names
from offsite.v1.rounds_pb2_grpc import add_RoundServiceServicer_to_server


class Guests(Gatekeeper):
    """Believes the certificates of the CA."""

    def __init__(self) -> None:
        pass

    def identify(self, cert_pem: bytes) -> Peer:
        client_id = certificates.client_id_of(cert_pem)
        assert client_id is not None
        return Peer(PeerRole.CLIENT, client_id)


@dataclass
class Loopback:
    """A running server and channels to it."""

    running: RunningServer
    authority: certificates.Authority

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.running.port}"

    def credential(self, client_id: str) -> certificates.Credential:
        key = certificates.tls_key_from_seed(secrets.token_bytes(32))
        request = certificates.make_csr(key)
        cert_pem = certificates.issue_client(
            self.authority, request, client_id, secrets.token_bytes(16), time.time()
        )
        return certificates.Credential(cert_pem, certificates.tls_key_pem(key))

    @contextmanager
    def channel(self, client_id: str) -> Iterator[grpc.Channel]:
        with dial(self.address, self.authority.cert_pem, self.credential(client_id)) as channel:
            yield channel


@contextmanager
def dial(
    address: str, ca_pem: bytes, credential: certificates.Credential
) -> Iterator[grpc.Channel]:
    """A channel as the client of a certificate."""
    credentials = grpc.ssl_channel_credentials(ca_pem, credential.key_pem, credential.cert_pem)
    options = (
        ("grpc.ssl_target_name_override", names.SERVER_NAME),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    )
    with grpc.secure_channel(address, credentials, options=options) as channel:
        yield channel


@contextmanager
def serving(*services: Register, quotas: Quotas | None = None) -> Iterator[Loopback]:
    """Runs `services` for the time of the block."""
    now = time.time()
    authority = certificates.create_authority(secrets.token_bytes(32), secrets.token_bytes(16), now)
    key = certificates.tls_key_from_seed(secrets.token_bytes(32))
    cert_pem = certificates.issue_server(
        authority, key.public_key(), [names.SERVER_NAME], secrets.token_bytes(16), now
    )
    credential = certificates.Credential(cert_pem, certificates.tls_key_pem(key))
    tls = ServerTls(lambda: credential, authority.cert_pem)
    running = start_server("127.0.0.1:0", tls, Guests(), services, quotas)
    try:
        yield Loopback(running, authority)
    finally:
        running.stop(0.0)


def round_service(mailbox: Mailbox, long_poll_s: float = 20.0) -> Register:
    """Registers the real service of the rounds."""

    def register(server: grpc.aio.Server) -> None:
        add_RoundServiceServicer_to_server(RoundService(mailbox, long_poll_s), server)

    return register


class Post:
    """Store, spool and mailbox in one folder; opened again, as after a kill, with `again`."""

    def __init__(self, folder: Path, *client_ids: str) -> None:
        self.folder = folder
        self.offset_s = 0.0
        self.store = Store(folder / "coordinator.sqlite")
        self.spool = Spool(folder / "spool")
        for client_id in client_ids:
            if self.store.clients.get(client_id) is None:
                identity = hashlib.sha256(client_id.encode()).digest()
                certificate = CertificateRef(identity, time.time() + 3600)
                self.store.clients.add(client_id, identity, certificate, time.time())
        self.mailbox = Mailbox(self.store, self.spool, self.clock)

    def clock(self) -> float:
        return time.time() + self.offset_s

    def again(self) -> "Post":
        self.store.close()
        return Post(self.folder)
