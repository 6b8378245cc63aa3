"""What was spent: a fold over entries, and nothing else is ever the truth about it.

Per campaign the fold keeps

    reserved    all its steps, while it is open
    spent       the steps of every claim, whatever became of it: a claim is written before its steps
                run, so no crash can hide one. Nothing ever lowers it
    never ran   of a campaign that ended early: the rest of what it reserved
    charged     those of them whose outcome a crash hid

and per data set what its records have been used for. Records of overlapping sets may be the same
ones, so a set's account holds everything that was spent on it *and on every set that shares a
record with it*:

    exposure(d) = spent(d) + reserved, not yet claimed (d), over d and all sets that overlap d

A limit is kept when the exposure of every account stays below it. Whether a record of d really was
in all of them is not looked at: the account is an upper bound for each of its records.

A campaign that ended early counts as spent with all that it reserved, also with what never ran, as long
as its account is added up exactly: when it ended may have depended on what came out, and exact sums hold
for what was planned. Under a Renyi filter, which allows for that, it counts with what it claimed.

Mechanisms add up by the accountants (`admission.py`); here, steps of a campaign only add up with
steps of the same campaign, whose sigma and q are frozen.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from offsite.secure.privacy.ledger.bodies import (
    Adaptivity,
    AuditGuesses,
    AuditResult,
    Charged,
    Claimed,
    Closed,
    Committed,
    DataSetAdded,
    LimitSet,
    Opened,
    ReleasedOther,
    Reserved,
    StartProof,
)
from offsite.secure.privacy.ledger.entries import Entry
from offsite.secure.privacy.mechanisms import Mechanism


class Outcome(Enum):
    """What became of a claim."""

    OPEN = "open"
    COMMITTED = "committed"
    CHARGED = "charged"


@dataclass(frozen=True, slots=True)
class Claim:
    """A block of steps of one campaign. `executed` is what its commit said."""

    seq: int
    claimed: Claimed
    year: int
    outcome: Outcome = Outcome.OPEN
    executed: int = 0


@dataclass(frozen=True, slots=True)
class Campaign:
    """One reservation and what was taken from it, in steps."""

    seq: int
    reserved: Reserved
    spent: int = 0
    charged: int = 0
    next_step: int = 0
    executed_end: int = 0  # where the last block stopped, which may be before its claim's end
    first_claim: int | None = None  # the number of its entry
    closed_year: int | None = None
    audits: tuple[AuditResult, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether steps may still be claimed."""
        return self.closed_year is None

    @property
    def unclaimed(self) -> int:
        """Steps that may still be claimed."""
        return max(0, self.reserved.mechanism.uses - self.next_step) if self.is_open else 0

    def never_ran(self, adaptivity: Adaptivity) -> int:
        """Steps that nobody claimed before it was over, and that count as spent all the same."""
        if self.is_open or not self.spent or adaptivity is not Adaptivity.PREREGISTERED:
            return 0
        return max(0, self.reserved.mechanism.uses - self.next_step)

    def counted(self, adaptivity: Adaptivity) -> int:
        """Steps that count as spent."""
        return self.spent + self.never_ran(adaptivity)

    def exposed(self, adaptivity: Adaptivity) -> int:
        """Steps that count against a limit."""
        return self.counted(adaptivity) + self.unclaimed


@dataclass(frozen=True, slots=True)
class Proof:
    """A start-up proof, and the number of its entry."""

    seq: int
    stated: StartProof


@dataclass(frozen=True, slots=True)
class Release:
    """A release outside of training."""

    seq: int
    released: ReleasedOther
    year: int


@dataclass(frozen=True, slots=True)
class Spend:
    """For reports: a mechanism, as often as it counts for one campaign in one year."""

    data_set: bytes
    campaign_id: str | None  # None: a release outside of training
    year: int
    mechanism: Mechanism
    never_ran: int = 0  # of its uses


class Budget:
    """The state after the entries that were posted; `rules.py` says which may follow.

    `post` takes every entry, also one that breaks a rule: a verifier goes on to the next fault, and
    what was broken then counts against the owner (steps claimed twice are spent twice).
    """

    def __init__(self) -> None:
        self.opened: Opened | None = None
        self.size = 0
        self.time_unix_s = 0.0
        self.limits: dict[bytes | None, LimitSet] = {}
        self.limit_changes: list[tuple[int, LimitSet]] = []  # with the entry's number, for reports
        self.data_sets: dict[bytes, DataSetAdded] = {}
        self.campaigns: dict[str, Campaign] = {}
        self.claims: dict[int, Claim] = {}
        self.releases: list[Release] = []
        self.proofs: dict[str, tuple[Proof, ...]] = {}  # all of a campaign, in order
        self.guesses: dict[int, AuditGuesses] = {}
        self._open: set[int] = set()
        self._neighbours: dict[bytes, frozenset[bytes]] = {}

    # --- what is known ---------------------------------------------------------------------------

    def limit_of(self, data_set: bytes) -> LimitSet | None:
        """The limit of a data set: its own, or else the one for all."""
        return self.limits.get(data_set) or self.limits.get(None)

    def family(self, data_set: bytes) -> frozenset[bytes]:
        """The set itself and all that share a record with it."""
        return frozenset({data_set}) | self._neighbours.get(data_set, frozenset())

    def exposure(
        self, data_set: bytes, adaptivity: Adaptivity | None = None
    ) -> tuple[Mechanism, ...]:
        """All that records of this set were used for, and all that is still reserved for them.

        `adaptivity` is how it is going to be added up; None: as the account needs it now.
        """
        kind = self.adaptivity(data_set) if adaptivity is None else adaptivity
        return tuple(self._used(data_set, lambda campaign: campaign.exposed(kind)))

    def spent(self, data_set: bytes) -> tuple[Mechanism, ...]:
        """All that counts as spent for records of this set."""
        kind = self.adaptivity(data_set)
        return tuple(self._used(data_set, lambda campaign: campaign.counted(kind)))

    def never_ran(self, data_set: bytes) -> int:
        """Steps among those spent that never ran; see the module's text."""
        family, kind = self.family(data_set), self.adaptivity(data_set)
        campaigns = self.campaigns.values()
        return sum(c.never_ran(kind) for c in campaigns if c.reserved.data_set in family)

    def adaptivity(self, data_set: bytes) -> Adaptivity:
        """Which accountant this account needs: FILTER as soon as one part of it does."""
        family = self.family(data_set)
        kinds = {
            campaign.reserved.adaptivity
            for campaign in self.campaigns.values()
            if campaign.reserved.data_set in family and (campaign.is_open or campaign.spent)
        }
        kinds |= {
            item.released.adaptivity for item in self.releases if item.released.data_set in family
        }
        return Adaptivity.FILTER if Adaptivity.FILTER in kinds else Adaptivity.PREREGISTERED

    def first_use(self, data_set: bytes) -> Mechanism | None:
        """What was admitted first for these records, whatever became of it."""
        family = self.family(data_set)
        firsts = [
            (campaign.seq, campaign.reserved.mechanism)
            for campaign in self.campaigns.values()
            if campaign.reserved.data_set in family
        ] + [
            (item.seq, item.released.mechanism)
            for item in self.releases
            if item.released.data_set in family
        ]
        return min(firsts, key=lambda first: first[0])[1] if firsts else None

    def has_released(self, data_set: bytes) -> bool:
        """Whether anything that depends on these records may be known to anybody."""
        family = self.family(data_set)
        return any(item.released.data_set in family for item in self.releases) or any(
            campaign.spent and campaign.reserved.data_set in family
            for campaign in self.campaigns.values()
        )

    def open_claims(self, campaign_id: str | None = None) -> tuple[Claim, ...]:
        """Claims that are neither committed nor charged, of one campaign or of all."""
        found = (self.claims[seq] for seq in sorted(self._open))
        return tuple(claim for claim in found if campaign_id in (None, claim.claimed.campaign_id))

    def spends(self) -> Iterator[Spend]:
        """What was spent by campaign and year, for reports. Not composed over overlaps."""
        steps: dict[tuple[str, int], int] = {}
        for claim in self.claims.values():
            key = (claim.claimed.campaign_id, claim.year)
            steps[key] = steps.get(key, 0) + claim.claimed.steps
        unused = {
            (name, campaign.closed_year): campaign.never_ran(campaign.reserved.adaptivity)
            for name, campaign in self.campaigns.items()
            if campaign.closed_year is not None
        }
        for campaign_id, year in steps | {key: 0 for key, count in unused.items() if count}:
            campaign = self.campaigns.get(campaign_id)
            if campaign is not None:
                rest = unused.get((campaign_id, year), 0)
                count = steps.get((campaign_id, year), 0) + rest
                mechanism = campaign.reserved.mechanism.repeated(count)
                yield Spend(campaign.reserved.data_set, campaign_id, year, mechanism, rest)
        for item in self.releases:
            yield Spend(item.released.data_set, None, item.year, item.released.mechanism)

    # --- what happens ----------------------------------------------------------------------------

    def post(self, entry: Entry) -> None:
        """Takes in an entry."""
        self.size = entry.seq + 1
        self.time_unix_s = max(self.time_unix_s, entry.time_unix_s)
        match entry.body:
            case Opened() as opened:
                self.opened = self.opened or opened
            case LimitSet() as limit:
                self.limits[limit.data_set] = limit
                self.limit_changes.append((entry.seq, limit))
            case DataSetAdded() as added:
                self._add_data_set(added)
            case StartProof() as proof:
                before = self.proofs.get(proof.campaign_id, ())
                self.proofs[proof.campaign_id] = (*before, Proof(entry.seq, proof))
            case Reserved() as reserved:
                self.campaigns.setdefault(reserved.campaign_id, Campaign(entry.seq, reserved))
            case Claimed() as claimed:
                self._claim(entry, claimed)
            case Committed() as committed:
                self._commit(committed)
            case Charged() as charged:
                self._charge(charged)
            case Closed() as closed:
                self._close(entry, closed)
            case ReleasedOther() as released:
                self.releases.append(Release(entry.seq, released, _year(entry)))
            case AuditGuesses() as guesses:
                self.guesses[entry.seq] = guesses
            case AuditResult() as result:
                self._add_audit(result)
            case _:
                pass  # refused and aborted change nothing, and stand there all the same

    def _used(self, data_set: bytes, steps_of: Callable[[Campaign], int]) -> Iterator[Mechanism]:
        family = self.family(data_set)
        for campaign in self.campaigns.values():
            steps = steps_of(campaign)
            if campaign.reserved.data_set in family and steps:
                yield campaign.reserved.mechanism.repeated(steps)
        for item in self.releases:
            if item.released.data_set in family:
                yield item.released.mechanism

    def _add_data_set(self, added: DataSetAdded) -> None:
        self.data_sets.setdefault(added.data_set, added)
        for other in added.overlaps:
            self._neighbours[added.data_set] = self.family(added.data_set) | {other}
            self._neighbours[other] = self.family(other) | {added.data_set}

    def _claim(self, entry: Entry, claimed: Claimed) -> None:
        self.claims[entry.seq] = Claim(entry.seq, claimed, _year(entry))
        self._open.add(entry.seq)
        found = self.campaigns.get(claimed.campaign_id)
        if found is not None:
            self.campaigns[claimed.campaign_id] = dataclasses.replace(
                found,
                spent=found.spent + claimed.steps,
                next_step=max(found.next_step, claimed.end),
                executed_end=claimed.end,
                first_claim=entry.seq if found.first_claim is None else found.first_claim,
            )

    def _commit(self, committed: Committed) -> None:
        claim = self.claims.get(committed.claim)
        if claim is None:
            return
        claimed = claim.claimed
        found = self.campaigns.get(claimed.campaign_id)
        if found is not None:
            # Steps beyond the claim, or after it was settled, ran all the same.
            extra = max(0, committed.steps - claimed.steps)
            again = committed.steps if claim.outcome is not Outcome.OPEN else 0
            self.campaigns[claimed.campaign_id] = dataclasses.replace(
                found,
                spent=found.spent + max(extra, again),
                executed_end=claimed.first_step + committed.steps,
            )
        self._settle(claim, Outcome.COMMITTED, committed.steps)

    def _charge(self, charged: Charged) -> None:
        claim = self.claims.get(charged.claim)
        if claim is None or claim.outcome is not Outcome.OPEN:
            return
        self._settle(claim, Outcome.CHARGED, 0)
        found = self.campaigns.get(claim.claimed.campaign_id)
        if found is not None:
            self.campaigns[claim.claimed.campaign_id] = dataclasses.replace(
                found, charged=found.charged + claim.claimed.steps
            )

    def _settle(self, claim: Claim, outcome: Outcome, executed: int) -> None:
        self._open.discard(claim.seq)
        self.claims[claim.seq] = dataclasses.replace(claim, outcome=outcome, executed=executed)

    def _close(self, entry: Entry, closed: Closed) -> None:
        found = self.campaigns.get(closed.campaign_id)
        if found is not None:
            year = found.closed_year or _year(entry)
            self.campaigns[closed.campaign_id] = dataclasses.replace(found, closed_year=year)

    def _add_audit(self, result: AuditResult) -> None:
        found = self.campaigns.get(result.campaign_id)
        if found is not None:
            audits = (*found.audits, result)
            self.campaigns[result.campaign_id] = dataclasses.replace(found, audits=audits)


def fold(entries: Iterable[Entry]) -> Budget:
    """The budget after these entries, whatever is wrong with them."""
    budget = Budget()
    for entry in entries:
        budget.post(entry)
    return budget


def charges_after_crash(budget: Budget) -> tuple[Charged, ...]:
    """What a machine writes when it starts and finds claims that nothing tells the end of."""
    return tuple(
        Charged(claim.seq, claim.claimed.steps, "the outcome is unknown after a restart")
        for claim in budget.open_claims()
    )


def _year(entry: Entry) -> int:
    return datetime.fromtimestamp(entry.time_unix_s, UTC).year
