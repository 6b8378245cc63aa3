"""Finding a block's feed-forward network by structure, to make it narrower.

An MLP maps H to I channels, acts on each channel alone, and maps back: its down projection is the
block's last linear layer outside attention, (I, H), and its input projections are all others,
(H, I) each, or one (H, 2·I) whose first half gates the second. That covers gated and plain MLPs,
`nn.Linear` and `Conv1D`, and MLPs without a module of their own (OPT).

Rule: what does not fit exactly (experts, a norm over the channels) is refused, not guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from offsite.emulator.blocks import in_attention, mlp_layers
from offsite.emulator.linear import Linear, features, out_dim
from offsite.secure.errors import ConfigError

CHANNEL_MULTIPLE = 8
"""Pruned MLPs have a multiple of so many channels, for matrix units."""


@dataclass(frozen=True, slots=True)
class Mlp:
    """Dotted paths inside the block, and the number of channels."""

    inputs: tuple[str, ...]
    down: str
    channels: int
    is_fused: bool  # one input projection holds gate and up, one after the other

    def select(
        self, block: nn.Module, weights: dict[str, torch.Tensor], keep: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The block's weights with only the channels `keep` (ascending indices); all new."""
        keep = keep.to(_linear(block, self.down).weight.device)
        rows = torch.cat([keep, keep + self.channels]) if self.is_fused else keep
        axes = {f"{self.down}.weight": (1 - out_dim(_linear(block, self.down)), keep)}
        for path in self.inputs:
            axes[f"{path}.weight"] = (out_dim(_linear(block, path)), rows)
            axes[f"{path}.bias"] = (0, rows)
        return {
            name: tensor.index_select(*axes[name]) if name in axes else tensor.clone()
            for name, tensor in weights.items()
        }

    def channel_parameters(self, block: nn.Module) -> int:
        """Parameters that go with one channel."""
        hidden = features(_linear(block, self.down))[1]
        per_channel = hidden
        for path in self.inputs:
            has_bias = _linear(block, path).bias is not None
            per_channel += (hidden + has_bias) * (2 if self.is_fused else 1)
        return per_channel


def find_mlp(block: nn.Module) -> Mlp:
    """The MLP of a block. Raises ConfigError when the block is not built as described above."""
    layers = mlp_layers(block)
    if len(layers) < 2:
        raise _unknown(block, f"found {len(layers)} linear layers outside attention")
    *inputs, down = layers
    sizes = [features(layer) for layer in layers.values()]
    channels, hidden = sizes[-1]
    if odd := odd_input(sizes):
        raise _unknown(block, f"{inputs[sizes.index(odd)]} has (in, out) {odd}")
    is_fused = sizes[0] == (hidden, 2 * channels)
    _refuse_other_channel_weights(block, layers, hidden, channels)
    return Mlp(tuple(inputs), down, channels, is_fused)


def odd_input(sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first input projection that does not fit the down projection, which is the last.

    Sizes are (in, out): (H, I) for every input, or one (H, 2·I), and (I, H).
    """
    *inputs, (channels, hidden) = sizes
    if inputs == [(hidden, 2 * channels)]:
        return None
    return next((size for size in inputs if size != (hidden, channels)), None)


def _refuse_other_channel_weights(
    block: nn.Module, layers: dict[str, Linear], hidden: int, channels: int
) -> None:
    """A norm or gate over the channels would not shrink with them."""
    own = tuple(f"{path}." for path in layers)
    for name, parameter in block.named_parameters():
        if name.startswith(own) or in_attention(block, name) or channels == hidden:
            continue
        if channels in parameter.shape:
            raise _unknown(block, f"{name} has the channels too, shape {list(parameter.shape)}")


def _linear(block: nn.Module, path: str) -> Linear:
    layer = block.get_submodule(path)
    assert isinstance(layer, Linear)  # find_mlp took the path from linear_layers
    return layer


def _unknown(block: nn.Module, found: str) -> ConfigError:
    return ConfigError(
        f"channel pruning does not know the MLP of {type(block).__name__}: {found};"
        " expected input projections (hidden, channels) and one down projection; use uniform_drop"
    )
