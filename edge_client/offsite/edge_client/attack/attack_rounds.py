"""The attack on every update before it leaves, round after round.

    (1) part    before tuning: the rows that stay out, the same ones in every round of a campaign
    (2) judge   after tuning, before the update is encoded: the attack, its evidence on the disk, its
                verdict in the ledger; an update that tells too much stays here

    attack/choice.json                          what the owner allows                  `choice`
    attack/draws/…                              who is held out                        `draws`
    attack/evidence/<campaign>/round-R-attempt-A.json      losses and verdict, as private as the rows

Rules: figures and verdict are told to the owner alone. The error that ends the round says nothing but
that this edge sits it out, so that no engine can send more of it. That it does is seen all the same:
it is a release that epsilon does not cover.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from offsite.audit.attack.analysis import Attack
from offsite.audit.attack.attack import Rows, Target, attack_adapter
from offsite.audit.attack.evidence import to_bytes
from offsite.audit.attack.verdict import Verdict
from offsite.edge_client.attack.choice import AttackChoice
from offsite.edge_client.attack.draws import Draw, Draws, data_name
from offsite.edge_client.attack.parting import Parted, part
from offsite.edge_client.privacy.unit_examples import UnitExamples
from offsite.edge_client.workbench import Workbench
from offsite.emulator.durable import private_folder, write_atomic
from offsite.emulator.rounds.plan import RoundPlan
from offsite.secure.errors import SitsOutError
from offsite.secure.identity import IdentityPublicKey

SITS_OUT: Final = SitsOutError.PUBLIC
"""All that anybody else learns of an update that was held back."""

Tensors = Mapping[str, torch.Tensor]
Keep = Callable[[Attack, bytes], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AttackRounds:
    """The attacks of one edge on what it tunes for one coordinator."""

    root: Path
    choice: AttackChoice
    coordinator: IdentityPublicKey
    tell: Callable[[str], None]
    """The owner alone: nothing of it may be sent."""
    entropy: Callable[[int], bytes] = os.urandom

    def part(self, plan: RoundPlan, workbench: Workbench, took_part: bool) -> Parted | None:
        """The rows of a round in their parts; None where no attack was ever asked for.

        Args:
            took_part: whether this edge tuned for this campaign before.

        Raises:
            SitsOutError: it did, and nothing was held out.
            ConfigError: too few rows.
        """
        ready = workbench.examples(plan.settings.max_tokens)
        units = UnitExamples.of(workbench.data, ready.examples, ready.rows)
        draw = self._draw(plan, data_name(workbench.data), units.count, took_part)
        if draw is None:
            return None
        encoding = workbench.encoding(plan.settings.max_tokens)
        return part(units, draw, workbench.bundle.tokenizer(), encoding)

    def judge(
        self,
        plan: RoundPlan,
        workbench: Workbench,
        parted: Parted,
        rows: Rows,
        base: Tensors,
        delta: Tensors,
        keep: Keep | None = None,
    ) -> None:
        """Attack the adapter as it was received, ``base``, and tuned, and let it pass or not.

        Args:
            keep: takes the attack and its evidence, before anything is decided.

        Raises:
            SitsOutError: it tells more about its rows than their owner allows.
            ConfigError: this round learnt too few rows to say.
        """
        if not self.choice.is_on:
            return
        self.tell("attacking the adapter before it leaves")
        # (1) The attack, on this very model; the same round gives the same result again.
        model, _ = workbench.model(plan.settings.dtype, base)
        after = {name: value.cpu() + delta[name] for name, value in base.items()}
        attack = attack_adapter(
            Target(model, workbench.adapter, base, after),
            rows,
            self.choice.settings,
            parted.draw.entropy_of(f"round {plan.round}, attempt {plan.attempt}"),
            micro_batch_tokens=plan.settings.micro_batch_tokens,
        )
        # (2) The evidence, and whoever else remembers the result.
        evidence, path = to_bytes(attack), self._evidence(plan)
        for folder in (self.root, path.parent.parent, path.parent):
            private_folder(folder)
        write_atomic(path, evidence)
        if keep is not None:
            keep(attack, evidence)
        # (3) The verdict.
        self._decide(attack, path)

    def _decide(self, attack: Attack, path: Path) -> None:
        found = attack.judgement
        says = f"attack: {found.verdict.value}; {'; '.join(found.reasons)}; evidence in {path}"
        self.tell(says)
        if found.verdict is Verdict.EXCEEDED:
            _log.warning("%s", says)
            self.tell(
                "the update was held back. Tune with a smaller epsilon, or ask for fewer steps; give "
                "more rows; or allow more with --allowed-advantage"
            )
            raise SitsOutError(SITS_OUT)

    def _draw(self, plan: RoundPlan, data_set: str, units: int, took_part: bool) -> Draw | None:
        draws, campaign = Draws(self.root / "draws", self.entropy), self._campaign(plan)
        # Also where the attack was switched off meanwhile: the rows stay out as long as it lasts.
        known = draws.known(campaign, data_set, units)
        if known is not None or not self.choice.is_on:
            return known
        if took_part and not draws.has_campaign(campaign):
            self.tell(
                "this edge tuned for this campaign before without --attack, so no row is left that "
                "was not learnt: it sits the campaign out; --no-attack lets it take part"
            )
            raise SitsOutError(SITS_OUT)
        if took_part:
            self.tell(
                "the data changed during the campaign: rows that are held out now may have been "
                "learnt before, so the attack may show too little"
            )
        return draws.make(campaign, data_set, units, self.choice)

    def _campaign(self, plan: RoundPlan) -> str:
        return f"{self.coordinator.short}-{plan.campaign_id}"

    def _evidence(self, plan: RoundPlan) -> Path:
        folder = self.root / "evidence" / self._campaign(plan)
        return folder / f"round-{plan.round}-attempt-{plan.attempt}.json"
