"""Rounds of a hundred clients, and of a thousand in cohorts, with dropouts in every phase.

Members share this process and take their turns, so the CPU time is that of all of them together;
vectors are short, since what grows with a cohort is its square of parts, not its values.
"""

import random
from collections import Counter

import numpy as np
import pytest
from tests.secure.aggregation.fleets import config, dropouts, fleet, name_of

from offsite.secure.aggregation.runner import Phase

VALUES = 8
BEFORE_THE_SUM = (Phase.ADVERTISE, Phase.SHARE, Phase.ACKNOWLEDGE, Phase.MASK)


def seeded_drops(members: int, seed: int) -> dict[str, Phase]:
    """As many as may vanish, ⌊0.3 n⌋, spread evenly over the phases."""
    gone = random.Random(seed).sample(range(members), dropouts(members))
    return {name_of(i): Phase(1 + turn % len(Phase)) for turn, i in enumerate(gone)}


def finishes(members: int, seed: int) -> None:
    drops = seeded_drops(members, seed)
    assert min(Counter(drops.values()).values()) >= len(drops) // len(Phase)
    parties, inputs = fleet(members, VALUES, drops, config(members, VALUES, least_members=5))
    outcome = parties.run()
    early = {name for name, phase in drops.items() if phase in BEFORE_THE_SUM}
    assert set(outcome.survivors) == set(inputs) - early
    expected = np.add.reduce([inputs[name] for name in outcome.survivors], dtype=np.uint32)
    assert np.array_equal(outcome.total, expected)
    assert len(parties.gathering.received.reveals) < len(outcome.survivors) < members


def test_a_hundred_clients_finish_a_round() -> None:
    finishes(100, seed=100)


@pytest.mark.slow
@pytest.mark.parametrize("cohort", range(8))
def test_a_thousand_clients_finish_in_eight_cohorts(cohort: int) -> None:
    """Slow: 125 members seal, open and check some 16,000 parts in each cohort, one after another."""
    finishes(125, seed=1000 + cohort)
