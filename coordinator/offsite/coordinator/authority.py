"""The enrolment authority: who may join, who joined, who was revoked.

A shell around `offsite.secure`: it brings clock, randomness and the database to the rules there.
Notable: an enrolment is one transaction (invite used, client row, next directory), so a crash
leaves a token that still works; and the same identity key may use its token again, so an edge that
lost the answer just asks once more. A client whose certificate lapsed is invited again under its
name; only its own identity key can use that token. Rule: whatever is refused, no accepted client is
touched.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from offsite.coordinator.addresses import check_reachable
from offsite.coordinator.keys import Keys
from offsite.coordinator.store import Store
from offsite.coordinator.tables.clients import CertificateRef, ClientStatus
from offsite.coordinator.tables.invites import InviteRow
from offsite.secure import certificates, directory, envelope, limits, names, token
from offsite.secure.directory import Directory, DirectoryEntry, Role, Status
from offsite.secure.envelope import Envelope
from offsite.secure.errors import (
    ConfigError,
    ExpiredError,
    IdentityError,
    TokenError,
    TransportError,
)
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.token import JoinToken

COORDINATOR_NAME: Final = "coordinator"
"""Name of the coordinator's own entry in the directory."""
NONCE_TTL_S: Final = 60.0
NONCES_PER_TOKEN: Final = 32
"""Attempts of one token that may be under way."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a newcomer sends: its token's id, the nonce, its keys and the proofs."""

    token_id: bytes
    nonce: bytes
    csr_der: bytes
    identity_key: bytes
    identity_proof: bytes
    token_proof: bytes


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What an accepted newcomer gets."""

    client_id: str
    certificate_chain_pem: bytes
    directory: Envelope


class Authority:
    """Decides about membership; every method is one durable decision."""

    def __init__(self, keys: Keys, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._store = store
        self._clock = clock
        self._newest: tuple[int, Directory] = (0, Directory())
        with store.transaction():
            if store.directories.newest_version() == 0:
                self._publish(Directory().with_entry(self._own_entry()))

    def invite(self, client_id: str, address: str, ttl_s: float = limits.INVITE_TTL_S) -> JoinToken:
        """A one-time token for a new client, or for an active one that has to join again.

        An unused token for the same name stops working.

        Raises:
            ConfigError: the name, the address or the time is not allowed.
        """
        if not names.is_client_id(client_id) or self._is_taken(client_id):
            raise ConfigError(
                f"{client_id[:80]!r} is no name to invite: expected 1 to 64 of a-z, 0-9 and '-', "
                "neither revoked nor the coordinator's own"
            )
        if not 0 < ttl_s <= limits.INVITE_TTL_S:
            raise ConfigError(f"an invitation may last up to {limits.INVITE_TTL_S} s, not {ttl_s}")
        invited = JoinToken(
            token_id=secrets.token_bytes(token.TOKEN_ID_BYTES),
            secret=secrets.token_bytes(token.SECRET_BYTES),
            bootstrap_seed=self._keys.bootstrap_seed,
            ca_cert_der=self._keys.ca.cert_der,
            directory_key=self._keys.authority.public.raw,
            address=check_reachable(address),
        )
        now = self._clock()
        self._store.invites.add(
            invited.token_id, client_id, token.proof_key(invited.secret), now, now + ttl_s
        )
        return invited

    def challenge(self, token_id: bytes) -> bytes:
        """A fresh nonce for one attempt with a token that may still be used."""
        now = self._clock()
        self._open_invite(token_id, now)
        nonce = secrets.token_bytes(token.NONCE_BYTES)
        with self._store.transaction():
            alive = self._store.invites.add_nonce(nonce, token_id, now + NONCE_TTL_S, now)
            if alive > NONCES_PER_TOKEN:
                raise TransportError("too many attempts with this token; wait a minute")
        return nonce

    def enrol(self, claim: Claim) -> Enrolment:
        """Takes a newcomer in, or the same one again.

        Raises:
            TokenError: unknown, used by another, forged or burnt token; stale nonce.
            ExpiredError: the token's time is over.
            IdentityError, SignatureError: a key that is weak, or not the newcomer's.
        """
        now = self._clock()
        # (1) The nonce is ours, for this token, and fresh. It is spent whatever follows.
        if not self._store.invites.take_nonce(claim.nonce, claim.token_id, now):
            raise TokenError("the nonce of this attempt was used, is late or unknown; start again")
        # (2) The token may still be used, and its secret is known to the newcomer.
        invite = self._open_invite(claim.token_id, now)
        transcript = token.transcript(
            token_id=claim.token_id,
            nonce=claim.nonce,
            csr_der=claim.csr_der,
            identity_key=claim.identity_key,
            ca_cert_der=self._keys.ca.cert_der,
        )
        self._check_proof(invite, transcript, claim.token_proof)
        # (3) The identity key is sound and the newcomer holds it.
        identity_key = IdentityPublicKey(claim.identity_key)
        identity_key.verify(transcript, claim.identity_proof)
        # (4) So is the TLS key: the request is signed by it. Only the inviter's name counts.
        cert_pem = self._issue(invite.client_id, claim.csr_der, now)
        # (5) Invite, client and directory change together.
        with self._store.transaction():
            self._take_in(claim.token_id, identity_key, _ref(cert_pem), now)
            signed = self.signed_directory()
        return Enrolment(invite.client_id, cert_pem + self._keys.ca.cert_pem, signed)

    def renew(self, client_id: str, csr_der: bytes) -> bytes:
        """A new certificate and the CA's (PEM); the old one works until the new one was used."""
        cert_pem = self._issue(client_id, csr_der, self._clock())
        self._store.clients.offer_certificate(client_id, _ref(cert_pem))
        return cert_pem + self._keys.ca.cert_pem

    def revoke(self, client_id: str, reason: str) -> None:
        """Shuts a client out for ever, from its next call on.

        Raises:
            ConfigError: no such client, revoked before, or a reason that the directory cannot hold.
        """
        if len(reason) > directory.REASON_CHARS or not reason.isprintable():
            raise ConfigError(
                f"reason: expected at most {directory.REASON_CHARS} printable characters on one "
                f"line, found {len(reason)}"
            )
        now = self._clock()
        with self._store.transaction():
            row = self._store.clients.get(client_id)
            if row is None:
                raise ConfigError(f"there is no client {client_id[:80]!r}")
            if row.status is ClientStatus.REVOKED:
                raise ConfigError(f"{client_id!r} is revoked already ({row.reason})")
            self._publish(self.directory().with_revoked(client_id, reason, now))
            self._store.clients.revoke(client_id, reason, now)

    def is_member(self, client_id: str) -> bool:
        """Whether an active client has this name."""
        entry = self.directory().find(client_id)
        return entry is not None and (entry.role, entry.status) == (Role.CLIENT, Status.ACTIVE)

    def directory(self) -> Directory:
        """The newest directory, also when another process published it."""
        version = self._store.directories.newest_version()
        if version != self._newest[0]:
            signed = self.signed_directory()
            opened = directory.open_directory(signed, self._keys.authority.public, self._clock())
            self._newest = (opened.version, opened)
        return self._newest[1]

    def signed_directory(self) -> Envelope:
        """The newest directory as it was signed."""
        row = self._store.directories.newest()
        assert row is not None, "version 1 is published when the authority is built"
        return envelope.from_bytes(row.envelope)

    def _is_taken(self, client_id: str) -> bool:
        return self.directory().find(client_id) is not None and not self.is_member(client_id)

    def _open_invite(self, token_id: bytes, now_unix_s: float) -> InviteRow:
        invite = self._store.invites.get(token_id)
        if invite is None:
            raise TokenError(
                "this join token is unknown here, or a newer one replaced it; ask for a new one"
            )
        if invite.wrong_proofs >= limits.INVITE_ATTEMPTS:
            raise TokenError("this join token was burnt by wrong proofs; ask for a new one")
        if now_unix_s > invite.expires_unix_s:
            raise ExpiredError("this join token has expired; ask for a new one")
        return invite

    def _check_proof(self, invite: InviteRow, transcript: bytes, proof: bytes) -> None:
        try:
            token.check_token_proof(invite.proof_key, transcript, proof)
        except TokenError:
            self._store.invites.count_wrong_proof(invite.token_id)
            raise

    def _take_in(
        self,
        token_id: bytes,
        identity_key: IdentityPublicKey,
        certificate: CertificateRef,
        now_unix_s: float,
    ) -> None:
        """Inside the transaction, so of two that use one token at once the second sees the first."""
        invite = self._open_invite(token_id, now_unix_s)
        client_id = invite.client_id
        if invite.used_by is None and self.directory().find(client_id) is not None:
            self._take_back(client_id, identity_key, certificate)
            self._store.invites.mark_used(token_id, identity_key.raw, now_unix_s)
        elif invite.used_by is None:
            entry = DirectoryEntry(
                client_id, identity_key, Role.CLIENT, Status.ACTIVE, since_unix_s=now_unix_s
            )
            self._publish(self.directory().with_entry(entry))
            self._store.clients.add(client_id, identity_key.raw, certificate, now_unix_s)
            self._store.invites.mark_used(token_id, identity_key.raw, now_unix_s)
        elif invite.used_by == identity_key.raw:
            self.directory().active(client_id)
            self._store.clients.replace_certificate(client_id, certificate)
        else:
            raise TokenError("this join token was used by another key; ask for a new one")

    def _take_back(
        self, client_id: str, identity_key: IdentityPublicKey, certificate: CertificateRef
    ) -> None:
        """A known client that was invited again: the same one, with a new certificate."""
        if self.directory().active(client_id).identity_key != identity_key:
            raise IdentityError(
                f"this token is for {client_id!r} to join again with the identity key it has, "
                "found another key; join from the state folder that it joined with before"
            )
        self._store.clients.replace_certificate(client_id, certificate)

    def _issue(self, client_id: str, csr_der: bytes, now_unix_s: float) -> bytes:
        serial = secrets.token_bytes(certificates.SERIAL_BYTES)
        return certificates.issue_client(self._keys.ca, csr_der, client_id, serial, now_unix_s)

    def _publish(self, successor: Directory) -> None:
        signed = directory.sign_directory(successor, self._keys.authority)
        self._store.directories.add(successor.version, envelope.to_bytes(signed), self._clock())

    def _own_entry(self) -> DirectoryEntry:
        return DirectoryEntry(
            COORDINATOR_NAME,
            self._keys.coordinator.public,
            Role.COORDINATOR,
            Status.ACTIVE,
            since_unix_s=self._clock(),
        )


def _ref(cert_pem: bytes) -> CertificateRef:
    _, expires = certificates.validity_unix_s(cert_pem)
    return CertificateRef(certificates.fingerprint(cert_pem), expires)
