"""Factors of several ranks brought to one.

Rule: every client computes with the same scaling, so that its B·A means the same everywhere: whoever
has a lower rank has a lower alpha.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from offsite.emulator.lora_aggregation.factors import LoraFactors
from offsite.secure.errors import ConfigError


def padded(factors: LoraFactors, rank: int) -> LoraFactors:
    """Zero slices behind the others, up to `rank`; the product stays as it is."""
    more = rank - factors.rank
    return LoraFactors(pad(factors.low, (0, 0, 0, more)), pad(factors.high, (0, more)))


def on_whole_low(factors: LoraFactors, low: Tensor) -> LoraFactors:
    """The same product on the A (R, in) of which the client's A is the beginning.

    For clients whose B alone trains (FFA-LoRA): A of a lower rank is the beginning of A of a higher
    one (`adapters/lora.py`), so B alone is filled up, and `average` of such factors is exact.

    Raises:
        ConfigError: the client's A is not its beginning.
    """
    if not torch.equal(factors.low, low[: factors.rank]):
        raise ConfigError("LoRA: expected an A that is the beginning of the whole one")
    return LoraFactors(low, pad(factors.high, (0, low.shape[0] - factors.rank)))


def slice_shares(ranks: Sequence[int], weights: Tensor) -> Tensor:
    """(n, R): the weight of every client in every slice, over those who have it, R the highest rank."""
    slices = torch.arange(max(ranks))
    held = slices[None, :] < torch.tensor(ranks)[:, None]
    shares = held * weights[:, None]
    return shares / shares.sum(0)
