"""The interface of a compression method: what it keeps of the middle, and with which weights.

A method first plans, looking at the full model and at calibration tokens, and then yields new
weights one block at a time, so that a full model is never copied whole. It may drop blocks and
make linear layers narrower; the architecture stays one that transformers knows.

Rules: a method is deterministic; the weights it yields never alias the full model's; `ratio` is
the share of the middle's parameters that stays, and ratio 1 keeps every weight as it is.
"""

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from offsite.emulator.progress import Report

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


class MethodName(Enum):
    """The methods there are."""

    UNIFORM_DROP = "uniform_drop"
    WIDTH_PRUNE = "width_prune"


class Compression(Protocol):
    """The outcome of planning."""

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices of the middle blocks that stay, ascending, in the full model."""

    def weights(self, index: int, block: "nn.Module") -> "dict[str, torch.Tensor]":
        """New weights of the kept block `index`, by name inside the block."""


class Method(Protocol):
    """A way to compress the middle."""

    @property
    def name(self) -> MethodName:
        """What it is called in configurations and manifests."""

    def plan(
        self,
        model: "PreTrainedModel",
        middle: range,
        ratio: float,
        calibration: "Sequence[torch.Tensor]",
        report: Report,
    ) -> Compression:
        """Decide what stays.

        Args:
            model: the full model; it is not changed.
            middle: indices of the blocks to compress.
            ratio: share of the middle's parameters to keep, in (0, 1].
            calibration: token batches (B, T).
            report: told after each calibration batch.

        Raises:
            ConfigError: the method cannot do this for this model or ratio.
        """


def make_method(name: MethodName) -> Method:
    """The method of that name."""
    if name is MethodName.UNIFORM_DROP:
        from offsite.emulator.methods.uniform_drop import UniformDrop

        return UniformDrop()
    from offsite.emulator.methods.width_prune import WidthPrune

    return WidthPrune()
