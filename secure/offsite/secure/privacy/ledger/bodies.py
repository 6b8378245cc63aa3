"""The kinds of entries: what a data owner's ledger can say.

    opened           whose ledger this is                  (first, once)
    limit_set        the most that may ever be spent
    data_set         records seen for the first time, and which older sets they overlap
    proof            the start-up proof of a campaign's engine, passed or failed
    reserved         a campaign's mechanism with all its steps, spare ones included
    claimed          a block of steps, written and synced BEFORE they run
    committed        how many of a claim's steps ran, and the artefact that was released
    charged          a claim whose outcome a crash hid: all of it counts
    closed           a campaign is over; steps that nobody claimed are free again
    refused          a campaign that would have exceeded the limit, and what would have fitted
    aborted          a round that came to nothing; its claims stay spent
    released_other   anything else that tells of the data: a metric, a count, an evaluation
    audit_guesses    the commitment to guesses, before an audit's labels are opened
    audit_result     what an audit found

Mechanisms are stored, epsilon never is: `StatedEpsilon` is what the owner was shown when it agreed,
and an audit recomputes it. There is no room for seeds, realised batch sizes or losses. A sampling
rate tells the number of units to whoever knows the batch size, so entries stay with the owner and
only checkpoints, which hide them, leave the machine.

Source: the fields of NIST SP 800-226 and of the DP Deployments Registry, as far as they apply.
"""

from dataclasses import dataclass
from enum import StrEnum

from offsite.secure.privacy.ledger.fields import (
    check_count,
    check_digest,
    check_number,
    check_text,
)
from offsite.secure.privacy.mechanisms import Mechanism
from offsite.secure.privacy.units import Adjacency, Unit


class Adaptivity(StrEnum):
    """Whether parameters may depend on earlier outputs, which decides the accountant."""

    PREREGISTERED = "preregistered"
    """Fixed before anything was released of these records: composed exactly (PLD)."""

    FILTER = "filter"
    """Chosen later: only a Renyi filter holds (Feldman and Zrnic 2021)."""


class Sampler(StrEnum):
    """How the units of a step were drawn."""

    POISSON = "poisson"
    TRUNCATED_POISSON = "truncated_poisson"
    NONE = "none"


class RandomSource(StrEnum):
    """The keystream behind sampling and noise, keyed by the operating system's entropy."""

    CHACHA20 = "chacha20"
    AES_256_CTR = "aes_256_ctr"


class NoiseType(StrEnum):
    """In what the noise is drawn and added."""

    FLOAT64_ON_A_GRID = "float64_on_a_grid"


class LossScope(StrEnum):
    """What a loss is a mean over; nothing else has the sensitivity that is claimed."""

    PER_UNIT = "per_unit"


class AuditKind(StrEnum):
    """Which audit a result is of."""

    EMPIRICAL = "empirical"
    ATTACK = "attack"


@dataclass(frozen=True, slots=True)
class Opened:
    """The first entry. `owner` is a pseudonym; the salt of the record digests is committed to."""

    owner: str
    signer_key: bytes
    record_salt_sha256: bytes
    software: str

    def __post_init__(self) -> None:
        check_text("owner", self.owner)
        check_digest("signer_key", self.signer_key)
        check_digest("record_salt_sha256", self.record_salt_sha256)
        check_text("software", self.software)


@dataclass(frozen=True, slots=True)
class LimitSet:
    """At most epsilon at delta, ever; for one data set, or for all that have no limit of their own.

    `campaign_epsilon` bounds one campaign by itself.
    """

    epsilon: float
    delta: float
    campaign_epsilon: float | None = None
    data_set: bytes | None = None

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, 0.0)
        check_number("delta", self.delta, 0.0, 1.0)
        if self.campaign_epsilon is not None:
            check_number("campaign_epsilon", self.campaign_epsilon, 0.0, self.epsilon)
        if self.data_set is not None:
            check_digest("data_set", self.data_set)


@dataclass(frozen=True, slots=True)
class DataSetAdded:
    """Records by a salted commitment to them (`data_sets.py`), and the older sets that share any.

    An overlap is symmetric: the older set's account bears what is spent here, too.
    """

    data_set: bytes
    unit: Unit
    adjacency: Adjacency
    overlaps: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        check_digest("data_set", self.data_set)
        for other in self.overlaps:
            check_digest("overlaps", other)


@dataclass(frozen=True, slots=True)
class StartProof:
    """The start-up proof of sensitivity, noise and sampler on the real model."""

    campaign_id: str
    report: bytes
    passed: bool

    def __post_init__(self) -> None:
        check_text("campaign_id", self.campaign_id)
        check_digest("report", self.report)


@dataclass(frozen=True, slots=True)
class Implementation:
    """With what a mechanism is carried out; every digest is a SHA-256."""

    engine: str
    code: bytes
    model: bytes
    adapter: bytes
    config: bytes
    loss_scope: LossScope
    sampler: Sampler
    random_source: RandomSource
    noise_type: NoiseType

    def __post_init__(self) -> None:
        check_text("engine", self.engine)
        for name in ("code", "model", "adapter", "config"):
            check_digest(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class StatedEpsilon:
    """What the owner was shown for this campaign alone, by which accountants; never relied upon."""

    delta: float
    pld: float
    prv: float | None
    rdp: float
    versions: str

    def __post_init__(self) -> None:
        check_number("delta", self.delta, 0.0, 1.0)
        check_number("pld", self.pld, -1.0)
        check_number("rdp", self.rdp, -1.0)
        if self.prv is not None:
            check_number("prv", self.prv, -1.0)
        check_text("versions", self.versions)


@dataclass(frozen=True, slots=True)
class Reserved:
    """All that a campaign may ever do with a data set. Sigma, q and C are frozen by it."""

    campaign_id: str
    data_set: bytes
    mechanism: Mechanism
    adaptivity: Adaptivity
    clip_norm: float
    expected_batch: float
    implementation: Implementation
    stated: StatedEpsilon | None = None

    def __post_init__(self) -> None:
        check_text("campaign_id", self.campaign_id)
        check_digest("data_set", self.data_set)
        check_number("clip_norm", self.clip_norm, 0.0)
        check_number("expected_batch", self.expected_batch, 0.0)


@dataclass(frozen=True, slots=True)
class Claimed:
    """Steps `first_step` to `first_step + steps - 1` of a campaign, about to run.

    `parent` is the digest of the adapter that they start from.
    """

    campaign_id: str
    round: int
    attempt: int
    first_step: int
    steps: int
    parent: bytes

    def __post_init__(self) -> None:
        check_text("campaign_id", self.campaign_id)
        check_count("round", self.round)
        check_count("attempt", self.attempt)
        check_count("first_step", self.first_step)
        check_count("steps", self.steps, least=1)
        check_digest("parent", self.parent)

    @property
    def end(self) -> int:
        """The first step after these."""
        return self.first_step + self.steps


@dataclass(frozen=True, slots=True)
class Committed:
    """Of the claim in entry `claim`, this many steps ran and led to `artefact` (SHA-256)."""

    claim: int
    steps: int
    artefact: bytes

    def __post_init__(self) -> None:
        check_count("claim", self.claim, least=1)
        check_count("steps", self.steps)
        check_digest("artefact", self.artefact)


@dataclass(frozen=True, slots=True)
class Charged:
    """The claim in entry `claim` never told how it ended: all its steps count."""

    claim: int
    steps: int
    reason: str

    def __post_init__(self) -> None:
        check_count("claim", self.claim, least=1)
        check_count("steps", self.steps)
        check_text("reason", self.reason)


@dataclass(frozen=True, slots=True)
class Closed:
    """A campaign is over. `returned_steps` are those that nobody ever claimed."""

    campaign_id: str
    returned_steps: int

    def __post_init__(self) -> None:
        check_text("campaign_id", self.campaign_id)
        check_count("returned_steps", self.returned_steps)


@dataclass(frozen=True, slots=True)
class Refused:
    """What was asked and not admitted; nothing of it was done."""

    campaign_id: str
    data_set: bytes
    mechanism: Mechanism
    steps_that_fit: int
    reason: str

    def __post_init__(self) -> None:
        check_text("campaign_id", self.campaign_id)
        check_digest("data_set", self.data_set)
        check_count("steps_that_fit", self.steps_that_fit)
        check_text("reason", self.reason)


@dataclass(frozen=True, slots=True)
class Aborted:
    """A round's attempt that gave no result. It gives nothing back."""

    campaign_id: str
    round: int
    attempt: int
    reason: str

    def __post_init__(self) -> None:
        check_text("campaign_id", self.campaign_id)
        check_count("round", self.round)
        check_count("attempt", self.attempt)
        check_text("reason", self.reason)


@dataclass(frozen=True, slots=True)
class ReleasedOther:
    """A release that is no training step, by the mechanism that protects it. Spent at once."""

    what: str
    data_set: bytes
    mechanism: Mechanism
    adaptivity: Adaptivity
    artefact: bytes

    def __post_init__(self) -> None:
        check_text("what", self.what)
        check_digest("data_set", self.data_set)
        check_digest("artefact", self.artefact)


@dataclass(frozen=True, slots=True)
class AuditGuesses:
    """SHA-256 over canaries, scores and guesses (with a nonce), while the labels are sealed."""

    campaign_id: str
    commitment: bytes

    def __post_init__(self) -> None:
        check_text("campaign_id", self.campaign_id)
        check_digest("commitment", self.commitment)


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The verdict of an audit. An empirical one names the entry of its guesses."""

    campaign_id: str
    audit: AuditKind
    evidence: bytes
    passed: bool
    guesses: int | None = None
    epsilon_at_least: float | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        check_text("campaign_id", self.campaign_id)
        check_digest("evidence", self.evidence)
        if self.guesses is not None:
            check_count("guesses", self.guesses, least=1)
        if self.epsilon_at_least is not None:
            check_number("epsilon_at_least", self.epsilon_at_least, -1.0)
        if self.confidence is not None:
            check_number("confidence", self.confidence, 0.0, 1.0)


Body = (
    Opened
    | LimitSet
    | DataSetAdded
    | StartProof
    | Reserved
    | Claimed
    | Committed
    | Charged
    | Closed
    | Refused
    | Aborted
    | ReleasedOther
    | AuditGuesses
    | AuditResult
)
