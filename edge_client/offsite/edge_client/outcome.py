"""What a tuning run gives back: the change of the adapter and the figures of the run."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from offsite.secure.errors import ConfigError

CURVE_POINTS = 32


@dataclass(frozen=True, slots=True)
class TuningMetrics:
    """What a run did, for this machine alone. Losses are nats per learnt token; ``seconds`` cover resumed runs too."""

    steps: int
    examples: int
    """Different examples that trained."""
    examples_seen: int
    tokens: int
    learnt_tokens: int
    seconds: float
    first_loss: float
    last_loss: float
    loss_curve: tuple[float, ...]
    """Means over at most `CURVE_POINTS` equal parts of the run."""
    validation_before: float | None
    validation_after: float | None
    stopped_early: bool


@dataclass(frozen=True, slots=True)
class TuningOutcome:
    """The tuned adapter minus the one the round began with, fp32 on the CPU, and the figures."""

    delta: dict[str, torch.Tensor]
    metrics: TuningMetrics


def difference(
    tuned: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return ``tuned`` - ``base``, which must be finite and not nothing."""
    delta = {name: value - base[name].cpu() for name, value in tuned.items()}
    for name, change in delta.items():
        if not bool(change.isfinite().all()):
            raise ConfigError(
                f"tuning diverged: {name} is no longer finite; lower learning_rate or use float32"
            )
    if not any(bool(change.any()) for change in delta.values()):
        raise ConfigError(
            "tuning changed nothing: expected another adapter than the round began with; "
            "raise learning_rate or local_steps, or give data that the model does not know"
        )
    return delta


def loss_curve(losses: Sequence[float]) -> tuple[float, ...]:
    """Return the means over at most `CURVE_POINTS` equal parts of at least one loss."""
    points = min(CURVE_POINTS, len(losses))
    bounds = [round(index * len(losses) / points) for index in range(points + 1)]
    parts = [losses[start:end] for start, end in itertools.pairwise(bounds)]
    return tuple(sum(part) / len(part) for part in parts)
