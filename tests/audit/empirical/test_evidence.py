"""Evidence is read strictly, and parts that do not belong together are refused."""

import dataclasses
import json
import random
from collections.abc import Callable

import pytest
from tests.audit.empirical.broken import TERMS

from offsite.audit.empirical.evidence import EVIDENCE_BYTES, Evidence
from offsite.audit.empirical.guesses import GuessSheet
from offsite.audit.empirical.judgement import check_commitments, judge
from offsite.audit.empirical.plan import CROWD, DUEL, AuditPlan
from offsite.audit.empirical.run import run_empirical
from offsite.audit.empirical.scores import Reading
from offsite.secure.errors import IntegrityError, PeerError
from offsite.secure.privacy.ledger.canonical import canonical

RATIO = Reading.LIKELIHOOD_RATIO


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    plan = AuditPlan(TERMS, canaries=100, duels=100)
    return run_empirical(plan, entropy=random.Random(1).randbytes)[1]


def with_guesses(evidence: Evidence, **changes: object) -> Evidence:
    return dataclasses.replace(evidence, guesses=dataclasses.replace(evidence.guesses, **changes))


def test_other_labels_than_those_committed_to_are_refused(evidence: Evidence) -> None:
    for name in (CROWD, DUEL):
        keys = {**evidence.label_keys, name: bytes(32)}
        with pytest.raises(IntegrityError, match=f"the labels of the {name}"):
            judge(dataclasses.replace(evidence, label_keys=keys))


def test_guesses_of_another_audit_are_refused(evidence: Evidence) -> None:
    with pytest.raises(IntegrityError, match="guesses of this opening"):
        judge(with_guesses(evidence, opening_sha256=bytes(32)))
    plan = dataclasses.replace(evidence.opening.plan, significance=0.4)
    opening = dataclasses.replace(evidence.opening, plan=plan)
    with pytest.raises(IntegrityError, match="guesses of this opening"):
        judge(dataclasses.replace(evidence, opening=opening))


def test_other_counts_than_those_planned_are_refused(evidence: Evidence) -> None:
    sheet = evidence.guesses.crowd[RATIO]
    fewer = {**evidence.guesses.crowd, RATIO: GuessSheet(sheet.inside[1:], sheet.outside)}
    with pytest.raises(IntegrityError, match=f"{RATIO.value}: expected"):
        judge(with_guesses(evidence, crowd=fewer))
    duel = evidence.guesses.duel
    for missing in (
        GuessSheet(duel.inside[1:], duel.outside),
        GuessSheet((*duel.inside, 100), duel.outside),
    ):
        with pytest.raises(IntegrityError, match=r"a guess for every duel|100 canaries only"):
            judge(with_guesses(evidence, duel=missing))
    beyond = {**evidence.guesses.crowd, RATIO: GuessSheet((*sheet.inside[:-1], 100), sheet.outside)}
    with pytest.raises(IntegrityError, match="guesses about 100 canaries only"):
        judge(with_guesses(evidence, crowd=beyond))


Document = dict[str, dict[str, object]]


def set_in(part: str, name: str, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document[part][name] = value

    return change


MECHANISM = {"kind": "gaussian", "noise_multiplier": 1, "count": 1, "unit": "record"}
CHANGES: dict[str, Callable[[Document], None]] = {
    "another format": set_in("opening", "format", "offsite empirical audit 2"),
    "an unknown field": set_in("opening", "seed", 7),
    "no sampling": set_in("opening", "mechanism", {**MECHANISM, "adjacency": "zero_out"}),
    "a mechanism of nothing": set_in("opening", "mechanism", {}),
    "persons": lambda d: d["opening"]["mechanism"].update(unit="person"),  # type: ignore[attr-defined]
    "too few canaries": set_in("opening", "canaries", 10),
    "a clip norm of 0": set_in("opening", "clip_norm", 0),
    "a delta of 1": set_in("opening", "delta", 1),
    "three counts": set_in("opening", "guess_counts", {r.value: [1, 2, 3] for r in Reading}),
    "a count of half": set_in("opening", "guess_counts", {r.value: [1, 0.5] for r in Reading}),
    "no counts": set_in("opening", "guess_counts", {}),
    "a short commitment": set_in("opening", "label_commitments", {CROWD: "ab", DUEL: "cd"}),
    "a guess twice": set_in("guesses", DUEL, {"in": [1, 1], "out": []}),
    "a negative guess": set_in("guesses", DUEL, {"in": [-1], "out": []}),
    "a guess of true": set_in("guesses", DUEL, {"in": [True], "out": []}),
    "no sheet": set_in("guesses", DUEL, []),
    "no key": lambda d: d["label_keys"].pop(DUEL),  # type: ignore[return-value]
    "one receipt": lambda d: d.update(receipts=["a"]),  # type: ignore[call-overload]
    "receipts of numbers": lambda d: d.update(receipts=[1, 2]),  # type: ignore[call-overload]
    "a long receipt": lambda d: d.update(receipts=["a", "b" * 513]),  # type: ignore[call-overload]
    "one thing more": lambda d: d.update(more={}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_audit_of_ours_writes_is_refused(evidence: Evidence, name: str) -> None:
    document = json.loads(evidence.to_bytes())
    CHANGES[name](document)
    with pytest.raises(PeerError, match=r"expected|found"):
        Evidence.from_bytes(canonical(document))


def test_cut_or_changed_bytes_are_refused(evidence: Evidence) -> None:
    data = evidence.to_bytes()
    for cut in range(0, len(data), len(data) // 20):
        with pytest.raises(PeerError):
            Evidence.from_bytes(data[:cut])
    with pytest.raises(IntegrityError, match="at most"):
        Evidence.from_bytes(bytes(EVIDENCE_BYTES + 1))


def test_any_change_after_the_commitment_is_refused(evidence: Evidence) -> None:
    """Of any bit but those of the receipts, which are text for people."""
    digests = evidence.opening.sha256, evidence.guesses.sha256
    check_commitments(evidence, *digests)
    data, changes = evidence.to_bytes(), random.Random(3)
    for _ in range(200):
        place, bit = changes.randrange(data.index(b'"receipts"')), 1 << changes.randrange(8)
        changed = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
        with pytest.raises(PeerError):
            found = Evidence.from_bytes(changed)
            check_commitments(found, *digests)
            judge(found)
    for wrong in ((bytes(32), digests[1]), (digests[0], bytes(32))):
        with pytest.raises(IntegrityError, match="made or changed afterwards"):
            check_commitments(evidence, *wrong)
