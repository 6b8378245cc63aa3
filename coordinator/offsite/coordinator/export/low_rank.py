"""Whole blocks as a LoRA: the best low-rank form of what tuning changed.

For every linear layer of the slots, with D the change of its weight (out, in),

    D ≈ B·A,  A (rank, in), B (out, rank),  from the largest singular values of D

which is the closest of its rank in the Frobenius norm (Eckart and Young, 1936). The square root of
each singular value goes to either side.

What a LoRA cannot hold, the changes of norms and biases, is dropped and named. How much of the
change is kept is known from the singular values; how much of the *gain* is kept is measured, by
scoring the full model with `LowRank.tensors`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.blocks import slot_blocks
from offsite.emulator.linear import linear_layers, out_dim
from offsite.secure.errors import ConfigError

EXACT_DIMENSION = 2048
"""Up to this size the full decomposition is taken, above it the randomised one."""
OVERSAMPLING = 16
ITERATIONS = 4


@dataclass(frozen=True, slots=True)
class LowRankOptions:
    """Rank at most; with `energy`, as much less as keeps that share of each layer's change."""

    rank: int = 64
    energy: float = 1.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank: expected at least 1, found {self.rank}")
        if not 0.0 < self.energy <= 1.0:
            raise ConfigError(f"energy: expected a share in (0, 1], found {self.energy}")


@dataclass(frozen=True, slots=True)
class Factors:
    """One layer's change as B·A; `path` is the layer's dotted name in the full model."""

    path: str
    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class LowRank:
    """The low-rank form of a whole-block adapter."""

    factors: Mapping[str, Factors]
    """By the wire name of the weight; layers that did not change are left out."""
    tensors: dict[str, Tensor]
    """The whole-block adapter that it amounts to, to be plugged in and scored."""
    kept_energy: float
    """Share of the squared change that is kept, over everything that was tuned."""
    dropped: tuple[str, ...]
    """Wire names of changed tensors that a LoRA cannot hold."""


def low_rank_form(
    model: nn.Module,
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    options: LowRankOptions,
) -> LowRank:
    """Decompose a tuned whole-block adapter against the untouched full model."""
    adapter.attach(model)
    originals = adapter.extract(model)
    adapter.detach(model)
    layers = _layers(model, adapter)
    changes = {name: tensors[name] - original for name, original in originals.items()}
    factors: dict[str, Factors] = {}
    result = dict(originals)
    for name, (path, transposed) in layers.items():
        change = changes[name].T if transposed else changes[name]
        if not bool(change.any()):
            continue
        a, b = _decompose(change, options)
        factors[name] = Factors(path, a, b)
        product = b @ a
        result[name] = originals[name] + (product.T if transposed else product)
    lost = sum(_squares(tensors[name] - result[name]) for name in originals)
    total = sum(_squares(change) for change in changes.values())
    dropped = tuple(n for n, change in changes.items() if n not in layers and bool(change.any()))
    kept = 1.0 - lost / total if total else 1.0
    return LowRank(factors, result, kept, dropped)


def kept_share(full: float, plug_in: float, low_rank: float) -> float | None:
    """Share of the gain over the full model that is left; None where there was no gain."""
    gain = plug_in - full
    return (low_rank - full) / gain if gain > 0 else None


def _layers(model: nn.Module, adapter: Adapter) -> dict[str, tuple[str, bool]]:
    """Wire name of every linear weight in the slots to its layer's path and orientation."""
    found = {}
    for slot, (path, block) in slot_blocks(model, adapter.layer_map).items():
        for name, layer in linear_layers(block):
            found[f"{slot}.{name}.weight"] = (f"{path}.{name}", out_dim(layer) == 1)
    return found


def _decompose(change: Tensor, options: LowRankOptions) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) of a change (out, in)."""
    rank = min(options.rank, *change.shape)
    u, s, v = _singular(change, rank)  # (out, k), (k), (in, k)
    if options.energy < 1.0:
        shares = s.double().square().cumsum(0) / change.double().square().sum()
        rank = min(rank, int((shares < options.energy).sum()) + 1)
    root = s[:rank].sqrt()
    return (v[:, :rank] * root).T.contiguous(), (u[:, :rank] * root).contiguous()


def _singular(change: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    if min(change.shape) <= max(EXACT_DIMENSION, 2 * rank):
        u, s, vh = torch.linalg.svd(change.float(), full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank].T
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same adapter gives the same export
        q = min(rank + OVERSAMPLING, *change.shape)
        u, s, v = torch.svd_lowrank(change.float(), q=q, niter=ITERATIONS)
    return u[:, :rank], s[:rank], v[:, :rank]


def _squares(values: Tensor) -> float:
    return float(values.double().square().sum())
