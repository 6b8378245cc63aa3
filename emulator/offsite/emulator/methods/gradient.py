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
* Memory: planning makes one forward pass. Blocks are made when they are asked for, with one
  backward pass per group of them (`gradient_statistics`), so that what a plan holds is the hidden
  states of the calibration tokens at one depth, the moments of one group and its new projections.
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
from offsite.emulator.linear import Linear
from offsite.emulator.methods.backward_stream import BackwardStream, See
from offsite.emulator.methods.block_activations import check_calibration, require_finite
from offsite.emulator.methods.block_parts import PROTECTED_SHARE, BlockParts, budgets_of
from offsite.emulator.methods.direction_scores import (
    ChannelMoments,
    Directions,
    Scores,
    directions,
)
from offsite.emulator.methods.fused import check_fused_halves
from offsite.emulator.methods.gradient_statistics import (
    LayerMoments,
    group_limit,
    groups,
    moments_bytes,
)
from offsite.emulator.methods.kept_blocks import KeptBlocks
from offsite.emulator.methods.method import Harmoniser, MethodName
from offsite.emulator.methods.mlp import Mlp
from offsite.emulator.methods.rank_choice import Options, choose_ranks
from offsite.emulator.progress import Report
from offsite.emulator.weights import named_weights
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
        weights = self.mlp.select(block, kept, self.channels)
        for path, parts in self.factors.items():
            for part, tensor in zip(("down", "up"), parts, strict=True):
                weights[f"{path}.{part}.weight"] = tensor
        return weights


@dataclass(frozen=True, slots=True)
class GradientPreserving:
    """See `Method`. The ratio is met from below, to within one step of 8 ranks or channels."""

    slope_weight: float = 0.0  # λ; 1 lets both terms weigh the same within a layer
    group_bytes: int | None = None  # None: as `group_limit` says
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
    ) -> "SmallBlocks | KeptBlocks":
        if ratio >= 1.0:
            return KeptBlocks(tuple(middle))
        modules = find_blocks(model).modules
        parts = {index: BlockParts.of(modules[index]) for index in middle}
        budgets = budgets_of({i: modules[i] for i in middle}, parts, ratio)
        check_calibration(self.name, calibration)
        first = middle[0]
        if (mlp := parts[first].mlp).is_fused:
            half = torch.arange(mlp.channels // 2)
            check_fused_halves(model, modules[first], mlp, half, calibration[0])
        sizes = {i: moments_bytes([*p.attention.values()]) for i, p in parts.items()}
        limit = self.group_bytes
        if limit is None:
            limit = group_limit(sum(tensor.nbytes for tensor in named_weights(model).values()))
        stream = BackwardStream(model, first, calibration, report)
        making = Making(stream, parts, budgets, self.slope_weight)
        return SmallBlocks(tuple(middle), making, groups(sizes, limit))


@dataclass(frozen=True, slots=True)
class Making:
    """What is needed to make the blocks smaller, a group of them at a time."""

    stream: BackwardStream
    parts: Mapping[int, BlockParts]
    budgets: Mapping[int, int]  # parameters for the projections and channels of each block
    slope_weight: float

    def small_blocks(self, group: Sequence[int], after: int | None) -> dict[int, SmallBlock]:
        """One pass over the calibration tokens for the blocks of a group."""
        layers = {
            i: {p: LayerMoments.zeros(a) for p, a in self.parts[i].attention.items()} for i in group
        }
        channels = {i: ChannelMoments(self.parts[i].down) for i in group}
        taps: dict[nn.Module, See] = {self.parts[i].down: channels[i].see for i in group}
        for index in group:
            taps |= {self.parts[index].attention[p]: m.see for p, m in layers[index].items()}
        self.stream.backpropagate(taps, after)
        result = {}
        for index in group:
            scores = channels[index].scores(self.stream.tokens)
            require_finite(f"the MLP of block {index}", scores.curvature, scores.slope)
            result[index] = self._small_block(index, layers.pop(index), scores)
        return result

    def _small_block(
        self, index: int, moments: dict[str, LayerMoments], channels: Scores
    ) -> SmallBlock:
        """The matrices of a layer go before the next one is looked at."""
        parts = self.parts[index]
        losses: dict[str, list[float]] = {}
        factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for path, layer in parts.attention.items():
            moment = moments.pop(path)
            moment.divide(self.stream.tokens, f"{path} of block {index}")
            found = directions(layer, moment)
            order, losses[path] = self._ranked(
                parts.options[path], found.scores, weight=ATTENTION_WEIGHT
            )
            factors[path] = _factors(found, layer, order[: _largest(parts.options[path])])
        down = parts.mlp.down
        order, losses[down] = self._ranked(parts.options[down], channels, weight=1.0)
        counts = choose_ranks(parts.options, losses, self.budgets[index])
        chosen = {}
        for path in parts.attention:
            low, high = factors.pop(path)
            if (rank := counts[path]) is not None:
                chosen[path] = (
                    low[:rank].clone(),
                    high[:, :rank].clone(memory_format=torch.contiguous_format),
                )
        return SmallBlock(chosen, parts.mlp, order[: counts[down]].sort().values)

    def _ranked(
        self, options: Options, scores: Scores, weight: float
    ) -> tuple[torch.Tensor, list[float]]:
        """The components, the best first, and what each form loses."""
        value = scores.combined(self.slope_weight)
        order = _order(value, scores.curvature)
        return order, _losses(options, weight * value[order])


@dataclass(slots=True)
class SmallBlocks:
    """Every middle block, made smaller when it is asked for, in ascending order, once each."""

    kept: tuple[int, ...]
    making: Making
    groups: list[list[int]]  # those that were not made yet
    harmonisers: Mapping[int, Harmoniser] = field(default_factory=dict)
    _made: dict[int, SmallBlock] = field(default_factory=dict)

    def weights(self, index: int, block: nn.Module) -> dict[str, torch.Tensor]:
        return self.small_block(index).weights(block)

    def small_block(self, index: int) -> SmallBlock:
        """Made with the other blocks of its group; nothing keeps it."""
        while index not in self._made:
            group = self.groups.pop(0)
            after = self.groups[0][0] if self.groups else None
            self._made = self.making.small_blocks(group, after)
        return self._made.pop(index)


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


def _largest(options: Options) -> int:
    """The highest rank that saves parameters; 0 where none does."""
    return max((rank for rank in options.ranks if rank is not None), default=0)
