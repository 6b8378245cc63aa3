"""From an epsilon to the noise.

What one run may cost by itself, before anything was released of the data; with a history, the ledger's
admission decides (`ledger.admission.is_admissible`), for then a filter accounts. Noise multipliers lie
on a grid of 2^-10 and are rounded up, never down, so that a calibrated value is an exact float and a
short number in a ledger. The result of a search has passed every rule of `accounting.view`, and its
figure of record is at most the epsilon asked for.

The noise must be chosen before training and kept: theorems compose what was fixed in advance.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Final

from offsite.secure.errors import ConfigError, NoNoiseFitsError
from offsite.secure.privacy.accounting import pld, rdp
from offsite.secure.privacy.accounting.composition import merged
from offsite.secure.privacy.accounting.view import (
    MOST_EPSILON,
    check_delta,
    epsilon_of,
)
from offsite.secure.privacy.mechanisms import (
    Mechanism,
    PoissonGaussian,
)
from offsite.secure.privacy.units import Unit

GRID: Final = 2**10
"""Noise multipliers are multiples of 1 / GRID; a search counts in such notches."""
LOWEST: Final = GRID // 4
"""No less noise is ever proposed, however large the epsilon."""
HIGHEST: Final = 4096 * GRID
_COARSE: Final = 1e-3
"""Interval of a first search, ten times faster; the second one starts from its result."""
_LARGE: Final = 1.0
"""Epsilon from which the coarse interval is accurate enough to be of help."""


def schedule(
    noise_multiplier: float, sampling: Fraction, steps: int, unit: Unit
) -> PoissonGaussian:
    """The mechanism of a training run.

    Raises:
        ConfigError: a value out of range.
    """
    return PoissonGaussian(noise_multiplier, sampling, steps, unit)


def noise_for(epsilon: float, delta: float, sampling: Fraction, steps: int, unit: Unit) -> float:
    """The least noise multiplier of the grid with which a run costs at most epsilon.

    Guarantees: `epsilon_of([schedule(result, ...)], delta).pld` is at most `epsilon`
    (test_calibrated_noise_is_the_least_that_fits).

    Raises:
        NoNoiseFitsError: no noise of the grid is enough.
        PolicyError: the accountants disagree on the result.
        ConfigError: epsilon, delta or the schedule is out of range.
    """
    _check_target(epsilon, delta)

    def run(notch: int) -> tuple[Mechanism, ...]:
        return merged([schedule(notch / GRID, sampling, steps, unit)])

    def cost_by(interval: float) -> Callable[[int], float]:
        return lambda notch: _cost(run(notch), delta, interval)

    enough = _least(lambda n: rdp.epsilon(run(n), delta) <= epsilon, LOWEST, HIGHEST)
    near = enough or HIGHEST
    for interval in (_COARSE, pld.INTERVAL) if epsilon >= _LARGE else (pld.INTERVAL,):
        near = _least_noise(cost_by(interval), epsilon, near)
    if _cost(run(near), delta) > epsilon:
        raise NoNoiseFitsError(
            f"no noise multiplier up to {HIGHEST / GRID:g} keeps {steps} steps within epsilon "
            f"{epsilon:g} at delta {delta:g}: run fewer steps or raise the limit"
        )
    epsilon_of(run(near), delta)
    return near / GRID


def _cost(history: tuple[Mechanism, ...], delta: float, interval: float = pld.INTERVAL) -> float:
    """The figure of record; infinite where it would be beyond `MOST_EPSILON`."""
    worth_computing = rdp.epsilon(history, delta) <= MOST_EPSILON
    return pld.epsilon(history, delta, interval) if worth_computing else math.inf


def _least_noise(cost: Callable[[int], float], target: float, near: int) -> int:
    """The least notch whose cost is within the target, searched from a guess; HIGHEST if none is.

    The first step trusts that epsilon falls about as 1/sigma; later ones double.
    """
    found = cost(near)
    rising = -1 if found <= target else 1  # where the boundary lies
    step = max(1, abs(round(near * (found / target - 1)))) if found < math.inf else near
    last = near
    while (found <= target) == (rising < 0) and LOWEST <= near + rising <= HIGHEST:
        last, near = near, min(max(near + rising * step, LOWEST), HIGHEST)
        found, step = cost(near), 2 * step
    if (found <= target) == (rising < 0):
        return near
    fits, exceeds = (last, near) if rising < 0 else (near, last)
    return _boundary(cost, target, fits, exceeds)


def _boundary(cost: Callable[[int], float], target: float, fits: int, exceeds: int) -> int:
    """The integer next to the place where a monotone cost crosses the target, on the fitting side.

    Interpolates on logarithms, where such costs are almost straight, and halves every third time.
    """
    costs = {fits: cost(fits), exceeds: cost(exceeds)}
    turn = 0
    while abs(exceeds - fits) > 1:
        turn += 1
        share = 0.5
        if turn % 3 and 0 < costs[fits] < costs[exceeds] < math.inf:
            share = math.log(target / costs[fits]) / math.log(costs[exceeds] / costs[fits])
        guess = round(fits * (exceeds / fits) ** share)
        low, high = sorted((fits, exceeds))
        guess = min(max(guess, low + 1), high - 1)
        costs[guess] = cost(guess)
        fits, exceeds = (guess, exceeds) if costs[guess] <= target else (fits, guess)
    return fits


def _least(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The least integer of low..high from which a monotone condition holds; None if it never does.

    `holds(high)` is asked first and often decides.
    """
    if low > high or not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _check_target(epsilon: float, delta: float) -> None:
    check_delta(delta)
    if not 0 < epsilon <= MOST_EPSILON:
        raise ConfigError(
            f"epsilon: expected above 0 and at most {MOST_EPSILON:g}, found {epsilon!r}"
        )
