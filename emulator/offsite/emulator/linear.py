"""Linear layers of either orientation: `nn.Linear` and GPT-2's `Conv1D`.

`nn.Linear` stores its weight as (out, in), `Conv1D` as (in, out); both compute x·W + b.
"""

from collections.abc import Iterator

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Linear = nn.Linear | Conv1D


def linear_layers(module: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Dotted path and layer of every linear layer inside, in the module's own order."""
    for name, layer in module.named_modules():
        if isinstance(layer, Linear):
            yield name, layer


def weight_out_in(layer: Linear) -> torch.Tensor:
    """A view of the weight as (out, in)."""
    weight = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def out_dim(layer: Linear) -> int:
    """The axis of the stored weight that runs over the outputs."""
    return 1 if isinstance(layer, Conv1D) else 0


def features(layer: Linear) -> tuple[int, int]:
    """(in, out)."""
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
