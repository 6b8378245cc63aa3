"""What happened in a campaign: every attempt at every round, and every order of its owner.

Nothing is computed that the rows do not say; nothing is left out either, so a round that a rollback
went back behind stands there with the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from offsite.coordinator.policy.orders import Command, GivenOrder, Stage, stage_of
from offsite.coordinator.round_metrics import (
    GATE,
    GATE_STDERR,
    ROLLED_BACK,
    baseline_of,
    standing_of,
)
from offsite.coordinator.tables.campaigns import (
    INTERRUPTED,
    CampaignRow,
    CampaignTable,
    RoundRow,
    RoundState,
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a round."""

    round: int
    attempt: int
    state: RoundState
    begun: str
    """UTC, to the second."""
    seconds: float | None
    """From its beginning to its end; None: it is under way."""
    updates: int
    """Clients in a sum that counts."""
    left_out: int
    """Clients that were asked and are in none: refused, late or dropped out."""
    gate: float | None
    gate_stderr: float | None
    note: str

    def to_json(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class History:
    """A campaign from its beginning until now."""

    campaign_id: int
    stage: Stage
    reason: str
    full_acc: float | None
    """Gate of the full model without any adapter."""
    best_round: int
    attempts: tuple[Attempt, ...]
    orders: tuple[GivenOrder, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "campaign": self.campaign_id,
            "stage": self.stage.value,
            "reason": self.reason,
            "full_acc": self.full_acc,
            "best_round": self.best_round,
            "rounds": [attempt.to_json() for attempt in self.attempts],
            "orders": [_order_to_json(given) for given in self.orders],
        }


def history_of(table: CampaignTable, row: CampaignRow) -> History:
    """All that is written down of a campaign."""
    rounds, orders = table.rounds(row.campaign_id), table.orders(row.campaign_id)
    now = standing_of(rounds, orders, baseline_of(rounds))
    return History(
        campaign_id=row.campaign_id,
        stage=stage_of(Stage(row.state.value), orders),
        reason=row.reason,
        full_acc=now.baseline,
        best_round=now.best_round,
        attempts=tuple(_attempt(r, now.best_round) for r in rounds),
        orders=tuple(orders),
    )


def in_words(given: GivenOrder) -> str:
    """An order for a person."""
    order = given.order
    what = {
        Command.PAUSE: "paused at once" if order.at_once else "paused",
        Command.RESUME: "resumed",
        Command.ABORT: "aborted",
        Command.ROLLBACK: f"rolled back to round {order.to_round}",
    }[order.command]
    why = f": {order.reason}" if order.reason else ""
    return f"{utc(given.given_unix_s)}  {what} after round {given.after_round}{why}"


def utc(unix_s: float) -> str:
    """A moment, to the second."""
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S}"


def _attempt(row: RoundRow, best_round: int) -> Attempt:
    metrics = row.metrics
    left_out = sum(metrics.get(name, 0.0) for name in ("refused", "late", "dropped"))
    return Attempt(
        round=row.round,
        attempt=row.attempt,
        state=row.state,
        begun=utc(row.opened_unix_s),
        seconds=None if row.closed_unix_s is None else row.closed_unix_s - row.opened_unix_s,
        updates=int(metrics.get("updates", 0.0)),
        left_out=int(left_out),
        gate=metrics.get(GATE),
        gate_stderr=metrics.get(GATE_STDERR),
        note=_note(row, best_round),
    )


def _note(row: RoundRow, best_round: int) -> str:
    notes: Sequence[tuple[bool, str]] = (
        (row.state is RoundState.CLOSED and row.round == best_round, "best"),
        (ROLLED_BACK in row.metrics, "the gate had regressed"),
        (INTERRUPTED in row.metrics, "by order of the owner"),
    )
    return ", ".join(text for is_so, text in notes if is_so)


def _order_to_json(given: GivenOrder) -> dict[str, object]:
    order = given.order
    return {
        "order": order.command.value,
        "at_once": order.at_once,
        "to_round": order.to_round,
        "after_round": given.after_round,
        "reason": order.reason,
        "given_unix_s": given.given_unix_s,
    }
