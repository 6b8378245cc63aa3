"""Instructions to clients and what is known of their replies; the bytes lie in the spool.

A message is open until its reply was accepted or its deadline passed: no column says so, hence
none can disagree. Rule: the first accepted reply stays.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from offsite.coordinator.tables.database import Database
from offsite.secure.errors import IntegrityError, PeerError


@dataclass(frozen=True, slots=True)
class MessageRow:
    """One instruction; the reply columns are None until a reply was accepted."""

    message_id: str
    run_id: int
    group_id: str
    client_id: str
    size_bytes: int
    sha256: bytes
    created_unix_s: float
    deadline_unix_s: float
    reply_size_bytes: int | None = None
    reply_sha256: bytes | None = None
    most_reply_bytes: int = 0


class MessageTable:
    """Rows of `messages`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rows: Sequence[MessageRow]) -> None:
        """Puts all instructions or none; they must be in the spool already."""
        with self._database.transaction():
            for row in rows:
                self._database.execute(
                    "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    row.message_id,
                    row.run_id,
                    row.group_id,
                    row.client_id,
                    row.size_bytes,
                    row.sha256,
                    row.created_unix_s,
                    row.deadline_unix_s,
                    row.reply_size_bytes,
                    row.reply_sha256,
                    row.most_reply_bytes,
                )

    def get(self, message_id: str) -> MessageRow | None:
        row = self._database.row("SELECT * FROM messages WHERE message_id = ?", message_id)
        return None if row is None else _message(row)

    def of_group(self, run_id: int, group_id: str) -> list[MessageRow]:
        """Every message of a round, oldest first."""
        return self._select("run_id = ? AND group_id = ?", run_id, group_id)

    def unanswered(self, client_id: str) -> list[MessageRow]:
        """Instructions to a client without a reply, oldest first, late ones included."""
        return self._select("client_id = ? AND reply_sha256 IS NULL", client_id)

    def ids(self) -> list[str]:
        """Every message, to tell what in the spool is still wanted."""
        return [row[0] for row in self._database.rows("SELECT message_id FROM messages")]

    def accept_reply(self, message_id: str, size_bytes: int, sha256: bytes) -> None:
        """Records the reply on disk; the same reply again is fine, another is an error."""
        with self._database.transaction():
            known = self.get(message_id)
            if known is None:
                raise PeerError(f"message {message_id} is unknown or was withdrawn")
            if known.reply_sha256 is not None:
                if known.reply_sha256 != sha256:
                    raise IntegrityError(f"message {message_id} already has another reply")
                return
            self._database.execute(
                "UPDATE messages SET reply_size_bytes = ?, reply_sha256 = ? WHERE message_id = ?",
                size_bytes,
                sha256,
                message_id,
            )

    def within_group(self, run_id: int, group_id: str) -> list[MessageRow]:
        """Those of a group and of the groups inside it, whose names go on with a dot."""
        condition, values = _within(run_id, group_id)
        return self._select(condition, *values)

    def delete_within(self, run_id: int, group_id: str) -> None:
        """Withdraws the messages of a group and of the groups inside it, answered or not."""
        condition, values = _within(run_id, group_id)
        self._database.execute(f"DELETE FROM messages WHERE {condition}", *values)

    def delete_run(self, run_id: int) -> None:
        """Withdraws every message of a campaign that was given up."""
        self._database.execute("DELETE FROM messages WHERE run_id = ?", run_id)

    def _select(self, condition: str, *values: str | int) -> list[MessageRow]:
        found = self._database.rows(
            f"SELECT * FROM messages WHERE {condition} ORDER BY created_unix_s, rowid", *values
        )
        return [_message(row) for row in found]


def _within(run_id: int, group_id: str) -> tuple[str, tuple[int | str, ...]]:
    condition = "run_id = ? AND (group_id = ? OR substr(group_id, 1, ?) = ?)"
    return condition, (run_id, group_id, len(group_id) + 1, f"{group_id}.")


def _message(row: sqlite3.Row) -> MessageRow:
    return MessageRow(
        message_id=row["message_id"],
        run_id=row["run_id"],
        group_id=row["group_id"],
        client_id=row["client_id"],
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        created_unix_s=row["created_unix_s"],
        deadline_unix_s=row["deadline_unix_s"],
        reply_size_bytes=row["reply_size_bytes"],
        reply_sha256=row["reply_sha256"],
        most_reply_bytes=row["most_reply_bytes"],
    )
