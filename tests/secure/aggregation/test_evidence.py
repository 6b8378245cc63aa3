"""Audits: a round is recomputed bit for bit from its evidence, and a changed one is not."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tests.secure.aggregation.fleets import COORDINATOR, fleet, key_of, name_of

from offsite.secure import envelope
from offsite.secure.aggregation.evidence import Evidence, collect, verify_round, words_sha256
from offsite.secure.aggregation.messages import Result, signed
from offsite.secure.aggregation.round_config import CONFIG_TYPE
from offsite.secure.aggregation.runner import Phase
from offsite.secure.errors import PeerError

Audited = tuple[Evidence, bytes, dict[str, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def audited() -> Audited:
    """The evidence of a round with dropouts, its result, the masked vectors and the sum."""
    parties, _ = fleet(7, 8, {name_of(2): Phase.MASK, name_of(5): Phase.REVEAL})
    vectors: dict[str, np.ndarray] = {}
    for name, party in parties.members.items():
        party.mask = _keeping(party.mask, vectors, name)  # type: ignore[method-assign]
    total = parties.run().total
    gathering = parties.gathering
    config = envelope.to_bytes(envelope.sign(CONFIG_TYPE, gathering.config.to_bytes(), COORDINATOR))
    evidence = collect(gathering, config)
    return (
        evidence,
        signed(_result(evidence, gathering.agreement, total), COORDINATOR),
        vectors,
        total,
    )


def _keeping(
    mask: Callable[..., bytes], vectors: dict[str, np.ndarray], name: str
) -> Callable[..., bytes]:
    def keeping(members: bytes, words: np.ndarray, *rest: object) -> bytes:
        header = mask(members, words, *rest)
        vectors[name] = words.copy()
        return header

    return keeping


def _result(evidence: Evidence, agreement: object, total: np.ndarray) -> Result:
    return Result(
        agreement.config,  # type: ignore[attr-defined]
        agreement.roster.digest,  # type: ignore[attr-defined]
        agreement.survivors_digest,  # type: ignore[attr-defined]
        words_sha256(total),
        evidence.transcript_root,
    )


def verify(audited: Audited, **changes: object) -> np.ndarray:
    evidence, result, vectors, _ = audited
    evidence = replace(evidence, **changes)  # type: ignore[arg-type]
    found = verify_round(
        evidence, result, COORDINATOR.public, key_of, vectors.__getitem__, threads=2
    )
    return found.total


def test_a_sum_is_recomputed_bit_for_bit(audited: Audited) -> None:
    assert np.array_equal(verify(audited), audited[3])


def test_evidence_survives_a_file(audited: Audited) -> None:
    evidence = audited[0]
    assert Evidence.from_bytes(evidence.to_bytes()) == evidence
    for bad in (evidence.to_bytes()[:-1], evidence.to_bytes() + b"x", b""):
        with pytest.raises(PeerError):
            Evidence.from_bytes(bad)


@pytest.mark.parametrize(
    "field",
    ["advertisements", "sharings", "acknowledgements", "uploads", "confirmations", "reveals"],
)
def test_a_changed_round_fails_its_audit(audited: Audited, field: str) -> None:
    messages = getattr(audited[0], field)
    first = bytearray(messages[0])
    first[-1] ^= 1
    for changed in ((bytes(first), *messages[1:]), messages[1:], messages[::-1]):
        with pytest.raises(PeerError):
            verify(audited, **{field: changed})


def test_a_changed_vector_fails_the_audit(audited: Audited) -> None:
    evidence, result, vectors, _ = audited
    changed = dict(vectors)
    changed[name_of(0)] = vectors[name_of(0)] + np.uint32(1)
    with pytest.raises(PeerError, match="masked vector that it signed"):
        verify_round(evidence, result, COORDINATOR.public, key_of, changed.__getitem__)


def test_a_result_of_another_sum_fails_the_audit(audited: Audited) -> None:
    evidence, result, vectors, _ = audited
    stated = Result.from_bytes(envelope.from_bytes(result).payload)
    for field in ("config", "roster", "survivors", "sum_sha256", "transcript_root"):
        forged = signed(replace(stated, **{field: bytes(32)}), COORDINATOR)
        with pytest.raises(PeerError, match="expected"):
            verify_round(evidence, forged, COORDINATOR.public, key_of, vectors.__getitem__)
