"""Linear layers of either orientation: `nn.Linear` and GPT-2's `Conv1D`, and factored ones.

`nn.Linear` stores its weight as (out, in), `Conv1D` as (in, out); both compute x·W + b. A
`FactoredLinear` is an `nn.Linear` whose weight is a product of two.
"""

from collections.abc import Iterator

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.emulator.factored import FactoredLinear
from offsite.secure.errors import PeerError

Linear = nn.Linear | Conv1D


def linear_layers(module: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Dotted path and layer of every linear layer inside, in the module's own order."""
    for name, layer in module.named_modules():
        if isinstance(layer, Linear):
            yield name, layer


def weight_out_in(layer: Linear) -> torch.Tensor:
    """The weight as (out, in): a view, or the product of a factored layer."""
    weight = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def out_dim(layer: Linear) -> int:
    """The axis of the stored weight that runs over the outputs."""
    return 1 if isinstance(layer, Conv1D) else 0


def features(layer: Linear) -> tuple[int, int]:
    """(in, out)."""
    if isinstance(layer, FactoredLinear):
        return layer.in_features, layer.out_features
    outputs, inputs = weight_out_in(layer).shape
    return inputs, outputs


def resize(layer: Linear, weight_shape: tuple[int, ...]) -> None:
    """Give the layer an empty weight, and bias, of another stored shape.

    The layer must be on the meta device: nothing is allocated and nothing is kept.
    """
    layer.weight = nn.Parameter(layer.weight.new_empty(weight_shape), requires_grad=False)
    inputs, outputs = features(layer)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.new_empty(outputs), requires_grad=False)
    if isinstance(layer, Conv1D):
        layer.nx, layer.nf = inputs, outputs
    else:
        layer.in_features, layer.out_features = inputs, outputs


def factor(name: str, layer: Linear, inputs: int, outputs: int, rank: int) -> FactoredLinear:
    """An empty factored layer to stand in the place of `layer`, where that one is.

    Raises PeerError, since a schema states the sizes, for a layer that computes more than x·W + b
    or a rank above the smaller size, with which factoring would make a layer larger.
    """
    if type(layer) not in (nn.Linear, Conv1D):
        raise PeerError(f"{name}: a {type(layer).__name__} cannot be factored")
    if not 1 <= rank <= min(inputs, outputs):
        raise PeerError(f"{name}: rank {rank}, expected 1 to {min(inputs, outputs)}")
    weight, bias = layer.weight, layer.bias is not None
    return FactoredLinear(
        inputs, outputs, rank, bias=bias, device=weight.device, dtype=weight.dtype
    )
