"""Linear layers: `nn.Linear`, GPT-2's `Conv1D`, and so both factors of LoRA.

*Semantics*: y = x·Wᵀ + b;  ∂W[b] = Σₜ g[b, t]·x[b, t]ᵀ,  ∂b[b] = Σₜ g[b, t],  ∂x = g·W

with x [B, T, in], g [B, T, out], W (out, in); `Conv1D` stores Wᵀ. Autograd sums ∂W[b] over the rows
as well: the products are as many here, only their sums end earlier.
"""

from typing import Protocol

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from offsite.emulator.privacy.per_example.sites.site import Site


class LinearSite(Site):
    """See the module."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether the module computes x·Wᵀ + b and nothing more; a subclass may."""
        return type(module) in (nn.Linear, Conv1D)

    def forward(self, x: torch.Tensor, by_row: torch.Tensor) -> torch.Tensor:
        weight, bias = self.module.weight, self.module.bias
        output: torch.Tensor = _Linear.apply(by_row, weight, bias, self)  # type: ignore[no-untyped-call]
        return output.view(*x.shape[:-1], output.shape[-1])

    @property
    def is_transposed(self) -> bool:
        """Whether the weight is stored as (in, out)."""
        return isinstance(self.module, Conv1D)

    def record(self, x: torch.Tensor, g: torch.Tensor) -> None:
        """Write the gradients of rows, from the input [B, ..., in] and the output's gradient."""
        x, g = x.flatten(1, -2), g.flatten(1, -2)
        if "weight" in self.names:
            left, right = (x, g) if self.is_transposed else (g, x)
            self.buffer.add_products(self.names["weight"], left, right)
        if "bias" in self.names:
            self.buffer.add(self.names["bias"], g.sum(1, dtype=torch.float32))


class _Context(Protocol):
    """What autograd keeps between the two directions."""

    site: LinearSite
    saved_tensors: tuple[torch.Tensor, torch.Tensor]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


class _Linear(Function):
    """Weight and bias are arguments for autograd to come by, even where x needs no gradient."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        site: LinearSite,
    ) -> torch.Tensor:
        ctx.site = site
        ctx.save_for_backward(x, weight)
        output: torch.Tensor = site.plain(x)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.site.record(x, g)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return g @ (weight.T if ctx.site.is_transposed else weight), None, None, None
