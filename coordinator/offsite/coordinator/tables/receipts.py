"""Every checkpoint of a client's privacy ledger that was counter-signed, in order."""

from offsite.coordinator.tables.database import Database


class ReceiptTable:
    """Rows of `ledger_receipts`; none ever changes or goes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def last(self, client_id: str) -> bytes | None:
        """The newest note, with both signatures."""
        row = self._database.row(
            "SELECT receipt FROM ledger_receipts WHERE client_id = ?"
            " ORDER BY position DESC LIMIT 1",
            client_id,
        )
        return None if row is None else bytes(row["receipt"])

    def add(self, client_id: str, receipt: bytes, now_unix_s: float) -> None:
        """At the end."""
        self._database.execute(
            "INSERT INTO ledger_receipts (client_id, receipt, signed_unix_s) VALUES (?, ?, ?)",
            client_id,
            receipt,
            now_unix_s,
        )
