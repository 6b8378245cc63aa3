"""The tensors of a model that are stored, and putting others in their place."""

from collections.abc import Callable

import torch
from torch import nn


def named_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor that must be stored: parameters and persistent buffers, shared ones once."""
    weights: dict[str, torch.Tensor] = {n: p.detach() for n, p in model.named_parameters()}
    stored = model.state_dict().keys()
    return weights | {n: b.detach() for n, b in model.named_buffers() if n in stored}


def replace_parameters(model: nn.Module, new: Callable[[str, nn.Parameter], torch.Tensor]) -> None:
    """Swap every parameter for a frozen one over `new(name, old)`; ties are kept."""
    swapped: dict[int, nn.Parameter] = {}
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        if id(old) not in swapped:
            swapped[id(old)] = nn.Parameter(new(name, old), requires_grad=False)
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, swapped[id(old)])
