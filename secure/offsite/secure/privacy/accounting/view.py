"""Epsilon as a view of a history of mechanisms, computed by several accountants that must agree.

Rules (`docs/guarantees.md` names their tests):

    (1) what is added up has one unit and one adjacency
    (2) PLD does not exceed RDP, which is an upper bound by theory; where it does, its interval is
        refined once (tiny epsilons), and then it must not
    (3) -0.02 ≤ PRV's upper bound - PLD ≤ 0.02
    (4) where nothing was sampled, PLD is within 1e-3 of the closed form

A figure that breaks a rule is never reported: that is a defect of an accountant or of ours. The
theorems compose mechanisms whose parameters were fixed in advance; for others see `filter`.
"""

import importlib.metadata
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.accounting import closed_form, pld, prv, rdp
from offsite.secure.privacy.accounting.composition import merged
from offsite.secure.privacy.mechanisms import Mechanism

PRV_TOLERANCE: Final = 0.02
CLOSED_FORM_TOLERANCE: Final = 1e-3
RDP_SLACK: Final = 1e-6
"""What rounding may add to PLD where both are equal, near zero."""
LEAST_DELTA: Final = 1e-10
MOST_DELTA: Final = 0.5
MOST_EPSILON: Final = 256.0
"""By RDP. Beyond it there is nothing to report, and computing it would take the machine's memory."""


@dataclass(frozen=True, slots=True)
class EpsilonView:
    """Epsilon at delta by every accountant. `pld` is the figure of record."""

    delta: float
    pld: float
    prv: float  # upper bound
    rdp: float
    closed_form: float | None  # None where something was sampled
    interval: float  # of the PLD
    versions: tuple[tuple[str, str], ...]  # of the packages that computed it


def epsilon_of(mechanisms: Iterable[Mechanism], delta: float) -> EpsilonView:
    """What the mechanisms cost together, if all accountants agree.

    Guarantees: mechanisms with parameters fixed in advance, composed adaptively, are
    (`pld`, delta)-DP for their unit and adjacency (test_the_published_table,
    test_a_hundred_random_configurations_agree).

    Raises:
        PolicyError: the accountants disagree, units differ, or epsilon is beyond any use.
    """
    check_delta(delta)
    history = merged(mechanisms)
    by_rdp = rdp.epsilon(history, delta)
    if not by_rdp <= MOST_EPSILON:
        raise PolicyError(
            f"expected an epsilon of at most {MOST_EPSILON:g} by RDP, found {by_rdp:.0f}: that "
            "protects nobody and is not computed; use more noise or fewer steps"
        )
    by_pld, interval = _pld_below(history, delta, by_rdp)
    by_prv = prv.epsilon(history, delta).upper
    exact = closed_form.epsilon(history, delta)
    view = EpsilonView(delta, by_pld, by_prv, by_rdp, exact, interval, versions())
    check_agreement(view)
    return view


def check_delta(delta: float) -> None:
    """Refuses what no accountant here is exact for.

    Raises:
        ConfigError: delta out of range.
    """
    if not LEAST_DELTA <= delta <= MOST_DELTA:
        raise ConfigError(
            f"delta: expected {LEAST_DELTA:g} to {MOST_DELTA:g}, found {delta!r}: choose one below "
            "1 / (10 times the number of units), as 1e-5"
        )


def check_agreement(view: EpsilonView) -> None:
    """Rules (2) to (4).

    Raises:
        PolicyError: a rule is broken; names the figures.
    """
    problems = []
    if not view.pld <= view.rdp + RDP_SLACK:
        problems.append(f"RDP bounds it by {view.rdp:.6f}")
    if not abs(view.prv - view.pld) <= PRV_TOLERANCE:
        problems.append(f"PRV bounds it by {view.prv:.6f}, more than {PRV_TOLERANCE:g} away")
    if view.closed_form is not None:
        tolerance = CLOSED_FORM_TOLERANCE
        if not abs(view.closed_form - view.pld) <= tolerance:
            problems.append(f"the closed form is {view.closed_form:.6f}, over {tolerance:g} away")
    if problems:
        raise PolicyError(
            f"accountants disagree at delta {view.delta:g}: PLD says {view.pld:.6f}, but "
            + " and ".join(problems)
            + ": no figure is reported; report it with the ledger's mechanisms"
        )


@lru_cache(maxsize=1)
def versions() -> tuple[tuple[str, str], ...]:
    """The packages that a figure depends on."""
    names = ("dp-accounting", "numpy", "prv-accountant", "scipy")
    return tuple((name, importlib.metadata.version(name)) for name in names)


def _pld_below(history: tuple[Mechanism, ...], delta: float, most: float) -> tuple[float, float]:
    """Rule (2): at the usual interval, or at the fine one where the usual one is too coarse."""
    found = pld.epsilon(history, delta)
    if found <= most + RDP_SLACK or not math.isfinite(found):
        return found, pld.INTERVAL
    return pld.epsilon(history, delta, pld.FINE_INTERVAL), pld.FINE_INTERVAL
