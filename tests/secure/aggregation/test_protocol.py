"""The whole protocol: sums are exact whoever drops out, and below the threshold there are none."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secure.aggregation.fleets import (
    config,
    dropouts,
    fleet,
    gathering,
    member,
    name_of,
    updates,
)

from offsite.secure.aggregation.fixed_point import decode
from offsite.secure.aggregation.keystream import Generator
from offsite.secure.aggregation.runner import Fleet, MemoryLatch, Phase
from offsite.secure.errors import PolicyError

DROPS_BEFORE_THE_SUM = (Phase.ADVERTISE, Phase.SHARE, Phase.ACKNOWLEDGE, Phase.MASK)


def expected_sum(inputs: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    total: np.ndarray = np.add.reduce([inputs[name] for name in names], dtype=np.uint32)
    return total


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 12), st.data())
def test_the_sum_is_exact_whoever_drops_out(members: int, data: st.DataObject) -> None:
    gone = data.draw(
        st.lists(st.integers(0, members - 1), max_size=dropouts(members), unique=True, min_size=0)
    )
    drops = {name_of(i): data.draw(st.sampled_from(Phase)) for i in gone}
    parties, inputs = fleet(members, 8, drops)
    outcome = parties.run()
    assert np.array_equal(outcome.total, expected_sum(inputs, outcome.survivors))
    early = {name for name, phase in drops.items() if phase in DROPS_BEFORE_THE_SUM}
    assert set(outcome.survivors) == set(inputs) - early


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("members", [5, 10])
def test_one_more_dropout_than_allowed_gives_no_sum(members: int, phase: Phase) -> None:
    terms = config(members, 8, least_members=members - dropouts(members))
    threshold = terms.threshold(members)
    drops = {name_of(i): phase for i in range(members - threshold + 1)}
    parties, _ = fleet(members, 8, drops, terms)
    if phase is Phase.ADVERTISE:  # nobody knew of them: a smaller roster has its own threshold
        with pytest.raises(Exception, match="expected a roster"):
            parties.run()
        return
    with pytest.raises(PolicyError):
        parties.run()


@pytest.mark.parametrize("generator", Generator)
def test_a_weighted_mean_comes_out(generator: Generator) -> None:
    terms = config(4, 50, generator=generator)
    parties, _ = fleet(4, 50, terms=terms)
    outcome = parties.run()
    mean = decode(outcome.total, 4, terms.fixed_point)
    exact = sum(updates(4, 50).values()) / 4
    assert np.abs(mean.values - exact).max() < 1e-7


def test_the_order_of_arrival_does_not_matter() -> None:
    terms = config(6, 8)
    first, inputs = fleet(6, 8, terms=terms)
    parties = {name: member(name, terms) for name in sorted(inputs, reverse=True)}
    second = Fleet(gathering(terms), parties, inputs)
    assert np.array_equal(first.run().total, second.run().total)


def test_an_upload_looks_uniform() -> None:
    """Masked zeros: the share of ones among the bits is that of fair coins, within six sigma."""
    terms = config(3, 20_000)
    coordinator = gathering(terms)
    parties = {name_of(i): member(name_of(i), terms) for i in range(3)}
    for party in parties.values():
        coordinator.add_advertisement(party.advertise(0))
    adverts = coordinator.freeze_roster()
    for name, party in parties.items():
        coordinator.add_sharing(*party.share(adverts, 0), name)
    for name, party in parties.items():
        coordinator.add_acknowledgement(party.acknowledge(coordinator.deliveries(name), 0), name)
    chosen = coordinator.freeze_members()
    for party in parties.values():
        words = np.zeros(20_001, np.uint32)
        party.mask(chosen, words, MemoryLatch(), 0)
        bits = np.unpackbits(words.view(np.uint8))
        assert abs(bits.mean() - 0.5) < 6 * 0.5 / np.sqrt(len(bits))


def test_known_answer() -> None:
    """Fixed seeds give these bytes for ever: changing the protocol means changing its suite."""
    terms = config(3, 4)
    parties, _ = fleet(3, 4, terms=terms)
    advertisement = parties.members[name_of(0)].advertise(0.0)
    assert terms.digest.hex() == KNOWN["config"]
    assert hashlib.sha256(advertisement).hexdigest() == KNOWN["advertisement"]
    fresh, _ = fleet(3, 4, terms=terms)
    fresh.run()
    assert fresh.gathering.roster.digest.hex() == KNOWN["roster"]
    assert fresh.gathering.members.digest.hex() == KNOWN["members"]
    uploads = b"".join(sorted(fresh.gathering.received.uploads.values()))
    assert hashlib.sha256(uploads).hexdigest() == KNOWN["uploads"]


KNOWN = {
    "config": "6fa0fa4ae18a05f367da2d081054a45fffea78035c0e4c66833a592ad3bb9ed5",
    "advertisement": "4ab0a49223ccb970211d3d26ad9312a576c62a3a6b6f5096161033011bb2f4c0",
    "roster": "1b98e5356f3081cef9c266971f67fbad40ec8ad99697b46f4f6ca109d3480ccd",
    "members": "6252882d3efb403d919d66f7adf0797a816c35ad509165723b0f96d715f41695",
    "uploads": "86599d858e092b8299b8dee366b00661ff4d103b5b2d923a022a58cc05e6e3fb",
}
