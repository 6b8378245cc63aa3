"""The signed results of all secure sums, in the order in which they were published."""

from offsite.coordinator.tables.database import Database
from offsite.secure.errors import MachineError


class ResultTable:
    """Rows of `sum_results`; none ever changes or goes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, sum_id: str, result: bytes) -> None:
        """At the end, once. Raises MachineError for a second, other result of a sum."""
        with self._database.transaction():
            row = self._database.row("SELECT result FROM sum_results WHERE sum_id = ?", sum_id)
            if row is None:
                self._database.execute(
                    "INSERT INTO sum_results (sum_id, result) VALUES (?, ?)", sum_id, result
                )
            elif row["result"] != result:
                raise MachineError(f"{sum_id} has a result already, and another one")

    def all(self) -> list[bytes]:
        rows = self._database.rows("SELECT result FROM sum_results ORDER BY position")
        return [bytes(row["result"]) for row in rows]
