"""Whether a fused MLP projection holds gate and up in the order that pruning counts on."""

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.methods.block_activations import receiving, run
from offsite.emulator.methods.mlp import Mlp
from offsite.secure.errors import ConfigError


def check_fused_halves(
    model: PreTrainedModel, block: nn.Module, mlp: Mlp, keep: torch.Tensor, batch: torch.Tensor
) -> None:
    """Raises ConfigError unless a fused projection holds its two halves one after the other.

    Silencing both outputs of every channel that goes must leave the others as they were, which
    fails where gate and up are interleaved.
    """
    seen: list[torch.Tensor] = []
    gone = torch.ones(mlp.channels, dtype=torch.bool)
    gone[keep] = False
    silenced = gone.repeat(2)

    def silence(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill(silenced.to(output.device), 0.0)

    sample = batch[:1, :32]
    with receiving({0: block.get_submodule(mlp.down)}, lambda _, received: seen.append(received)):
        run(model, sample)
        handle = block.get_submodule(mlp.inputs[0]).register_forward_hook(silence)
        try:
            run(model, sample)
        finally:
            handle.remove()
    before, after = (received.flatten(0, -2)[:, keep.to(received.device)] for received in seen)
    if not torch.equal(before, after):
        raise ConfigError(
            f"{mlp.inputs[0]} does not hold gate and up one after the other, so its"
            " channels are unknown; use uniform_drop"
        )
