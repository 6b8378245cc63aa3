"""What the coordinator remembers, in one SQLite file: a facade over the tables.

Rules: durable before acknowledged (every method that returns has committed), one transaction per
decision, and rows in and out are frozen values. Safe to call from any thread; a call may wait for
a disk flush, so an event loop calls it through `asyncio.to_thread`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from offsite.coordinator.tables.campaigns import CampaignTable
from offsite.coordinator.tables.clients import ClientTable
from offsite.coordinator.tables.database import Database
from offsite.coordinator.tables.decisions import DecisionTable
from offsite.coordinator.tables.directories import DirectoryTable
from offsite.coordinator.tables.invites import InviteTable
from offsite.coordinator.tables.messages import MessageTable
from offsite.coordinator.tables.points import PointTable
from offsite.coordinator.tables.receipts import ReceiptTable
from offsite.coordinator.tables.results import ResultTable


class Store:
    """The open database; a context manager that closes it."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path)
        self.clients = ClientTable(self._database)
        self.invites = InviteTable(self._database)
        self.directories = DirectoryTable(self._database)
        self.messages = MessageTable(self._database)
        self.campaigns = CampaignTable(self._database)
        self.decisions = DecisionTable(self._database)
        self.results = ResultTable(self._database)
        self.receipts = ReceiptTable(self._database)
        self.points = PointTable(self._database)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Calls inside are committed together, or not at all when one raises."""
        with self._database.transaction():
            yield

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
