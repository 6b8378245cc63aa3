"""Join tokens as the coordinator remembers them, and the nonces of attempts to use one.

Rule: of a token there is its public id and a key derived from its secret; the secret is nowhere.
"""

import sqlite3
from dataclasses import dataclass

from offsite.coordinator.tables.database import Database


@dataclass(frozen=True, slots=True)
class InviteRow:
    """One invitation; `used_by` is the identity key that redeemed it."""

    token_id: bytes
    client_id: str
    proof_key: bytes
    created_unix_s: float
    expires_unix_s: float
    wrong_proofs: int
    used_by: bytes | None
    used_unix_s: float | None


class InviteTable:
    """Rows of `invites` and `nonces`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        token_id: bytes,
        client_id: str,
        proof_key: bytes,
        created_unix_s: float,
        expires_unix_s: float,
    ) -> None:
        """A new invitation; an unused one for the same name stops working."""
        with self._database.transaction():
            self._database.execute(
                "DELETE FROM invites WHERE client_id = ? AND used_by IS NULL", client_id
            )
            self._database.execute(
                "INSERT INTO invites (token_id, client_id, proof_key, created_unix_s,"
                " expires_unix_s) VALUES (?, ?, ?, ?, ?)",
                token_id,
                client_id,
                proof_key,
                created_unix_s,
                expires_unix_s,
            )

    def get(self, token_id: bytes) -> InviteRow | None:
        row = self._database.row("SELECT * FROM invites WHERE token_id = ?", token_id)
        return None if row is None else _invite(row)

    def all(self) -> list[InviteRow]:
        """Every invitation, oldest first."""
        return [
            _invite(row)
            for row in self._database.rows("SELECT * FROM invites ORDER BY created_unix_s")
        ]

    def count_wrong_proof(self, token_id: bytes) -> None:
        self._database.execute(
            "UPDATE invites SET wrong_proofs = wrong_proofs + 1 WHERE token_id = ?", token_id
        )

    def mark_used(self, token_id: bytes, identity_key: bytes, now_unix_s: float) -> None:
        self._database.execute(
            "UPDATE invites SET used_by = ?, used_unix_s = ? WHERE token_id = ?",
            identity_key,
            now_unix_s,
            token_id,
        )

    def add_nonce(
        self, nonce: bytes, token_id: bytes, expires_unix_s: float, now_unix_s: float
    ) -> int:
        """Remembers a nonce, forgets the expired; returns how many the token now has."""
        with self._database.transaction():
            self._database.execute("DELETE FROM nonces WHERE expires_unix_s < ?", now_unix_s)
            self._database.execute(
                "INSERT INTO nonces VALUES (?, ?, ?)", nonce, token_id, expires_unix_s
            )
            row = self._database.row("SELECT count(*) FROM nonces WHERE token_id = ?", token_id)
            assert row is not None
            return int(row[0])

    def take_nonce(self, nonce: bytes, token_id: bytes, now_unix_s: float) -> bool:
        """True once per nonce, if it was given for this token and is in time."""
        taken = self._database.execute(
            "DELETE FROM nonces WHERE nonce = ? AND token_id = ? AND expires_unix_s >= ?",
            nonce,
            token_id,
            now_unix_s,
        )
        return taken == 1


def _invite(row: sqlite3.Row) -> InviteRow:
    return InviteRow(
        token_id=row["token_id"],
        client_id=row["client_id"],
        proof_key=row["proof_key"],
        created_unix_s=row["created_unix_s"],
        expires_unix_s=row["expires_unix_s"],
        wrong_proofs=row["wrong_proofs"],
        used_by=row["used_by"],
        used_unix_s=row["used_unix_s"],
    )
