"""`privacy-audit empirical` and `recount`: the installed mechanism under attack, and its guesses counted.

Guesses are committed to before the labels are opened. Here, without an edge's ledger, the commitment is
printed and stands in the evidence; a data owner's `edge-client audit` writes it into the ledger.
"""

import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Final

from offsite.audit.commitments import check_committed
from offsite.audit.empirical.evidence import Evidence
from offsite.audit.empirical.judgement import EmpiricalAudit, judge
from offsite.audit.empirical.mechanism import Terms
from offsite.audit.empirical.plan import AuditPlan
from offsite.audit.empirical.report import render
from offsite.audit.empirical.run import run_empirical
from offsite.audit.files import read_file
from offsite.audit.keys import OWN_WORD
from offsite.audit.ledger import read_ledger
from offsite.emulator.durable import write_atomic
from offsite.emulator.terminal import Terminal
from offsite.secure.errors import ConfigError, PolicyError

EVIDENCE_BYTES: Final = 1 << 26
NO_LEDGER: Final = (
    "no --ledger was given: that the guesses were made before the labels were seen is not checked"
)


def audit_mechanism(
    screen: Terminal,
    noise: float,
    sampling: str,
    steps: int,
    delta: float,
    canaries: int,
    duels: int,
    evidence_file: Path | None,
) -> None:
    """Runs an audit of the product's own step.

    Raises:
        PolicyError: the claim is refuted; shown, and its evidence written, nevertheless.
    """
    try:
        rate = Fraction(sampling)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"--sampling: expected a rate as 1/4, found {sampling[:40]!r}") from None
    if evidence_file is not None and not evidence_file.parent.is_dir():
        raise ConfigError(f"--evidence: {evidence_file.parent} is no folder; nothing was run")
    plan = AuditPlan(Terms(noise, rate, steps), delta, canaries=canaries, duels=duels)

    def commit(document: bytes) -> str:
        digest = hashlib.sha256(document).hexdigest()
        screen.note(f"committed to {digest}")
        return f"printed: {digest}"

    with screen.progress("runs, in thousandths") as report:
        audit, evidence = run_empirical(plan, commit=commit, report=report)
    if evidence_file is not None:
        write_atomic(evidence_file, evidence.to_bytes())
    _show(screen, audit)


def recount(screen: Terminal, path: Path, ledger: Path | None, key: str | None) -> None:
    """Judges an audit again from its evidence.

    Raises:
        IntegrityError: the evidence contradicts itself, or is not what the ledger committed to.
        PolicyError: the claim is refuted.
    """
    advice = "give the file that --evidence wrote"
    evidence = Evidence.from_bytes(read_file(path, EVIDENCE_BYTES, advice))
    if ledger is not None:
        check_committed(evidence, read_ledger(ledger, key))
        if key is None:
            screen.note(OWN_WORD)
    else:
        screen.note(NO_LEDGER)
    _show(screen, judge(evidence))


def _show(screen: Terminal, audit: EmpiricalAudit) -> None:
    screen.result(render(audit), audit.document())
    if audit.is_refuted:
        raise PolicyError(
            f"the mechanism does not keep its claim of epsilon {audit.claimed_epsilon:.2f}: the "
            f"audit refutes it at {1 - audit.plan.significance:.0%} confidence; do not release with it"
        )
