"""Where a campaign stands, computed from its closed rounds alone.

The gate is the accuracy of the plugged-in full model on the owner's questions. Rules:

- a round whose gate falls below that of the adapter it started from, by more than the tolerance,
  is rolled back: the next round starts from the same adapter again;
- the best accepted round is what counts in the end;
- `patience` rounds in a row without a new best gate end the campaign;
- nothing is released that is worse than the full model by more than the tolerance.

Nothing here is remembered between rounds, so a restarted campaign cannot disagree with one that
was never stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_ROUNDING = 1e-9
"""Accuracies are fractions; equal ones may differ in the last bit."""


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """A round that is over. `acc` is None where there is no gate."""

    number: int
    acc: float | None
    rolled_back: bool


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


def standing(baseline: float | None, rounds: Sequence[ClosedRound]) -> Standing:
    """The standing after `rounds`, in order."""
    now = Standing(baseline, 0, 0, baseline, 0, None, 0)
    for closed in rounds:
        now = _after(now, closed)
    return now


def _after(before: Standing, closed: ClosedRound) -> Standing:
    if closed.rolled_back:
        return Standing(
            before.baseline,
            before.closed + 1,
            before.accepted,
            before.acc,
            before.best_round,
            before.best_acc,
            before.rounds_without_gain + 1,
        )
    is_best = closed.acc is None or before.best_acc is None or closed.acc > before.best_acc
    return Standing(
        before.baseline,
        before.closed + 1,
        before.accepted + 1,
        closed.acc,
        closed.number if is_best else before.best_round,
        closed.acc if is_best else before.best_acc,
        0 if _gains(before, closed) else before.rounds_without_gain + 1,
    )


def _gains(before: Standing, closed: ClosedRound) -> bool:
    """Whether the gate is better than the full model's and than that of every round so far."""
    if closed.acc is None:
        return True
    so_far = [acc for acc in (before.baseline, before.best_acc) if acc is not None]
    return all(closed.acc > acc + _ROUNDING for acc in so_far)
