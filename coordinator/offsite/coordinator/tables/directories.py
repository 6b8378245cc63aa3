"""Every version of the signed directory, as the bytes that were signed."""

from dataclasses import dataclass

from offsite.coordinator.tables.database import Database


@dataclass(frozen=True, slots=True)
class DirectoryRow:
    """A published version; `envelope` in the encoding of `offsite.secure.envelope`."""

    version: int
    envelope: bytes
    published_unix_s: float


class DirectoryTable:
    """Rows of `directories`; versions are published in order and stay."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, version: int, envelope: bytes, now_unix_s: float) -> None:
        self._database.execute(
            "INSERT INTO directories VALUES (?, ?, ?)", version, envelope, now_unix_s
        )

    def newest_version(self) -> int:
        """0 while nothing was published."""
        row = self._database.row("SELECT coalesce(max(version), 0) FROM directories")
        assert row is not None
        return int(row[0])

    def newest(self) -> DirectoryRow | None:
        row = self._database.row("SELECT * FROM directories ORDER BY version DESC LIMIT 1")
        if row is None:
            return None
        return DirectoryRow(row["version"], row["envelope"], row["published_unix_s"])
