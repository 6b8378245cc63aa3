"""Whole-model `vmap`: the gradient of one row as a function, mapped over the rows of a batch.

It needs to know nothing of how a parameter is used, so it serves adapters that the engine does not
own; the price is every activation and a gradient [B, P] of each parameter at the same time.

Notable decisions:

* The function is the product's own loss on a batch of one row, so what a model does to its logits
  stays as it is. Rows have different numbers of learnt tokens, which `vmap` cannot have: each gets
  as many as the row with most, the rest pointing at its first position with a weight of zero.
* Dropout draws for every row.
* The config has no padding token meanwhile, or GPT-2 looks whether rows are padded so as to warn:
  a branch on values.

Rule: gradient checkpointing is refused, for `torch.func` knows no saved-tensor hooks and a
reentrant checkpoint calls the outer autograd.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from offsite.emulator.privacy.backends.backend import flat_size, unit_count
from offsite.emulator.privacy.backends.ownership import owners_of
from offsite.emulator.privacy.backends.unit_weights import token_weights, unit_gradients
from offsite.emulator.privacy.per_example.clipping import add_clipped
from offsite.emulator.training.batches import MicroBatch
from offsite.emulator.training.loss import token_losses
from offsite.secure.errors import ConfigError

Values = dict[str, torch.Tensor]


class RowLoss(nn.Module):
    """The weighted loss of one row, with the model as a part so that its parameters have names."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """ids [T], the others [L], to a scalar."""
        rows = torch.zeros_like(columns)
        row = MicroBatch(ids[None], rows, columns, targets, len(ids))
        return (token_losses(self.model, row) * weights).sum()


class Functional:
    """See `Backend`."""

    def __init__(self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> None:
        self.loss = RowLoss(model)
        self.parameters = dict(parameters)
        self._paths: list[str] = []
        self._pad_token_id: int | None = None

    def __enter__(self) -> Self:
        if any(getattr(m, "gradient_checkpointing", False) for m in self.loss.modules()):
            raise ConfigError(
                "expected no gradient checkpointing for the vmap backend; use the engine or "
                "one_by_one, which know both kinds"
            )
        owners_of(self.loss, self.parameters)
        paths = {id(value): path for path, value in self.loss.named_parameters()}
        self._paths = [paths[id(value)] for value in self.parameters.values()]
        self._pad_token_id = self.loss.model.config.pad_token_id
        self.loss.model.config.pad_token_id = None
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.loss.model.config.pad_token_id = self._pad_token_id

    def clipped_sum_into(
        self, batch: MicroBatch, units: torch.Tensor, clip: float, total: torch.Tensor
    ) -> torch.Tensor:
        count = unit_count(batch, units, clip, total, flat_size(self.parameters))
        if not count:
            return total.new_empty(0)
        detached = [value.detach() for value in self.parameters.values()]
        values = dict(zip(self._paths, detached, strict=True))
        gradients = self._gradients(values, batch.ids, *_padded(batch, token_weights(batch, units)))
        rows = torch.cat([gradients[name].float().flatten(1) for name in values], dim=1)  # [B, P]
        return add_clipped(unit_gradients(rows, units, count), clip, total)

    def _gradients(self, values: Values, *rows: torch.Tensor) -> Values:
        try:
            of_row = vmap(grad(self._loss_of), (None, 0, 0, 0, 0), randomness="different")
            with sdpa_kernel(SDPBackend.MATH):  # the fused one is run row by row under vmap
                gradients: Values = of_row(values, *rows)
        except RuntimeError as error:
            if "memory" in str(error):  # on a CPU torch says it in the words of a RuntimeError
                raise
            raise ConfigError(
                "vmap cannot do this model: expected no branch on values, no autograd function of "
                "its own, no hook on its embedding; use the engine or one_by_one"
            ) from error
        return gradients

    def _loss_of(self, values: Values, *row: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = functional_call(self.loss, values, row)
        return loss


def _padded(batch: MicroBatch, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Columns, targets and weights of the learnt tokens, [B, L] each."""
    counts = batch.rows.bincount(minlength=len(batch.ids))
    first = counts.cumsum(0) - counts
    place = torch.arange(len(batch.rows), device=batch.rows.device) - first[batch.rows]
    padded = []
    for flat in (batch.columns, batch.targets, weights):
        rectangle = flat.new_zeros(len(counts), int(counts.max()))
        rectangle[batch.rows, place] = flat
        padded.append(rectangle)
    return tuple(padded)
