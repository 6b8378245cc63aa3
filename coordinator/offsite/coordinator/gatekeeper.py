"""Which peer stands behind a TLS certificate, and whether it takes part.

The handshake proves that one of two CAs signed the certificate and that the peer has its key. It
does not prove the name: holders of a join token can sign what they like with the bootstrap CA. So a
client is who its row says only if the certificate is the very one that was issued to it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from offsite.coordinator.authority import Authority
from offsite.coordinator.store import Store
from offsite.coordinator.tables.clients import CertificateRef, ClientRow
from offsite.secure import certificates, names
from offsite.secure.errors import IdentityError


class PeerRole(Enum):
    BOOTSTRAP = "bootstrap"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who calls, once the certificate was checked; a bootstrap peer has no client id."""

    role: PeerRole
    client_id: str = ""


class Gatekeeper:
    """Reads database and directory at every call, so a revocation acts at once."""

    def __init__(
        self,
        authority: Authority,
        store: Store,
        bootstrap_ca_pem: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._store = store
        self._bootstrap_ca_pem = bootstrap_ca_pem
        self._clock = clock

    def identify(self, cert_pem: bytes) -> Peer:
        """The peer of a certificate that passed the handshake.

        Raises:
            IdentityError: no role, another's name, a replaced certificate, one that lapsed while
                its connection stayed open, or revoked.

        Guarantees: a bootstrap certificate never passes for a client, whatever it claims
        (`test_a_bootstrap_certificate_that_claims_a_client_is_refused`); a revoked client is
        refused at its next call (`test_a_revoked_client_is_refused_at_its_next_call`).
        """
        # (1) The role, from the one URI in the certificate.
        uri = certificates.spiffe_id_of(cert_pem) or ""
        if uri == names.BOOTSTRAP_URI:
            return self._bootstrap_peer(cert_pem)
        client_id = names.client_id_from_uri(uri)
        if client_id is None:
            raise IdentityError(f"expected a client's certificate, found one for {uri[:100]!r}")
        # (2) The client's row, and that this certificate was issued to it.
        row = self._store.clients.get(client_id)
        issued = None if row is None else _issued(row, certificates.fingerprint(cert_pem))
        if row is None or issued is None:
            raise IdentityError(
                f"the certificate claims to be {client_id!r} but was not issued to it, or was "
                "replaced; join again"
            )
        if self._clock() > issued.expires_unix_s:
            raise IdentityError(
                f"the certificate of {client_id!r} has lapsed; ask for a new token and join with it"
            )
        # (3) An active entry in the signed directory.
        self._authority.directory().active(client_id)
        # (4) The first use of a renewed certificate ends the old one.
        if issued == row.next_certificate:
            self._store.clients.replace_certificate(client_id, issued)
        return Peer(PeerRole.CLIENT, client_id)

    def _bootstrap_peer(self, cert_pem: bytes) -> Peer:
        if not certificates.is_issued_by(cert_pem, self._bootstrap_ca_pem):
            raise IdentityError("expected a bootstrap certificate of a join token, found another")
        return Peer(PeerRole.BOOTSTRAP)


def _issued(row: ClientRow, fingerprint: bytes) -> CertificateRef | None:
    for issued in (row.certificate, row.next_certificate):
        if issued is not None and issued.fingerprint == fingerprint:
            return issued
    return None
