"""The audit finds every broken mechanism, says nothing against the right one, and commits first."""

import random
from fractions import Fraction
from io import StringIO

import pytest
from rich.console import Console
from tests.audit.empirical.broken import BROKEN, RIGHT, TERMS

from offsite.audit.empirical.evidence import Evidence
from offsite.audit.empirical.judgement import EmpiricalAudit, judge
from offsite.audit.empirical.labels import SealedLabels
from offsite.audit.empirical.mechanism import Mechanism, MechanismFactory, Problem, Terms
from offsite.audit.empirical.plan import AuditPlan
from offsite.audit.empirical.product import product_mechanism
from offsite.audit.empirical.report import render
from offsite.audit.empirical.run import run_empirical
from offsite.audit.empirical.scores import Reading
from offsite.secure.errors import ConfigError, MachineError
from offsite.secure.privacy.ledger.canonical import canonical

PLAN = AuditPlan(TERMS, canaries=1000, duels=1000)
IN_CROWD = {"no noise", "clipping off", "a seed repeated in every step"}
"""What one run shows of itself; half the noise is beyond the crowd's power at this size."""


def audited(start: MechanismFactory | None, seed: int, plan: AuditPlan = PLAN) -> EmpiricalAudit:
    return run_empirical(plan, start, entropy=random.Random(seed).randbytes)[0]


def crowd_finds(audit: EmpiricalAudit) -> bool:
    return any(found.p_value <= found.significance for found in audit.crowd.values())


def stays_below(audit: EmpiricalAudit) -> bool:
    """No bound of any part reaches what is claimed for it."""
    duel = audit.duel
    return (
        audit.epsilon_lower_bound < audit.claimed_epsilon
        and max(duel.clopper_pearson_epsilon, duel.gaussian_epsilon) < audit.duel_claimed_epsilon
    )


# What it finds, and what not.


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_mechanism_is_found(name: str) -> None:
    audit = audited(BROKEN[name].factory(3), 4)
    assert audit.is_refuted
    assert audit.duel.p_value < 1e-6 and audit.duel.gaussian_epsilon > audit.duel_claimed_epsilon
    assert crowd_finds(audit) or name not in IN_CROWD


def test_the_products_mechanism_is_not_refuted() -> None:
    audit = audited(None, 5)
    assert not audit.is_refuted and stays_below(audit)
    assert audit.duel.gaussian_epsilon > audit.duel_claimed_epsilon / 2  # the duel is tight
    assert audit.epsilon_lower_bound > 0


def test_parts_put_together_rightly_are_not_refuted() -> None:
    audit = audited(RIGHT.factory(6), 7)
    assert not audit.is_refuted and stays_below(audit)


@pytest.mark.slow  # 20 whole audits
def test_the_right_mechanism_stays_below_its_claim() -> None:
    """At 95 % one of the 20 might be refuted; none is, since the bounds are not that tight."""
    terms = [TERMS, Terms(0.8, Fraction(1, 50), 200), Terms(6.0, Fraction(1), 8)]
    plans = [AuditPlan(terms[seed % len(terms)], duels=1000) for seed in range(20)]
    audits = [audited(None, seed, plan) for seed, plan in enumerate(plans)]
    assert [audit.is_refuted for audit in audits] == [False] * 20
    assert all(stays_below(audit) for audit in audits)


@pytest.mark.slow  # 60 whole audits
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_mechanism_is_found_every_time(name: str) -> None:
    terms = [TERMS, Terms(1.0, Fraction(1, 10), 16), Terms(6.0, Fraction(1), 8)]
    for seed in range(10):
        plan = AuditPlan(terms[seed % len(terms)], canaries=500)
        assert audited(BROKEN[name].factory(seed), 100 + seed, plan).is_refuted


@pytest.mark.slow  # a crowd of 5000
def test_a_large_crowd_finds_half_the_noise_in_one_run() -> None:
    plan = AuditPlan(Terms(6.0, Fraction(1), 8), canaries=5000, duels=100)
    assert crowd_finds(audited(BROKEN["half the noise"].factory(1), 1, plan))


# The order of things.


def test_guesses_are_committed_before_labels_open(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    documents: list[bytes] = []
    opened = SealedLabels.open

    def commit(document: bytes) -> str:
        order.append("commit")
        documents.append(document)
        return f"entry {len(documents)}"

    def start(terms: Terms, problem: Problem) -> Mechanism:
        order.append("run")
        return product_mechanism(random.Random(8).randbytes)(terms, problem)

    def watched(labels: SealedLabels, guesses_sha256: bytes) -> bytes:
        order.append("open")
        return opened(labels, guesses_sha256)

    monkeypatch.setattr(SealedLabels, "open", watched)
    plan = AuditPlan(TERMS, canaries=100, duels=100)
    audit, evidence = run_empirical(plan, start, commit=commit, entropy=random.Random(9).randbytes)
    runs = ["run"] * (1 + plan.known_duels + plan.duels)
    assert order == ["commit", *runs, "commit", "open", "open"]
    opening, guesses = evidence.opening.to_json(), evidence.guesses.to_json()
    assert documents == [canonical(opening), canonical(guesses)]
    assert audit.receipts == ("entry 1", "entry 2")
    for key in evidence.label_keys.values():
        assert not any(key.hex().encode() in document for document in documents)


def test_without_a_commitment_no_label_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = iter(["entry 1"])

    def commit(document: bytes) -> str:
        for receipt in receipts:
            return receipt
        raise MachineError("the disk is full")

    opened: list[str] = []
    monkeypatch.setattr(SealedLabels, "open", lambda labels, _: opened.append(labels.name))
    plan = AuditPlan(TERMS, canaries=100, duels=100)
    with pytest.raises(MachineError, match="the disk is full"):
        run_empirical(plan, commit=commit)
    assert not opened


# What is left behind.


def test_whoever_has_the_evidence_gets_the_same_verdict() -> None:
    plan = AuditPlan(TERMS, canaries=100, duels=100)
    audit, evidence = run_empirical(plan, entropy=random.Random(10).randbytes)
    read = Evidence.from_bytes(evidence.to_bytes())
    assert read == evidence and judge(read) == audit
    document = audit.document()
    canonical(document)  # it is JSON
    assert document["is_refuted"] is False and document["confidence"] == 0.95


def shown(audit: EmpiricalAudit) -> str:
    console = Console(width=400, file=StringIO(), record=True)
    console.print(render(audit))
    return console.export_text()


def test_the_table_says_what_was_found_and_what_it_does_not_mean() -> None:
    plan = AuditPlan(TERMS, canaries=100, duels=200)
    right = shown(audited(None, 11, plan))
    assert "The claim was not refuted" in right and "a small one does not mean private" in right
    assert "epsilon 2.51 at delta 1e-05" in right
    wrong = shown(audited(BROKEN["no noise"].factory(1), 11, plan))
    assert "The claim is false (95% confidence)" in wrong


def test_progress_grows_to_its_end() -> None:
    steps: list[tuple[int, int]] = []
    plan = AuditPlan(TERMS, canaries=100, duels=100)
    run_empirical(plan, report=lambda *step: steps.append(step))
    assert steps == sorted(steps) and steps[-1] == (1000, 1000)


def test_all_tests_together_keep_the_significance() -> None:
    """A union bound over the duels and both readings of the crowd."""
    plan = AuditPlan(TERMS, significance=0.1)
    shares = [plan.duel_level.significance, *(plan.crowd_level.significance for _ in Reading)]
    assert sum(shares) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"canaries": 99}, "canaries: expected 100 to 1000000, found 99"),
        ({"duels": 0}, "duels: expected"),
        ({"known_duels": 2}, "known_duels: expected"),
        ({"others": -1}, "others: expected"),
        ({"delta": 0.0}, "a delta above 0"),
        ({"significance": 0.7}, "a significance between"),
    ],
)
def test_a_plan_that_proves_nothing_is_refused(change: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        AuditPlan(TERMS, **change)


@pytest.mark.parametrize("clip_norm", [0.0, float("inf"), float("nan"), 1])
def test_terms_that_cannot_be_are_refused(clip_norm: float) -> None:
    with pytest.raises(ConfigError, match="clip_norm"):
        Terms(1.0, Fraction(1, 2), 1, clip_norm)
    with pytest.raises(ConfigError, match="noise_multiplier"):
        Terms(0.0, Fraction(1, 2), 1)
    with pytest.raises(ConfigError, match="sampling"):
        Terms(1.0, Fraction(3, 2), 1)
