"""What of a block can be made smaller, in which steps, and what a ratio leaves it to spend.

The attention projections of a block may lose directions, its MLP channels; biases, norms and
everything else stay. Ranks and channels come in multiples of 8, and at least 5 % of either stay.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from offsite.emulator.blocks import in_attention, mlp_layers, parameter_count
from offsite.emulator.linear import Linear, features, linear_layers
from offsite.emulator.methods.mlp import CHANNEL_MULTIPLE, Mlp, find_mlp
from offsite.emulator.methods.rank_choice import Options
from offsite.secure.errors import ConfigError

PROTECTED_SHARE = 0.05
"""Of directions, and of channels, what stays at least."""


@dataclass(frozen=True, slots=True)
class BlockParts:
    """What of a block can be made smaller, and what that costs."""

    attention: Mapping[str, Linear]
    mlp: Mlp
    down: Linear  # of the MLP
    options: Mapping[str, Options]  # of every projection, and of the MLP under the path of its down
    fixed: int  # parameters of everything else

    @classmethod
    def of(cls, block: nn.Module) -> "BlockParts":
        """Raises ConfigError for an MLP of unknown make."""
        mlp = find_mlp(block)
        attention = {n: layer for n, layer in linear_layers(block) if in_attention(block, n)}
        options = {path: _rank_options(layer) for path, layer in attention.items()}
        options[mlp.down] = _channel_options(block, mlp)
        fixed = parameter_count(block) - sum(option.costs[-1] for option in options.values())
        return cls(attention, mlp, mlp_layers(block)[mlp.down], options, fixed)

    @property
    def least(self) -> int:
        """Parameters that stay at least."""
        return self.fixed + sum(option.costs[0] for option in self.options.values())


def budgets_of(
    blocks: Mapping[int, nn.Module], parts: Mapping[int, BlockParts], ratio: float
) -> dict[int, int]:
    """What each block may spend on projections and channels, `ratio` of it being kept.

    Raises ConfigError that names the smallest ratio there is.
    """
    totals = {index: parameter_count(block) for index, block in blocks.items()}
    smallest = max(parts[index].least / totals[index] for index in blocks)
    if ratio < smallest:
        raise ConfigError(
            f"gradient cannot keep only {ratio:g} of the middle: the strongest directions and"
            " channels stay, and what is neither a projection nor an MLP, so the smallest ratio"
            f" for this model is {math.ceil(1000 * smallest) / 1000:.3f}; or use uniform_drop"
        )
    return {index: int(ratio * totals[index]) - parts[index].fixed for index in blocks}


def _rank_options(layer: Linear) -> Options:
    """The ranks that save parameters, from the protected ones on, and the dense layer."""
    options = Options.of(*features(layer))
    least = PROTECTED_SHARE * min(features(layer))
    first = next(i for i, rank in enumerate(options.ranks) if rank is None or rank >= least)
    return Options(options.ranks[first:], options.costs[first:])


def _channel_options(block: nn.Module, mlp: Mlp) -> Options:
    """Multiples of 8 channels from the protected ones on, and all."""
    least = math.ceil(PROTECTED_SHARE * mlp.channels / CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE
    counts = (*range(least, mlp.channels, CHANNEL_MULTIPLE), mlp.channels)
    cost = mlp.channel_parameters(block)
    return Options(counts, tuple(count * cost for count in counts))
