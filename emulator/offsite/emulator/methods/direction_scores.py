"""What it costs to remove one direction of a weight, or one channel of an MLP.

Removing component c changes the weights by ΔW_c. Two figures say what follows:

    curvature   ½·ΔW_cᵀ·F·ΔW_c with the Fisher matrix F: how far the predictions move, and with
                them every gradient that is taken through the layer
    slope       ⟨∇loss, ΔW_c⟩: how the emulator's own loss on the calibration text changes

*Directions.* With the Kronecker factors A = E[x·xᵀ] and G = E[g·gᵀ], F = A ⊗ G, the weight is
split as G½·W·A½ = Σ_c σ_c·u_c·v_cᵀ, so ΔW_c = −up_c·down_c with up_c = G^(−½)·u_c and
down_c = u_cᵀ·G½·W. The curvature of any set of directions is the sum of theirs, and keeping the
largest is the best of all maps of that rank under F; on the singular directions of W itself
neither holds.

*Channels.* Channel j of an MLP gives a_j·W_down[:, j] to the block's output. With G taken as a
multiple of the identity, its curvature is E[a_j²]·‖W_down[:, j]‖² up to a constant of the MLP,
which drops out, since scores count as shares of their total. The full G, the gradient that the
channel hands on to the blocks below, and both together were measured and gave worse emulators, with
no gain in gradients that held at every ratio: half of the channels go at once, and what a gradient says of the first one to go no longer holds for the last. The slope
is −E[a_j·∂loss/∂a_j].

Source: score of GradOT (arXiv 2507.04455: curvature less λ times slope); basis of generalised
Fisher-weighted SVD (arXiv 2505.17974).
"""

from dataclasses import dataclass

import torch

from offsite.emulator.linear import Linear, weight_out_in
from offsite.emulator.methods.gradient_statistics import LayerMoments

DAMPING = 1e-3
"""Added to the diagonals of A and G, as a share of their mean."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Of the components of one weight or MLP, (C,) fp64 on the CPU."""

    curvature: torch.Tensor
    slope: torch.Tensor

    def combined(self, slope_weight: float) -> torch.Tensor:
        """What keeping a component is worth: curvature − λ·slope, each as a share of its total."""
        curvature = self.curvature / _total(self.curvature)
        if not slope_weight:
            return curvature
        return curvature - slope_weight * self.slope / _total(self.slope)


@dataclass(frozen=True, slots=True)
class Directions:
    """A weight (out, in) as a sum of C rank-one maps up[:, c]·down[c], fp64, with their scores."""

    up: torch.Tensor  # (out, C)
    down: torch.Tensor  # (C, in)
    scores: Scores

    def low_rank(self, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """down (rank, in) and up (out, rank) of some directions, their scale shared evenly."""
        down, up = self.down[keep], self.up[:, keep]
        tiny = torch.finfo(torch.float32).tiny
        scale = (up.norm(dim=0).clamp_min(tiny) / down.norm(dim=1).clamp_min(tiny)).sqrt()
        return down * scale[:, None], up / scale


def directions(layer: Linear, moments: LayerMoments) -> Directions:
    """The directions of a layer in the basis of its Kronecker factors."""
    weight = weight_out_in(layer).double()
    inputs, gradients = moments.inputs.double(), moments.gradients.double()
    root_out, inverse_out = _roots(gradients)
    # Not bound to a name: square matrices in fp64 are large beside a model in bf16.
    left = torch.linalg.svd(root_out @ weight @ _roots(inputs)[0], full_matrices=False).U
    up, down = inverse_out @ left, left.T @ root_out @ weight
    curvature = ((gradients @ up) * up).sum(0) * ((down @ inputs) * down).sum(1) / 2
    slope = -((up.T @ moments.slope.double()) * down).sum(1)
    return Directions(up, down, Scores(curvature.cpu(), slope.cpu()))


def _roots(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The symmetric square root of a damped moment, and its inverse."""
    mean = moment.diagonal().mean() + torch.finfo(torch.float32).tiny
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(0.0) + DAMPING * mean
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T


class ChannelMoments:
    """Sums over tokens for the channels of one MLP: (I,) fp64, on the layer's device."""

    def __init__(self, down: Linear) -> None:
        self._weight = weight_out_in(down)
        channels = self._weight.shape[1]
        zeros = torch.zeros(channels, dtype=torch.float64, device=self._weight.device)
        self._squares, self._slope = zeros, zeros.clone()

    def see(self, a: torch.Tensor, g: torch.Tensor) -> None:
        """Adds some tokens: channels (tokens, I), gradients of the down projection's outputs."""
        b = g @ self._weight.float()  # ∂loss/∂a (tokens, I)
        self._squares += a.square().sum(0, dtype=torch.float64)
        self._slope -= (a * b).sum(0, dtype=torch.float64)

    def scores(self, tokens: int) -> Scores:
        """Means over that many tokens."""
        norms = self._weight.double().square().sum(0)
        return Scores((self._squares * norms / tokens).cpu(), (self._slope / tokens).cpu())


def _total(values: torch.Tensor) -> torch.Tensor:
    """The sum of sizes, never 0."""
    return values.abs().sum().clamp_min(torch.finfo(torch.float64).tiny)
