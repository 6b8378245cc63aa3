"""4-bit NormalFloat: 16 code points at the quantiles of a normal distribution, blocks of 64.

    s = max|w| of a block      i = nearest code point of w / s      w' = code[i]·s

The tensor is taken row by row as one line; its last block may be shorter. Two indices lie in a
byte, the first in the high half; the last half of an odd number is index 0.

Notable: +1 and -1 are code points, so the largest weight of a block comes back exactly and packing
w' finds the same scale and the same indices. Values and layout equal those of bitsandbytes
(`tests/emulator/packing/test_nf4.py`); its scales are not packed again here.

Source: QLoRA, arXiv 2305.14314, section 3 and appendix E (the code points).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from offsite.emulator.packing.packing import NF4_BLOCK, SCALE

CODE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@torch.no_grad()
def pack(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """See `packing.pack`."""
    values = tensor.detach().float().flatten()
    elements = len(values)
    values = functional.pad(values, (0, -elements % NF4_BLOCK)).view(-1, NF4_BLOCK)
    scale = values.abs().amax(1)
    values = values / torch.where(scale == 0, 1.0, scale)[:, None]
    code = torch.tensor(CODE, device=tensor.device)
    # The number of midpoints below a value is the index of the code point next to it.
    indices = torch.bucketize(values, (code[1:] + code[:-1]) / 2, out_int32=True).to(torch.uint8)
    indices = indices.flatten()[: elements + elements % 2].contiguous()
    indices[elements:] = 0
    return {"nf4": (indices[::2] << 4) | indices[1::2], SCALE: scale}


def unpack(parts: Mapping[str, torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """See `packing.unpack`."""
    elements = math.prod(shape)
    pairs = parts["nf4"]
    code = torch.tensor(CODE, device=pairs.device)
    values = torch.empty(len(pairs), 2, device=pairs.device)
    values[:, 0] = code[(pairs >> 4).int()]
    values[:, 1] = code[(pairs & 0xF).int()]
    line = values.flatten()[:elements]
    full = elements - elements % NF4_BLOCK
    line[:full].view(-1, NF4_BLOCK).mul_(parts[SCALE][: full // NF4_BLOCK, None])
    line[full:].mul_(parts[SCALE][-1])
    return line.reshape(tuple(shape))
