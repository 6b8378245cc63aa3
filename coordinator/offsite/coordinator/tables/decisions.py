"""What was decided in the secure sums of attempts that are under way (`secure_sums.decisions`)."""

from offsite.coordinator.secure_sums.decisions import Decision
from offsite.coordinator.tables.database import Database
from offsite.secure.errors import MachineError


class DecisionTable:
    """Rows of `sum_decisions`; one that stands is never replaced."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, sum_id: str, decision: Decision) -> bytes | None:
        row = self._database.row(
            "SELECT value FROM sum_decisions WHERE sum_id = ? AND decision = ?",
            sum_id,
            decision.value,
        )
        return None if row is None else bytes(row["value"])

    def keep(self, sum_id: str, decision: Decision, value: bytes) -> None:
        """Raises MachineError for a second, other value."""
        with self._database.transaction():
            known = self.find(sum_id, decision)
            if known is None:
                self._database.execute(
                    "INSERT INTO sum_decisions VALUES (?, ?, ?)", sum_id, decision.value, value
                )
            elif known != value:
                raise MachineError(f"{sum_id}: {decision.value} was decided before, otherwise")

    def forget(self, attempt_id: str) -> None:
        """Of an attempt and of its sums, whose ids go on with a dot."""
        self._database.execute(
            "DELETE FROM sum_decisions WHERE sum_id = ? OR substr(sum_id, 1, ?) = ?",
            attempt_id,
            len(attempt_id) + 1,
            f"{attempt_id}.",
        )
