"""What a plan asks of one round, and what follows from it without any state.

The learning rate follows one cosine with a linear warm-up over the whole campaign, by the share of
it that is done: edges with unequal amounts of data are at the same rate at the same time. Every
seed follows from (seed, round, step), so a resumed run needs no random state.
"""

import hashlib
from dataclasses import dataclass

from offsite.emulator.rounds.plan import RoundPlan, TuningSettings
from offsite.emulator.training.schedule import warmup_cosine


@dataclass(frozen=True, slots=True)
class Task:
    """What a plan asks of one round, beside the adapter; ``round`` counts from 1."""

    settings: TuningSettings
    round: int = 1
    total_rounds: int = 1
    seed: int = 0
    proximal_mu: float = 0.0

    @classmethod
    def of(cls, plan: RoundPlan, settings: TuningSettings | None = None) -> "Task":
        """What the plan asks; `settings` in the place of its own."""
        tuning = settings or plan.settings
        return cls(tuning, plan.round, plan.total_rounds, plan.seed, plan.proximal_mu)

    @property
    def order_seed(self) -> int:
        """Seed of the order of examples: each round has its own."""
        return self._derive("order")

    def step_seed(self, step: int) -> int:
        """Seed of what is random inside a step."""
        return self._derive(f"step {step}")

    def _derive(self, purpose: str) -> int:
        text = f"offsite/tuning-seed/1|{self.seed}|{self.round}|{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def learning_rate(task: Task, step: int, steps: int) -> float:
    """Return the rate of ``step`` (from 0) of ``steps`` in this round: warm-up, then cosine.

    The share of the campaign is taken at the middle of the step, so no step has a rate of 0.
    """
    peak, warmup = task.settings.learning_rate, task.settings.warmup_share
    done = (task.round - 1 + (step + 0.5) / steps) / task.total_rounds
    return warmup_cosine(peak, warmup, done)
