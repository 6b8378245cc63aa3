"""From an epsilon to the noise, and from the noise to the steps that fit.

Both searches take the history that the same data have paid for already: what is bounded is the
epsilon of everything together, not of the new part alone. Noise multipliers lie on a grid of 2^-10
and are rounded up, never down, so that a calibrated value is an exact float and a short number in
a ledger. The result of a search has passed every rule of `accounting.view`, and its figure of
record is at most the epsilon asked for.

The noise must be chosen before training and kept: theorems compose what was fixed in advance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from offsite.secure.errors import ConfigError, PolicyError
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
    TruncatedPoissonGaussian,
)
from offsite.secure.privacy.units import Unit

GRID: Final = 2**10
"""Noise multipliers are multiples of 1 / GRID; a search counts in such notches."""
LOWEST: Final = GRID // 4
"""No less noise is ever proposed, however large the epsilon."""
HIGHEST: Final = 4096 * GRID
MOST_RUN: Final = 2**20
"""More steps than anybody runs: where a search for what fits ends."""
_COARSE: Final = 1e-3
"""Interval of a first search, ten times faster; the second one starts from its result."""
_LARGE: Final = 1.0
"""Epsilon from which the coarse interval is accurate enough to be of help."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """Of a Poisson sample: at most `cap` of the data's `units` in a batch."""

    units: int
    cap: int


def schedule(
    noise_multiplier: float,
    sampling: Fraction,
    steps: int,
    unit: Unit,
    truncation: Truncation | None = None,
) -> PoissonGaussian | TruncatedPoissonGaussian:
    """The mechanism of a training run.

    Raises:
        ConfigError: a value out of range.
    """
    if truncation is None:
        return PoissonGaussian(noise_multiplier, sampling, steps, unit)
    units, cap = truncation.units, truncation.cap
    return TruncatedPoissonGaussian(noise_multiplier, sampling, steps, units, cap, unit)


def noise_for(
    epsilon: float,
    delta: float,
    sampling: Fraction,
    steps: int,
    unit: Unit,
    *,
    truncation: Truncation | None = None,
    before: Sequence[Mechanism] = (),
) -> float:
    """The least noise multiplier of the grid with which history and run cost at most epsilon.

    Guarantees: `epsilon_of([*before, schedule(result, ...)], delta).pld` is at most `epsilon`
    (test_calibrated_noise_is_the_least_that_fits).

    Raises:
        PolicyError: the history leaves nothing, or the accountants disagree on the result.
        ConfigError: epsilon, delta or the schedule is out of range.
    """
    _check_target(epsilon, delta)
    _check_something_left(epsilon, delta, before)

    def history(notch: int) -> tuple[Mechanism, ...]:
        return merged((*before, schedule(notch / GRID, sampling, steps, unit, truncation)))

    def cost_by(interval: float) -> Callable[[int], float]:
        return lambda notch: _cost(history(notch), delta, interval)

    enough = _least(lambda n: rdp.epsilon(history(n), delta) <= epsilon, LOWEST, HIGHEST)
    near = enough or HIGHEST
    for interval in (_COARSE, pld.INTERVAL) if epsilon >= _LARGE else (pld.INTERVAL,):
        near = _least_noise(cost_by(interval), epsilon, near)
    if _cost(history(near), delta) > epsilon:
        raise PolicyError(
            f"no noise multiplier up to {HIGHEST / GRID:g} keeps {steps} more steps within epsilon "
            f"{epsilon:g} at delta {delta:g}: run fewer steps or raise the limit"
        )
    epsilon_of(history(near), delta)
    return near / GRID


def steps_that_fit(
    epsilon: float, delta: float, mechanism: Mechanism, *, before: Sequence[Mechanism] = ()
) -> int:
    """How many uses of the mechanism still cost, with the history, at most epsilon; 0 for none.

    The uses of `mechanism` itself do not matter; no result is above `MOST_RUN`. Guarantees: the figure of record of history and
    result is at most `epsilon`, and one use more would exceed it
    (test_steps_that_fit_are_the_most_that_fit).

    Raises:
        ConfigError: epsilon or delta is out of range.
        PolicyError: the accountants disagree on the result.
    """
    _check_target(epsilon, delta)

    def history(uses: int) -> tuple[Mechanism, ...]:
        return merged((*before, mechanism.repeated(uses)))

    # RDP is an upper bound and cheap: what fits by it fits.
    over = _least(lambda uses: rdp.epsilon(history(uses), delta) > epsilon, 1, MOST_RUN)
    if over is None:
        return MOST_RUN
    fits, exceeds = over - 1, over
    while exceeds < MOST_RUN and _cost(history(exceeds), delta) <= epsilon:
        fits, exceeds = exceeds, min(MOST_RUN, exceeds + max(1, exceeds // 2))
    if exceeds - fits > 1:
        fits = _boundary(lambda uses: _cost(history(uses), delta), epsilon, fits, exceeds)
    if fits:
        epsilon_of(history(fits), delta)
    return fits


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


def _check_something_left(epsilon: float, delta: float, before: Sequence[Mechanism]) -> None:
    spent = epsilon_of(before, delta).pld
    if spent >= epsilon:
        raise PolicyError(
            f"these data have spent epsilon {spent:.4f} of {epsilon:g} at delta {delta:g}: nothing "
            "is left to train with; only the owner can raise the limit"
        )
