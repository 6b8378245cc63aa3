"""Rows of public text in a seeded order, so many tokens a step.

Every epoch sees each row once; a step may straddle two epochs. The order is the same on every
machine (see `batches.epoch_order`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from offsite.emulator.training.batches import logical_batch
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class TextRows:
    """``rows`` [N, T] of token ids, of which a step sees about ``tokens_per_step``."""

    rows: torch.Tensor
    tokens_per_step: int
    seed: int

    @classmethod
    def of(cls, text: Sequence[torch.Tensor], tokens_per_step: int, seed: int) -> "TextRows":
        """Take token batches (B, T) of one width.

        Raises:
            ConfigError: there is no text, or no step would see a whole row.
        """
        if not text or text[0].shape[1] < 2:
            raise ConfigError("expected public text in rows of at least 2 tokens, found none")
        if tokens_per_step < text[0].shape[1]:
            raise ConfigError(
                f"tokens_per_step is {tokens_per_step}; expected at least a row, "
                f"{text[0].shape[1]} tokens"
            )
        return cls(torch.cat(tuple(text)), tokens_per_step, seed)

    def step(self, step: int) -> torch.Tensor:
        """Return the rows (B, T) of one step, from 0."""
        size = self.tokens_per_step // self.rows.shape[1]
        return self.rows[logical_batch(len(self.rows), size, self.seed, step)]

    @property
    def epoch_tokens(self) -> int:
        """How many tokens one pass over the text learns."""
        return len(self.rows) * (self.rows.shape[1] - 1)

    def tokens(self, steps: int) -> int:
        """Return how many tokens so many steps learn."""
        size = min(self.tokens_per_step // self.rows.shape[1], len(self.rows))
        return steps * size * (self.rows.shape[1] - 1)
