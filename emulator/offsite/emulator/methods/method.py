"""The interface of a compression method: what it keeps of the middle, and with which weights.

A method first plans, looking at the full model and at calibration tokens, and then yields new
weights one block at a time, so that a full model is never copied whole. It may do four things:

    drop blocks          an index of the middle that `kept` leaves out
    share blocks         an index that `kept` repeats: the block's weights stand once, used often
    narrow or factor     weights of other shapes: fewer MLP channels, or a linear layer W (out, in)
                         as `<path>.down.weight` (rank, in) and `<path>.up.weight` (out, rank)
    harmonise            a low-rank map of the hidden states, in the place of what was dropped

Rules: a method is deterministic; the weights it yields never alias the full model's; `ratio` is
the share of the middle's parameters that stays, and ratio 1 keeps every weight as it is. No method
sees a data owner's data: calibration is public text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    IMPORTANCE_DROP = "importance_drop"
    CLUSTER_SHARE = "cluster_share"
    WIDTH_PRUNE = "width_prune"
    ACTIVATION_SVD = "activation_svd"
    GRADIENT = "gradient"
    HARMONISE = "harmonise"


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """What some methods can be told beside the ratio."""

    gradient_lambda: float = 0.0
    """`gradient`: how much lowering the emulator's own skill counts against its gradients."""
    harmoniser_rank: int = 32
    """`harmonise`: rank of the map in the place of every run of dropped blocks."""


@dataclass(frozen=True, slots=True)
class Harmoniser:
    """A low-rank map x ← x + (x·downᵀ)·upᵀ; hidden size H, rank r."""

    down: "torch.Tensor"  # (r, H)
    up: "torch.Tensor"  # (H, r)


class Compression(Protocol):
    """The outcome of planning."""

    @property
    def kept(self) -> tuple[int, ...]:
        """Which block of the full model each block of the emulator's middle comes from.

        Ascending; a repeated index shares the weights of its first occurrence.
        """

    @property
    def harmonisers(self) -> Mapping[int, Harmoniser]:
        """By the index (in the full model) of the kept block or slot whose input is mapped."""

    def weights(self, index: int, block: "nn.Module") -> "dict[str, torch.Tensor]":
        """New weights of the kept block `index`, by name inside the block; called once each."""


class Method(Protocol):
    """A way to compress the middle."""

    @property
    def name(self) -> MethodName:
        """What it is called in configurations and manifests."""

    @property
    def needs_calibration(self) -> bool:
        """Whether it looks at activations or gradients, at ratios below 1."""

    def plan(
        self,
        model: "PreTrainedModel",
        middle: Sequence[int],
        ratio: float,
        calibration: "Sequence[torch.Tensor]",
        report: Report,
    ) -> Compression:
        """Decide what stays.

        Args:
            model: the full model; it is not changed.
            middle: indices of the blocks to compress, ascending; slots may lie between them.
            ratio: share of the middle's parameters to keep, in (0, 1].
            calibration: token batches (B, T) of public text.
            report: told after each calibration batch.

        Raises:
            ConfigError: the method cannot do this for this model or ratio.
        """


def make_method(name: MethodName, options: MethodOptions | None = None) -> Method:
    """The method of that name."""
    options = options or MethodOptions()
    match name:
        case MethodName.UNIFORM_DROP:
            from offsite.emulator.methods.uniform_drop import UniformDrop

            return UniformDrop()
        case MethodName.IMPORTANCE_DROP:
            from offsite.emulator.methods.importance_drop import ImportanceDrop

            return ImportanceDrop()
        case MethodName.CLUSTER_SHARE:
            from offsite.emulator.methods.cluster_share import ClusterShare

            return ClusterShare()
        case MethodName.WIDTH_PRUNE:
            from offsite.emulator.methods.width_prune import WidthPrune

            return WidthPrune()
        case MethodName.ACTIVATION_SVD:
            from offsite.emulator.methods.activation_svd import ActivationSvd

            return ActivationSvd()
        case MethodName.GRADIENT:
            from offsite.emulator.methods.gradient import GradientPreserving

            return GradientPreserving(options.gradient_lambda)
        case MethodName.HARMONISE:
            from offsite.emulator.methods.harmonise import Harmonise

            return Harmonise(options.harmoniser_rank)
