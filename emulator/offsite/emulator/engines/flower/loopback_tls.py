"""Throw-away certificates for what listens on loopback.

Flower takes signed calls of nodes over TLS alone, on loopback as well. Each side makes a CA of its
own at every start and trusts it for the connections between its own processes, and for nothing else.
"""

import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from offsite.emulator.durable import write_atomic
from offsite.secure import certificates

HOST: Final = "127.0.0.1"
TTL_S: Final = 10 * 365 * 24 * 3600.0
"""Longer than any process lives; the key is gone with the folder."""


@dataclass(frozen=True, slots=True)
class LoopbackTls:
    """Files of a server on loopback, and of whoever calls it."""

    root: Path
    certificate: Path
    key: Path

    @property
    def root_pem(self) -> bytes:
        return self.root.read_bytes()

    def server_context(self) -> ssl.SSLContext:
        """For a server of ours."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """For calls to a server that has these files; believes nobody else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.root_pem.decode("ascii"))
        return context


def make_loopback_tls(folder: Path, now_unix_s: float) -> LoopbackTls:
    """New files in a private folder, in the place of those that were there."""
    ca = certificates.create_authority(
        secrets.token_bytes(certificates.SEED_BYTES), secrets.token_bytes(16), now_unix_s
    )
    key = certificates.tls_key_from_seed(secrets.token_bytes(certificates.SEED_BYTES))
    certificate = certificates.issue_server(
        ca, key.public_key(), [HOST], secrets.token_bytes(16), now_unix_s, TTL_S
    )
    made = LoopbackTls(folder / "root.pem", folder / "server.pem", folder / "server.key")
    write_atomic(made.root, ca.cert_pem)
    write_atomic(made.certificate, certificate)
    write_atomic(made.key, certificates.tls_key_pem(key))
    return made
