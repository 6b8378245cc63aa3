"""`privacy-audit attack`: an attack repeated from its evidence, and judged again.

    EVIDENCE    what an edge wrote under attack/evidence before its update left, or did not

The losses in it are taken on trust: that they are the model's needs the model and the rows. That the
verdict follows from them, and that nothing was changed since its SHA-256 entered a ledger, does not.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from offsite.audit.attack.analysis import Attack, analyse
from offsite.audit.attack.evidence import MOST_BYTES, read_evidence, result_json, sha256
from offsite.audit.attack.verdict import Verdict
from offsite.audit.files import read_file
from offsite.secure.errors import PolicyError


@dataclass(frozen=True, slots=True)
class AuditedAttack:
    """An attack, and the digest that a ledger entry about it would name."""

    attack: Attack
    evidence_sha256: str

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return {
            **result_json(self.attack),
            "settings": self.attack.settings.to_json(),
            "evidence_sha256": self.evidence_sha256,
        }

    @property
    def warning(self) -> str | None:
        """What is to be known of a verdict that is neither good nor bad."""
        if self.attack.judgement.verdict is not Verdict.UNDECIDED:
            return None
        return "undecided: more than is allowed cannot be excluded with so few rows"

    def require_not_exceeded(self) -> None:
        """Raises PolicyError where the adapter tells more than is allowed."""
        found = self.attack.judgement
        if found.verdict is Verdict.EXCEEDED:
            raise PolicyError(f"the attack on this adapter is exceeded: {'; '.join(found.reasons)}")


def audit_attack(path: Path, allowed_advantage: float | None = None) -> AuditedAttack:
    """The attack of an evidence file, its analysis done again.

    Args:
        allowed_advantage: in place of the one that the data owner allowed.

    Raises:
        ConfigError: there is no such file, or the advantage cannot be one.
        PeerError: it is no evidence, or its result does not follow from its losses.
    """
    data = read_file(path, MOST_BYTES, "an edge keeps it under attack/evidence in its state folder")
    attack = read_evidence(data)
    if allowed_advantage is not None:
        settings = replace(attack.settings, allowed_advantage=allowed_advantage)
        attack = analyse(attack.measured, settings, attack.entropy)
    return AuditedAttack(attack, sha256(data))
