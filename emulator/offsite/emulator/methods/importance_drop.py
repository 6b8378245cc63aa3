"""Drop by block importance: the blocks that turn the hidden states the least go first.

The importance of a block is 1 − E[cos(x, y)], x and y the hidden states of a token before and
after it, over all calibration tokens.

Notable decisions:

* Cosine, not angle: this is the Block Influence of the first source. The second one's angular
  distance is arccos(cos)/π of the same cosine, at the last token of a text only; the mean over all
  tokens is steadier on little text.
* One-shot, not greedy: all importances are measured once, on the full model, and the lowest go.
  Both sources measure once; neither measures again after a drop.
* The second source drops one contiguous run; here dropped blocks may lie apart, as in the first.
  With slots between the blocks there need not be a long enough run.
* No block is protected: the slots at either end already keep the blocks that matter most.

Source: ShortGPT (arXiv 2403.03853, section 3: Block Influence, layer removal); The Unreasonable
Ineffectiveness of the Deeper Layers (arXiv 2403.17887, section 3.2: angular distance).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks
from offsite.emulator.methods.block_activations import (
    check_calibration,
    check_depth,
    require_finite,
    tokens_of,
    watch,
)
from offsite.emulator.methods.kept_blocks import KeptBlocks
from offsite.emulator.methods.method import MethodName
from offsite.emulator.progress import Report


@dataclass(frozen=True, slots=True)
class ImportanceDrop:
    """See `Method`. The ratio is that of blocks, rounded to whole ones, at least one."""

    name: MethodName = MethodName.IMPORTANCE_DROP
    needs_calibration: bool = True

    def plan(
        self,
        model: PreTrainedModel,
        middle: Sequence[int],
        ratio: float,
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> KeptBlocks:
        count = max(1, round(ratio * len(middle)))
        if count == len(middle):
            return KeptBlocks(tuple(middle))
        check_depth(self.name, model)
        check_calibration(self.name, calibration)
        importance = block_importance(model, middle, calibration, report)
        dropped = least_important(importance)[: len(middle) - count]
        return KeptBlocks(tuple(index for index in middle if index not in dropped))


def block_importance(
    model: PreTrainedModel,
    indices: Sequence[int],
    calibration: Sequence[torch.Tensor],
    report: Report,
) -> dict[int, float]:
    """1 − the mean cosine of a token's hidden states around each block, from 0 to 2."""
    modules = find_blocks(model).modules
    blocks = {index: modules[index] for index in indices}
    cosines = dict.fromkeys(indices, 0.0)

    def add(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        cosine = cosine_similarity(tokens_of(before), tokens_of(after), dim=-1)
        require_finite(f"block {index}", cosine)
        cosines[index] += float(cosine.sum(dtype=torch.float64))

    watch(model, blocks, add, calibration, report)
    tokens = sum(batch.numel() for batch in calibration)
    return {index: 1.0 - cosine / tokens for index, cosine in cosines.items()}


def least_important(importance: Mapping[int, float]) -> list[int]:
    """The blocks, the least important one first; of equal ones the first, so it is deterministic."""
    return sorted(importance, key=lambda index: (importance[index], index))
