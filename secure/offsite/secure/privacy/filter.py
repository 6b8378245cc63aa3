"""RDP filter: for schedules that are not frozen, the rule that says when to stop.

PLD and PRV compose mechanisms whose parameters were fixed before the first one ran. Where the noise,
the sampling rate or the number of steps depends on what was released before (early stopping on a
private loss, noise that adapts), only a filter bounds the whole: it names one Rényi order α and one
budget in advance and refuses every mechanism that would take the sum of divergences over it. Then
all that it admitted is (α, budget)-RDP, whatever was chosen and why:

    Feldman, Zrnic, NeurIPS 2021, arXiv 2008.11193, Thm 4.3

The order is fixed when the filter is made. Taking whichever order looks best at the end would not
be covered by the theorem; nor would a filter on PLDs (arXiv 2602.06756: invalid in general).
The price of freedom is RDP's looseness, about 1.2 times the epsilon.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.accounting import rdp
from offsite.secure.privacy.accounting.composition import merged
from offsite.secure.privacy.accounting.view import check_delta
from offsite.secure.privacy.mechanisms import Mechanism
from offsite.secure.privacy.units import Adjacency, Unit

_ROUNDING: Final = 1e-12
"""Relative error of a divergence, by which each is rounded up."""


@dataclass(frozen=True, slots=True)
class RenyiFilter:
    """A budget of one Rényi order, and what of it is spent. Immutable: `charged` returns a new one.

    Guarantees: whatever sequence of mechanisms it is charged with while it `is_kept`, each chosen after
    seeing the outcomes of those before, is (epsilon, delta)-DP (test_a_filter_never_exceeds_its_budget).

    Raises:
        ConfigError: a value out of range, or an order whose budget at this epsilon is not above 0.
    """

    epsilon: float
    delta: float
    order: float
    unit: Unit
    adjacency: Adjacency = Adjacency.ZERO_OUT
    spent: float = 0.0  # of `budget`

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ConfigError(f"epsilon: expected above 0, found {self.epsilon!r}")
        if not (math.isfinite(self.order) and self.order > 1 and self.budget > 0):
            raise ConfigError(
                f"order {self.order!r} leaves no budget for epsilon {self.epsilon:g} at delta "
                f"{self.delta:g}: choose a higher order or let `for_plan` choose"
            )
        if not self.spent >= 0:
            raise ConfigError(f"spent: expected 0 or more, found {self.spent!r}")

    @classmethod
    def for_plan(cls, epsilon: float, delta: float, plan: Sequence[Mechanism]) -> Self:
        """The filter whose order lets the plan run longest; what then runs may differ from it.

        The plan must not depend on the data: it is what one expects to run.
        """
        if not plan:
            raise ConfigError("expected a plan of at least one mechanism, found none")
        check_delta(delta)
        expected = merged(plan)
        shares = {
            order: _total(expected, order) / budget
            for order in rdp.ORDERS
            if (budget := rdp.budget_at(epsilon, order, delta)) > 0
        }
        if not shares:
            raise ConfigError(
                f"no Rényi order has a budget for epsilon {epsilon:g} at delta {delta:g}: "
                "raise one of them"
            )
        first = expected[0]
        return cls(epsilon, delta, min(shares, key=shares.__getitem__), first.unit, first.adjacency)

    @property
    def budget(self) -> float:
        """The divergence at `order` that implies (epsilon, delta)-DP."""
        return rdp.budget_at(self.epsilon, self.order, self.delta)

    @property
    def epsilon_spent(self) -> float:
        """What was charged so far costs at most this; 0 before anything was.

        An odometer's reading, not a promise: only `epsilon` bounds a run that may still go on.
        """
        if self.spent == 0:
            return 0.0
        return max(0.0, rdp.epsilon_at(self.spent, self.order, self.delta))

    def charged(self, mechanisms: Iterable[Mechanism]) -> Self:
        """The filter after a history, whether or not its budget allowed all of it (`is_kept`).

        Raises:
            PolicyError: something protects another unit.
        """
        spent = self.spent
        for mechanism in mechanisms:
            self._check_relation(mechanism)
            spent += _cost(mechanism, self.order)
        return dataclasses.replace(self, spent=spent)

    @property
    def is_kept(self) -> bool:
        """Whether what was charged is within the epsilon; nothing may run that would end this."""
        return self.epsilon_spent <= self.epsilon

    def _check_relation(self, mechanism: Mechanism) -> None:
        if (mechanism.unit, mechanism.adjacency) != (self.unit, self.adjacency):
            raise PolicyError(
                f"expected a mechanism for {self.unit.value}, {self.adjacency.value}, found "
                f"{mechanism.unit.value}, {mechanism.adjacency.value}: use a filter of its own"
            )


def _total(mechanisms: Iterable[Mechanism], order: float) -> float:
    return sum(_cost(mechanism, order) for mechanism in mechanisms)


def _cost(mechanism: Mechanism, order: float) -> float:
    once = rdp.divergence(mechanism.repeated(1), order)
    return mechanism.uses * once * (1 + _ROUNDING)
