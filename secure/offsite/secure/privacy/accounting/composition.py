"""A history of mechanisms, merged: what the accountants compose.

Equal mechanisms become one with the sum of their uses, so that ten thousand equal ledger entries
cost as much as one. The order is that of the first appearance: a history that grows keeps its
beginning, which the PLD accountant has composed already.

Composition needs one unit and one adjacency; mechanisms that differ are refused, never converted.
"""

import dataclasses
from collections.abc import Iterable
from typing import Final

from offsite.secure.errors import PolicyError
from offsite.secure.privacy.mechanisms import (
    MOST_USES,
    Gaussian,
    Mechanism,
    TruncatedPoissonGaussian,
)

MOST_GROUPS: Final = 512
"""Different mechanisms in one history. Each costs a convolution; a campaign needs one."""

MOST_STEPS: Final = 2**22
"""Sampled uses in one history: four million steps, beyond which composition takes too long."""


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal mechanisms as one, in the order in which they first appeared.

    Raises:
        PolicyError: two units or adjacencies, too many different mechanisms or too many steps.
    """
    uses: dict[Mechanism, int] = {}
    for mechanism in mechanisms:
        once = mechanism.repeated(1)
        uses[once] = uses.get(once, 0) + mechanism.uses
    relations = {(once.unit.value, once.adjacency.value) for once in uses}
    if len(relations) > 1:
        raise PolicyError(
            f"expected mechanisms of one unit and adjacency, found {sorted(relations)}: their "
            "epsilons do not add up; account for each apart"
        )
    if len(uses) > MOST_GROUPS:
        raise PolicyError(
            f"expected at most {MOST_GROUPS} different mechanisms in one history, found "
            f"{len(uses)}: keep the noise multiplier and the sampling rate for a campaign"
        )
    steps = sum(count for once, count in uses.items() if not isinstance(once, Gaussian))
    if steps > MOST_STEPS:
        raise PolicyError(
            f"expected at most {MOST_STEPS} steps in one history, found {steps}: no accountant "
            "here can compose them; run fewer"
        )
    return tuple(once.repeated(count) for once, count in uses.items())


def directions(history: tuple[Mechanism, ...]) -> tuple[tuple[Mechanism, ...], ...]:
    """The history for as many units as there are and for one more, where that makes a difference.

    What truncated sampling costs depends on how many units there are. Neighbours have equally many
    (`units.py`); one more is followed, too, as if a unit were added, and the worse of the two counts.
    Neither is always the worse.
    """
    larger = tuple(map(_with_one_more, history))
    return (history,) if larger == history else (history, larger)


def _with_one_more(mechanism: Mechanism) -> Mechanism:
    if not isinstance(mechanism, TruncatedPoissonGaussian):
        return mechanism
    return dataclasses.replace(mechanism, units=min(mechanism.units + 1, MOST_USES))
