"""How much a learnt token weighs in the loss of a batch of units.

The loss of a unit is the mean of -ln p over its own learnt tokens, that of a batch the sum over its
units. So a token weighs one over the learnt tokens of its unit, and nothing that another unit says
or how long it is changes that. Dividing by the tokens of the batch instead couples them: leaving
one unit out moved the sum by up to 4.16 clip norms. With these weights the gradients of the rows of
a unit add up to the unit's.
"""

import torch

from offsite.emulator.training.batches import MicroBatch


def token_weights(batch: MicroBatch, units: torch.Tensor) -> torch.Tensor:
    """Return the weight [N] of every learnt token, fp32; ``units`` [B] tells the unit of a row."""
    unit = units[batch.rows]  # [N]
    return unit.bincount().float().reciprocal()[unit]


def unit_gradients(rows: torch.Tensor, units: torch.Tensor, count: int) -> torch.Tensor:
    """Return the gradients of ``count`` units [U, P], each the sum of its rows' in [B, P]."""
    if count == len(rows) and bool((units.diff() > 0).all()):
        return rows  # one each, in order
    return rows.new_zeros(count, rows.shape[1]).index_add_(0, units, rows)
