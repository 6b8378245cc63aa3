"""Finding the transformer blocks of a decoder, and the slots among them, by structure.

No list of model classes: the blocks are the `ModuleList` of layers of one class that holds the
most parameters. That is true of every decoder of the transformers library that stacks one kind
of block. Inside a block, attention is what takes an attention mask; the linear layers outside it
are the MLP's.
"""

import inspect
from dataclasses import dataclass

from torch import nn

from offsite.emulator.layer_map import LayerMap
from offsite.emulator.linear import Linear, linear_layers
from offsite.secure.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Blocks:
    """The block list of a model and the dotted path at which it stands."""

    path: str
    modules: nn.ModuleList

    def name_of(self, index: int) -> str:
        """The dotted path of one block."""
        return f"{self.path}.{index}"


def find_blocks(model: nn.Module) -> Blocks:
    """The list of the model's transformer blocks. Raises ConfigError when there is none."""
    found = [
        Blocks(path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1
    ]
    if not found:
        raise ConfigError(
            f"no list of equal transformer blocks in {type(model).__name__};"
            " expected a decoder-only model that stacks blocks of one class"
        )
    return max(found, key=lambda blocks: parameter_count(blocks.modules))


def slot_blocks(model: nn.Module, layer_map: LayerMap) -> dict[str, tuple[str, nn.Module]]:
    """Slot name to (dotted path, block), in the full model or in its emulator.

    Which of the two `model` is follows from its number of blocks: where both have the same
    number, every block was kept and the positions agree.
    """
    blocks = find_blocks(model)
    count = len(blocks.modules)
    if count not in (layer_map.base_blocks, len(layer_map.kept)):
        raise ConfigError(
            f"the model has {count} blocks; the layer map is of a model of"
            f" {layer_map.base_blocks} and an emulator of {len(layer_map.kept)}"
        )
    is_base = count == layer_map.base_blocks
    result = {}
    for slot in layer_map.slots:
        index = slot.base_block if is_base else slot.emulator_block
        result[slot.name] = (blocks.name_of(index), blocks.modules[index])
    return result


def mlp_layers(block: nn.Module) -> dict[str, Linear]:
    """The linear layers of a block outside its attention, by path inside the block, in order."""
    return {name: layer for name, layer in linear_layers(block) if not in_attention(block, name)}


def in_attention(block: nn.Module, name: str) -> bool:
    """Whether any module around `name`, below the block, takes an attention mask."""
    parts = name.split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts))]
    return any(
        "attention_mask" in inspect.signature(block.get_submodule(path).forward).parameters
        for path in paths
    )


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
