"""`nn.LayerNorm` over the last axis, by torch's own kernels.

*Semantics*: y = n·w + v with n = (x - mean(x)) / std(x) over the last axis;
∂w[b] = Σₜ g[b, t]·n[b, t],  ∂v[b] = Σₜ g[b, t],  ∂x as ever

Notable: like torch, it keeps x with mean and 1/std, never n. Written as two steps that autograd
knows, GPT-2's whole blocks took a tenth more time.
"""

from typing import Protocol

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from offsite.emulator.privacy.per_example.sites.site import Site


class LayerNormSite(Site):
    """See the module."""

    module: nn.LayerNorm

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether the module is exactly this, with a weight."""
        return (
            type(module) is nn.LayerNorm
            and len(module.normalized_shape) == 1
            and module.elementwise_affine
        )

    def forward(self, x: torch.Tensor, by_row: torch.Tensor) -> torch.Tensor:
        weight, bias = self.module.weight, self.module.bias
        output: torch.Tensor = _LayerNorm.apply(by_row, weight, bias, self)  # type: ignore[no-untyped-call]
        return output.view_as(x)

    def record(self, normalised: torch.Tensor, g: torch.Tensor) -> None:
        """Write the gradients of rows, from n and the output's gradient, [B, ..., H] in fp32."""
        if "weight" in self.names:
            self.buffer.add(self.names["weight"], (g * normalised).flatten(1, -2).sum(1))
        if "bias" in self.names:
            self.buffer.add(self.names["bias"], g.flatten(1, -2).sum(1))


Saved = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


class _Context(Protocol):
    """What autograd keeps between the two directions."""

    site: LayerNormSite
    saved_tensors: Saved

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None: ...


class _LayerNorm(Function):
    """Weight and bias are arguments for autograd to come by, even where x needs no gradient."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        site: LayerNormSite,
    ) -> torch.Tensor:
        module = site.module
        output, mean, inverse = torch.native_layer_norm(
            x, module.normalized_shape, weight, bias, module.eps
        )
        ctx.site = site
        ctx.save_for_backward(x, mean, inverse, weight, bias)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        x, mean, inverse, weight, bias = ctx.saved_tensors
        ctx.site.record((x.float() - mean).mul_(inverse), g.float())
        shape = ctx.site.module.normalized_shape
        gradient: torch.Tensor = torch.ops.aten.native_layer_norm_backward(
            g, x, shape, mean, inverse, weight, bias, [True, False, False]
        )[0]
        return gradient, None, None, None
