"""What a campaign may spend of the owner's limit: chosen, reserved and claimed.

    propose    from the plan and the number of units: q = batch / n, T = rounds · steps, and the least
               noise with which all of it stays within the limit
    reserve    all of it in the ledger, or a refusal there that says how many steps would fit
    claim      a block of steps, before they run

Notable decisions:

* sigma, q and C are frozen by the reservation; a plan of a later round that asks for others is refused.
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

from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.emulator.rounds.instruction import adapter_digest
from offsite.emulator.rounds.plan import RoundPlan, TuningSettings
from offsite.secure.errors import PolicyError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord, Accounting
from offsite.secure.privacy.ledger.admission import epsilon_of_account, is_admissible
from offsite.secure.privacy.ledger.bodies import (
    Adaptivity,
    Claimed,
    Committed,
    Implementation,
    Reserved,
)
from offsite.secure.privacy.logical_batch import StepTerms
from offsite.secure.privacy.mechanisms import PoissonGaussian

SPARE: Final = 10
"""One step in so many is reserved on top of what the plan asks for."""
MOST_NOISE: Final = 64.0
"""More noise than this teaches nobody anything; a campaign that would need it is refused."""


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


def reserve(
    ledger: LedgerFolder,
    limit: PrivacyLimit,
    plan: RoundPlan,
    coordinator: IdentityPublicKey,
    data_set: bytes,
    units: int,
    implementation: Implementation,
    accounting: Accounting | None = None,
) -> CampaignBudget:
    """The campaign's reservation: the one that stands in the ledger, or a new one.

    Raises:
        OverBudgetError: the limit does not leave enough; says how many steps would fit.
        PolicyError: the plan asks for other terms than those that were reserved.
        ConfigError: delta is too large for so many units.
    """
    limit.check_units(units)
    # One campaign may meet several data sets (the file grew); each has a reservation of its own.
    campaign_id = campaign_name(coordinator, plan.campaign_id, data_set)
    schedule = Schedule.of(plan, units)
    if (known := ledger.budget.campaigns.get(campaign_id)) is not None:
        _check_frozen(known.reserved, schedule, plan.settings)
        _check_limit(ledger, known.reserved, accounting or AccountantsOfRecord())
        return CampaignBudget(ledger, known.reserved, units)
    proposed = _proposed(ledger, limit, campaign_id, data_set, schedule, plan, implementation)
    accounting = accounting or AccountantsOfRecord()
    chosen = _least_noise(ledger, limit, proposed, accounting)
    ledger.admit(chosen, accounting)
    return CampaignBudget(ledger, chosen, units)


def campaign_name(coordinator: IdentityPublicKey, campaign_id: int, data_set: bytes) -> str:
    """What the ledger calls a campaign: whose it is, which one, and with which data."""
    return f"{coordinator.short}/{campaign_id}/{data_set.hex()[:16]}"


def config_digest(settings: TuningSettings) -> bytes:
    """SHA-256 of the settings of a plan, for the ledger."""
    return hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).digest()


def _proposed(
    ledger: LedgerFolder,
    limit: PrivacyLimit,
    campaign_id: str,
    data_set: bytes,
    schedule: Schedule,
    plan: RoundPlan,
    implementation: Implementation,
) -> Reserved:
    """With the most noise that makes sense."""
    released = ledger.budget.has_released(data_set)
    return Reserved(
        campaign_id,
        data_set,
        PoissonGaussian(MOST_NOISE, schedule.sampling, schedule.all_steps, limit.unit),
        Adaptivity.FILTER if released else Adaptivity.PREREGISTERED,
        plan.settings.unit_clip,
        float(schedule.batch),
        implementation,
    )


def _least_noise(
    ledger: LedgerFolder, limit: PrivacyLimit, proposed: Reserved, accounting: Accounting
) -> Reserved:
    """The proposal with the least noise that every limit allows; as it is, if none does."""
    from offsite.secure.privacy.calibration import GRID, LOWEST, noise_for

    mechanism = proposed.mechanism
    assert isinstance(mechanism, PoissonGaussian)
    asked = min(limit.epsilon, limit.campaign_epsilon or limit.epsilon)
    low = LOWEST
    if proposed.adaptivity is Adaptivity.PREREGISTERED:
        args = (asked, limit.delta, mechanism.sampling, mechanism.steps, mechanism.unit)
        try:
            low = min(round(noise_for(*args) * GRID), round(MOST_NOISE * GRID))
        except PolicyError:  # no noise is enough; the ledger says so, and how many steps would fit
            return proposed
    return _bisected(ledger, proposed, accounting, low, round(MOST_NOISE * GRID), GRID)


def _bisected(
    ledger: LedgerFolder,
    proposed: Reserved,
    accounting: Accounting,
    low: int,
    high: int,
    grid: int,
) -> Reserved:
    """The least of `low` to `high` grid steps of noise that is admitted."""

    def fits(notch: int) -> bool:
        return is_admissible(ledger.budget, _with_noise(proposed, notch / grid), accounting)

    if fits(low):
        return _with_noise(proposed, low / grid)
    if not fits(high):
        return proposed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return _with_noise(proposed, high / grid)


def _check_frozen(reserved: Reserved, schedule: Schedule, settings: TuningSettings) -> None:
    mechanism = reserved.mechanism
    assert isinstance(mechanism, PoissonGaussian)
    found = (schedule.sampling, settings.unit_clip)
    if found != (mechanism.sampling, reserved.clip_norm):
        raise PolicyError(
            f"expected the batch and the clip that were reserved for campaign "
            f"{reserved.campaign_id}, found a plan with batch_examples {settings.batch_examples} "
            f"and unit_clip {settings.unit_clip:g}: they are frozen for a campaign"
        )


def _check_limit(ledger: LedgerFolder, reserved: Reserved, accounting: Accounting) -> None:
    """That what is reserved still fits: the owner may have lowered its limit since."""
    limit = ledger.budget.limit_of(reserved.data_set)
    found = epsilon_of_account(ledger.budget, reserved.data_set, accounting)
    if limit is None or not found <= limit.epsilon:
        allowed = "none" if limit is None else f"{limit.epsilon:g}"
        raise PolicyError(
            f"campaign {reserved.campaign_id} has reserved steps that take these data to epsilon "
            f"{found:.3f}, and the limit is {allowed} now: this edge sits it out"
        )


def _with_noise(proposed: Reserved, noise: float) -> Reserved:
    mechanism = proposed.mechanism
    assert isinstance(mechanism, PoissonGaussian)
    return replace(proposed, mechanism=replace(mechanism, noise_multiplier=noise))


def _digest(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return bytes.fromhex(adapter_digest(tensors))
