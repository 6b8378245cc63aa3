"""Where a campaign stands, computed from its closed rounds and its owner's rollbacks alone.

The gate is the accuracy of the plugged-in full model on the owner's questions. Rules:

- a round whose gate falls below that of the adapter it started from, by more than the tolerance,
  is rolled back: the next round starts from the same adapter again;
- the best accepted round is what counts in the end;
- `patience` rounds in a row whose gate gains less than `least_gain` over the last one that did end
  the campaign; small gains add up;
- after a rollback by the owner all is as it was after that round, but that rounds are counted on:
  what edges tuned was tuned, and no round is numbered twice;
- nothing is released that is worse than the full model by more than the tolerance.

Nothing here is remembered between rounds, so a restarted campaign cannot disagree with one that
was never stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

_ROUNDING = 1e-9
"""Accuracies are fractions; equal ones may differ in the last bit."""


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """A round that is over. `acc` is None where there is no gate."""

    number: int
    acc: float | None
    rolled_back: bool


@dataclass(frozen=True, slots=True)
class Rollback:
    """The owner's word, after so many rounds, to go on from an earlier one; 0: from the start."""

    after_round: int
    to_round: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A campaign between two rounds."""

    baseline: float | None
    """Gate of the full model without any adapter; None: there is no gate."""
    closed: int
    accepted: int
    acc: float | None
    """Gate of the adapter that the next round starts from."""
    best_round: int
    """0: no round was accepted, the adapter is untouched."""
    best_acc: float | None
    rounds_without_gain: int
    mark: float | None
    """Gate that a round has to gain upon: that of the last one that did, or the full model's."""
    last_round: int
    """The round whose adapter the next one starts from; 0: the untouched one."""

    def regresses(self, acc: float, tolerance: float) -> bool:
        """Whether a round with this gate must be rolled back."""
        return self.acc is not None and acc < self.acc - tolerance - _ROUNDING

    def may_release(self, tolerance: float) -> bool:
        """Whether the best round is good enough for the model's users."""
        if self.best_round == 0:
            return False
        if self.baseline is None or self.best_acc is None:
            return True
        return self.best_acc >= self.baseline - tolerance - _ROUNDING

    def is_over(self, rounds: int, patience: int) -> bool:
        """Whether no further round is to be opened."""
        return self.closed >= rounds or 0 < patience <= self.rounds_without_gain


def standing(
    baseline: float | None,
    rounds: Sequence[ClosedRound],
    rollbacks: Sequence[Rollback] = (),
    least_gain: float = 0.0,
) -> Standing:
    """The standing after `rounds` and `rollbacks`, both in order."""
    now = Standing(baseline, 0, 0, baseline, 0, None, 0, baseline, 0)
    known = {0: now}
    for closed in rounds:
        now = known[closed.number] = _after(now, closed, least_gain)
        for rollback in rollbacks:
            if rollback.after_round == closed.number:
                now = replace(known[rollback.to_round], closed=now.closed, rounds_without_gain=0)
    return now


def _after(before: Standing, closed: ClosedRound, least_gain: float) -> Standing:
    counted = replace(before, closed=before.closed + 1, last_round=closed.number)
    if closed.rolled_back:
        return replace(counted, rounds_without_gain=before.rounds_without_gain + 1)
    is_best = closed.acc is None or before.best_acc is None or closed.acc > before.best_acc
    gains = _gains(before, closed, least_gain)
    return replace(
        counted,
        accepted=before.accepted + 1,
        acc=closed.acc,
        best_round=closed.number if is_best else before.best_round,
        best_acc=closed.acc if is_best else before.best_acc,
        rounds_without_gain=0 if gains else before.rounds_without_gain + 1,
        mark=closed.acc if gains else before.mark,
    )


def _gains(before: Standing, closed: ClosedRound, least_gain: float) -> bool:
    """Whether the gate is better than the mark, and by enough."""
    if closed.acc is None or before.mark is None:
        return True
    gain = closed.acc - before.mark
    return gain > _ROUNDING and gain >= least_gain - _ROUNDING
