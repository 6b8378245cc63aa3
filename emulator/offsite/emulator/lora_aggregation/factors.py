"""The two factors of a LoRA's product, layer by layer.

With s the scaling (alpha / rank), a layer computes x·(W + s·B·A)ᵀ, A (rank, in) and B (out, rank).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from offsite.secure.errors import ConfigError

LOW, HIGH = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """One layer's factors."""

    low: Tensor
    """A (rank, in)."""
    high: Tensor
    """B (out, rank)."""

    def __post_init__(self) -> None:
        shapes = tuple(self.low.shape), tuple(self.high.shape)
        if self.low.dim() != 2 or self.high.dim() != 2 or shapes[0][0] != shapes[1][1]:
            raise ConfigError(
                f"LoRA: expected A (rank, in) and B (out, rank), found {shapes[0]} and {shapes[1]}"
            )

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.low.shape[0]

    @property
    def product(self) -> Tensor:
        """B·A (out, in), without the scaling."""
        return self.high @ self.low

    def first(self, rank: int) -> "LoraFactors":
        """The first `rank` slices, for a client that can hold no more."""
        return LoraFactors(self.low[:rank], self.high[:, :rank])


Update = Mapping[str, LoraFactors]
"""A client's factors by layer, as tuned: values, not differences."""


def factors_of(tensors: Mapping[str, Tensor]) -> dict[str, LoraFactors]:
    """The layers of an adapter whose A and B both have names on the wire.

    Raises:
        ConfigError: a tensor is no factor, or the other one is missing.
    """
    layers = {name.removesuffix(LOW).removesuffix(HIGH): None for name in tensors}
    found = {}
    for layer in layers:
        low, high = tensors.get(layer + LOW), tensors.get(layer + HIGH)
        if low is None or high is None:
            raise ConfigError(f"{layer}: expected both factors of a LoRA, {LOW} and {HIGH}")
        found[layer] = LoraFactors(low, high)
    return found


def tensors_of(factors: Update) -> dict[str, Tensor]:
    """The other way round."""
    tensors = {}
    for layer, one in factors.items():
        tensors[layer + LOW], tensors[layer + HIGH] = one.low, one.high
    return tensors
