"""What a data protection officer should know first: findings, the worst of which is the conclusion.

Rules: a measurement above the claim, a fault of the ledger, a failed proof and a failed audit each fail the
report, also where only the ledger says so; what was not done or not checked is a finding too; a good
result says what it does not show.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from offsite.audit.attack.verdict import Verdict
from offsite.audit.keys import OWN_WORD
from offsite.audit.privacy_report.facts import (
    AttackFacts,
    AuditEntry,
    EmpiricalFacts,
    LedgerFacts,
    Limit,
    LimitChange,
    Missing,
    ReportFacts,
)
from offsite.audit.privacy_report.words import most_posterior, percent
from offsite.secure.privacy.ledger.assurance import Assurance
from offsite.secure.privacy.ledger.bodies import AuditKind
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
        *_keys(facts.ledger),
        *_budget(facts.ledger),
        *_limits(facts.ledger),
        _proof(facts),
        *_failed_proofs(facts.ledger),
        *_failed_audits(facts.ledger),
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


def _keys(ledger: LedgerFacts) -> Iterator[Finding]:
    """Whose ledger it is, and who else signed for it."""
    subject = "Ledger"
    if not ledger.owner_key_is_stated:
        yield Finding(Severity.OPEN, subject, f"{OWN_WORD[:1].upper()}{OWN_WORD[1:]}.")
    if isinstance(ledger.countersigned, Missing):
        text = f"Counter-signatures of the coordinator were {ledger.countersigned.reason}."
        yield Finding(Severity.NOTE, subject, text)
    elif ledger.countersigned < ledger.entries:
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
    if ledger.never_ran:
        text = (
            f"{ledger.never_ran} steps of campaigns that ended early never ran and are counted as spent: "
            "when a campaign ended may depend on what came out, and the sum holds for what was planned."
        )
        yield Finding(Severity.NOTE, subject, text)


def _limits(ledger: LedgerFacts) -> Iterator[Finding]:
    """A limit is the owner's to change; that it was changed is for others to know."""
    if len(ledger.limit_changes) > 1:
        changes = ", then ".join(map(_limit_words, ledger.limit_changes))
        text = f"The data owner changed its limit: {changes}."
        yield Finding(Severity.NOTE, "Privacy budget", text)


def _limit_words(change: LimitChange) -> str:
    limit = change.limit
    of_one = limit.campaign_epsilon
    one = "" if of_one is None else f", ε {of_one:g} for one campaign"
    return f"ε {limit.epsilon:g} at δ {limit.delta:g}{one} (entry {change.seq})"


def _proof(facts: ReportFacts) -> Finding:
    subject, proof = "Start-up proof", facts.proof
    if isinstance(proof, Missing):
        return Finding(Severity.OPEN, subject, f"Not done: {proof.reason}.")
    failed = [check.name for check in proof.checks if not check.passed]
    if not proof.passed:
        names = ", ".join(failed) or "no test was run"
        return Finding(Severity.FAILED, subject, f"The engine failed on the real model: {names}.")
    named = [entry for entry in facts.ledger.proofs if entry.sha256 == proof.sha256]
    text = f"{len(proof.checks)} tests of the engine passed on the real model"
    if named and not any(entry.is_in_time for entry in named):
        text += ", but only after steps had been claimed: what ran before was not tested."
        return Finding(Severity.OPEN, subject, text)
    return Finding(Severity.GOOD, subject, f"{text} before it trained." if named else f"{text}.")


def _failed_proofs(ledger: LedgerFacts) -> Iterator[Finding]:
    """Failures that stand in the ledger, whatever else was shown."""
    last = {proof.campaign_id: proof.seq for proof in ledger.proofs}
    for proof in ledger.proofs:
        if proof.passed:
            continue
        text = f"The engine failed its start-up proof for {proof.campaign_id} (entry {proof.seq})"
        if proof.seq == last[proof.campaign_id]:
            yield Finding(Severity.FAILED, "Start-up proof", f"{text}.")
        else:
            yield Finding(Severity.NOTE, "Start-up proof", f"{text}; a later one followed.")


def _failed_audits(ledger: LedgerFacts) -> Iterator[Finding]:
    """The same of audits: one that failed is not made good by one that passed."""
    for audit in ledger.audits:
        if not audit.passed:
            yield _failed_audit(audit)


def _failed_audit(audit: AuditEntry) -> Finding:
    where = f"{audit.campaign_id} (entry {audit.seq})"
    if audit.kind is AuditKind.ATTACK:
        text = f"An attack on an adapter of {where} found more than its owner allows."
        return Finding(Severity.FAILED, "Attack on the adapter", text)
    shown = audit.epsilon_at_least
    least = "" if shown is None else f": ε is at least {shown:.3f}"
    text = f"An empirical audit refuted the claim for {where}{least}."
    return Finding(Severity.FAILED, "Empirical audit", text)


def _empirical(found: EmpiricalFacts | Missing) -> Finding:
    subject = "Empirical audit"
    if isinstance(found, Missing):
        return Finding(Severity.NOTE, subject, f"Not done: {found.reason}.")
    if found.is_refuted:
        text = f"The claim is refuted with {100 * found.confidence:g} % confidence."
        return Finding(Severity.FAILED, subject, text)
    text = (
        f"{found.canaries} canaries do not contradict the claim. That these attacks found less does "
        "not show that there is less. They went through sampler, noise and book-keeping, not through the "
        "model: clipping is what the start-up proof tests."
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
