"""What a party that lies can sign: each was a way to stop a round, or to blame another for it.

Found by `tests/fuzz`; the inputs lie in its corpus, the rules stand here.
"""

import math
import struct
from dataclasses import replace

import pytest
from tests.fuzz.scenes import LIAR, NAMES, TERMS, VICTIM, forged, scene, signed_terms
from tests.fuzz.targets import _dealt
from tests.secure.aggregation.fleets import COORDINATOR, config, key_of, member

from offsite.secure.aggregation.dealing import parts_root
from offsite.secure.aggregation.encoding import pack, pack_list
from offsite.secure.aggregation.evidence import verify_round
from offsite.secure.aggregation.fixed_point import FixedPoint
from offsite.secure.aggregation.journal import Step, pack_deliveries, unpack_deliveries
from offsite.secure.aggregation.keys import MLKEM_PUBLIC_BYTES
from offsite.secure.aggregation.member import open_config
from offsite.secure.aggregation.messages import Acknowledgement, Advertisement, Sharing, claimed
from offsite.secure.aggregation.round_config import RoundConfig
from offsite.secure.errors import ConfigError, IntegrityError, PeerError, PolicyError


@pytest.mark.parametrize("half", ["ML-KEM", "X25519"])
def test_a_channel_key_that_nothing_is_sealed_to_is_not_let_in(half: str) -> None:
    """In the roster it would stop every other member: none could deal out its shares."""
    _, coordinator = scene().before(Step.ADVERTISE)
    entry = claimed(Advertisement, scene().said[Step.ADVERTISE][LIAR])[1]
    mlkem, x25519 = (
        entry.channel_public[:MLKEM_PUBLIC_BYTES],
        entry.channel_public[MLKEM_PUBLIC_BYTES:],
    )
    bad = b"\xff" * len(mlkem) + x25519 if half == "ML-KEM" else mlkem + bytes(32)
    message = forged(Advertisement, replace(entry, channel_public=bad).to_bytes(), LIAR)
    with pytest.raises(IntegrityError, match=half):
        coordinator.add_advertisement(message)
    assert LIAR not in coordinator.received.advertisements


@pytest.mark.parametrize("size", [0, 31, 32, 63])
def test_a_share_that_could_not_be_revealed_is_complained_about(size: int) -> None:
    """Committed to as it is, it would have made every honest holder's reveal unreadable."""
    victim, _ = scene().before(Step.ACKNOWLEDGE)
    said = victim.acknowledge(dict(scene().deliveries) | {LIAR: _dealt(bytes(size))}, 0)
    assert claimed(Acknowledgement, said)[1].complaints == (LIAR,)


def test_parts_that_are_none_are_refused_and_change_nothing() -> None:
    """Also under a root that their dealer has signed."""
    _, coordinator = scene().before(Step.SHARE)
    parts = [*scene().parts[LIAR][:-1], b"no part"]
    said = Sharing(coordinator.roster.digest, LIAR, parts_root(parts))
    with pytest.raises(IntegrityError, match="part of a sharing"):
        coordinator.add_sharing(forged(Sharing, said.to_bytes(), LIAR), parts, LIAR)
    assert LIAR not in coordinator.received.sharings and LIAR not in coordinator.received.parts


def test_names_have_one_form() -> None:
    digest = scene().victims[Step.ACKNOWLEDGE]._frozen().digest
    names = pack_list([b"edge-001", b"\xe9dge-002"])
    with pytest.raises(IntegrityError, match="printable"):
        Acknowledgement.from_bytes(pack((digest, b"edge-001", names, b"")))


@pytest.mark.parametrize("time", [math.nan, math.inf])
def test_deadlines_are_times(time: float) -> None:
    """Nothing is later than NaN: members would have waited, secrets in hand, for ever."""
    with pytest.raises(ConfigError, match="ascending times"):
        config(4, deadlines_unix_s=(time,) * 5)


def test_terms_beyond_all_integers_are_refused() -> None:
    good = FixedPoint(28, 1.0, math.inf)
    payload = TERMS.to_bytes()
    fields = pack((_real(TERMS.fixed_point.coordinate_bound),))
    assert payload.count(fields) == 1
    with pytest.raises(PeerError, match="members may reach"):
        open_config(
            signed_terms(payload.replace(fields, pack((_real(1e308),)))), COORDINATOR.public
        )
    with pytest.raises(ConfigError, match="members may reach"):
        replace(good, coordinate_bound=1e308).bound(4)
    assert RoundConfig.from_bytes(payload) == TERMS


def _real(value: float) -> bytes:
    return struct.pack(">d", value)


def test_evidence_without_parts_is_refused() -> None:
    evidence = scene().evidence
    assert evidence is not None
    with pytest.raises(IntegrityError, match="expected the parts of 4 sharings, found those of 3"):
        verify_round(
            replace(evidence, parts=evidence.parts[1:]),
            scene().result,
            COORDINATOR.public,
            key_of,
            scene().vectors.__getitem__,
        )


def test_deliveries_come_in_order_each_dealer_once() -> None:
    packed = pack_deliveries(scene().deliveries)
    assert set(unpack_deliveries(packed)) == set(NAMES) - {VICTIM}
    for bad in ((packed[1], packed[0]), (packed[0], packed[0])):
        with pytest.raises(IntegrityError, match="each dealer once"):
            unpack_deliveries(bad)


@pytest.mark.parametrize(
    ("step", "field"),
    [(step, "sent") for step in (Step.ADVERTISE, Step.SHARE, Step.MASK, Step.REVEAL)]
    + [(step, "received") for step in (Step.SHARE, Step.MASK, Step.CONFIRM)],
)
def test_a_damaged_journal_is_said_to_be_one(step: Step, field: str) -> None:
    finished = scene().finished
    assert finished is not None
    journal = list(finished.journal)
    journal[step.value] = replace(journal[step.value], **{field: ()})
    with pytest.raises((PeerError, PolicyError)):
        member(VICTIM, TERMS).restore(journal)
