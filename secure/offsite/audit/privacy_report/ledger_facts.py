"""A verified ledger as facts about one of its data sets.

Every epsilon is computed here from the stored mechanisms, none is taken over from an entry. The
course of the budget is computed at no more than `MOST_POINTS` entries, since accountants take their
time; the last entry is always among them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from offsite.audit.keys import NOT_CHECKED, LedgerKeys
from offsite.audit.privacy_report.facts import (
    AuditEntry,
    CampaignFacts,
    Event,
    EventKind,
    LedgerFacts,
    Limit,
    LimitChange,
    Missing,
    ProofEntry,
)
from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.accounting.view import EpsilonView, epsilon_of
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord, Accounting, Terms
from offsite.secure.privacy.ledger.admission import epsilon_of_account
from offsite.secure.privacy.ledger.assurance import assurance_of
from offsite.secure.privacy.ledger.bodies import (
    Aborted,
    Adaptivity,
    AuditResult,
    Claimed,
    Closed,
    LimitSet,
    Refused,
    ReleasedOther,
)
from offsite.secure.privacy.ledger.budget import Budget, Campaign
from offsite.secure.privacy.ledger.chain import root_of
from offsite.secure.privacy.ledger.entries import Entry
from offsite.secure.privacy.ledger.verification import Findings
from offsite.secure.privacy.mechanisms import Mechanism

MOST_POINTS: Final = 40

View = Callable[[Sequence[Mechanism], float], EpsilonView]


def ledger_facts(
    findings: Findings,
    data_set: bytes,
    keys: LedgerKeys,
    accounting: Accounting | None = None,
    view: View = epsilon_of,
) -> LedgerFacts:
    """What the ledger says of a data set.

    Args:
        keys: that the findings were made with.
        accounting: gives the figures of record; None: the accountants of record.
        view: all accountants side by side.

    Raises:
        ConfigError: the ledger has no such data set.
        PolicyError: there is no figure to report, since accountants disagree or it is beyond use.
    """
    budget, accounting = findings.budget, accounting or AccountantsOfRecord()
    added = budget.data_sets.get(data_set)
    if added is None or budget.opened is None:
        known = ", ".join(sorted(other.hex()[:16] for other in budget.data_sets)) or "none"
        raise ConfigError(
            f"expected a data set of the ledger, found {data_set.hex()[:16]}; it has {known}"
        )
    limit, family = budget.limit_of(data_set), budget.family(data_set)
    digests = [record.digest for record in findings.records]
    return LedgerFacts(
        owner=budget.opened.owner,
        owner_key=keys.owner.raw.hex(),
        owner_key_is_stated=keys.is_stated,
        data_set=data_set.hex(),
        unit=added.unit,
        adjacency=added.adjacency,
        limit=_limit(limit),
        limit_changes=tuple(
            LimitChange(seq, _as_limit(change))
            for seq, change in budget.limit_changes
            if change.data_set in (None, data_set)
        ),
        adaptivity=budget.adaptivity(data_set),
        spent=_account(budget, data_set, accounting, only_spent=True),
        never_ran=budget.never_ran(data_set),
        exposed=_account(budget, data_set, accounting, only_spent=False),
        cross_check=_cross_check(budget, data_set, limit, view),
        campaigns=tuple(
            _campaign(budget, name, campaign, limit, accounting)
            for name, campaign in budget.campaigns.items()
            if campaign.reserved.data_set in family
        ),
        events=_events(findings, data_set, accounting),
        other_releases=tuple(
            item.released.what for item in budget.releases if item.released.data_set in family
        ),
        proofs=_proofs(budget, family),
        audits=_audits(findings, family),
        entries=len(digests),
        countersigned=Missing(NOT_CHECKED) if keys.coordinator is None else findings.countersigned,
        root=root_of(digests, len(digests)).hex(),
        faults=tuple(map(str, findings.faults)),
    )


def _limit(found: LimitSet | None) -> Limit | Missing:
    if found is None:
        return Missing("no limit was set: nothing bounds what may be spent")
    return _as_limit(found)


def _as_limit(found: LimitSet) -> Limit:
    return Limit(found.epsilon, found.delta, found.campaign_epsilon)


def _account(budget: Budget, data_set: bytes, accounting: Accounting, *, only_spent: bool) -> float:
    """Epsilon; 0 where nothing was used, which without a limit nothing can be."""
    if budget.limit_of(data_set) is None and not budget.exposure(data_set):
        return 0.0
    return _finite(epsilon_of_account(budget, data_set, accounting, only_spent=only_spent))


def _finite(epsilon: float) -> float:
    if not math.isfinite(epsilon):
        raise PolicyError(
            "expected a privacy loss that accountants can compute, found one beyond any use: there "
            "is no figure to report, and nobody is protected"
        )
    return epsilon


def _cross_check(
    budget: Budget, data_set: bytes, limit: LimitSet | None, view: View
) -> EpsilonView | Missing:
    spent = budget.spent(data_set)
    if not spent or limit is None:
        return Missing("nothing was spent yet")
    if budget.adaptivity(data_set) is Adaptivity.FILTER:
        return Missing("parameters were chosen along the way, for which only a Rényi filter holds")
    return view(spent, limit.delta)


def _campaign(
    budget: Budget, name: str, campaign: Campaign, limit: LimitSet | None, accounting: Accounting
) -> CampaignFacts:
    reserved, alone = campaign.reserved, 0.0
    if (counted := campaign.counted(reserved.adaptivity)) and limit is not None:
        terms = Terms(limit, reserved.adaptivity, reserved.mechanism)
        alone = _finite(accounting.epsilon((reserved.mechanism.repeated(counted),), terms))
    return CampaignFacts(
        name,
        reserved.mechanism,
        reserved.clip_norm,
        reserved.mechanism.uses,
        campaign.spent,
        campaign.charged,
        campaign.never_ran(reserved.adaptivity),
        campaign.is_open,
        alone,
        assurance_of(budget, name),
    )


def _proofs(budget: Budget, family: frozenset[bytes]) -> tuple[ProofEntry, ...]:
    """Of the campaigns on these records, in the order of the ledger."""
    found = [
        ProofEntry(
            proof.seq,
            name,
            proof.stated.report.hex(),
            proof.stated.passed,
            campaign.first_claim is None or proof.seq < campaign.first_claim,
        )
        for name, campaign in budget.campaigns.items()
        if campaign.reserved.data_set in family
        for proof in budget.proofs.get(name, ())
    ]
    return tuple(sorted(found, key=lambda proof: proof.seq))


def _audits(findings: Findings, family: frozenset[bytes]) -> tuple[AuditEntry, ...]:
    entries = [record.entry for record in findings.records]
    return tuple(
        AuditEntry(
            entry.seq,
            found.campaign_id,
            found.audit,
            found.evidence.hex(),
            found.passed,
            found.epsilon_at_least,
        )
        for entry in entries
        if isinstance(found := entry.body, AuditResult)
        and _concerns(findings.budget, found.campaign_id, family)
    )


def _events(findings: Findings, data_set: bytes, accounting: Accounting) -> tuple[Event, ...]:
    """The course of the budget, thinned out where it is long."""
    entries = [record.entry for record in findings.records]
    family = findings.budget.family(data_set)
    told = [entry.seq for entry in entries if _told(entry, findings.budget, family) is not None]
    kept = {*told[:: max(1, -(-len(told) // MOST_POINTS))], *told[-1:]}
    budget, events = Budget(), list[Event]()
    for entry in entries:
        budget.post(entry)
        found = _told(entry, findings.budget, family)
        if found is not None and entry.seq in kept:
            epsilon = _account(budget, data_set, accounting, only_spent=True)
            events.append(Event(entry.seq, entry.time_unix_s, *found, epsilon))
    return tuple(events)


def _told(entry: Entry, budget: Budget, family: frozenset[bytes]) -> tuple[EventKind, str] | None:
    """What an entry says of these records' budget; None if nothing."""
    match entry.body:
        case Claimed() as claimed if _concerns(budget, claimed.campaign_id, family):
            where = f"{claimed.campaign_id}, round {claimed.round}"
            return EventKind.CLAIMED, f"{where}: {claimed.steps} steps"
        case Closed() as closed if _concerns(budget, closed.campaign_id, family):
            return EventKind.CLOSED, f"{closed.campaign_id}: {closed.returned_steps} never claimed"
        case Aborted() as aborted if _concerns(budget, aborted.campaign_id, family):
            return EventKind.ABORTED, f"{aborted.campaign_id}, round {aborted.round}"
        case ReleasedOther() as released if released.data_set in family:
            return EventKind.RELEASED_OTHER, released.what
        case Refused() as refused if refused.data_set in family:
            fit = f"{refused.steps_that_fit} of {refused.mechanism.uses} steps would have fitted"
            return EventKind.REFUSED, f"{refused.campaign_id}: {fit}"
        case _:
            return None


def _concerns(budget: Budget, campaign_id: str, family: frozenset[bytes]) -> bool:
    campaign = budget.campaigns.get(campaign_id)
    return campaign is not None and campaign.reserved.data_set in family
