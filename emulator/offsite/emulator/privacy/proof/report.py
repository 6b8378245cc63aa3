"""What a start-up proof found, in a form whose digest stands in the ledger.

A check is a number that must lie between two others. It also says how likely it is to miss what it
looks for, which for few values or few steps may be very likely: then it passed and shows little.

Rule: nothing in a report is made of the owner's data, but from rates and bounds one can work out how
many units there are, so it stays with the owner like the ledger. Its digest tells nothing: the
statistics in it are random.
"""

import hashlib
from dataclasses import dataclass

from offsite.secure.errors import PolicyError
from offsite.secure.privacy.ledger.canonical import Json, canonical

SCHEMA = "offsite/start-up-proof/1"


@dataclass(frozen=True, slots=True)
class Check:
    """One number, and between what it must lie."""

    name: str
    statistic: float
    least: float
    most: float
    miss: float
    """At most this chance that what `looks_for` names passes; 0: it is seen whenever it is there."""
    looks_for: str

    @property
    def passed(self) -> bool:
        """NaN passes nothing."""
        return self.least <= self.statistic <= self.most

    def to_json(self) -> Json:
        """Numbers as text of 12 digits: a digest must not depend on how a float is printed."""
        numbers = {
            name: f"{getattr(self, name):.12g}" for name in ("statistic", "least", "most", "miss")
        }
        return {"name": self.name, "passed": self.passed, "looks_for": self.looks_for, **numbers}


@dataclass(frozen=True, slots=True)
class Program:
    """What tried itself: its backend's name, and the SHA-256 of everything that decides privacy."""

    backend: str
    code: bytes


@dataclass(frozen=True, slots=True)
class Subject:
    """What was tried."""

    program: Program
    values: int
    clip_norm: float
    noise_multiplier: float
    sampling: str
    """q as an exact rational."""
    cap: int
    """Of a truncated sampler; 0: none."""


@dataclass(frozen=True, slots=True)
class ProofReport:
    """All checks, in the order in which they ran."""

    subject: Subject
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the mechanism does what it is accounted as, as far as the checks see."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> bytes:
        """The one encoding (RFC 8785)."""
        subject: dict[str, Json] = {
            "backend": self.subject.program.backend,
            "code": self.subject.program.code.hex(),
            "values": self.subject.values,
            "clip_norm": self.subject.clip_norm,
            "noise_multiplier": self.subject.noise_multiplier,
            "sampling": self.subject.sampling,
            "cap": self.subject.cap,
        }
        checks: list[Json] = [check.to_json() for check in self.checks]
        return canonical(
            {"schema": SCHEMA, "passed": self.passed, "subject": subject, "checks": checks}
        )

    @property
    def digest(self) -> bytes:
        """SHA-256 of the encoding."""
        return hashlib.sha256(self.to_json()).digest()

    def require_passed(self) -> None:
        """Raises PolicyError that names what is wrong; nothing may be trained then."""
        failed = [check for check in self.checks if not check.passed]
        if failed or not self.checks:
            found = "; ".join(
                f"{check.name} is {check.statistic:.6g}, expected {check.least:.6g} to "
                f"{check.most:.6g} ({check.looks_for})"
                for check in failed
            )
            raise PolicyError(
                f"the start-up proof failed: {found or 'nothing was checked'}. Nothing is trained. "
                "Where single units change each other's gradients a little, as some machines do in "
                "bf16, the coordinator may set tuning.dtype to float32, which may pass"
            )
