"""Campaigns and the attempts at each of their rounds.

    campaign  waiting ─> running ─> ended | failed
    round     open ─> closed (its adapter counts) | abandoned (a later attempt replaces it)

Rules: a round is closed once, in one transaction with its adapter, strategy state and metrics, so a
restart goes on from the last closed round. An order of the owner and all that follows from it are
one transaction, and no attempt is opened or closed over the head of an order that was to prevent it.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from offsite.coordinator.policy.orders import (
    Consequence,
    GivenOrder,
    Order,
    Situation,
    Stage,
    consequence,
    described,
    starts_from,
)
from offsite.coordinator.tables.database import Database
from offsite.coordinator.tables.orders import OrderTable
from offsite.secure.errors import MachineError

INTERRUPTED: Final = "interrupted"
"""In the metrics of an attempt that the owner's order ended."""


class CampaignState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


class RoundState(StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    ABANDONED = "abandoned"


class AttemptOverError(MachineError):
    """The attempt does not count any more, e.g. since the owner ordered otherwise."""


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file in the state folder: path relative to it, and SHA-256 of its bytes."""

    path: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """One campaign; `settings` is the resolved configuration as JSON."""

    campaign_id: int
    state: CampaignState
    reason: str
    release_sha256: bytes
    settings: str
    created_unix_s: float
    changed_unix_s: float


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One attempt at a round; `plan` is the signed plan's envelope once it was sent."""

    campaign_id: int
    round: int
    attempt: int
    state: RoundState
    plan: bytes | None
    adapter: FileRef | None
    strategy: FileRef | None
    metrics: Mapping[str, float]
    opened_unix_s: float
    closed_unix_s: float | None


class CampaignTable:
    """Rows of `campaigns` and `rounds`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._orders = OrderTable(database)

    def create(self, release_sha256: bytes, settings: str, now_unix_s: float) -> CampaignRow:
        """A new campaign, numbered from 1, waiting."""
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO campaigns (state, release_sha256, settings, created_unix_s,"
                " changed_unix_s) VALUES (?, ?, ?, ?, ?)",
                CampaignState.WAITING,
                release_sha256,
                settings,
                now_unix_s,
                now_unix_s,
            )
            created = self.current()
        assert created is not None
        return created

    def current(self) -> CampaignRow | None:
        """The newest campaign."""
        row = self._database.row("SELECT * FROM campaigns ORDER BY campaign_id DESC LIMIT 1")
        return None if row is None else _campaign(row)

    def get(self, campaign_id: int) -> CampaignRow | None:
        """Any campaign by its number."""
        row = self._database.row("SELECT * FROM campaigns WHERE campaign_id = ?", campaign_id)
        return None if row is None else _campaign(row)

    def set_state(
        self, campaign_id: int, state: CampaignState, now_unix_s: float, reason: str = ""
    ) -> None:
        self._database.execute(
            "UPDATE campaigns SET state = ?, reason = ?, changed_unix_s = ? WHERE campaign_id = ?",
            state,
            reason,
            now_unix_s,
            campaign_id,
        )

    def open_round(
        self, campaign_id: int, round_number: int, now_unix_s: float, heard: int | None = None
    ) -> RoundRow:
        """The next attempt at a round, from 1; an attempt still open is abandoned.

        Args:
            heard: position of the last order that is known to whoever opens it; None: of all.

        Raises:
            AttemptOverError: there is an order since `heard`.
        """
        with self._database.transaction():
            if heard is not None and self.orders(campaign_id, heard):
                raise AttemptOverError(f"round {round_number}: the owner ordered otherwise")
            earlier = self._attempts(campaign_id, round_number)
            if any(attempt.state is RoundState.CLOSED for attempt in earlier):
                raise MachineError(f"round {round_number} is already closed")
            self._database.execute(
                "UPDATE rounds SET state = 'abandoned', closed_unix_s = ?"
                " WHERE campaign_id = ? AND state = 'open'",
                now_unix_s,
                campaign_id,
            )
            self._database.execute(
                "INSERT INTO rounds (campaign_id, round, attempt, state, opened_unix_s)"
                " VALUES (?, ?, ?, 'open', ?)",
                campaign_id,
                round_number,
                len(earlier) + 1,
                now_unix_s,
            )
            return self._attempts(campaign_id, round_number)[-1]

    def set_plan(self, opened: RoundRow, plan: bytes) -> None:
        """Remembers the signed plan before it is sent, so that a restart can go on with it."""
        self._database.execute(
            "UPDATE rounds SET plan = ? WHERE campaign_id = ? AND round = ? AND attempt = ?",
            plan,
            opened.campaign_id,
            opened.round,
            opened.attempt,
        )

    def close_round(
        self,
        opened: RoundRow,
        adapter: FileRef,
        strategy: FileRef | None,
        metrics: Mapping[str, float],
        now_unix_s: float,
        heard: int | None = None,
    ) -> None:
        """The round counts; its files must be on disk already.

        Args:
            heard: position of the last order that the round was made in the knowledge of; None: of
                all.

        Raises:
            AttemptOverError: the attempt is not open, or an order since `heard` gives it up.
        """
        with self._database.transaction():
            unheard = [] if heard is None else self.orders(opened.campaign_id, heard)
            if any(given.order.gives_up_attempt for given in unheard):
                raise _over(opened)
            changed = self._database.execute(
                "UPDATE rounds SET state = 'closed', adapter_path = ?, adapter_sha256 = ?,"
                " strategy_path = ?, strategy_sha256 = ?, metrics = ?, closed_unix_s = ?"
                " WHERE campaign_id = ? AND round = ? AND attempt = ? AND state = 'open'",
                adapter.path,
                adapter.sha256,
                None if strategy is None else strategy.path,
                None if strategy is None else strategy.sha256,
                json.dumps(dict(metrics)),
                now_unix_s,
                opened.campaign_id,
                opened.round,
                opened.attempt,
            )
            if changed != 1:
                raise _over(opened)

    def abandon_round(
        self, opened: RoundRow, metrics: Mapping[str, float], now_unix_s: float
    ) -> None:
        """The attempt does not count, e.g. too few replies."""
        self._database.execute(
            "UPDATE rounds SET state = 'abandoned', metrics = ?, closed_unix_s = ?"
            " WHERE campaign_id = ? AND round = ? AND attempt = ? AND state = 'open'",
            json.dumps(dict(metrics)),
            now_unix_s,
            opened.campaign_id,
            opened.round,
            opened.attempt,
        )

    def rounds(self, campaign_id: int) -> list[RoundRow]:
        """Every attempt at every round, in order."""
        found = self._database.rows(
            "SELECT * FROM rounds WHERE campaign_id = ? ORDER BY round, attempt", campaign_id
        )
        return [_round(row) for row in found]

    def open_attempt(self, campaign_id: int) -> RoundRow | None:
        """The attempt that was under way, e.g. before a restart."""
        found = [row for row in self.rounds(campaign_id) if row.state is RoundState.OPEN]
        return found[-1] if found else None

    def last_closed(self, campaign_id: int) -> RoundRow | None:
        """The newest round whose adapter counts."""
        found = [row for row in self.rounds(campaign_id) if row.state is RoundState.CLOSED]
        return found[-1] if found else None

    def orders(self, campaign_id: int, after: int = 0) -> list[GivenOrder]:
        """What the owner ordered, in order, behind a position."""
        return self._orders.of(campaign_id, after)

    def give_order(self, campaign_id: int, order: Order, now_unix_s: float) -> Consequence:
        """Writes an order down with all that follows from it, or nothing.

        Raises:
            ConfigError: it makes no sense now.
        """
        with self._database.transaction():
            row, opened = self.get(campaign_id), self.open_attempt(campaign_id)
            assert row is not None  # an order is given to a campaign that is there
            orders, last = self.orders(campaign_id), self.last_closed(campaign_id)
            closed = 0 if last is None else last.round
            done = consequence(
                order,
                Situation(
                    state=Stage(row.state.value),
                    orders=orders,
                    closed=closed,
                    starts_from=starts_from(closed, orders),
                    is_open=opened is not None,
                ),
            )
            if not done.is_kept:
                return done
            self._orders.add(campaign_id, order, closed, now_unix_s)
            if done.gives_up_attempt and opened is not None:
                self.abandon_round(opened, {INTERRUPTED: 1.0}, now_unix_s)
            if done.state is not None:
                reason = described(self.orders(campaign_id)) or done.text
                self.set_state(campaign_id, CampaignState(done.state.value), now_unix_s, reason)
            return done

    def _attempts(self, campaign_id: int, round_number: int) -> list[RoundRow]:
        return [row for row in self.rounds(campaign_id) if row.round == round_number]


def _campaign(row: sqlite3.Row) -> CampaignRow:
    return CampaignRow(
        campaign_id=row["campaign_id"],
        state=CampaignState(row["state"]),
        reason=row["reason"],
        release_sha256=row["release_sha256"],
        settings=row["settings"],
        created_unix_s=row["created_unix_s"],
        changed_unix_s=row["changed_unix_s"],
    )


def _round(row: sqlite3.Row) -> RoundRow:
    return RoundRow(
        campaign_id=row["campaign_id"],
        round=row["round"],
        attempt=row["attempt"],
        state=RoundState(row["state"]),
        plan=row["plan"],
        adapter=_file(row["adapter_path"], row["adapter_sha256"]),
        strategy=_file(row["strategy_path"], row["strategy_sha256"]),
        metrics=json.loads(row["metrics"]),
        opened_unix_s=row["opened_unix_s"],
        closed_unix_s=row["closed_unix_s"],
    )


def _over(opened: RoundRow) -> AttemptOverError:
    return AttemptOverError(f"round {opened.round}, attempt {opened.attempt}, is not open")


def _file(path: str | None, sha256: bytes | None) -> FileRef | None:
    return None if path is None or sha256 is None else FileRef(path, sha256)
