"""Which entry may follow: the same rules for the edge that writes and for the auditor that reads.

The edge refuses to write an entry that breaks one; an auditor names the entry that did. Rules look
at steps, references and parameters; whether a limit is kept needs the accountants and is decided in
`admission.py`.

On adaptivity: adding up privacy losses exactly (PLD) is proven for parameters that were fixed in
advance. A campaign that is planned after something was released of the same records may depend on
what was released, and continuing for as long as a curve allows is not valid in general. So what is
reserved first may be PREREGISTERED, and everything after a release has to be accounted by the
FILTER.
"""

from collections.abc import Iterator

from offsite.secure.privacy.ledger.bodies import (
    Aborted,
    Adaptivity,
    AuditKind,
    AuditResult,
    Charged,
    Claimed,
    Closed,
    Committed,
    DataSetAdded,
    LimitSet,
    Opened,
    Refused,
    ReleasedOther,
    Reserved,
    Sampler,
)
from offsite.secure.privacy.ledger.budget import Budget, Campaign, Outcome
from offsite.secure.privacy.ledger.entries import Entry
from offsite.secure.privacy.ledger.faults import Fault, FaultKind
from offsite.secure.privacy.mechanisms import (
    Gaussian,
    Mechanism,
    PoissonGaussian,
    TruncatedPoissonGaussian,
)

Problem = tuple[FaultKind, str]

_SAMPLERS = {
    PoissonGaussian: Sampler.POISSON,
    TruncatedPoissonGaussian: Sampler.TRUNCATED_POISSON,
    Gaussian: Sampler.NONE,
}


def broken_rules(budget: Budget, entry: Entry) -> tuple[Fault, ...]:
    """What would be wrong if `entry` followed those that `budget` holds. Empty: nothing."""
    return tuple(
        Fault(kind, entry.seq, entry.seq, problem) for kind, problem in _problems(budget, entry)
    )


def _problems(budget: Budget, entry: Entry) -> Iterator[Problem]:
    if entry.time_unix_s < budget.time_unix_s:
        yield FaultKind.INCONSISTENT, "its time is before that of the entry before it"
    if (budget.opened is None) != isinstance(entry.body, Opened):
        yield FaultKind.INCONSISTENT, "a ledger is opened by its first entry, and only once"
    match entry.body:
        case LimitSet(data_set=bytes() as data_set):
            yield from _known_data_set(budget, data_set)
        case DataSetAdded() as added:
            yield from _data_set(budget, added)
        case Reserved() as reserved:
            yield from _reserved(budget, reserved)
        case Claimed() as claimed:
            yield from _claimed(budget, claimed)
        case Committed() as committed:
            yield from _committed(budget, committed)
        case Charged() as charged:
            yield from _charged(budget, charged)
        case Closed() as closed:
            yield from _closed(budget, closed)
        case Refused(data_set=data_set):
            yield from _known_data_set(budget, data_set)
        case Aborted(campaign_id=campaign_id):
            yield from _known_campaign(budget, campaign_id)
        case ReleasedOther() as released:
            yield from _use_of_data(
                budget, released.data_set, released.mechanism, released.adaptivity
            )
        case AuditResult() as result:
            yield from _audit(budget, result)
        case _:
            pass


def _data_set(budget: Budget, added: DataSetAdded) -> Iterator[Problem]:
    if added.data_set in budget.data_sets:
        yield FaultKind.INCONSISTENT, "this data set is in the ledger already"
    for other in added.overlaps:
        if other == added.data_set or other not in budget.data_sets:
            yield (
                FaultKind.UNKNOWN,
                f"it overlaps {_short(other)}, which is no data set before it",
            )


def _reserved(budget: Budget, reserved: Reserved) -> Iterator[Problem]:
    if reserved.campaign_id in budget.campaigns:
        yield (
            FaultKind.DOUBLE_SPENDING,
            f"campaign {reserved.campaign_id!r} has a reservation already",
        )
    if reserved.implementation.sampler is not _SAMPLERS[type(reserved.mechanism)]:
        yield (
            FaultKind.INCONSISTENT,
            (
                f"sampler {reserved.implementation.sampler.value} does not do what "
                f"{type(reserved.mechanism).__name__} is charged for"
            ),
        )
    yield from _use_of_data(budget, reserved.data_set, reserved.mechanism, reserved.adaptivity)


def _use_of_data(
    budget: Budget, data_set: bytes, mechanism: Mechanism, adaptivity: Adaptivity
) -> Iterator[Problem]:
    yield from _known_data_set(budget, data_set)
    for member in sorted(budget.family(data_set)):
        found = budget.data_sets.get(member)
        counted = (mechanism.unit, mechanism.adjacency)
        if found is not None and (found.unit, found.adjacency) != counted:
            yield (
                FaultKind.INCONSISTENT,
                (
                    f"it protects a {mechanism.unit.value}, the account of {_short(member)} counts "
                    f"by {found.unit.value}: what is spent by one unit says nothing about the other"
                ),
            )
    if adaptivity is Adaptivity.PREREGISTERED and budget.has_released(data_set):
        yield (
            FaultKind.INCONSISTENT,
            (
                "it claims to be planned in advance, after something was released of these records: "
                "it has to be accounted by the filter"
            ),
        )


def _claimed(budget: Budget, claimed: Claimed) -> Iterator[Problem]:
    campaign = budget.campaigns.get(claimed.campaign_id)
    if campaign is None:
        yield from _known_campaign(budget, claimed.campaign_id)
        return
    if not campaign.is_open:
        yield (
            FaultKind.DOUBLE_SPENDING,
            f"campaign {claimed.campaign_id!r} is closed, its steps were given back",
        )
    yield from _in_order(campaign, claimed)
    reserved = campaign.reserved.mechanism.uses
    if claimed.end > reserved:
        yield (
            FaultKind.OVERDRAWN,
            f"it claims up to step {claimed.end} of {reserved} that are reserved",
        )
    for claim in budget.open_claims(claimed.campaign_id):
        yield (
            FaultKind.INCONSISTENT,
            f"the claim of entry {claim.seq} is neither committed nor charged",
        )
    proofs = budget.proofs.get(claimed.campaign_id)
    if proofs and not proofs[-1].stated.passed:
        yield FaultKind.UNPROVEN, "the start-up proof of its engine failed"


def _in_order(campaign: Campaign, claimed: Claimed) -> Iterator[Problem]:
    first, expected = claimed.first_step, campaign.next_step
    if first > expected:
        yield FaultKind.GAP, f"no claim covers steps {expected} to {first - 1}"
    elif campaign.executed_end <= first < expected:
        yield (
            FaultKind.REFUND,
            (
                f"steps {first} to {expected - 1} were claimed and did not run; a claim is not given "
                "back"
            ),
        )
    elif first < expected:
        last = min(claimed.end, expected) - 1
        yield FaultKind.DOUBLE_SPENDING, f"steps {first} to {last} were claimed before"


def _committed(budget: Budget, committed: Committed) -> Iterator[Problem]:
    claim = budget.claims.get(committed.claim)
    if claim is None:
        yield FaultKind.UNKNOWN, f"it commits entry {committed.claim}, which is no claim"
        return
    if claim.outcome is not Outcome.OPEN:
        yield (
            FaultKind.DOUBLE_SPENDING,
            f"the claim of entry {claim.seq} was {claim.outcome.value} before",
        )
    if committed.steps > claim.claimed.steps:
        yield (
            FaultKind.OVERDRAWN,
            f"{committed.steps} steps ran, {claim.claimed.steps} were claimed",
        )


def _charged(budget: Budget, charged: Charged) -> Iterator[Problem]:
    claim = budget.claims.get(charged.claim)
    if claim is None:
        yield FaultKind.UNKNOWN, f"it charges entry {charged.claim}, which is no claim"
        return
    if claim.outcome is not Outcome.OPEN:
        yield (
            FaultKind.INCONSISTENT,
            f"the claim of entry {claim.seq} was {claim.outcome.value} before",
        )
    if charged.steps != claim.claimed.steps:
        yield (
            FaultKind.REFUND if charged.steps < claim.claimed.steps else FaultKind.INCONSISTENT,
            (
                f"it charges {charged.steps} of {claim.claimed.steps} claimed steps; after a crash "
                "all of them count"
            ),
        )


def _closed(budget: Budget, closed: Closed) -> Iterator[Problem]:
    campaign = budget.campaigns.get(closed.campaign_id)
    if campaign is None:
        yield from _known_campaign(budget, closed.campaign_id)
        return
    if not campaign.is_open:
        yield FaultKind.INCONSISTENT, f"campaign {closed.campaign_id!r} is closed already"
    if closed.returned_steps != campaign.unclaimed:
        yield (
            FaultKind.REFUND
            if closed.returned_steps > campaign.unclaimed
            else FaultKind.INCONSISTENT,
            f"it gives back {closed.returned_steps} steps, {campaign.unclaimed} were never claimed",
        )
    for claim in budget.open_claims(closed.campaign_id):
        yield (
            FaultKind.INCONSISTENT,
            f"the claim of entry {claim.seq} is neither committed nor charged",
        )


def _audit(budget: Budget, result: AuditResult) -> Iterator[Problem]:
    yield from _known_campaign(budget, result.campaign_id)
    if result.audit is not AuditKind.EMPIRICAL:
        return
    guesses = None if result.guesses is None else budget.guesses.get(result.guesses)
    if guesses is None or guesses.campaign_id != result.campaign_id:
        yield (
            FaultKind.UNKNOWN,
            (
                "an empirical result without a commitment to its guesses before it: they may have "
                "been made after the labels were seen"
            ),
        )


def _known_data_set(budget: Budget, data_set: bytes) -> Iterator[Problem]:
    if data_set not in budget.data_sets:
        yield FaultKind.UNKNOWN, f"data set {_short(data_set)} is not in the ledger before it"


def _known_campaign(budget: Budget, campaign_id: str) -> Iterator[Problem]:
    if campaign_id not in budget.campaigns:
        yield FaultKind.UNKNOWN, f"campaign {campaign_id!r} has no reservation before it"


def _short(data_set: bytes) -> str:
    return data_set.hex()[:16]
