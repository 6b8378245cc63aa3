"""One training from its first step to its last: AdamW on fp32 masters, warm-up and cosine.

For trainings that start and end in one process: distillation, the healing attack, tuning on a
stand-in for the task. The edge's loop (`edge_client.tuning`) is another one, made of the same
parts, since its run is a part of a campaign, is killed and resumed, and is validated.

Rule: a loss or gradient that is not finite ends the run; nothing is returned then.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from offsite.emulator.progress import Report, silent
from offsite.emulator.training.masters import Masters
from offsite.emulator.training.schedule import warmup_cosine
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast; ``grad_clip`` 0 is no clipping."""

    steps: int
    learning_rate: float
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; expected at least 1")
        if not 0 < self.learning_rate <= 1:
            raise ConfigError(f"learning_rate is {self.learning_rate:g}; expected above 0, up to 1")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"warmup_share is {self.warmup_share:g}; expected 0 to below 1")

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, from 0; taken at its middle, so that none is 0."""
        return warmup_cosine(self.learning_rate, self.warmup_share, (step + 0.5) / self.steps)


def train(
    parameters: Mapping[str, nn.Parameter],
    loss_of: Callable[[int], torch.Tensor],
    recipe: Recipe,
    report: Report = silent,
) -> list[float]:
    """Take ``recipe.steps`` steps on ``loss_of(step)``, a scalar; return the losses."""
    return train_in_parts(parameters, lambda step: (loss_of(step),), recipe, report)


def train_in_parts(
    parameters: Mapping[str, nn.Parameter],
    parts_of: Callable[[int], Iterable[torch.Tensor]],
    recipe: Recipe,
    report: Report = silent,
) -> list[float]:
    """Like `train`, on losses that come in parts.

    The loss of a step is the sum of its parts; each is gone through backwards before the next is
    asked for, so that never more than one part's activations are held.

    Args:
        parameters: what trains; each must require gradients, and nothing else should. They hold
            the trained values afterwards. The mode of their model is the caller's.
        parts_of: the parts of the loss of a step, from 0.

    Raises:
        ConfigError: the loss or the gradient is not finite; names the step.
    """
    values = {name: parameter.detach().float() for name, parameter in parameters.items()}
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]), Masters(parameters, values, recipe.weight_decay) as own:
        del values
        for step in range(recipe.steps):
            torch.manual_seed(recipe.seed + step)  # for dropout alone
            loss = _accumulate(parts_of(step))
            norm = own.clip(recipe.grad_clip)
            _require_finite(loss, norm, step, recipe)
            own.step(recipe.rate(step))
            losses.append(loss)
            report(step + 1, recipe.steps)
    return losses


def _accumulate(parts: Iterable[torch.Tensor]) -> float:
    """Go backwards through every part; return their sum."""
    total = 0.0
    for part in parts:
        part.backward()  # type: ignore[no-untyped-call]
        total += float(part.detach())
    return total


def _require_finite(loss: float, norm: float, step: int, recipe: Recipe) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise ConfigError(
        f"training diverged at step {step + 1} of {recipe.steps}: expected a finite loss and "
        f"gradient, found {loss} and {norm}; lower the learning rate ({recipe.learning_rate:g})"
    )
