"""A private edge's rounds: reserved, proven, claimed, tuned; in this order and never otherwise.

    (1) the campaign's reservation, or a refusal, in the ledger
    (2) the start-up proof on this very model and adapter, once a session for the same settings
    (3) tuning, block after block, each claimed before it runs
    (4) what was spent, told to the owner alone

What leaves is the update; its weight in the sum is that of every private edge (`UNIFORM`), for the
number of examples is a release of its own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.edge_client.checkpoint import Checkpoint
from offsite.edge_client.privacy.campaign_budget import (
    Asked,
    CampaignBudget,
    RoundClaims,
    reserve,
)
from offsite.edge_client.privacy.implementation import ENGINE, code_digest, implementation_of
from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.privacy.private_tuning import PrivateOutcome, PrivateRun, tune_privately
from offsite.edge_client.privacy.spent import Spent, spent_of
from offsite.edge_client.privacy.unit_examples import UnitExamples
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import Callbacks
from offsite.edge_client.workbench import Workbench
from offsite.emulator.durable import private_folder, write_atomic
from offsite.emulator.privacy.backends.backend import flat_size
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.privacy.proof.dropout import without_dropout
from offsite.emulator.privacy.proof.mechanism import Packed, PrivateStep, Unit
from offsite.emulator.privacy.proof.proof import prove
from offsite.emulator.privacy.proof.report import Program
from offsite.emulator.privacy.proof.synthetic import Sizes
from offsite.emulator.rounds.plan import RoundPlan, TuningSettings
from offsite.secure.errors import OffsiteError
from offsite.secure.identity import IdentityPublicKey
from offsite.secure.privacy.ledger.bodies import Aborted, Closed, StartProof

UNIFORM: Final = math.inf
"""Number of examples by which a private edge is weighed: as many as count."""

OTHER_PROGRAM: Final = (
    "privacy: this program is not the one that reserved these steps; it is proven anew, and the report of "
    "the proof names it"
)

Parameters = Mapping[str, nn.Parameter]


@dataclass(slots=True)
class PrivateRounds:
    """The rounds of one edge under its owner's limit."""

    ledger: LedgerFolder
    limit: PrivacyLimit
    coordinator: IdentityPublicKey
    tell: Callable[[str], None]
    """The owner alone: nothing of it may be sent."""
    countersign: Callable[[], None]
    """Has the ledger counter-signed."""
    proven: set[tuple[str, TuningSettings]] = field(default_factory=set)
    """Campaigns and settings whose mechanism has been proven in this process."""

    def tune(
        self,
        plan: RoundPlan,
        workbench: Workbench,
        base: Mapping[str, torch.Tensor],
        checkpoint_of: Callable[[bytes], Checkpoint],
        callbacks: Callbacks,
        units: UnitExamples | None = None,
    ) -> PrivateOutcome:
        """The update of one round.

        Args:
            checkpoint_of: the checkpoint of a run, bound to what is given beside plan and data.
            units: what may be tuned on; default: all of the data.

        Raises:
            OverBudgetError: the limit does not leave enough; nothing was trained.
            PolicyError: the proof failed, or the plan asks for other terms than were reserved.
        """
        settings = plan.settings
        if units is None:
            examples = workbench.examples(settings.max_tokens)
            units = UnitExamples.of(workbench.data, examples.examples, examples.rows)
        # (1) The reservation.
        budget = self._reserved(plan, workbench, units.count)
        # (2) The proof.
        model, parameters = workbench.model(settings.dtype, base)
        self._prove(budget, plan, model, parameters)
        # (3) The steps.
        callbacks.status(f"tuning, round {plan.round} of {plan.total_rounds}")
        run = PrivateRun(
            PerExampleEngine,
            model,
            parameters,
            base,
            units,
            Task.of(plan, settings),
            budget.round_steps(plan),
            budget.terms,
        )
        tuned = tune_privately(
            run,
            RoundClaims(budget, plan),
            checkpoint=checkpoint_of(budget.reserved.data_set),
            callbacks=callbacks,
        )
        # (4) What it cost.
        if not tuned.has_trained:
            self.tell("no row of this data had a gradient in any step: the update is noise alone")
        self.tell(self.spent(budget).describe())
        self.countersign()
        return tuned

    def spent(self, budget: CampaignBudget) -> Spent:
        """What the data set of a campaign has spent, and may spend."""
        return spent_of(self.ledger.budget, budget.reserved.data_set)

    def took_part(self, plan: RoundPlan) -> bool:
        """Whether something is reserved for this plan's campaign."""
        return bool(self._campaigns(plan.campaign_id))

    def abort(self, plan: RoundPlan, error: OffsiteError) -> None:
        """Note that an attempt gave no result; it gives nothing back."""
        for campaign_id in self._campaigns(plan.campaign_id):
            reason = type(error).__name__
            self.ledger.append(Aborted(campaign_id, plan.round, plan.attempt, reason))

    def close(self) -> None:
        """The campaigns of this coordinator are over: what nobody claimed is reserved no longer."""
        for campaign_id in self._campaigns():
            campaign = self.ledger.budget.campaigns[campaign_id]
            self.ledger.append(Closed(campaign_id, campaign.unclaimed))
        self.countersign()

    def _campaigns(self, campaign_id: int | None = None) -> list[str]:
        """Open campaigns of this coordinator, by the ledger's names."""
        prefix = f"{self.coordinator.short}/" + ("" if campaign_id is None else f"{campaign_id}/")
        return [
            name
            for name, campaign in self.ledger.budget.campaigns.items()
            if name.startswith(prefix) and campaign.is_open
        ]

    def _reserved(self, plan: RoundPlan, workbench: Workbench, units: int) -> CampaignBudget:
        data_set = self.ledger.data_set(workbench.data, self.limit.unit)
        implementation = implementation_of(workbench.bundle, plan.settings)
        asked = Asked(plan, self.coordinator, data_set, units, implementation)
        budget = reserve(self.ledger, self.limit, asked)
        if (budget.reserved.campaign_id, plan.settings) not in self.proven:
            self.tell(budget.describe())
            if budget.reserved.implementation.code != implementation.code:
                self.tell(OTHER_PROGRAM)
        return budget

    def _prove(
        self,
        budget: CampaignBudget,
        plan: RoundPlan,
        model: PreTrainedModel,
        parameters: Parameters,
    ) -> None:
        """Try the mechanism on this model; the digest of what was found goes into the ledger."""
        campaign_id = budget.reserved.campaign_id
        if (campaign_id, plan.settings) in self.proven:
            return
        self.tell("proving sensitivity, noise and sampling on this model")
        tokens = plan.settings.micro_batch_tokens
        with without_dropout(model), PerExampleEngine(model, parameters) as engine:
            step = PrivateStep(
                engine,
                budget.terms,
                flat_size(parameters),
                model.device,
                partial(_packed, micro_batch_tokens=tokens),
            )
            sizes = Sizes(model.config.vocab_size, plan.settings.max_tokens)
            report = prove(step, sizes, Program(ENGINE, code_digest()))
        folder = self.ledger.root / "proofs"
        private_folder(folder)
        write_atomic(folder / f"{report.digest.hex()}.json", report.to_json())
        self.ledger.append(StartProof(campaign_id, report.digest, report.passed))
        report.require_passed()
        self.proven.add((campaign_id, plan.settings))


def _packed(units: "list[Unit]", micro_batch_tokens: int) -> "list[Packed]":
    """Made-up units, packed as those of training are."""
    made = UnitExamples(tuple(tuple(unit) for unit in units))
    parts = made.batches(range(made.count), micro_batch_tokens)
    return [(part.batch, part.unit_of_row) for part in parts]
