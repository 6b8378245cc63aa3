"""The least noise with which a campaign is admitted: by the very rule that admits it, searched on the grid.

Where nothing was released of these records before, the search begins at what the accountant of record
(PLD) needs for the campaign alone; afterwards a Rényi filter decides, and the search is all there is.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.secure.errors import NoNoiseFitsError
from offsite.secure.privacy.calibration import GRID, LOWEST, noise_for
from offsite.secure.privacy.ledger.accountants import Accounting
from offsite.secure.privacy.ledger.admission import is_admissible
from offsite.secure.privacy.ledger.bodies import Adaptivity, Reserved
from offsite.secure.privacy.ledger.budget import Budget
from offsite.secure.privacy.mechanisms import PoissonGaussian

MOST_NOISE: Final = 64.0
"""More noise than this teaches nobody anything; a campaign that would need it is refused."""
_MOST_NOTCH: Final = round(MOST_NOISE * GRID)


def adaptivity_of(budget: Budget, data_set: bytes) -> Adaptivity:
    """How what is reserved next for these records has to be accounted."""
    released = budget.has_released(data_set)
    return Adaptivity.FILTER if released else Adaptivity.PREREGISTERED


def least_noise(
    budget: Budget, limit: PrivacyLimit, proposed: Reserved, accounting: Accounting
) -> Reserved | None:
    """The proposal with the least noise that every limit allows; None if none does.

    Raises:
        PolicyError: accountants disagree, or it breaks a rule of the ledger.
    """
    mechanism = proposed.mechanism
    assert isinstance(mechanism, PoissonGaussian)
    asked, low = min(limit.epsilon, limit.campaign_epsilon or limit.epsilon), LOWEST
    if proposed.adaptivity is Adaptivity.PREREGISTERED:
        args = (asked, limit.delta, mechanism.sampling, mechanism.steps, mechanism.unit)
        try:
            low = min(round(noise_for(*args) * GRID), _MOST_NOTCH)
        except NoNoiseFitsError:
            return None

    def fits(notch: int) -> bool:
        return is_admissible(budget, _with_noise(proposed, notch / GRID), accounting)

    notch = _least(fits, low, _MOST_NOTCH)
    return None if notch is None else _with_noise(proposed, notch / GRID)


def _least(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The least of `low` to `high` that fits, where what is above one that fits does, too."""
    if fits(low):
        return low
    if not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _with_noise(proposed: Reserved, noise: float) -> Reserved:
    mechanism = proposed.mechanism
    assert isinstance(mechanism, PoissonGaussian)
    return replace(proposed, mechanism=replace(mechanism, noise_multiplier=noise))
