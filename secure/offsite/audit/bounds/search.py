"""The largest parameter, and the least significance, at which the data reject."""

from collections.abc import Callable
from typing import Final

from offsite.secure.errors import ConfigError

TOLERANCE: Final = 1e-9
LEAST_P_VALUE: Final = 1e-12
_MOST_P_VALUE: Final = 0.999
_P_VALUE_FACTOR: Final = 1.001
_MOST: Final = 1024.0
"""No count of canaries that fits in memory rejects an epsilon above this."""


def largest_rejected(rejects: Callable[[float], bool]) -> float:
    """Bisects for where `rejects`, true below and false above, changes; 0 where it never is true.

    The answer is itself rejected: rounding makes a bound smaller, never larger.
    """
    if not rejects(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejects(high):
        low, high = high, 2 * high
        if low > _MOST:
            raise ConfigError("audit: expected counts that bound epsilon, found a test without end")
    while high - low > TOLERANCE * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low


def least_rejecting(rejects: Callable[[float], bool]) -> float:
    """Bisects for the least significance at which `rejects`, to 1e-3 of itself; 1 if at none.

    The answer itself rejects; nothing below `LEAST_P_VALUE` is told apart.
    """
    low, high = LEAST_P_VALUE, _MOST_P_VALUE
    if not rejects(high):
        return 1.0
    if rejects(low):
        return low
    while high / low > _P_VALUE_FACTOR:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if rejects(middle) else (middle, high)
    return high
