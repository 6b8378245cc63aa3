"""What the report says first: whose ledger it is, failures that it holds, and what was not checked."""

import json
from dataclasses import replace

import pytest
from tests.audit.privacy_report.samples import good

from offsite.audit.keys import NOT_CHECKED
from offsite.audit.privacy_report.facts import (
    AuditEntry,
    LedgerFacts,
    Limit,
    LimitChange,
    Missing,
    ProofEntry,
    ReportFacts,
)
from offsite.audit.privacy_report.findings import Finding, Severity, conclusion, findings
from offsite.audit.privacy_report.report import build_report
from offsite.secure.privacy.ledger.bodies import AuditKind

NOT_DONE = Missing("nobody asked for it")
FAILED = Severity.FAILED


def with_ledger(**changes: object) -> ReportFacts:
    """Good facts, the ledger's changed."""
    facts = good()
    return replace(facts, ledger=replace(facts.ledger, **changes))  # type: ignore[arg-type]


def told(facts: ReportFacts, text: str) -> Finding:
    """The one finding that says so, which stands on the page, too."""
    (found,) = [finding for finding in findings(facts) if text in finding.text]
    assert found.text[:40] in build_report(facts).html
    return found


def test_a_ledger_that_anybody_could_have_signed_is_an_open_point() -> None:
    facts = with_ledger(owner_key_is_stated=False)
    assert told(facts, "anybody could have made").severity is Severity.OPEN
    assert not any("anybody" in finding.text for finding in findings(good()))
    report = build_report(facts)
    assert json.loads(report.json)["ledger"]["owner_key_is_stated"] is False
    assert facts.ledger.owner_key in report.html and "own word" in report.html


def failing(name: str) -> LedgerFacts:
    """A ledger that says that something failed."""
    ledger = good().ledger
    match name:
        case "proof":
            proofs = (ProofEntry(4, "7", "d0" * 32, False, True),)
            return replace(ledger, proofs=proofs)
        case "proof of another campaign":
            failed = ProofEntry(2, "6", "d0" * 32, False, True)
            return replace(ledger, proofs=(failed, *ledger.proofs))
        case "empirical audit":
            failed_audit = AuditEntry(22, "7", AuditKind.EMPIRICAL, "e0" * 32, False, 9.5)
        case _:
            failed_audit = AuditEntry(22, "7", AuditKind.ATTACK, "e0" * 32, False, None)
    return replace(ledger, audits=(failed_audit, *ledger.audits))


@pytest.mark.parametrize(
    "name", ["proof", "proof of another campaign", "empirical audit", "attack"]
)
@pytest.mark.parametrize("is_shown", [True, False])
def test_a_failure_that_stands_in_the_ledger_fails_the_report(name: str, is_shown: bool) -> None:
    """Also where its evidence is not given, and where a later one that passed is."""
    facts = replace(good(), ledger=failing(name))
    if not is_shown:
        facts = replace(facts, proof=NOT_DONE, empirical=NOT_DONE, attack=NOT_DONE)
    assert conclusion(findings(facts)) is FAILED
    assert any("(entry " in f.text for f in findings(facts) if f.severity is FAILED)


def test_a_proof_that_failed_before_one_that_passed_is_told() -> None:
    failed = ProofEntry(3, "7", "d0" * 32, False, True)
    facts = with_ledger(proofs=(failed, *good().ledger.proofs))
    found = told(facts, "failed its start-up proof for 7 (entry 3)")
    assert found.severity is Severity.NOTE and "a later one followed" in found.text


def test_a_proof_after_the_first_claim_is_no_proof_of_what_ran_before() -> None:
    late = replace(good().ledger.proofs[0], is_in_time=False)
    found = told(with_ledger(proofs=(late,)), "what ran before was not tested")
    assert found.severity is Severity.OPEN
    assert told(good(), "before it trained").severity is Severity.GOOD


def test_counter_signatures_that_were_not_checked_are_not_none() -> None:
    facts = with_ledger(countersigned=Missing(NOT_CHECKED))
    assert told(facts, "were not checked").severity is Severity.NOTE
    report = build_report(facts)
    assert json.loads(report.json)["ledger"]["countersigned"] == {"missing": NOT_CHECKED}
    assert "has counter-signed" not in report.html and "the first 0" not in report.html


def test_a_limit_that_was_changed_is_told() -> None:
    changes = (LimitChange(1, Limit(3.0, 1e-5)), LimitChange(20, Limit(8.0, 1e-5, 6.0)))
    found = told(with_ledger(limit_changes=changes), "changed its limit")
    assert "ε 3 at δ 1e-05 (entry 1), then ε 8" in found.text and "(entry 20)" in found.text
    assert not any("changed its limit" in finding.text for finding in findings(good()))


def test_steps_that_never_ran_stand_beside_what_is_called_spent() -> None:
    facts = with_ledger(never_ran=70)
    assert "70 steps of campaigns" in told(facts, "never ran").text
    assert "privacy loss spent; of it, 70 steps never ran" in build_report(facts).html


def test_audited_does_not_say_that_clipping_was() -> None:
    html = build_report(good()).html
    assert "so clipping rests on the test at start" in html
    assert "not through the model" in html


def test_the_number_of_units_is_said_not_to_be_covered() -> None:
    html = build_report(good()).html
    assert "How many units there are is not protected" in html
    assert "How many units there are is not covered" in html and "added or removed" not in html
