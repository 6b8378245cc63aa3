"""Batch of one: forward and backward of one unit at a time by plain autograd.

The reference of every other way, since nothing in it knows of a batch: it is right for any model,
any parameter and both kinds of gradient checkpointing. It also needs the least memory, and on a
processor about 1.3 times the time of a batch.

Notable: a unit is computed without the padding that its batch brought, so that what it adds to the
sum does not depend on its neighbours in any bit, whatever dtype the model has.
"""

from collections.abc import Iterator, Mapping
from typing import Self

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.privacy.backends.backend import flat_size, unit_count
from offsite.emulator.privacy.backends.ownership import owners_of
from offsite.emulator.privacy.per_example.clipping import add_clipped
from offsite.emulator.training.batches import MicroBatch
from offsite.emulator.training.loss import token_losses


class OneByOne:
    """See `Backend`."""

    def __init__(self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> None:
        self.model = model
        self.parameters = dict(parameters)

    def __enter__(self) -> Self:
        owners_of(self.model, self.parameters)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing was put into the model."""

    def clipped_sum_into(
        self, batch: MicroBatch, units: torch.Tensor, clip: float, total: torch.Tensor
    ) -> torch.Tensor:
        count = unit_count(batch, units, clip, total, flat_size(self.parameters))
        norms = total.new_empty(count)
        for unit, part in enumerate(_parts(batch, units, count)):
            norms[unit] = add_clipped(self._gradient(part)[None], clip, total)[0]
        return norms

    def _gradient(self, unit: MicroBatch) -> torch.Tensor:
        """Return the gradient [P] of the mean loss of a unit, fp32."""
        loss = token_losses(self.model, unit).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = self.parameters.values()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        return torch.cat([gradient.float().flatten() for gradient in gradients])


def _parts(batch: MicroBatch, units: torch.Tensor, count: int) -> Iterator[MicroBatch]:
    """Yield the rows of each unit as a batch of their own, as wide as they need."""
    for unit in range(count):
        rows = (units == unit).nonzero().flatten()
        learnt = (units[batch.rows] == unit).nonzero().flatten()
        columns = batch.columns[learnt]
        width = int(columns.max()) + 1
        place = torch.searchsorted(rows, batch.rows[learnt])
        tokens = len(rows) * width
        yield MicroBatch(batch.ids[rows, :width], place, columns, batch.targets[learnt], tokens)
