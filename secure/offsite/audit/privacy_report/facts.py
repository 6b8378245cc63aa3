"""What a report is made of: plain values, already established by whoever puts them in.

Nothing here computes an epsilon or verifies a signature. `ledger_facts` and `audit_facts` fill these
from a verified ledger and from audits; page and JSON only show them, so they never disagree.

Rule: what was not done is `Missing` with a reason, never left out and never a 0.
"""

from dataclasses import dataclass
from enum import StrEnum

from offsite.audit.attack.analysis import Attack
from offsite.secure.privacy.accounting.view import EpsilonView
from offsite.secure.privacy.ledger.assurance import Assurance
from offsite.secure.privacy.ledger.bodies import Adaptivity, AuditKind
from offsite.secure.privacy.mechanisms import Mechanism
from offsite.secure.privacy.units import Adjacency, Unit


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that was not done, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that may ever be spent, as the data owner set it."""

    epsilon: float
    delta: float
    campaign_epsilon: float | None = None


@dataclass(frozen=True, slots=True)
class LimitChange:
    """A limit that holds for the data set from this entry on."""

    seq: int
    limit: Limit


@dataclass(frozen=True, slots=True)
class ProofEntry:
    """What the ledger says of a start-up proof."""

    seq: int
    campaign_id: str
    sha256: str
    passed: bool
    is_in_time: bool
    """Whether it stands before the campaign's first claim: before anything was trained."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What the ledger says of an audit."""

    seq: int
    campaign_id: str
    kind: AuditKind
    evidence_sha256: str
    passed: bool
    epsilon_at_least: float | None


@dataclass(frozen=True, slots=True)
class CampaignFacts:
    """One campaign on this data set; counts are steps of its mechanism."""

    campaign_id: str
    mechanism: Mechanism
    clip_norm: float
    reserved: int
    spent: int
    charged: int
    never_ran: int
    """Counted all the same: it ended early, and exact sums hold for what was planned."""
    is_open: bool
    epsilon: float
    """Of its spent steps and those that never ran, alone, at the limit's delta."""
    assurance: Assurance


class EventKind(StrEnum):
    """What happened to the budget."""

    CLAIMED = "claimed"
    CLOSED = "closed"
    RELEASED_OTHER = "released_other"
    REFUSED = "refused"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the ledger that matters to the budget, and the privacy loss after it."""

    seq: int
    time_unix_s: float
    kind: EventKind
    what: str
    epsilon: float


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """What a verified ledger says of one data set."""

    owner: str
    owner_key: str
    owner_key_is_stated: bool
    """Whether the key came from somewhere else than the ledger."""
    data_set: str
    unit: Unit
    adjacency: Adjacency
    limit: Limit | Missing
    limit_changes: tuple[LimitChange, ...]
    adaptivity: Adaptivity
    spent: float
    """Epsilon of all that counts as used, by the accountant that the adaptivity asks for."""
    never_ran: int
    """Steps among those; see `CampaignFacts`."""
    exposed: float
    """The same with all that open campaigns may still use: what the limit bounds."""
    cross_check: EpsilonView | Missing
    """What was spent, by every accountant."""
    campaigns: tuple[CampaignFacts, ...]
    events: tuple[Event, ...]
    other_releases: tuple[str, ...]
    proofs: tuple[ProofEntry, ...]
    audits: tuple[AuditEntry, ...]
    entries: int
    countersigned: int | Missing
    root: str
    faults: tuple[str, ...]

    @property
    def evidence(self) -> frozenset[str]:
        """SHA-256 of every proof and evidence that entries about this data set name."""
        proofs = {proof.sha256 for proof in self.proofs}
        return frozenset(proofs | {audit.evidence_sha256 for audit in self.audits})


@dataclass(frozen=True, slots=True)
class ProofCheck:
    """One test of the start-up proof."""

    name: str
    looks_for: str
    expected: str
    found: str
    miss: float
    """At most this chance that what it looks for passes."""
    passed: bool


@dataclass(frozen=True, slots=True)
class ProofFacts:
    """The start-up proof on the real model and adapter."""

    sha256: str
    checks: tuple[ProofCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every test passed; a proof without tests proves nothing."""
        return bool(self.checks) and all(check.passed for check in self.checks)


@dataclass(frozen=True, slots=True)
class LowerBound:
    """What one attack of the empirical audit shows the privacy loss to be at least."""

    name: str
    epsilon: float
    claimed: float
    """What is claimed of the very runs that it is a bound on."""


@dataclass(frozen=True, slots=True)
class EmpiricalFacts:
    """Canaries inserted at random; guesses committed to before the labels were opened."""

    confidence: float
    delta: float
    canaries: int
    is_refuted: bool
    bounds: tuple[LowerBound, ...]
    receipts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class AttackFacts:
    """The attack on the adapter, and the digest of its evidence."""

    attack: Attack
    evidence_sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class ReportFacts:
    """All that a report shows."""

    written_unix_s: float
    software: str
    ledger: LedgerFacts
    proof: ProofFacts | Missing
    empirical: EmpiricalFacts | Missing
    attack: AttackFacts | Missing
