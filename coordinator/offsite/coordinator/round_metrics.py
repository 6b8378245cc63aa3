"""What the metrics of a campaign's rounds say: names, which rounds count, and where it stands."""

from collections.abc import Sequence

from offsite.coordinator.policy.orders import Command, GivenOrder
from offsite.coordinator.standing import ClosedRound, Rollback, Standing, standing
from offsite.coordinator.tables.campaigns import RoundRow, RoundState

GATE = "gate_acc"
GATE_STDERR = "gate_stderr"
BASELINE = "full_acc"
ROLLED_BACK = "rolled_back"
CORRECTED = "corrected"
GAVE_UP = "gave_up"
"""Names in a round's metrics that decide something; the others are for people."""


def closed_of(rounds: Sequence[RoundRow]) -> list[RoundRow]:
    """Those that are over and count, in order."""
    return [attempt for attempt in rounds if attempt.state is RoundState.CLOSED]


def baseline_of(rounds: Sequence[RoundRow]) -> float | None:
    """The full model's gate; None before a round that was judged is closed."""
    closed = closed_of(rounds)
    return next((r.metrics[BASELINE] for r in closed if BASELINE in r.metrics), None)


def standing_of(
    rounds: Sequence[RoundRow],
    orders: Sequence[GivenOrder],
    baseline: float | None,
    least_gain: float = 0.0,
) -> Standing:
    """Where a campaign stands, by its rows alone."""
    closed = [
        ClosedRound(r.round, r.metrics.get(GATE), ROLLED_BACK in r.metrics)
        for r in closed_of(rounds)
    ]
    rollbacks = [
        Rollback(given.after_round, given.order.to_round)
        for given in orders
        if given.order.command is Command.ROLLBACK and given.order.to_round is not None
    ]
    return standing(baseline, closed, rollbacks, least_gain)
