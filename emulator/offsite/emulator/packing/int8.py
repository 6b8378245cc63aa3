"""Symmetric 8-bit integers with one scale per output channel.

    s = max|w| / 127 over the inputs of a channel, cut to 17 bits      q = round(w / s)      w' = q·s

Notable: the scale is cut, not rounded, to 17 significant bits. Then q·s (7 bits times 17) is exact
in fp32, the largest weight still gets ±127, and packing w' finds the same s, also after w' was
rounded to bf16 or fp16: so nothing moves when a model is packed twice.

Source: LLM.int8(), arXiv 2208.07339, section 2.1, vector-wise quantisation of the weights.
"""

from collections.abc import Mapping

import torch

from offsite.emulator.packing.packing import SCALE

_LARGEST = 127
_KEPT_BITS = ~0x7F  # of the 24 bits of an fp32 mantissa, all but 7


@torch.no_grad()
def pack(tensor: torch.Tensor, axis: int) -> dict[str, torch.Tensor]:
    """See `packing.pack`."""
    values = tensor.detach().float()
    scale = values.abs().amax(axis, keepdim=True).div_(_LARGEST)
    scale.view(torch.int32).bitwise_and_(_KEPT_BITS)
    # Where everything is 0, so is the scale, and 0 / 1 is right.
    quotient = values / torch.where(scale == 0, 1.0, scale)
    quantised = quotient.round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return {"int8": quantised, SCALE: scale}


def unpack(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """See `packing.unpack`."""
    return parts["int8"].float().mul_(parts[SCALE])
