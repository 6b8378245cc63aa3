"""How well a model predicts text: perplexity, exp of the mean -ln p per learnt token.

Public text is learnt whole (`training.batches.text_batches`); of a task's rows only the completion
is (`training.tokens.question_examples`, `training.batches.micro_batches`). Two models are
comparable on the same rows and tokenizer only.

The standard error is that of the mean -ln p with rows as the unit: tokens of one row are not
independent, so counting them singly would claim too much.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from offsite.emulator.figures import rounded
from offsite.emulator.progress import Report, silent
from offsite.emulator.strict_json import JsonObject
from offsite.emulator.training.batches import MicroBatch
from offsite.emulator.training.loss import token_losses
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Mean -ln p per learnt token (nats) and its standard error over ``rows`` rows."""

    nats: float
    nats_stderr: float
    tokens: int
    rows: int

    @property
    def value(self) -> float:
        """The perplexity; infinite where the number would be too large."""
        try:
            return math.exp(self.nats)
        except OverflowError:
            return math.inf

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {
            "perplexity": rounded(self.value),
            "nats": rounded(self.nats),
            "nats_stderr": rounded(self.nats_stderr),
            "tokens": self.tokens,
            "rows": self.rows,
        }


def perplexity_json(found: Perplexity | None) -> "JsonObject | None":
    """As `Perplexity.to_json`; None for none."""
    return None if found is None else found.to_json()


@torch.inference_mode()
def measure_perplexity(
    model: PreTrainedModel, batches: Sequence[MicroBatch], report: Report = silent
) -> Perplexity:
    """Return the perplexity on micro-batches; the model is left in the mode it had.

    Raises:
        ConfigError: there is nothing to read.
    """
    if not batches:
        raise ConfigError("perplexity needs at least one row of text, found none")
    was_training = model.training
    model.train(False)
    sums, counts = list[torch.Tensor](), list[torch.Tensor]()
    try:
        for done, batch in enumerate(batches, start=1):
            losses = token_losses(model, batch.to(model.device)).double().cpu()
            rows = torch.zeros(len(batch.ids), dtype=torch.float64)
            sums.append(rows.index_add(0, batch.rows, losses))
            counts.append(rows.index_add(0, batch.rows, torch.ones_like(losses)))
            report(done, len(batches))
    finally:
        model.train(was_training)
    return _summary(torch.cat(sums), torch.cat(counts))


def _summary(sums: torch.Tensor, counts: torch.Tensor) -> Perplexity:
    """A ratio of sums over rows [N], with the standard error of that ratio."""
    rows, tokens = len(sums), float(counts.sum())
    nats = float(sums.sum()) / tokens
    squares = float(((sums - nats * counts) ** 2).sum())
    stderr = math.sqrt(squares * rows / (rows - 1)) / tokens if rows > 1 else math.nan
    return Perplexity(nats, stderr, int(tokens), rows)
