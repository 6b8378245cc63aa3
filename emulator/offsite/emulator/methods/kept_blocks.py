"""The compression of every method that keeps blocks as they are: drop, share, harmonise."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from offsite.emulator.methods.method import Harmoniser
from offsite.emulator.weights import named_weights


@dataclass(frozen=True, slots=True)
class KeptBlocks:
    """Some of the middle's blocks, as they are; a repeated one is shared."""

    kept: tuple[int, ...]
    harmonisers: Mapping[int, Harmoniser] = field(default_factory=dict)

    def weights(self, index: int, block: nn.Module) -> dict[str, torch.Tensor]:
        """Copies of the block's own."""
        return {name: tensor.clone() for name, tensor in named_weights(block).items()}
