"""Who is enrolled, with which keys, and what each client was last seen doing."""

import sqlite3
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from offsite.coordinator.policy.eligibility import Facts
from offsite.coordinator.tables.database import Database
from offsite.emulator.printable import printable
from offsite.secure import names

STATUS_CHARS: Final = 200
"""Longest free text of a client that is kept."""
VERSION_CHARS: Final = 64


class ClientStatus(StrEnum):
    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class CertificateRef:
    """A certificate that was issued: SHA-256 of its DER form and its end."""

    fingerprint: bytes
    expires_unix_s: float


@dataclass(frozen=True, slots=True)
class ClientRow:
    """One client. `next_certificate` was issued by Renew and not yet seen in use."""

    client_id: str
    node_id: int
    identity_key: bytes
    certificate: CertificateRef
    next_certificate: CertificateRef | None
    status: ClientStatus
    since_unix_s: float
    reason: str
    last_seen_unix_s: float | None
    doing: str
    facts: Facts = field(default_factory=Facts)


class ClientTable:
    """Rows of `clients`; none is ever deleted, since the directory only grows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, client_id: str, identity_key: bytes, certificate: CertificateRef, now_unix_s: float
    ) -> None:
        self._database.execute(
            "INSERT INTO clients (client_id, node_id, identity_key, certificate,"
            " certificate_expires_unix_s, status, since_unix_s) VALUES (?, ?, ?, ?, ?, ?, ?)",
            client_id,
            names.node_id(client_id),
            identity_key,
            certificate.fingerprint,
            certificate.expires_unix_s,
            ClientStatus.ACTIVE,
            now_unix_s,
        )

    def get(self, client_id: str) -> ClientRow | None:
        row = self._database.row("SELECT * FROM clients WHERE client_id = ?", client_id)
        return None if row is None else _client(row)

    def by_node(self, node_id: int) -> ClientRow | None:
        row = self._database.row("SELECT * FROM clients WHERE node_id = ?", node_id)
        return None if row is None else _client(row)

    def all(self) -> list[ClientRow]:
        """Every client, by name."""
        return [_client(row) for row in self._database.rows("SELECT * FROM clients ORDER BY 1")]

    def active(self) -> list[ClientRow]:
        """Clients that are not revoked, by name."""
        return [client for client in self.all() if client.status is ClientStatus.ACTIVE]

    def replace_certificate(self, client_id: str, certificate: CertificateRef) -> None:
        """The only valid certificate from now on."""
        self._database.execute(
            "UPDATE clients SET certificate = ?, certificate_expires_unix_s = ?,"
            " next_certificate = NULL, next_certificate_expires_unix_s = NULL"
            " WHERE client_id = ?",
            certificate.fingerprint,
            certificate.expires_unix_s,
            client_id,
        )

    def offer_certificate(self, client_id: str, certificate: CertificateRef) -> None:
        """A renewed certificate: valid beside the old one until it is first used."""
        self._database.execute(
            "UPDATE clients SET next_certificate = ?, next_certificate_expires_unix_s = ?"
            " WHERE client_id = ?",
            certificate.fingerprint,
            certificate.expires_unix_s,
            client_id,
        )

    def revoke(self, client_id: str, reason: str, now_unix_s: float) -> None:
        self._database.execute(
            "UPDATE clients SET status = ?, reason = ?, since_unix_s = ? WHERE client_id = ?",
            ClientStatus.REVOKED,
            reason,
            now_unix_s,
            client_id,
        )

    def touch(self, client_id: str, doing: str, now_unix_s: float) -> None:
        """The client was here and says what it does; shown to the operator only."""
        self._database.execute(
            "UPDATE clients SET last_seen_unix_s = ?, doing = ? WHERE client_id = ?",
            now_unix_s,
            printable(doing[:STATUS_CHARS]),
            client_id,
        )

    def state_facts(self, client_id: str, facts: Facts) -> None:
        """What the client states of itself from now on, in place of all that it stated before."""
        self._database.execute(
            "UPDATE clients SET version = ?, free_memory_bytes = ?, examples = ?"
            " WHERE client_id = ?",
            printable(facts.version[:VERSION_CHARS]),
            facts.free_memory_bytes,
            facts.examples,
            client_id,
        )


def _client(row: sqlite3.Row) -> ClientRow:
    renewed = None
    if row["next_certificate"] is not None:
        renewed = CertificateRef(row["next_certificate"], row["next_certificate_expires_unix_s"])
    return ClientRow(
        client_id=row["client_id"],
        node_id=row["node_id"],
        identity_key=row["identity_key"],
        certificate=CertificateRef(row["certificate"], row["certificate_expires_unix_s"]),
        next_certificate=renewed,
        status=ClientStatus(row["status"]),
        since_unix_s=row["since_unix_s"],
        reason=row["reason"],
        last_seen_unix_s=row["last_seen_unix_s"],
        doing=row["doing"],
        facts=Facts(row["version"], row["free_memory_bytes"], row["examples"]),
    )
