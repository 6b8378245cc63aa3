"""What a data protection officer should know first: findings, the worst of which is the conclusion.

Rules: a measurement above the claim, a fault of the ledger and a failed proof each fail the report;
what was not done is a finding too; a good result says what it does not show.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from offsite.audit.attack.verdict import Verdict
from offsite.audit.privacy_report.facts import (
    AttackFacts,
    EmpiricalFacts,
    LedgerFacts,
    Limit,
    Missing,
    ProofFacts,
    ReportFacts,
)
from offsite.audit.privacy_report.words import most_posterior, percent
from offsite.secure.privacy.ledger.assurance import Assurance
from offsite.secure.privacy.units import Unit

MOST_FAULTS = 10
WEAK_POSTERIOR = 0.99
"""From here on the parameter alone promises little."""


class Severity(StrEnum):
    """From the best to the worst."""

    GOOD = "in order"
    NOTE = "note"
    OPEN = "open point"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence or two, and how bad it is."""

    severity: Severity
    subject: str
    text: str


def findings(facts: ReportFacts) -> tuple[Finding, ...]:
    """All of them, the worst first."""
    found = [
        *_ledger(facts.ledger),
        *_budget(facts.ledger),
        _proof(facts.proof),
        _empirical(facts.empirical),
        *_attack(facts.attack),
        *_unnamed(facts),
        *_hazards(facts.ledger),
    ]
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: -order.index(finding.severity)))


def conclusion(found: tuple[Finding, ...]) -> Severity:
    """The worst of all."""
    return max((finding.severity for finding in found), key=list(Severity).index)


def assurance(ledger: LedgerFacts) -> Assurance:
    """The level of the campaign about which least is known."""
    levels = [campaign.assurance for campaign in ledger.campaigns if campaign.spent]
    return min(levels, key=list(Assurance).index, default=Assurance.DECLARED)


def _ledger(ledger: LedgerFacts) -> Iterator[Finding]:
    subject = "Ledger"
    for fault in ledger.faults[:MOST_FAULTS]:
        yield Finding(Severity.FAILED, subject, fault)
    if len(ledger.faults) > MOST_FAULTS:
        more = f"and {len(ledger.faults) - MOST_FAULTS} more faults"
        yield Finding(Severity.FAILED, subject, more)
    if not ledger.faults:
        text = f"{ledger.entries} entries: chain, signatures and rules verified, no fault found."
        yield Finding(Severity.GOOD, subject, text)
    if ledger.countersigned < ledger.entries:
        text = (
            f"The coordinator has counter-signed {ledger.countersigned} of {ledger.entries} entries; "
            "the later ones rest on the owner's signature alone."
        )
        yield Finding(Severity.NOTE, subject, text)


def _budget(ledger: LedgerFacts) -> Iterator[Finding]:
    subject, spent = "Privacy budget", ledger.spent
    if isinstance(ledger.limit, Missing):
        yield Finding(Severity.OPEN, subject, f"{ledger.limit.reason.capitalize()}.")
        return
    limit = ledger.limit.epsilon
    if ledger.exposed > limit or spent > limit:
        most = max(ledger.exposed, spent)
        text = f"ε = {most:.3f} was spent or reserved, more than the limit of {limit:g}."
        yield Finding(Severity.FAILED, subject, text)
        return
    text = f"ε = {spent:.3f} of {limit:g} was spent, {ledger.exposed:.3f} with what is reserved."
    yield Finding(Severity.GOOD, subject, text)


def _proof(proof: ProofFacts | Missing) -> Finding:
    subject = "Start-up proof"
    if isinstance(proof, Missing):
        return Finding(Severity.OPEN, subject, f"Not done: {proof.reason}.")
    failed = [check.name for check in proof.checks if not check.passed]
    if not proof.passed:
        names = ", ".join(failed) or "no test was run"
        return Finding(Severity.FAILED, subject, f"The engine failed on the real model: {names}.")
    text = f"{len(proof.checks)} tests of the engine passed on the real model before it trained."
    return Finding(Severity.GOOD, subject, text)


def _empirical(found: EmpiricalFacts | Missing) -> Finding:
    subject = "Empirical audit"
    if isinstance(found, Missing):
        return Finding(Severity.NOTE, subject, f"Not done: {found.reason}.")
    if found.is_refuted:
        text = f"The claim is refuted with {100 * found.confidence:g} % confidence."
        return Finding(Severity.FAILED, subject, text)
    text = (
        f"{found.canaries} canaries do not contradict the claim. That these attacks found less does "
        "not show that there is less."
    )
    return Finding(Severity.GOOD, subject, text)


def _attack(found: AttackFacts | Missing) -> Iterator[Finding]:
    subject = "Attack on the adapter"
    if isinstance(found, Missing):
        yield Finding(Severity.NOTE, subject, f"Not done: {found.reason}.")
        return
    judgement = found.attack.judgement
    severity = {
        Verdict.WITHIN: Severity.GOOD,
        Verdict.UNDECIDED: Severity.OPEN,
        Verdict.EXCEEDED: Severity.FAILED,
    }[judgement.verdict]
    for reason in judgement.reasons:
        yield Finding(severity, subject, f"{reason[:1].upper()}{reason[1:]}.")


def _unnamed(facts: ReportFacts) -> Iterator[Finding]:
    """What the ledger does not name could be the best of several tries."""
    shown = {
        "Start-up proof": None if isinstance(facts.proof, Missing) else facts.proof.sha256,
        "Attack on the adapter": None
        if isinstance(facts.attack, Missing)
        else facts.attack.evidence_sha256,
    }
    for subject, digest in shown.items():
        if digest is not None and digest not in facts.ledger.evidence:
            text = (
                "No entry of the ledger names it: it may be the best of several, or of another set."
            )
            yield Finding(Severity.OPEN, subject, text)


def _hazards(ledger: LedgerFacts) -> Iterator[Finding]:
    subject = "Privacy hazard"
    most = max(ledger.spent, ledger.limit.epsilon if isinstance(ledger.limit, Limit) else 0.0)
    sure = most_posterior(most, 0.5)
    if sure >= WEAK_POSTERIOR:
        text = (
            f"ε = {most:.3g} is a weak promise by itself: it lets somebody who was undecided become "
            f"{percent(sure)} sure. What attacks achieve in practice is measured below."
        )
        yield Finding(Severity.NOTE, subject, text)
    if ledger.unit is Unit.RECORD:
        text = (
            "The unit of privacy is one record. Who has k records in the data has about k times the "
            "privacy loss; a column that names the person avoids it."
        )
        yield Finding(Severity.NOTE, subject, text)
    if assurance(ledger) is Assurance.DECLARED:
        text = "The assurance is a declaration: nothing shows that noise was added as stated."
        yield Finding(Severity.OPEN, "Level of assurance", text)
