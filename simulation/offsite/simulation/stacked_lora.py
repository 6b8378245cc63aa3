"""Several clients' LoRA beside one frozen weight, W.

    y[b] = x[b]·Wᵀ + s · x[b]·A[k]ᵀ·B[k]ᵀ,   k the owner of row b

A row of a batch is one client's example, and only that client's factors see it, so K clients are
tuned in one pass over the frozen model, and each one's gradients are what they would be alone. Where
A does not train it is one for all (FFA-LoRA).

Axes: `B` rows, `T` tokens, `K` clients, `R` rank.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.adapters.adapter import TrainedFactors
from offsite.emulator.adapters.lora import ADAPTER_NAME, FACTORS, LoraAdapter


@dataclass(slots=True)
class Owners:
    """Whose the rows of the batch at hand are."""

    of_row: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """[B] int64, numbers below K."""


class StackedLinear(nn.Module):
    """A frozen layer with K clients' factors beside it, all fp32."""

    def __init__(
        self, base: nn.Module, low: torch.Tensor, high: nn.Parameter, scaling: float, owners: Owners
    ) -> None:
        """`low`: (K, R, in) where it trains, else (R, in); `high`: (K, out, R)."""
        super().__init__()
        self.base = base
        self.low: torch.Tensor
        if isinstance(low, nn.Parameter):
            self.low = low
        else:
            self.register_buffer("low", low, persistent=False)
        self.high, self.scaling, self._owners = high, scaling, owners

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T, in] -> [B, T, out]; some models give [B·T, in]."""
        rows = self._owners.of_row
        result: torch.Tensor = self.base(inputs)
        x = inputs.to(self.high.dtype).view(len(rows), -1, inputs.shape[-1])
        low = self.low if self.low.dim() == 2 else self.low[rows].transpose(1, 2)
        narrow = x @ low.T if self.low.dim() == 2 else torch.bmm(x, low)  # [B, T, R]
        change = torch.bmm(narrow, self.high[rows].transpose(1, 2)) * self.scaling
        return (result + change.view(*result.shape)).to(result.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """A model in which K clients tune at once."""

    model: PreTrainedModel
    parameters: Mapping[str, nn.Parameter]
    """By adapter name, (K, ...)."""
    owners: Owners


@contextmanager
def stacked(
    model: PreTrainedModel, adapter: LoraAdapter, base: Mapping[str, torch.Tensor], clients: int
) -> Iterator[Stack]:
    """The model, its adapter attached, with `clients` copies of the factors; as before when left.

    Args:
        base: the values that all of them start from, by adapter name.
    """
    owners, parameters = Owners(), dict[str, nn.Parameter]()
    places: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for target in adapter.targets(model):
            parent, _, name = target.path.rpartition(".")
            lora = model.get_submodule(target.path)
            assert isinstance(lora, LoraLayer) and isinstance(lora, nn.Module)  # attached
            names = [target.name(factor) for factor in FACTORS]
            drawn = getattr(lora, FACTORS[0])[ADAPTER_NAME].weight.detach()
            low: torch.Tensor = drawn
            if adapter.spec.trains is TrainedFactors.AB:
                low = parameters[names[0]] = _copies(base[names[0]], clients, drawn.device)
            high = parameters[names[1]] = _copies(base[names[1]], clients, drawn.device)
            layer = StackedLinear(lora.get_base_layer(), low, high, adapter.spec.scaling, owners)
            holder = model.get_submodule(parent)
            places.append((holder, name, lora))
            setattr(holder, name, layer)
        yield Stack(model, parameters, owners)
    finally:
        for holder, name, lora in places:
            setattr(holder, name, lora)


def _copies(values: torch.Tensor, clients: int, device: torch.device) -> nn.Parameter:
    return nn.Parameter(values.to(device, torch.float32).expand(clients, *values.shape).clone())
