"""The leak report: what the emulator is worth to somebody who keeps it.

    zero_shot   share of the full model's skill above chance that the emulator has as it is shipped
    tuned       the same after the adapter was tuned on a public stand-in for the task
    healed      the same after the healing attack (`heal`), for its stated compute
    kept        the tuned emulator's skill as a share of the plug-in's: what a data owner keeps who
                never returns the adapter
    verbatim    share of the full model's weights shipped as they are, but for packing (`verbatim`)

Notable: figures above 1 are possible and are shown as found; a tuned emulator can beat the full
model's zero-shot. The first three compare with the full model as it is, untuned.

Rule: what was not measured is None with a reason, never a 0.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.adapters.plugged import plugged_in
from offsite.emulator.build import Emulator
from offsite.emulator.exam import Exam
from offsite.emulator.fidelity import BaseFacts, Fidelity
from offsite.emulator.figures import Figure, accuracy_json, rounded
from offsite.emulator.leak.heal import Healing, HealRecipe, healed
from offsite.emulator.leak.skill import chance_level, skill_share
from offsite.emulator.leak.task_tuning import TaskRecipe, TaskTuning
from offsite.emulator.perplexity import Perplexity, perplexity_json
from offsite.emulator.progress import Progress, unseen
from offsite.emulator.questions import Question
from offsite.emulator.scoring import Accuracy, ChoiceScores, summarise
from offsite.emulator.strict_json import JsonObject, JsonValue

FULL, PLUG_IN = "the full model", "the plug-in"
NO_QUESTIONS = Figure(None, None, "not measured: no questions were given")
NO_TUNING = Figure(None, None, "not measured: no stand-in for the task was given")
NO_HEALING = Figure(None, None, "not measured: no healing was asked for")
NO_PLUG_IN = Figure(None, None, "not measured: the plug-in was not scored")


@dataclass(frozen=True, slots=True, eq=False)
class HealAttack:
    """The attack to run: its compute and the public text it learns from."""

    recipe: HealRecipe
    text: Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class TunedAdapter:
    """An adapter tuned on the emulator, and what the full model is worth with it, if known."""

    adapter: Adapter
    recipe: TaskRecipe
    tuning: TaskTuning
    plug_in: Sequence[ChoiceScores] = ()
    """Of the same questions, by the full model with the tuned adapter."""


@dataclass(frozen=True, slots=True)
class HealedModel:
    """What the attack took and what came of it."""

    recipe: HealRecipe
    healing: Healing
    accuracy: Accuracy | None
    before: Perplexity | None
    after: Perplexity | None


@dataclass(frozen=True, slots=True)
class LeakReport:
    """The five figures, and what stands behind them."""

    chance: float | None
    zero_shot: Figure
    tuned: Figure
    healed: Figure
    kept: Figure
    verbatim: Figure
    full: Accuracy | None
    emulator: Accuracy | None
    tuned_emulator: Accuracy | None
    plug_in: Accuracy | None
    healed_model: HealedModel | None
    task: TunedAdapter | None

    def figures(self) -> dict[str, Figure]:
        """By the names under which a budget limits them."""
        return {
            "zero_shot": self.zero_shot,
            "tuned": self.tuned,
            "healed": self.healed,
            "kept": self.kept,
            "verbatim": self.verbatim,
        }

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values; what was not measured is null or gives a reason."""
        figures: dict[str, JsonValue] = {
            name: figure.to_json() for name, figure in self.figures().items()
        }
        return {
            **figures,
            "chance": rounded(self.chance),
            "full_accuracy": accuracy_json(self.full),
            "emulator_accuracy": accuracy_json(self.emulator),
            "tuned_emulator_accuracy": accuracy_json(self.tuned_emulator),
            "plug_in_accuracy": accuracy_json(self.plug_in),
            "healing": None if self.healed_model is None else _healed_json(self.healed_model),
            "tuning": None if self.task is None else _tuning_json(self.task),
        }


def measure_leak(
    base: BaseFacts,
    fidelity: Fidelity,
    emulator: Emulator,
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int,
    *,
    text: Sequence[torch.Tensor] = (),
    heal: HealAttack | None = None,
    tuned: TunedAdapter | None = None,
    progress: Progress = unseen,
) -> LeakReport:
    """Measure what an emulator leaks; it is left as it was.

    Args:
        base, fidelity: measured before, on these questions; the full model is not needed here.
        questions: none leaves every figure but `verbatim` out.
        text: the fidelity's, of which to give the perplexity before and after healing; not what
            healing learns.
    """
    exam = Exam(text, questions, tokenizer, batch_tokens, progress)
    healed_model, healed_scores = _attack(exam, emulator, heal, fidelity)
    tuned_scores = _tuned_scores(exam, emulator, tuned)
    plug_in = tuple(tuned.plug_in) if tuned is not None else ()
    chance = chance_level(questions) if questions else None

    def share(
        scores: Sequence[ChoiceScores], over: Sequence[ChoiceScores], whose: str, missing: Figure
    ) -> Figure:
        if chance is None:
            return NO_QUESTIONS
        return skill_share(scores, over, chance, whose=whose) if scores and over else missing

    return LeakReport(
        chance=chance,
        zero_shot=share(fidelity.scores, base.scores, FULL, NO_QUESTIONS),
        tuned=share(tuned_scores, base.scores, FULL, NO_TUNING),
        healed=share(healed_scores, base.scores, FULL, NO_HEALING),
        kept=share(tuned_scores, plug_in, PLUG_IN, NO_TUNING if tuned is None else NO_PLUG_IN),
        verbatim=Figure(fidelity.verbatim.share),
        full=base.accuracy,
        emulator=fidelity.accuracy,
        tuned_emulator=_accuracy(tuned_scores),
        plug_in=_accuracy(plug_in),
        healed_model=healed_model,
        task=tuned,
    )


def _tuned_scores(
    exam: Exam, emulator: Emulator, tuned: TunedAdapter | None
) -> tuple[ChoiceScores, ...]:
    if tuned is None:
        return ()
    with plugged_in(emulator.model, tuned.adapter, tuned.tuning.tensors):
        return exam.scores(emulator.model, "the tuned emulator")


def _attack(
    exam: Exam, emulator: Emulator, heal: HealAttack | None, fidelity: Fidelity
) -> tuple[HealedModel | None, tuple[ChoiceScores, ...]]:
    if heal is None:
        return None, ()
    model = emulator.model
    before = fidelity.perplexity if exam.text else None
    with ExitStack() as stack:
        with exam.progress("healing the emulator, as a thief would") as report:
            attack = healed(model, heal.text, heal.recipe, report)
            healing = stack.enter_context(attack)
        scores = exam.scores(model, "the healed emulator")
        after = exam.perplexity(model, "the healed emulator")
    return HealedModel(heal.recipe, healing, _accuracy(scores), before, after), scores


def _accuracy(scores: Sequence[ChoiceScores]) -> Accuracy | None:
    return summarise(scores) if scores else None


def _healed_json(found: HealedModel) -> JsonObject:
    healing = found.healing
    return {
        **found.recipe.to_json(),
        "tokens": healing.tokens,
        "epochs": rounded(healing.epochs),
        "seconds": rounded(healing.seconds, 1),
        "trained_parameters": healing.trained_parameters,
        "first_loss": rounded(healing.first_loss),
        "last_loss": rounded(healing.last_loss),
        "healed_accuracy": accuracy_json(found.accuracy),
        "perplexity_before": perplexity_json(found.before),
        "perplexity_after": perplexity_json(found.after),
    }


def _tuning_json(tuned: TunedAdapter) -> JsonObject:
    tuning = tuned.tuning
    return {
        **tuned.recipe.to_json(),
        "examples": tuning.examples,
        "tokens": tuning.tokens,
        "seconds": rounded(tuning.seconds, 1),
        "first_loss": rounded(tuning.first_loss),
        "last_loss": rounded(tuning.last_loss),
    }
