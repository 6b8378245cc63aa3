"""Correcting a LoRA, tuned beside compressed layers, for the full layers it is plugged into.

A LoRA (A, B) of scaling s was tuned beside E, the emulator's weight, and goes to W, the full one.
On the directions that it reads, the span of A's rows, what the data owner saw was (E + s·B·A)·x.
The corrected B' = B - (W - E)·A⁺/s makes the full layer do the same there:

    (W + s·B'·A)·x = (E + s·B·A)·x   for every x in the span of A's rows

and leaves it the full layer everywhere else. The owner holds both models, so no data is needed.

Notable decisions:

* Untouched means untouched. With B = 0 the formula would still replace W by E on directions that
  were drawn at random. So each direction is corrected in proportion to what was tuned along it: the
  correction is never longer than `clamp` times the tuned change. EMLoC bounds it by the same ratio
  (mean absolute values, 3); there the directions are the left singular vectors of A, whose lengths
  say how A was drawn. Here they are the right singular vectors of B·A, which say what was tuned,
  and do not depend on how the product is split into factors. What was not tuned is not corrected.
* The closed form is exact where the clamp does not bind; `clamp` = inf switches it off for every
  direction that was tuned at all.
* Only B is corrected, so it makes no difference whether A trained. Sums are in fp64. A is returned
  as it came, and so is B where W = E bit for bit: bottom, spread
  and top slots always, and the middle of a method that did not touch a layer.

Source: EMLoC, arXiv 2506.12015, section 3 (the idea); the code here is our own.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

from offsite.emulator.adapters.lora import FACTORS, LoraAdapter
from offsite.emulator.factored import FactoredLinear
from offsite.emulator.linear import Linear, weight_out_in
from offsite.secure.errors import ConfigError

CLAMP = 3.0
"""The longest a correction may be, in lengths of the tuned change on its direction."""
_RELATIVE_ZERO = 1e-12
"""Directions tuned less than this share of the most tuned one are rounding errors."""


@torch.no_grad()
def corrected(
    tensors: Mapping[str, torch.Tensor],
    adapter: LoraAdapter,
    base_model: nn.Module,
    emulator_model: nn.Module,
    clamp: float = CLAMP,
) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors for the full model, fp32; neither model is changed.

    Args:
        tensors: what was tuned on the emulator, by wire name.
        base_model, emulator_model: the adapter attached or not; their own weights are read.
        clamp: see the module; 0 corrects nothing.

    Raises:
        ConfigError: the clamp is negative or not a number, or layers do not fit each other.
    """
    if not clamp >= 0:
        raise ConfigError(f"the clamp of the correction is {clamp}; expected 0 or more")
    result = dict(tensors)
    emulator_layers = {t.wire_name: t.layer for t in adapter.targets(emulator_model)}
    for target in adapter.targets(base_model):
        full, small = target.layer, emulator_layers[target.wire_name]
        difference = _difference(target.wire_name, full, small)
        if not bool(difference.any()):
            continue
        low, high = adapter.factors(target, tensors)
        changed = corrected_factor(
            low.double(), high.double(), difference, adapter.spec.scaling, clamp
        )
        result[target.name(FACTORS[1])] = changed.to(high.dtype).contiguous()
    return result


def corrected_factor(
    low: torch.Tensor, high: torch.Tensor, difference: torch.Tensor, scaling: float, clamp: float
) -> torch.Tensor:
    """Return B' (out, rank) for A (rank, in), B (out, rank) and W - E (out, in).

    With B·A = U·S·Vᵀ, column j of the correction is (W - E)·v_j / scaling, cut to `clamp`·S_j, and
    B' = B - correction·Vᵀ·A⁺.
    """
    basis, triangle = torch.linalg.qr(low.T)  # A = triangleᵀ · basisᵀ, basis (in, rank)
    _, lengths, turned = torch.linalg.svd(high @ triangle.T, full_matrices=False)
    used = lengths > _RELATIVE_ZERO * lengths.max()
    tuned, along = lengths[used], turned[used] @ basis.T  # (K,), (K, in)
    correction = difference @ along.T / scaling  # (out, K)
    found = correction.norm(dim=0)
    allowed = tuned * clamp if math.isfinite(clamp) else torch.full_like(tuned, math.inf)
    correction *= (allowed / found.clamp_min(torch.finfo(found.dtype).tiny)).clamp_max(1.0)
    inverse = basis @ torch.linalg.pinv(triangle.T)  # A⁺ (in, rank)
    changed: torch.Tensor = high - correction @ (along @ inverse)
    return changed


def _difference(name: str, full: Linear, small: Linear) -> torch.Tensor:
    """W - E (out, in), in fp64 on the CPU."""
    wanted, found = _weight(full), _weight(small)
    if wanted.shape != found.shape:
        raise ConfigError(
            f"{name}: expected a layer of {tuple(wanted.shape)} in the emulator, found "
            f"{tuple(found.shape)}; an adapter cannot stand beside it"
        )
    return wanted - found


def _weight(layer: Linear) -> torch.Tensor:
    """The weight (out, in) in fp64; of a factored layer the product of its factors, unrounded."""
    if isinstance(layer, FactoredLinear):
        factors = (layer.up.weight.detach(), layer.down.weight.detach())
        up, down = (factor.cpu().double() for factor in factors)
        return up @ down
    return weight_out_in(layer).cpu().double()
