"""Activation-weighted width pruning: every middle block stays, its MLP gets fewer channels.

The score of channel j is RMS(a_j)·‖W_down[:, j]‖₂, where a_j is what the down projection receives
in channel j over the calibration tokens: the root mean square of what the block's output loses
when the channel goes. Channels with the highest scores stay, in their order.

Notable decisions:

* Every middle block keeps the same share of its channels, since scores of different blocks are
  not comparable. Attention and norms stay, so small ratios cannot be reached and are refused.
* One pass of the full model over the calibration tokens serves all blocks; what is kept is one
  fp64 number per channel, whatever the number of tokens.
* Numbers of channels are multiples of 8, for matrix units.

Source: Wanda (arXiv 2306.11695, section 3: |W|·‖x‖₂, here summed over a channel's column as an L2
norm) and FLAP (arXiv 2312.11145, structured form).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks, parameter_count
from offsite.emulator.linear import Linear, weight_out_in
from offsite.emulator.methods.block_activations import (
    check_calibration,
    receiving,
    require_finite,
    run,
    tokens_of,
)
from offsite.emulator.methods.fused import check_fused_halves
from offsite.emulator.methods.method import Harmoniser, MethodName
from offsite.emulator.methods.mlp import CHANNEL_MULTIPLE, Mlp, find_mlp
from offsite.emulator.progress import Report
from offsite.emulator.weights import named_weights
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True)
class KeptChannels:
    """Every middle block, with the channels that stay in each."""

    mlps: Mapping[int, Mlp]
    channels: Mapping[int, torch.Tensor]  # ascending indices

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(self.mlps)

    @property
    def harmonisers(self) -> Mapping[int, Harmoniser]:
        return {}

    def weights(self, index: int, block: nn.Module) -> dict[str, torch.Tensor]:
        return self.mlps[index].select(block, named_weights(block), self.channels[index])


@dataclass(frozen=True, slots=True)
class WidthPrune:
    """See `Method`. The ratio is met to within the rounding of channels to multiples of 8."""

    name: MethodName = MethodName.WIDTH_PRUNE
    needs_calibration: bool = True

    def plan(
        self,
        model: PreTrainedModel,
        middle: Sequence[int],
        ratio: float,
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> KeptChannels:
        modules = find_blocks(model).modules
        blocks = {index: modules[index] for index in middle}
        mlps = {index: find_mlp(block) for index, block in blocks.items()}
        widths = channel_counts(blocks, mlps, ratio)
        if all(widths[index] == mlp.channels for index, mlp in mlps.items()):
            channels = {index: torch.arange(width) for index, width in widths.items()}
            return KeptChannels(mlps, channels)
        check_calibration(self.name, calibration)
        downs = {i: blocks[i].get_submodule(mlp.down) for i, mlp in mlps.items()}
        scores = channel_scores(model, downs, calibration, report)
        channels = {index: _highest(scores[index], width) for index, width in widths.items()}
        first = middle[0]
        if mlps[first].is_fused:
            check_fused_halves(model, blocks[first], mlps[first], channels[first], calibration[0])
        return KeptChannels(mlps, channels)


def channel_counts(
    blocks: Mapping[int, nn.Module], mlps: Mapping[int, Mlp], ratio: float
) -> dict[int, int]:
    """How many channels each block keeps so that `ratio` of all parameters stay.

    Raises ConfigError that names the smallest ratio which pruning the MLPs alone can reach.
    """
    total = sum(parameter_count(block) for block in blocks.values())
    per_channel = {i: mlp.channel_parameters(blocks[i]) for i, mlp in mlps.items()}
    prunable = sum(mlp.channels * per_channel[i] for i, mlp in mlps.items())
    fixed = total - prunable
    least = fixed + sum(
        min(CHANNEL_MULTIPLE, mlp.channels) * per_channel[i] for i, mlp in mlps.items()
    )
    if ratio * total < least:
        smallest = math.ceil(1000 * least / total) / 1000
        raise ConfigError(
            f"width_prune cannot keep only {ratio:g} of the middle: what is not in its MLPs stays,"
            f" so the smallest ratio for this model is {smallest:.3f}; or use uniform_drop"
        )
    share = (ratio * total - fixed) / prunable
    return {index: _rounded(share * mlp.channels, mlp.channels) for index, mlp in mlps.items()}


def _rounded(width: float, channels: int) -> int:
    """The nearest multiple of 8, within 8 and the block's own number of channels."""
    if width >= channels:
        return channels
    nearest = round(width / CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    return min(max(nearest, CHANNEL_MULTIPLE), channels)


def channel_scores(
    model: PreTrainedModel,
    downs: Mapping[int, nn.Module],
    calibration: Sequence[torch.Tensor],
    report: Report,
) -> dict[int, torch.Tensor]:
    """The score of every channel of every block, (I,) fp64 on the CPU."""
    squares: dict[int, torch.Tensor] = {}

    def add(index: int, received: torch.Tensor) -> None:
        total = tokens_of(received).square().sum(0, dtype=torch.float64).cpu()
        squares[index] = squares[index] + total if index in squares else total

    with receiving(downs, add):
        for done, batch in enumerate(calibration, start=1):
            for row in batch:  # one at a time, so that activations are small beside the model
                run(model, row[None])
            report(done, len(calibration))
    tokens = sum(batch.numel() for batch in calibration)
    scores = {}
    for index, down in downs.items():
        assert isinstance(down, Linear)  # find_mlp took it from linear_layers
        norms = weight_out_in(down).float().norm(dim=0).double().cpu()  # (I,)
        scores[index] = (squares[index] / tokens).sqrt() * norms
        require_finite(f"the MLP of block {index}", scores[index])
    return scores


def _highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending indices of the highest scores; of equal ones the first, so it is deterministic."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:count].sort().values
