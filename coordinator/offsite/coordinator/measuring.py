"""How near an emulator is to its full model, and what it leaks, by the settings of `[leak]`.

(1) the full model is measured first, for it may be gone afterwards
(2) what of an emulator is the full model's is counted; then it gets the values of its packing
(3) fidelity of the emulator, zero-shot
(4) where a stand-in for the task is configured, the adapter is tuned on it and plugged in
(5) the leak: zero-shot, tuned, healed, kept, verbatim
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from torch import Tensor
from transformers import PreTrainedModel

from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import LeakSection
from offsite.coordinator.measuring_inputs import MeasuringInputs
from offsite.coordinator.plug_in_forms import corrector_of, forms_of
from offsite.coordinator.shipped import shipped_bytes
from offsite.emulator.adapters.adapter import Adapter, AdapterSpec, make_adapter
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.build import Emulator
from offsite.emulator.fidelity import (
    BaseFacts,
    Fidelity,
    measure_base,
    measure_fidelity,
    verbatim_of,
)
from offsite.emulator.leak.budget import LeakBudget
from offsite.emulator.leak.heal import HealRecipe
from offsite.emulator.leak.report import HealAttack, LeakReport, TunedAdapter, measure_leak
from offsite.emulator.leak.task_tuning import TaskRecipe, tune_on_task
from offsite.emulator.packing.middle import roundtrip
from offsite.emulator.packing.packing import Packing
from offsite.emulator.progress import Progress
from offsite.emulator.scoring import ChoiceScores, score_choices, summarise
from offsite.emulator.strict_json import JsonObject
from offsite.emulator.verbatim import Verbatim


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Both reports on one emulator."""

    fidelity: Fidelity
    leak: LeakReport

    def to_json(self) -> dict[str, JsonObject]:
        return {"fidelity": self.fidelity.to_json(), "leak": self.leak.to_json()}

    def figures(self) -> dict[str, float]:
        """What was measured, by name; for a search."""
        leak, perplexity = self.leak, self.fidelity.perplexity
        found: dict[str, float | None] = {
            "perplexity": None if perplexity is None else perplexity.value,
            "bytes": float(self.fidelity.shipped_bytes),
        }
        for name, figure in leak.figures().items():
            found |= {name: figure.value, f"{name}_stderr": figure.stderr}
        accuracies = (("full_acc", leak.full), ("tuned_acc", leak.tuned_emulator))
        for name, accuracy in (*accuracies, ("plug_in", leak.plug_in)):
            if accuracy is not None:
                found |= {name: accuracy.acc, f"{name}_stderr": accuracy.acc_stderr}
        # What is not finite (one question has no error, a broken emulator no perplexity) is left out.
        return {n: value for n, value in found.items() if value is not None and isfinite(value)}


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """An emulator with the values that an edge will unpack, and what was verbatim before that."""

    emulator: Emulator
    packing: Packing
    verbatim: Verbatim


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """What every emulator of one full model is measured with."""

    config: CoordinatorConfig
    inputs: MeasuringInputs
    base: BaseFacts
    progress: Progress

    @classmethod
    def of(
        cls,
        config: CoordinatorConfig,
        inputs: MeasuringInputs,
        base_model: PreTrainedModel,
        progress: Progress,
    ) -> "Yardstick":
        """Measures the full model."""
        base = measure_base(
            base_model,
            inputs.text.held_out,
            inputs.questions,
            inputs.tokenizer,
            config.gate.batch_tokens,
            progress,
        )
        return cls(config, inputs, base, progress)

    def pack(self, emulator: Emulator, packing: Packing) -> Packed:
        """Puts the values that an edge will unpack into an emulator, in place.

        Guarantees: what was only packed counts as verbatim
        (`test_a_middle_that_was_only_packed_is_verbatim`).
        """
        verbatim = verbatim_of(self.base, emulator)
        roundtrip(emulator.model, emulator.layer_map, packing)
        return Packed(emulator, packing, verbatim)

    def fidelity(self, packed: Packed) -> Fidelity:
        return measure_fidelity(
            self.base,
            packed.emulator,
            self.inputs.text.held_out,
            self.inputs.questions,
            self.inputs.tokenizer,
            self.config.gate.batch_tokens,
            shipped_bytes=shipped_bytes(packed.emulator, packed.packing, spec_of(self.config)),
            verbatim=packed.verbatim,
            progress=self.progress,
        )

    def quick(self, packed: Packed) -> Measured:
        """Without any training."""
        fidelity = self.fidelity(packed)
        return Measured(fidelity, self._leak(packed.emulator, fidelity, None, None))

    def whole(self, packed: Packed, base_model: PreTrainedModel | None) -> Measured:
        """Everything that the settings ask for; without the full model, no plug-in."""
        emulator, fidelity = packed.emulator, self.fidelity(packed)
        tuned = self._tuned(emulator, base_model) if self.inputs.task else None
        return Measured(fidelity, self._leak(emulator, fidelity, tuned, self._attack()))

    def tuned_only(self, packed: Packed) -> Measured:
        """The adapter tuned on this emulator, whose own score counts: for an upper bound."""
        fidelity = self.fidelity(packed)
        tuned = self._tuned(packed.emulator, None)
        return Measured(fidelity, self._leak(packed.emulator, fidelity, tuned, None))

    def _leak(
        self,
        emulator: Emulator,
        fidelity: Fidelity,
        tuned: TunedAdapter | None,
        attack: HealAttack | None,
    ) -> LeakReport:
        return measure_leak(
            self.base,
            fidelity,
            emulator,
            self.inputs.questions,
            self.inputs.tokenizer,
            self.config.gate.batch_tokens,
            text=self.inputs.text.held_out,
            heal=attack,
            tuned=tuned,
            progress=self.progress,
        )

    def _tuned(self, emulator: Emulator, base_model: PreTrainedModel | None) -> TunedAdapter:
        adapter = make_adapter(spec_of(self.config), emulator.layer_map)
        tuning = self.config.tuning
        recipe = TaskRecipe(
            steps=self.config.leak.tune_steps,
            learning_rate=tuning.learning_rate,
            batch_examples=tuning.batch_examples,
            micro_batch_tokens=tuning.micro_batch_tokens,
            warmup_share=tuning.warmup_share,
            weight_decay=tuning.weight_decay,
            seed=self.config.campaign.seed,
        )
        with self.progress("tuning the adapter on the stand-in for the task") as report:
            found = tune_on_task(emulator.model, adapter, self.inputs.task, recipe, report)
        if base_model is None or not self.inputs.questions:
            return TunedAdapter(adapter, recipe, found)
        corrector = corrector_of(
            self.config.adapter.correction, adapter, base_model, emulator.model
        )
        scores = [
            self._plug_in(base_model, adapter, form.tensors)
            for form in forms_of(corrector, found.tensors)
        ]
        best = max(scores, key=lambda found: summarise(found).acc)
        return TunedAdapter(adapter, recipe, found, best)

    def _plug_in(
        self, base_model: PreTrainedModel, adapter: Adapter, tensors: Mapping[str, Tensor]
    ) -> tuple[ChoiceScores, ...]:
        with (
            plugged_in(base_model, adapter, tensors),
            self.progress("scoring the plug-in") as report,
        ):
            return tuple(
                score_choices(
                    base_model,
                    self.inputs.tokenizer,
                    self.inputs.questions,
                    batch_tokens=self.config.gate.batch_tokens,
                    report=report,
                )
            )

    def _attack(self) -> HealAttack | None:
        leak, learnt = self.config.leak, self.inputs.text.learnt
        if not leak.heal_steps or not learnt or not self.inputs.questions:
            return None
        recipe = HealRecipe(
            steps=leak.heal_steps,
            tokens_per_step=leak.heal_tokens_per_step,
            rank=leak.heal_rank,
            learning_rate=leak.heal_learning_rate,
            seed=self.config.campaign.seed,
        )
        return HealAttack(recipe, learnt)


def spec_of(config: CoordinatorConfig) -> AdapterSpec:
    """The adapter of the settings."""
    section = config.adapter
    seed = config.campaign.seed
    return AdapterSpec(section.kind, section.rank, section.alpha, seed, section.trains)


def budget_of(leak: LeakSection) -> LeakBudget:
    """The limits that are set."""
    return LeakBudget(
        zero_shot=leak.max_zero_shot,
        tuned=leak.max_tuned,
        healed=leak.max_healed,
        kept=leak.max_kept,
        verbatim=leak.max_verbatim,
    )


def limits_of(config: CoordinatorConfig) -> Mapping[str, float]:
    """The leak budget and the size budget of a search, by the names of the figures."""
    limits = dict(budget_of(config.leak).limits())
    if config.search.max_bundle_bytes:
        limits["bytes"] = float(config.search.max_bundle_bytes)
    return limits
