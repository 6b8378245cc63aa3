"""Gradient-preserving compression: keep what the adapters' gradients pass through.

Every middle block stays. Its attention projections become products of two thin matrices, made of
the directions with the highest scores; its MLP keeps the channels with the highest scores. A score
is curvature − λ·slope (`direction_scores`): the first keeps what moves the gradients, and λ > 0
rewards removing what carries the emulator's own skill, at the same number of parameters.

Notable decisions:

* Every block keeps the same share of its parameters. Dividing them among blocks by score was
  measured and lost: what one component is worth says little about losing half of a block.
* Within a block, ranks and channels compete for its parameters (`rank_choice`) by the share of the
  layer's curvature that each saves; projections that factoring does not make smaller stay dense.
  A share of a projection's curvature counts ten times that of an MLP's. More weight is better for
  the gradients of the slots below the middle and for the plug-in, worse for the slots above, and
  leaves the emulator a worse language model; without bound it would be `width_prune`.
* The strongest 5 % of a projection's directions by curvature stay whatever λ says.
* Fused projections (query, key and value in one) are factored as one matrix.
* One forward and backward pass per group of blocks (`gradient_statistics`). A plan holds the new
  projections of all blocks, in their final size, until their block is asked for.
* Biases and norms stay, so there is a smallest ratio.

Source: GradOT (arXiv 2507.04455), reconstructed from its text, no code being public. What differs
was measured to be better: directions in the basis of the Fisher factors instead of the weight's
own, channels by the energy of what they give, and the division of parameters within a block.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks
from offsite.emulator.instantiate import named_weights
from offsite.emulator.linear import Linear
from offsite.emulator.methods.block_activations import check_calibration
from offsite.emulator.methods.block_parts import PROTECTED_SHARE, BlockParts, budgets_of
from offsite.emulator.methods.direction_scores import (
    ChannelMoments,
    Directions,
    Scores,
    directions,
)
from offsite.emulator.methods.gradient_statistics import (
    GROUP_BYTES,
    LayerMoments,
    See,
    backpropagate,
    groups,
    moments_bytes,
)
from offsite.emulator.methods.method import Harmoniser, MethodName
from offsite.emulator.methods.mlp import Mlp
from offsite.emulator.methods.rank_choice import Options, choose_ranks
from offsite.emulator.methods.width_prune import check_fused_halves
from offsite.emulator.progress import Report
from offsite.secure.errors import ConfigError

ATTENTION_WEIGHT = 10.0
"""Of a share of a projection's curvature against the same share of an MLP's."""


@dataclass(frozen=True, slots=True)
class SmallBlock:
    """A compressed block: factors (down, up) by path, and the channels that stay, ascending."""

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    mlp: Mlp
    channels: torch.Tensor

    def weights(self, block: nn.Module) -> dict[str, torch.Tensor]:
        """By name inside the block."""
        kept = named_weights(block)
        for path in self.factors:
            del kept[f"{path}.weight"]
        weights = self.mlp.select(block, kept, self.channels.to(next(block.parameters()).device))
        for path, parts in self.factors.items():
            for part, tensor in zip(("down", "up"), parts, strict=True):
                weights[f"{path}.{part}.weight"] = tensor
        return weights


@dataclass(slots=True)
class SmallBlocks:
    """Every middle block, made smaller, given out once each; None: all of them as they are."""

    kept: tuple[int, ...]
    small: dict[int, SmallBlock] | None
    harmonisers: Mapping[int, Harmoniser] = field(default_factory=dict)

    def weights(self, index: int, block: nn.Module) -> dict[str, torch.Tensor]:
        if self.small is not None:
            return self.small.pop(index).weights(block)
        return {name: tensor.clone() for name, tensor in named_weights(block).items()}


@dataclass(frozen=True, slots=True)
class GradientPreserving:
    """See `Method`. The ratio is met from below, to within one step of 8 ranks or channels."""

    slope_weight: float = 0.0  # λ; 1 lets both terms weigh the same within a layer
    group_bytes: int = GROUP_BYTES
    name: MethodName = MethodName.GRADIENT
    needs_calibration: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.slope_weight < math.inf:
            raise ConfigError(f"gradient_lambda is {self.slope_weight:g}; expected 0 or more")

    def plan(
        self,
        model: PreTrainedModel,
        middle: Sequence[int],
        ratio: float,
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> SmallBlocks:
        if ratio >= 1.0:
            return SmallBlocks(tuple(middle), None)
        modules = find_blocks(model).modules
        parts = {index: BlockParts.of(modules[index]) for index in middle}
        budgets = budgets_of({i: modules[i] for i in middle}, parts, ratio)
        check_calibration(self.name, calibration)
        sizes = {i: moments_bytes([*p.attention.values()]) for i, p in parts.items()}
        passes = groups(sizes, self.group_bytes)
        total = len(passes) * len(calibration)
        small: dict[int, SmallBlock] = {}
        for number, group in enumerate(passes):
            start = number * len(calibration)
            told = _shifted(report, start, total)
            small |= self._small_blocks(model, group, parts, budgets, calibration, told)
        first = middle[0]
        if parts[first].mlp.is_fused:
            keep = small[first].channels
            mlp = parts[first].mlp
            check_fused_halves(model, modules[first], mlp, keep, calibration[0])
        return SmallBlocks(tuple(middle), small)

    def _small_blocks(
        self,
        model: PreTrainedModel,
        group: Sequence[int],
        parts: Mapping[int, BlockParts],
        budgets: Mapping[int, int],
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> dict[int, SmallBlock]:
        """One pass over the calibration tokens for the blocks of a group."""
        layers = {
            i: {p: LayerMoments.zeros(a) for p, a in parts[i].attention.items()} for i in group
        }
        channels = {i: ChannelMoments(parts[i].down) for i in group}
        taps: dict[nn.Module, See] = {parts[i].down: channels[i].see for i in group}
        for index in group:
            taps |= {parts[index].attention[p]: m.see for p, m in layers[index].items()}
        tokens = backpropagate(model, group[0], taps, calibration, report)
        result = {}
        for index in group:
            moments = layers.pop(index)
            for moment in moments.values():
                moment.divide(tokens)
            scores = channels[index].scores(tokens)
            result[index] = self._small_block(parts[index], moments, scores, budgets[index])
        return result

    def _small_block(
        self, parts: BlockParts, moments: Mapping[str, LayerMoments], channels: Scores, budget: int
    ) -> SmallBlock:
        found = {path: directions(layer, moments[path]) for path, layer in parts.attention.items()}
        scores = {path: each.scores for path, each in found.items()} | {parts.mlp.down: channels}
        orders, losses = {}, {}
        for path, score in scores.items():
            value = score.combined(self.slope_weight)
            orders[path] = _order(value, score.curvature)
            weight = ATTENTION_WEIGHT if path in parts.attention else 1.0
            losses[path] = _losses(parts.options[path], weight * value[orders[path]])
        counts = choose_ranks(parts.options, losses, budget)
        keep = {path: orders[path][:count] for path, count in counts.items()}  # all for None
        factors = {
            path: _factors(found[path], layer, keep[path])
            for path, layer in parts.attention.items()
            if counts[path] is not None
        }
        return SmallBlock(factors, parts.mlp, keep[parts.mlp.down].sort().values)


def _factors(
    found: Directions, layer: Linear, keep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """down (rank, in) and up (out, rank) in the dtype of the layer."""
    down, up = found.low_rank(keep.to(layer.weight.device))
    dtype = layer.weight.dtype
    return down.to(dtype).contiguous(), up.to(dtype).contiguous()


def _order(values: torch.Tensor, curvature: torch.Tensor) -> torch.Tensor:
    """Components by falling value, after the protected ones; of equal ones the first."""
    protected = math.ceil(PROTECTED_SHARE * len(values))
    strongest = torch.sort(curvature, descending=True, stable=True).indices[:protected]
    ranked = values.clone()
    ranked[strongest] = math.inf
    return torch.sort(ranked, descending=True, stable=True).indices


def _losses(options: Options, values: torch.Tensor) -> list[float]:
    """What each form loses of the summed value, up to a constant."""
    kept = values.cumsum(0).tolist()
    return [-kept[-1 if rank is None else rank - 1] for rank in options.ranks]


def _shifted(report: Report, start: int, total: int) -> Report:
    """The report of a part of the work."""
    return lambda done, _: report(start + done, total)
