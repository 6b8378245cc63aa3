"""What a campaign may spend of the owner's limit: chosen, reserved and claimed.

    propose    from the plan and the number of units: q = batch / n, T = rounds · steps, and the least
               noise with which all of it stays within the limit
    reserve    all of it in the ledger, or a refusal there that says how many steps would fit
    claim      a block of steps, before they run

Notable decisions:

* sigma, q and C are frozen by the reservation, and so are model and adapter; a plan of a later round that
  asks for others is refused.
* A tenth more steps are reserved than the plan asks for: a crash costs the block that it interrupted,
  and an attempt at a round that came to nothing is tuned again. When they are used up, the round ends
  early.
* Where nothing was released of these records before, the noise is the least by the accountant of
  record (PLD); afterwards a Rényi filter decides, for the plan may depend on what was released.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Final

import torch

from offsite.edge_client.privacy.least_noise import MOST_NOISE, adaptivity_of, least_noise
from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.emulator.rounds.instruction import adapter_digest
from offsite.emulator.rounds.plan import RoundPlan, TuningSettings
from offsite.secure.errors import PolicyError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.privacy.accounting.view import epsilon_of
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord, Accounting
from offsite.secure.privacy.ledger.admission import campaign_excess, exceeded
from offsite.secure.privacy.ledger.bodies import (
    Claimed,
    Committed,
    Implementation,
    Reserved,
    StatedEpsilon,
)
from offsite.secure.privacy.ledger.budget import Budget
from offsite.secure.privacy.logical_batch import StepTerms
from offsite.secure.privacy.mechanisms import PoissonGaussian

SPARE: Final = 10
"""One step in so many is reserved on top of what the plan asks for."""


def with_spare(steps: int) -> int:
    """So many steps, and those that are reserved on top."""
    return steps + -(-steps // SPARE)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a plan asks of data with so many units."""

    batch: int
    """Units of a step, on average."""
    sampling: Fraction
    round_steps: int
    all_steps: int
    """With spare ones."""

    @classmethod
    def of(cls, plan: RoundPlan, units: int) -> "Schedule":
        """What is asked of so many units.

        Raises:
            PolicyError: the plan counts in epochs. Steps would tell how many units there are: by the
                time they take, and by the entries of a ledger whose size is counter-signed.
        """
        steps, batch = plan.settings.local_steps, min(plan.settings.batch_examples, units)
        if not steps:
            raise PolicyError(
                "a private edge tunes by local_steps, the same for all; the plan counts in "
                "local_epochs: ask the coordinator to set tuning.local_steps"
            )
        asked = plan.total_rounds * steps
        return cls(batch, Fraction(batch, units), steps, with_spare(asked))


@dataclass(frozen=True, slots=True)
class CampaignBudget:
    """The reservation of one campaign for one data set."""

    ledger: LedgerFolder
    reserved: Reserved
    units: int

    @property
    def terms(self) -> StepTerms:
        """What every step does."""
        mechanism = self.reserved.mechanism
        assert isinstance(mechanism, PoissonGaussian)  # `reserve` makes no other
        return StepTerms.of(mechanism, self.units, self.reserved.clip_norm)

    def round_steps(self, plan: RoundPlan) -> int:
        """Steps of one round, if enough are left."""
        return Schedule.of(plan, self.units).round_steps

    def describe(self) -> str:
        """For the owner alone: it tells how many units there are."""
        mechanism = self.reserved.mechanism
        assert isinstance(mechanism, PoissonGaussian)
        return (
            f"privacy: {mechanism.steps} steps are reserved, each of about "
            f"{self.reserved.expected_batch:g} of {self.units} {mechanism.unit.value}s, clipped to "
            f"{self.reserved.clip_norm:g}, with noise of {mechanism.noise_multiplier:g} times that"
        )

    @property
    def left(self) -> int:
        """Steps that may still be claimed."""
        return self.ledger.budget.campaigns[self.reserved.campaign_id].unclaimed


@dataclass(slots=True)
class RoundClaims:
    """Claims of one attempt at one round; see `private_tuning.Claims`."""

    budget: CampaignBudget
    plan: RoundPlan
    _seq: int | None = None

    @property
    def name(self) -> bytes:
        assert self._seq is not None
        return self.budget.ledger.ledger.ledger_id + self._seq.to_bytes(8, "big")

    def claim(self, steps: int, parent: Mapping[str, torch.Tensor]) -> int:
        ledger, campaign_id = self.budget.ledger, self.budget.reserved.campaign_id
        allowed = min(steps, self.budget.left)
        if allowed:
            first = ledger.budget.campaigns[campaign_id].next_step
            round_, attempt = self.plan.round, self.plan.attempt
            claimed = Claimed(campaign_id, round_, attempt, first, allowed, _digest(parent))
            self._seq = ledger.append(claimed).entry.seq
        return allowed

    def commit(self, steps: int, result: Mapping[str, torch.Tensor]) -> None:
        assert self._seq is not None
        self.budget.ledger.append(Committed(self._seq, steps, _digest(result)))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a campaign asks of a data set, and with what it would be carried out."""

    plan: RoundPlan
    coordinator: IdentityPublicKey
    data_set: bytes
    units: int
    implementation: Implementation

    @property
    def campaign_id(self) -> str:
        """One campaign may meet several data sets (the file grew); each has a reservation."""
        return campaign_name(self.coordinator, self.plan.campaign_id, self.data_set)

    @property
    def schedule(self) -> Schedule:
        """Raises PolicyError where the plan counts in epochs."""
        return Schedule.of(self.plan, self.units)


def reserve(
    ledger: LedgerFolder, limit: PrivacyLimit, asked: Asked, accounting: Accounting | None = None
) -> CampaignBudget:
    """The campaign's reservation: the one that stands in the ledger, or a new one.

    Raises:
        OverBudgetError: the limit does not leave enough; says how many steps would fit.
        PolicyError: the plan asks for other terms than those that were reserved, or would carry
            them out on another model or adapter.
        ConfigError: delta is too large for so many units.
    """
    limit.check_units(asked.units)
    accounting = accounting or AccountantsOfRecord()
    known = ledger.budget.campaigns.get(asked.campaign_id)
    if known is not None:
        _check_frozen(known.reserved, asked)
        _check_limit(ledger.budget, known.reserved, accounting)
        return CampaignBudget(ledger, known.reserved, asked.units)
    proposed = _proposed(ledger.budget, limit, asked)
    chosen = least_noise(ledger.budget, limit, proposed, accounting)
    # Where none fits, the ledger says so, and how many steps would.
    reserved = proposed if chosen is None else _with_figures(chosen, limit.delta)
    ledger.admit(reserved, accounting)
    return CampaignBudget(ledger, reserved, asked.units)


def campaign_name(coordinator: IdentityPublicKey, campaign_id: int, data_set: bytes) -> str:
    """What the ledger calls a campaign: whose it is, which one, and with which data."""
    return f"{coordinator.short}/{campaign_id}/{data_set.hex()[:16]}"


def config_digest(settings: TuningSettings) -> bytes:
    """SHA-256 of the settings of a plan, for the ledger."""
    return hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).digest()


def _proposed(budget: Budget, limit: PrivacyLimit, asked: Asked) -> Reserved:
    """With the most noise that makes sense."""
    schedule = asked.schedule
    mechanism = PoissonGaussian(MOST_NOISE, schedule.sampling, schedule.all_steps, limit.unit)
    return Reserved(
        asked.campaign_id,
        asked.data_set,
        mechanism,
        adaptivity_of(budget, asked.data_set),
        asked.plan.settings.unit_clip,
        float(schedule.batch),
        asked.implementation,
    )


def _with_figures(reserved: Reserved, delta: float) -> Reserved:
    """With what the owner is shown for this campaign alone, by all accountants.

    Raises:
        PolicyError: they disagree; nothing is reserved then.
    """
    view = epsilon_of((reserved.mechanism,), delta)
    versions = ", ".join(f"{name} {version}" for name, version in view.versions)
    stated = StatedEpsilon(delta, view.pld, view.prv, view.rdp, versions)
    return replace(reserved, stated=stated)


def _check_frozen(reserved: Reserved, asked: Asked) -> None:
    mechanism, settings = reserved.mechanism, asked.plan.settings
    assert isinstance(mechanism, PoissonGaussian)
    found = (asked.schedule.sampling, settings.unit_clip)
    if found != (mechanism.sampling, reserved.clip_norm):
        raise PolicyError(
            f"expected the batch and the clip that were reserved for campaign "
            f"{reserved.campaign_id}, found a plan with batch_examples {settings.batch_examples} "
            f"and unit_clip {settings.unit_clip:g}: they are frozen for a campaign"
        )
    # Settings may change, and so may the program, which is proven anew; what is tuned may not.
    before, now = reserved.implementation, asked.implementation
    if replace(before, code=now.code, config=now.config) != now:
        raise PolicyError(
            f"expected the model and the adapter that were reserved for campaign "
            f"{reserved.campaign_id}, found others: choose the emulator of before with --emulator; "
            "for another release ask the coordinator for a new campaign"
        )


def _check_limit(budget: Budget, reserved: Reserved, accounting: Accounting) -> None:
    """That what is reserved still fits: the owner may have lowered its limit since."""
    alone = campaign_excess(budget, reserved, accounting)
    above = exceeded(budget, reserved.data_set, accounting) if alone is None else (alone,)
    if above:
        raise PolicyError(
            f"campaign {reserved.campaign_id} has reserved more than the limit allows now: "
            f"{'; '.join(excess.problem for excess in above)}: this edge sits it out"
        )


def _digest(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return bytes.fromhex(adapter_digest(tensors))
