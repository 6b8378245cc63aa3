"""The coordinator's keys: made once by `init`, read by everything else.

    ca.pem, ca.key         P-256 CA of server and clients
    server.pem             P-256 key and certificate of the service, replaced while it serves
    authority.key          Ed25519 seed of the enrolment authority: signs the directory
    coordinator.key        Ed25519 seed of the coordinator: signs manifests, plans and sums
    bootstrap.seed         seed of the bootstrap CA; travels in every join token

Rule: one key, one purpose. The files are 0600; their protection is that of the machine.
"""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from offsite.coordinator.state import StateFolder
from offsite.secure import certificates, names
from offsite.secure.certificates import Authority as CertificateAuthority
from offsite.secure.certificates import Credential
from offsite.secure.identity import IdentityKey

SERVER_FILE: Final = "server.pem"
SEED_BYTES: Final = 32
RENEW_AT_SHARE: Final = 2 / 3
"""Share of a certificate's lifetime after which a new one is issued."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Every key of a coordinator; `repr` shows no secret."""

    ca: CertificateAuthority
    authority: IdentityKey
    coordinator: IdentityKey
    bootstrap_seed: bytes = field(repr=False)

    @property
    def bootstrap_ca_pem(self) -> bytes:
        return certificates.bootstrap_authority(self.bootstrap_seed).cert_pem

    @property
    def client_roots_pem(self) -> bytes:
        """The CAs whose clients pass the handshake; what they may call is decided later."""
        return self.ca.cert_pem + self.bootstrap_ca_pem


def create_keys(state: StateFolder, now_unix_s: float) -> Keys:
    """Makes and stores every key of a new coordinator."""
    ca = certificates.create_authority(_seed(), _serial(), now_unix_s)
    state.write_key("ca.pem", ca.cert_pem)
    state.write_key("ca.key", ca.key_pem)
    for name in ("authority.key", "coordinator.key", "bootstrap.seed"):
        state.write_key(name, _seed())
    return load_keys(state)


def load_keys(state: StateFolder) -> Keys:
    """Raises ConfigError when a file is missing or damaged."""
    return Keys(
        ca=CertificateAuthority(state.read_key("ca.pem"), state.read_key("ca.key")),
        authority=IdentityKey.from_seed(state.read_key("authority.key")),
        coordinator=IdentityKey.from_seed(state.read_key("coordinator.key")),
        bootstrap_seed=state.read_key("bootstrap.seed"),
    )


class ServerCertificate:
    """The service's credential, replaced when it is due; may be asked from any thread."""

    def __init__(
        self, state: StateFolder, keys: Keys, clock: Callable[[], float] = time.time
    ) -> None:
        self._state = state
        self._ca = keys.ca
        self._clock = clock
        self._lock = threading.Lock()
        self._credential = self._stored() or self._issue()

    def current(self) -> Credential:
        with self._lock:
            if is_due(self._credential.cert_pem, self._clock()):
                self._credential = self._issue()
            return self._credential

    def _stored(self) -> Credential | None:
        if not (self._state.keys / SERVER_FILE).exists():
            return None
        # One file for both, so that no crash leaves a key without its certificate.
        pem = self._state.read_key(SERVER_FILE)
        return Credential(cert_pem=pem, key_pem=pem)

    def _issue(self) -> Credential:
        key = certificates.tls_key_from_seed(_seed())
        cert_pem = certificates.issue_server(
            self._ca, key.public_key(), (names.SERVER_NAME,), _serial(), self._clock()
        )
        pem = certificates.tls_key_pem(key) + cert_pem
        self._state.write_key(SERVER_FILE, pem)
        return Credential(cert_pem=pem, key_pem=pem)


def is_due(cert_pem: bytes, now_unix_s: float) -> bool:
    """Whether a certificate should be replaced."""
    start, end = certificates.validity_unix_s(cert_pem)
    return now_unix_s >= start + (end - start) * RENEW_AT_SHARE


def _seed() -> bytes:
    return secrets.token_bytes(SEED_BYTES)


def _serial() -> bytes:
    return secrets.token_bytes(certificates.SERIAL_BYTES)
