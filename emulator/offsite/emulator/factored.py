"""A linear layer of low rank: two thin matrices in the place of one.

`FactoredLinear` computes x·downᵀ·upᵀ + b with down (rank, in) and up (out, rank). It takes the
place of an `nn.Linear` or a GPT-2 `Conv1D`, and is stored as `<path>.down.weight`,
`<path>.up.weight` and `<path>.bias`.

Notable decisions: it is an `nn.Linear` to everything that asks, so `peft` puts LoRA beside it; its
two matrices are not, so nothing puts LoRA beside them. `weight` is the product, computed on every
access and never a parameter.
"""

import torch
from torch import nn
from torch.nn import functional

DOWN, UP = "down.weight", "up.weight"
"""Names of the two matrices below the layer."""


class Factor(nn.Module):
    """One of the matrices; it computes nothing by itself."""

    def __init__(self, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        empty = torch.empty(shape, device=device, dtype=dtype)
        self.weight = nn.Parameter(empty, requires_grad=False)


class FactoredLinear(nn.Linear):
    """See the module. Its parameters start uninitialised."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.in_features, self.out_features = in_features, out_features
        self.down = Factor((rank, in_features), device, dtype)
        self.up = Factor((out_features, rank), device, dtype)
        empty = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter(
            "bias", None if empty is None else nn.Parameter(empty, requires_grad=False)
        )

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """up·down, (out, in)."""
        return self.up.weight @ self.down.weight

    @property
    def rank(self) -> int:
        """Inner size."""
        return self.down.weight.shape[0]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        low = functional.linear(input, self.down.weight)
        return functional.linear(low, self.up.weight, self.bias)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
