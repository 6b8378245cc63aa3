"""Tuning the adapter on a public stand-in for the task, as a data owner would.

The owner has no data of the edges. Public questions of the same kind show what tuning does to the
emulator, what a data owner could keep, and, plugged in, what the full model gets for it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.adapters.plugged import attached
from offsite.emulator.progress import Report, silent
from offsite.emulator.strict_json import JsonObject
from offsite.emulator.training.attention import attention_kernel
from offsite.emulator.training.batches import logical_batch, micro_batches
from offsite.emulator.training.loss import summed_loss
from offsite.emulator.training.run import Recipe, train_in_parts
from offsite.emulator.training.tokens import Example
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TaskRecipe:
    """How the stand-in is learnt; the defaults are those of a round of a campaign."""

    steps: int = 200
    learning_rate: float = 1e-4
    batch_examples: int = 16
    micro_batch_tokens: int = 2048
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_examples < 1:
            raise ConfigError(f"batch_examples is {self.batch_examples}; expected at least 1")

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "batch_examples": self.batch_examples,
            "warmup_share": self.warmup_share,
            "weight_decay": self.weight_decay,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True, eq=False)
class TaskTuning:
    """The tuned adapter, fp32 on the CPU, and what it took; losses in nats per learnt token."""

    tensors: dict[str, torch.Tensor]
    steps: int
    examples: int
    tokens: int
    seconds: float
    first_loss: float
    last_loss: float


def tune_on_task(
    model: PreTrainedModel,
    adapter: Adapter,
    examples: Sequence[Example],
    recipe: TaskRecipe,
    report: Report = silent,
) -> TaskTuning:
    """Tune an adapter from the model's own values; the model is left as it was, nothing attached.

    Args:
        model: the emulator, or the full model for an upper bound.
        examples: see `training.tokens.question_examples`.

    Raises:
        ConfigError: there is no example, or training diverged.
    """
    if not examples:
        raise ConfigError("tuning on the task needs at least one example, found none")
    fed: list[int] = []
    parts_of = _completion_loss(model, examples, recipe, fed)
    schedule = Recipe(
        recipe.steps,
        recipe.learning_rate,
        recipe.warmup_share,
        recipe.weight_decay,
        seed=recipe.seed,
    )
    started = time.monotonic()
    with attached(model, adapter):
        losses = train_in_parts(adapter.trainable(model), parts_of, schedule, report)
        tensors = adapter.extract(model)
    return TaskTuning(
        tensors,
        recipe.steps,
        len(examples),
        sum(fed),
        time.monotonic() - started,
        losses[0],
        losses[-1],
    )


def _completion_loss(
    model: PreTrainedModel, examples: Sequence[Example], recipe: TaskRecipe, fed: list[int]
) -> Callable[[int], Iterable[torch.Tensor]]:
    """The mean -ln p of a step's learnt tokens, in parts; ``fed`` collects the tokens of each."""

    def parts_of(step: int) -> Iterator[torch.Tensor]:
        places = logical_batch(len(examples), recipe.batch_examples, recipe.seed, step)
        batches = micro_batches([examples[i] for i in places], recipe.micro_batch_tokens)
        learnt = sum(len(batch.targets) for batch in batches)
        for batch in batches:
            moved = batch.to(model.device)
            fed.append(batch.tokens)
            with attention_kernel(moved.ids, model.dtype):
                loss = summed_loss(model, moved) / learnt
            yield loss

    return parts_of
