"""Distillation: the compressed middle learns, on public text, to do what the full middle does.

    loss = lm_weight · (mean -ln p) + hidden_weight · mean((s - t)²) / mean(t²)

s and t are the hidden states of emulator and full model where the middle ends; both are divided by
the RMS of t, over all of its numbers. The recipe and its weights (1.0 and 30.0) are those of the
reference implementation of Offsite-Tuning (mit-han-lab/offsite-tuning, `get_kd_loss`;
arXiv 2302.04870, section 4).

Notable decisions:

* Only the compressed blocks and the harmonisers train, on fp32 masters whatever the dtype. The
  slots stay the full model's, or an untouched adapter would no longer plug back.
* The teacher is the full model, run as a whole and without its head, so that it does not matter
  which blocks are slots; the student does not see the teacher's slots.
* Both models are held in memory, beside masters, gradients and moments of the middle (16 bytes for
  every parameter of it in bf16): build the emulator without `consume`. For int8 or NF4 distil
  first and pack afterwards.

Warning: what makes an emulator better to tune makes it better to steal. In the paper's tables
distillation raised what a data owner keeps above the full model's own zero-shot; look at the leak
report of what comes out.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks
from offsite.emulator.build import Emulator
from offsite.emulator.harmoniser import HARMONISERS
from offsite.emulator.hidden_states import body, states_at
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.progress import Report, silent
from offsite.emulator.strict_json import JsonObject
from offsite.emulator.training.batches import text_batches
from offsite.emulator.training.loss import summed_loss
from offsite.emulator.training.run import Recipe, train_in_parts
from offsite.emulator.training.text_rows import TextRows
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DistilRecipe:
    """How long, how fast, and what counts how much."""

    steps: int
    tokens_per_step: int = 4096
    learning_rate: float = 1e-4
    lm_weight: float = 1.0
    hidden_weight: float = 30.0
    warmup_share: float = 0.05
    micro_batch_tokens: int = 2048
    seed: int = 0

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {
            "steps": self.steps,
            "tokens_per_step": self.tokens_per_step,
            "learning_rate": self.learning_rate,
            "lm_weight": self.lm_weight,
            "hidden_weight": self.hidden_weight,
            "warmup_share": self.warmup_share,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class DistilOutcome:
    """What it took, and both parts of the loss, unweighted, at the first and the last steps."""

    recipe: DistilRecipe
    tokens: int
    seconds: float
    trained_parameters: int
    first_language_loss: float
    last_language_loss: float
    first_hidden_loss: float
    last_hidden_loss: float


@dataclass(slots=True)
class _Seen:
    """Both parts of the loss of every step so far."""

    language: list[float]
    hidden: list[float]


def distil(
    base_model: PreTrainedModel,
    emulator: Emulator,
    batches: Sequence[torch.Tensor],
    recipe: DistilRecipe,
    report: Report = silent,
) -> DistilOutcome:
    """Train an emulator's middle in place; the full model and the slots are not changed.

    Args:
        base_model: the full model, whole.
        batches: token batches (B, T) of public text, all of one T.

    Raises:
        ConfigError: the full model was consumed, there is too little text, or training diverged.
    """
    if any(parameter.is_meta for parameter in base_model.parameters()):
        raise ConfigError("distillation needs the full model: build the emulator without consuming")
    rows = TextRows.of(batches, recipe.tokens_per_step, recipe.seed)
    model, seen = emulator.model, _Seen([], [])
    parameters = middle_parameters(model, emulator.layer_map)
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    started = time.monotonic()
    try:
        parts_of = _parts(base_model, emulator, rows, recipe, seen)
        schedule = Recipe(recipe.steps, recipe.learning_rate, recipe.warmup_share, seed=recipe.seed)
        train_in_parts(parameters, parts_of, schedule, report)
    finally:
        model.requires_grad_(False)
    tenth = max(1, recipe.steps // 10)
    return DistilOutcome(
        recipe=recipe,
        tokens=rows.tokens(recipe.steps),
        seconds=time.monotonic() - started,
        trained_parameters=sum(parameter.numel() for parameter in parameters.values()),
        first_language_loss=_mean(seen.language[:tenth]),
        last_language_loss=_mean(seen.language[-tenth:]),
        first_hidden_loss=_mean(seen.hidden[:tenth]),
        last_hidden_loss=_mean(seen.hidden[-tenth:]),
    )


def middle_parameters(model: nn.Module, layer_map: LayerMap) -> dict[str, nn.Parameter]:
    """The parameters of an emulator's compressed blocks and harmonisers, shared ones once."""
    blocks = find_blocks(model)
    prefixes = tuple(f"{blocks.name_of(position)}." for position in layer_map.middle)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith((*prefixes, f"{HARMONISERS}."))
    }


def _parts(
    base_model: PreTrainedModel,
    emulator: Emulator,
    rows: TextRows,
    recipe: DistilRecipe,
    seen: _Seen,
) -> Callable[[int], Iterable[torch.Tensor]]:
    """The loss of a step, in parts of whole rows."""
    model, (student_end, teacher_end) = emulator.model, middle_end(emulator.layer_map)

    def parts_of(step: int) -> Iterator[torch.Tensor]:
        chosen = rows.step(step)
        seen.language.append(0.0)
        seen.hidden.append(0.0)
        for batch in text_batches(chosen, recipe.micro_batch_tokens):
            moved, share = batch.to(model.device), len(batch.ids) / len(chosen)
            with torch.no_grad(), states_at(base_model, (teacher_end,)) as wanted:
                body(base_model)(input_ids=moved.ids.to(base_model.device), use_cache=False)
            with states_at(model, (student_end,)) as found:
                language = summed_loss(model, moved) / len(moved.targets)
            hidden = hidden_loss(found[student_end], wanted[teacher_end].to(model.device))
            seen.language[-1] += share * float(language.detach())
            seen.hidden[-1] += share * float(hidden.detach())
            yield share * (recipe.lm_weight * language + recipe.hidden_weight * hidden)

    return parts_of


def hidden_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """mean((s - t)²) / mean(t²), for states s, t of one shape; in fp32."""
    wanted = wanted.float()
    return (found.float() - wanted).square().mean() / wanted.square().mean()


def middle_end(layer_map: LayerMap) -> tuple[int, int]:
    """The depth of the first slot after the middle, in the emulator and in the full model.

    The state there is what that slot receives; without one, what the last block gives.
    """
    end = layer_map.middle[-1] + 1 if layer_map.middle else 0
    for slot in layer_map.slots:
        if slot.emulator_block >= end and not slot.is_middle:
            return slot.emulator_block, slot.base_block
    return len(layer_map.kept), layer_map.base_blocks


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
