"""One SQLite connection, shared by all threads behind a lock.

Notable: write-ahead log with `synchronous=FULL`, so what was committed survives a power cut;
writers of several processes are ordered by `BEGIN IMMEDIATE`; migrations are numbered by
`user_version` and each runs in a transaction. Calls block for a disk flush at most: from an event
loop use `asyncio.to_thread`.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from offsite.coordinator.tables.schema import MIGRATIONS
from offsite.secure.errors import ConfigError, DiskFullError, MachineError

BUSY_TIMEOUT_S: Final = 10.0
"""Longest wait for another process's write."""

PRIMARY_CODE: Final = 0xFF
"""The low byte of an extended result code."""
MACHINE_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)

Value = bytes | str | float | int | None
"""What a column can hold."""


class Database:
    """Connection, lock and transactions; the tables are in the modules beside this one."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        with translated():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            path.chmod(0o600)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        self._migrate()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed together or not at all; may be nested."""
        with self._lock, translated():
            if self._depth == 0:
                self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._roll_back()
                raise
            self._depth -= 1
            if self._depth == 0:
                self._commit()

    def execute(self, sql: str, *values: Value) -> int:
        """Runs one statement durably; returns how many rows it changed."""
        with self.transaction():
            return self._connection.execute(sql, values).rowcount

    def row(self, sql: str, *values: Value) -> sqlite3.Row | None:
        with self._lock, translated():
            found: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
            return found

    def rows(self, sql: str, *values: Value) -> list[sqlite3.Row]:
        with self._lock, translated():
            return self._connection.execute(sql, values).fetchall()

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        # A full disk makes SQLite roll back by itself.
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _migrate(self) -> None:
        with self.transaction():
            row = self.row("PRAGMA user_version")
            assert row is not None
            version = int(row[0])
            if version > len(MIGRATIONS):
                raise ConfigError(
                    f"the database has format {version}, this program knows up to "
                    f"{len(MIGRATIONS)}; use the newer program that made it"
                )
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in filter(str.strip, script.split(";")):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {number}")


@contextmanager
def translated() -> Iterator[None]:
    """What the machine did to SQLite as errors of ours; a wrong statement stays a bug."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & PRIMARY_CODE
        if code == sqlite3.SQLITE_FULL:
            raise DiskFullError("no room for the database; free some space") from error
        if code in MACHINE_CODES:
            raise MachineError(f"the database cannot be used now: {error}") from error
        raise
