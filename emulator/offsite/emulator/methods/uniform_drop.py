"""Uniform layer drop, the published baseline: keep blocks of the middle at even distances.

Of L middle blocks, n stay: those at round(i·stride), stride = (L − 1)/(n − 1), so that the first
and the last always stay. Needs no calibration.

Source: mit-han-lab/offsite-tuning, `offsite_tuning/utils.py`; arXiv 2302.04870, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from offsite.emulator.methods.kept_blocks import KeptBlocks
from offsite.emulator.methods.method import MethodName
from offsite.emulator.progress import Report


@dataclass(frozen=True, slots=True)
class UniformDrop:
    """See `Method`. The ratio is that of blocks, rounded to whole ones, at least one."""

    name: MethodName = MethodName.UNIFORM_DROP
    needs_calibration: bool = False

    def plan(
        self,
        model: PreTrainedModel,
        middle: Sequence[int],
        ratio: float,
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> KeptBlocks:
        count = max(1, round(ratio * len(middle)))
        return KeptBlocks(tuple(middle[i] for i in even_indices(len(middle), count)))


def even_indices(length: int, count: int) -> list[int]:
    """`count` of `length` indices at even distances, with both ends; the centre for one."""
    if count == 1:
        return [round((length - 1) / 2)]
    stride = (length - 1) / (count - 1)
    return [round(i * stride) for i in range(count)]
