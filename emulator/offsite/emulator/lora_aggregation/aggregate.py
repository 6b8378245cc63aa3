"""From the factors of many clients to one LoRA, in five ways.

With p_i the share of client i and s the scaling, the change that everybody together means is

    D = s · sum_i p_i · B_i·A_i

    average    A = sum p_i A_i,  B = sum p_i B_i      B·A is not D/s: the mean of products is not the
               product of means. What is missing is the covariance of B_i and A_i over clients.
    residual   the same, and R = D - s·B·A, a full matrix, added to the frozen weight: exact.
               FedEx-LoRA, arXiv 2410.09432. R has no low rank, so what is sent grows.
    stack      A = [A_1; ...; A_n],  B = [p_1 B_1, ..., p_n B_n]: exact, at rank sum_i r_i; merged into
               the frozen weight, after which clients begin afresh. FLoRA, arXiv 2409.05976.
    padded     `average` of factors filled up with zeros to the highest rank. A slice that few have is
               diluted by those who have nothing there. HetLoRA, arXiv 2401.06432, without its pruning.
    slices     each slice over those who have it (RBLA, arXiv 2408.08699).

Where A is the same for everybody (FFA-LoRA) `average` is exact; with several ranks, too, once every B
stands on the A of the highest rank (`ranks.on_whole_low`). `padded` and `slices` are not, for which
A is an unknown like B.

Pure functions on tensors of one dtype; they work in it. All of them need every client's factors, so
they are for simulation: a campaign of real edges learns sums alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offsite.emulator.lora_aggregation.factors import LoraFactors, Update
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.emulator.lora_aggregation.ranks import padded, slice_shares
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class LoraAggregate:
    """What comes of a round."""

    factors: dict[str, LoraFactors]
    """By layer. Of `stack` at the sum of the ranks: to be merged, not to be tuned further."""
    residual: dict[str, Tensor]
    """By layer, (out, in), to be added to the frozen weight as it is; empty where there is none."""
    scaling: float

    def change(self, layer: str) -> Tensor:
        """What it adds to the frozen weight of a layer, (out, in)."""
        change = self.scaling * self.factors[layer].product
        return change + self.residual[layer] if layer in self.residual else change


def aggregate_lora(
    kind: LoraAggregation, updates: Sequence[Update], weights: Sequence[float], scaling: float
) -> LoraAggregate:
    """The clients' factors as one.

    Args:
        updates: of at least one client, all of the same layers.
        weights: positive, one each, e.g. examples; they are divided by their sum.
        scaling: alpha / rank, the same for all clients whatever their rank.

    Raises:
        ConfigError: they do not belong together, or have several ranks and `kind` needs one.

    Guarantees:
        `residual` and `stack` change every layer by the weighted mean of what the clients' own
        products change (test_residual_and_stack_are_exact).
    """
    _check(kind, updates, weights)
    total = float(sum(weights))
    shares = [weight / total for weight in weights]
    combine = _COMBINE[kind]
    factors, residual = {}, {}
    for layer in updates[0]:
        own = [update[layer] for update in updates]
        factors[layer] = combine(own, shares)
        if kind is LoraAggregation.RESIDUAL:
            meant = _sum([one.product for one in own], shares)
            residual[layer] = scaling * (meant - factors[layer].product)
    return LoraAggregate(factors, residual, scaling)


def average(own: Sequence[LoraFactors], shares: Sequence[float]) -> LoraFactors:
    """Means of A and of B apart, of one rank."""
    low = _sum([one.low for one in own], shares)
    return LoraFactors(low, _sum([one.high for one in own], shares))


def stack(own: Sequence[LoraFactors], shares: Sequence[float]) -> LoraFactors:
    """Side by side; the shares go to B."""
    highs = [share * one.high for one, share in zip(own, shares, strict=True)]
    return LoraFactors(torch.cat([one.low for one in own]), torch.cat(highs, dim=1))


def average_padded(own: Sequence[LoraFactors], shares: Sequence[float]) -> LoraFactors:
    """Means over everybody, at the highest rank."""
    rank = max(one.rank for one in own)
    return average([padded(one, rank) for one in own], shares)


def average_slices(own: Sequence[LoraFactors], shares: Sequence[float]) -> LoraFactors:
    """Means of each slice over those who have it, at the highest rank."""
    ranks = [one.rank for one in own]
    full = [padded(one, max(ranks)) for one in own]
    dtype = own[0].low.dtype
    by_slice = slice_shares(ranks, torch.tensor(shares, dtype=dtype))  # (n, R)
    low = torch.stack([part[:, None] * one.low for part, one in zip(by_slice, full, strict=True)])
    high = torch.stack([part * one.high for part, one in zip(by_slice, full, strict=True)])
    return LoraFactors(low.sum(0), high.sum(0))


_COMBINE: Mapping[
    LoraAggregation, Callable[[Sequence[LoraFactors], Sequence[float]], LoraFactors]
] = {
    LoraAggregation.AVERAGE: average,
    LoraAggregation.RESIDUAL: average,
    LoraAggregation.STACK: stack,
    LoraAggregation.PADDED: average_padded,
    LoraAggregation.SLICES: average_slices,
}
ONE_RANK = frozenset({LoraAggregation.AVERAGE, LoraAggregation.RESIDUAL})


def _sum(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = shares[0] * values[0]
    for value, share in zip(values[1:], shares[1:], strict=True):
        total = total + share * value
    return total


def _check(kind: LoraAggregation, updates: Sequence[Update], weights: Sequence[float]) -> None:
    if not updates or len(updates) != len(weights):
        raise ConfigError(
            f"LoRA: expected a weight for each of at least one update, found {len(weights)} for "
            f"{len(updates)}"
        )
    if not all(0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"LoRA: expected finite weights above 0, found {min(weights)}")
    for update in updates:
        if update.keys() != updates[0].keys():
            raise ConfigError("LoRA: expected updates of the same layers")
    for layer in updates[0]:
        sizes = {(u[layer].low.shape[1], u[layer].high.shape[0]) for u in updates}
        ranks = {update[layer].rank for update in updates}
        if len(sizes) > 1:
            raise ConfigError(f"{layer}: expected one size of the layer, found {sorted(sizes)}")
        if len(ranks) > 1 and kind in ONE_RANK:
            raise ConfigError(
                f"{layer}: {kind.value} needs one rank, found {sorted(ranks)}; choose stack, padded "
                "or slices"
            )
