"""`privacy-audit report`: everything that is known about one data set's privacy, on one page."""

import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from offsite.audit.attack import evidence as attack_evidence
from offsite.audit.commitments import check_committed
from offsite.audit.empirical.evidence import Evidence
from offsite.audit.empirical.judgement import judge
from offsite.audit.empirical_command import EVIDENCE_BYTES
from offsite.audit.files import read_file
from offsite.audit.ledger import LedgerAudit, audit_ledger
from offsite.audit.privacy_report.audit_facts import attack_facts, empirical_facts
from offsite.audit.privacy_report.facts import (
    AttackFacts,
    EmpiricalFacts,
    LedgerFacts,
    Missing,
    ProofFacts,
    ReportFacts,
)
from offsite.audit.privacy_report.findings import Severity
from offsite.audit.privacy_report.ledger_facts import ledger_facts
from offsite.audit.privacy_report.report import DOCUMENT, PAGE, write_report
from offsite.audit.proof_file import read_proof
from offsite.emulator.durable import machine_errors
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError, IntegrityError

PROOFS = "proofs"
PROOF_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What the command line said."""

    ledger: Path
    out: Path
    key: str | None
    coordinator: str | None
    receipts: tuple[Path, ...]
    data_set: str | None
    empirical: Path | None
    attack: Path | None


def report_on(screen: Terminal, request: ReportRequest) -> None:
    """Writes the page and the document.

    Raises:
        ConfigError: the ledger has several data sets and none was named, or a file is missing.
        IntegrityError: something failed; the page says what, and is written nevertheless.
    """
    with screen.progress("accounts") as progress:
        audit = audit_ledger(
            request.ledger, request.key, request.coordinator, request.receipts, report=progress
        )
    data_set = _chosen(audit, request.data_set)
    ledger = ledger_facts(audit.findings, data_set, audit.keys)
    facts = ReportFacts(
        time.time(),
        f"offsite {version('offsite')}",
        ledger,
        _proof(ledger, request.ledger),
        _empirical(request.empirical, audit, data_set),
        _attack(request.attack),
    )
    with machine_errors(request.out):
        request.out.mkdir(parents=True, exist_ok=True)
    report = write_report(request.out, facts)
    page, document = request.out / PAGE, request.out / DOCUMENT
    screen.result(
        f"{report.conclusion.value}: {page}",
        {"conclusion": report.conclusion.value, "page": str(page), "document": str(document)},
    )
    if report.conclusion is Severity.FAILED:
        raise IntegrityError(f"the report failed; {page} says what and where")


def _chosen(audit: LedgerAudit, name: str | None) -> bytes:
    known = list(audit.findings.budget.data_sets)
    found = [item for item in known if item.hex().startswith((name or "").lower())]
    if len(found) == 1:
        return found[0]
    names = ", ".join(item.hex()[:16] for item in known) or "none"
    raise ConfigError(
        f"--data-set: expected the first digits of one of {names}, found {name or '-'}"
    )


def _proof(ledger: LedgerFacts, path: Path) -> ProofFacts | Missing:
    """The last proof of the last campaign of these records that was proven; one in time, if there is.

    Failed ones are findings of the ledger itself, whatever is shown here.
    """
    if not ledger.proofs:
        return Missing("no start-up proof stands in the ledger")
    names = [campaign.campaign_id for campaign in ledger.campaigns]
    shown = max(
        ledger.proofs,
        key=lambda proof: (names.index(proof.campaign_id), proof.is_in_time, proof.seq),
    )
    folder = (path if path.is_dir() else path.parent) / PROOFS
    stored = folder / f"{shown.sha256}.json"
    if not stored.exists():
        return Missing(f"the proof {shown.sha256[:16]} is not beside the ledger")
    facts = read_proof(read_file(stored, PROOF_BYTES, "a start-up proof"))
    if facts.sha256 != shown.sha256:
        raise IntegrityError(f"{stored}: expected the proof that the ledger names, found another")
    return facts


def _empirical(path: Path | None, audit: LedgerAudit, data_set: bytes) -> EmpiricalFacts | Missing:
    if path is None:
        return Missing("no empirical audit was given (--empirical)")
    data = read_file(path, EVIDENCE_BYTES, "the evidence of an empirical audit")
    evidence = Evidence.from_bytes(data)
    check_committed(evidence, audit.findings, audit.findings.budget.family(data_set))
    return empirical_facts(judge(evidence))


def _attack(path: Path | None) -> AttackFacts | Missing:
    if path is None:
        return Missing("no attack on the adapter was given (--attack)")
    data = read_file(path, EVIDENCE_BYTES, "the evidence of an attack")
    return attack_facts(attack_evidence.read_evidence(data), data)
