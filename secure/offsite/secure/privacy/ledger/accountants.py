"""How an account is added up: which accountant, for which limit.

    PREREGISTERED   PLD at its finest, confirmed by PRV, RDP and, where there is one, a closed form
    FILTER          one Rényi order, fixed by the limit and by the first use of the records that
                    was ever admitted: both were chosen before anything was released

With one mechanism the best order does not depend on how often it is used, so a campaign that ends
early, or never begins, moves no order. An owner who changes its limit begins a filter of its own
for the new one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.ledger.bodies import Adaptivity, LimitSet, Reserved
from offsite.secure.privacy.mechanisms import Mechanism

if TYPE_CHECKING:
    from offsite.secure.privacy.filter import RenyiFilter

STATED_TOLERANCE: Final = 0.02
"""What accountants of two versions may differ by."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a sum is for. `first` fixes the order of a filter."""

    limit: LimitSet
    adaptivity: Adaptivity
    first: Mechanism


class Accounting(Protocol):
    """The accountants. One more use never makes an epsilon smaller."""

    def epsilon(self, mechanisms: Sequence[Mechanism], terms: Terms) -> float:
        """All mechanisms together at the limit's delta; infinite where there is no figure."""
        ...

    def fits(self, mechanisms: Sequence[Mechanism], terms: Terms) -> bool:
        """Whether that is at most the limit's epsilon; may be decided without the figure."""
        ...


class AccountantsOfRecord:
    """Those of `offsite.secure.privacy.accounting` and `filter`.

    What stays within a limit is confirmed by all accountants. What exceeds it is refused by PLD
    alone: no second opinion could admit it, and far beyond a limit some cannot be computed.
    """

    def epsilon(self, mechanisms: Sequence[Mechanism], terms: Terms) -> float:
        from offsite.secure.privacy.accounting import pld
        from offsite.secure.privacy.accounting.composition import merged
        from offsite.secure.privacy.accounting.view import epsilon_of

        if terms.adaptivity is Adaptivity.FILTER:
            found = _filter_after(mechanisms, terms)
            return float("inf") if found is None else found.epsilon_spent
        if self.fits(mechanisms, terms):
            return epsilon_of(mechanisms, terms.limit.delta).pld
        if not _is_useful(mechanisms, terms):
            return float("inf")
        return pld.epsilon(merged(mechanisms), terms.limit.delta)

    def fits(self, mechanisms: Sequence[Mechanism], terms: Terms) -> bool:
        from offsite.secure.privacy.accounting import pld, rdp
        from offsite.secure.privacy.accounting.composition import merged

        if terms.adaptivity is Adaptivity.FILTER:
            found = _filter_after(mechanisms, terms)
            return found is not None and found.is_kept
        history, delta = merged(mechanisms), terms.limit.delta
        # RDP is an upper bound by theory, and cheap.
        if rdp.epsilon(history, delta) <= terms.limit.epsilon:
            return True
        return _is_useful(history, terms) and pld.epsilon(history, delta) <= terms.limit.epsilon


def misstatement(reserved: Reserved, accounting: Accounting) -> str | None:
    """What is wrong with the epsilon that the owner was shown for this campaign alone, or None."""
    stated = reserved.stated
    if stated is None:
        return None
    limit = LimitSet(stated.pld + 1.0, stated.delta)
    terms = Terms(limit, Adaptivity.PREREGISTERED, reserved.mechanism)
    try:
        found = accounting.epsilon((reserved.mechanism,), terms)
    except (PolicyError, ConfigError) as error:
        return f"its owner was shown epsilon {stated.pld:.4f}, and there is none: {error}"
    if abs(found - stated.pld) <= STATED_TOLERANCE:
        return None
    return f"its owner was shown epsilon {stated.pld:.4f}, it is {found:.4f}"


def _is_useful(mechanisms: Sequence[Mechanism], terms: Terms) -> bool:
    """Whether epsilon is small enough for the accountants to compute it."""
    from offsite.secure.privacy.accounting import rdp
    from offsite.secure.privacy.accounting.composition import merged
    from offsite.secure.privacy.accounting.view import MOST_EPSILON

    return rdp.epsilon(merged(mechanisms), terms.limit.delta) <= MOST_EPSILON


def _filter_after(mechanisms: Sequence[Mechanism], terms: Terms) -> "RenyiFilter | None":
    """The filter of the limit and of the first use, charged with all; None: no order has a budget."""
    from offsite.secure.privacy.accounting.composition import merged
    from offsite.secure.privacy.filter import RenyiFilter

    limit = terms.limit
    try:
        fresh = RenyiFilter.for_plan(limit.epsilon, limit.delta, (terms.first,))
    except ConfigError:  # so small an epsilon has no budget of any order
        return None
    return fresh.charged(merged(mechanisms))
