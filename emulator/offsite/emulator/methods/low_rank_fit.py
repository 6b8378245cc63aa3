"""The best low-rank form of a linear map, weighed by what it is applied to.

*Semantics*: of all maps of rank r, up·down minimises E‖W·x − up·down·x‖² = ‖(W − up·down)·S‖²,
where S·Sᵀ = E[x·xᵀ].

The optimum is the truncated SVD of the whitened W·S = U·Σ·Vᵀ, times S⁻¹. Since
U_r·U_rᵀ·W·S = U_r·Σ_r·V_rᵀ, the same map is U_r·(U_rᵀ·W): no inverse of S is needed, so moments may
be singular, and U comes from the smaller of two symmetric matrices:

    W·E[x·xᵀ]·Wᵀ (out, out)      where there are no more outputs than inputs
    Lᵀ·Wᵀ·W·L    (in, in)        with E[x·xᵀ] = L·Lᵀ, otherwise; then U = W·L·V·Σ⁻¹

A ridge adds ε·‖W − up·down‖², so that directions without activations are not arbitrary.

Source: SVD-LLM (arXiv 2403.07378, section 3.1: truncation-aware whitening), with the projection
form of the same optimum.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Directions of a map's outputs by how much of E‖W·x‖² they carry, the largest first."""

    energy: torch.Tensor  # (k,) fp64, k = min(in, out); sums to E‖W·x‖² with the ridge
    directions: torch.Tensor  # (out, k) fp64, orthonormal columns

    def low_rank(self, weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best `rank` form of the weight (out, in): down (rank, in), up (out, rank), fp64.

        The two share the scale evenly, which trains and rounds better than one orthonormal side.
        """
        up = self.directions[:, :rank]
        down = up.T @ weight.double()
        scale = down.norm(dim=1).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        return down / scale[:, None], up * scale


def spectrum_by_outputs(outputs_moment: torch.Tensor) -> Spectrum:
    """Of the second moment of the outputs, E[W·x·(W·x)ᵀ], (out, out)."""
    energy, directions = torch.linalg.eigh(outputs_moment.double())
    return Spectrum(energy.flip(0).clamp_min(0.0), directions.flip(1))


def spectrum_by_inputs(weight: torch.Tensor, inputs_moment: torch.Tensor) -> Spectrum:
    """Of a weight (out, in) and the second moment of its inputs, E[x·xᵀ], (in, in)."""
    outputs, inputs = weight.shape
    weight, moment = weight.double(), inputs_moment.double()
    if outputs <= inputs:
        return spectrum_by_outputs(weight @ moment @ weight.T)
    values, vectors = torch.linalg.eigh(moment)
    whitened = weight @ (vectors * values.clamp_min(0.0).sqrt())  # (out, in)
    energy, right = torch.linalg.eigh(whitened.T @ whitened)
    energy, right = energy.flip(0).clamp_min(0.0), right.flip(1)
    # The QR makes columns orthonormal that a vanishing energy would leave without a direction.
    directions, triangle = torch.linalg.qr(whitened @ right)
    signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return Spectrum(energy, directions * signs)


def ridge_of(moment_trace: float, size: int, share: float) -> float:
    """`share` of the mean of a moment's diagonal; never 0, so that all-zero inputs are fine."""
    return share * moment_trace / size + torch.finfo(torch.float32).tiny
