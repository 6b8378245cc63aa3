"""What every way to the clipped sum of per-example gradients has in common.

    total += Σ_u min(1, C / ‖g_u‖) · g_u     with g_u the gradient of unit u's loss

The loss of a unit is the mean of -ln p over its own learnt tokens, so that no unit's gradient
depends on another's. The rows of one unit are one gradient, clipped once.

Rules of every backend:

* It raises ConfigError rather than return a figure that it cannot vouch for; `total` is then of no
  use, and its step is abandoned.
* A unit whose gradient is not finite adds nothing, and its norm is infinity or NaN: no value of one
  unit may decide what becomes of the others.
* `total` gets nothing but clipped units: no noise, no division. Gradients of the model's parameters
  are None before and after.

Axes: ``B`` rows, ``T`` tokens, ``N`` learnt tokens, ``U`` units, ``P`` values of all parameters, in
the order of the mapping, each flattened.
"""

import math
from collections.abc import Mapping
from typing import Protocol, Self

import torch
from torch import nn

from offsite.emulator.training.batches import MicroBatch
from offsite.secure.errors import ConfigError


class Backend(Protocol):
    """Made of (model, parameters by wire name); a context, inside which the model is prepared."""

    def __enter__(self) -> Self:
        """Prepare the model. Raises ConfigError naming what this backend cannot do exactly."""

    def __exit__(self, *exc_info: object) -> None:
        """Leave the model as it was."""

    def clipped_sum_into(
        self, batch: MicroBatch, units: torch.Tensor, clip: float, total: torch.Tensor
    ) -> torch.Tensor:
        """Add the clipped gradients of the batch's units to ``total``; return their norms [U].

        Args:
            batch: rows of whole units; a unit has all its rows in one batch.
            units: [B] int64, the unit of each row; every number from 0 to U - 1 occurs.
            clip: C, the largest norm that a unit keeps.
            total: [P] fp32, contiguous, on the model's device.

        Returns:
            The norms before clipping, fp32, on the model's device. They are private.
        """


def flat_size(parameters: Mapping[str, nn.Parameter]) -> int:
    """P."""
    return sum(parameter.numel() for parameter in parameters.values())


def unit_count(
    batch: MicroBatch, units: torch.Tensor, clip: float, total: torch.Tensor, size: int
) -> int:
    """Check what `clipped_sum_into` is called with, P being ``size``; return U."""
    if not (math.isfinite(clip) and clip > 0):
        raise ConfigError(f"clip norm is {clip}; expected a finite number above 0")
    if total.shape != (size,) or total.dtype is not torch.float32 or not total.is_contiguous():
        raise ConfigError(
            f"total is {total.dtype} {tuple(total.shape)}; expected contiguous float32 ({size},)"
        )
    rows = len(batch.ids)
    if units.shape != (rows,) or units.dtype is not torch.int64:
        raise ConfigError(
            f"units are {units.dtype} {tuple(units.shape)}; expected int64 ({rows},): one a row"
        )
    named = torch.unique(units)
    if rows and not torch.equal(named, torch.arange(len(named), device=named.device)):
        raise ConfigError(f"units are {named.tolist()}; expected every number from 0 on to occur")
    if len(torch.unique(batch.rows)) != rows:
        raise ConfigError("a row of the batch has no learnt token; expected at least one in each")
    return len(named)
