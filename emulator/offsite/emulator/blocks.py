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
    """Slot name to (dotted path, block), in the full model or in its emulator."""
    blocks = find_blocks(model)
    is_emulator = is_emulator_of(blocks, layer_map)
    result = {}
    for slot in layer_map.slots:
        index = slot.emulator_block if is_emulator else slot.base_block
        result[slot.name] = (blocks.name_of(index), blocks.modules[index])
    return result


def is_emulator_of(blocks: Blocks, layer_map: LayerMap) -> bool:
    """Whether blocks are the emulator's and not the full model's.

    Where both have the same number, either every block was kept and the positions agree, or some
    are shared: the emulator is the one in which a repeated block has the parameters of the first.

    Raises:
        ConfigError: they are neither's.
    """
    count, kept = len(blocks.modules), layer_map.kept
    if count not in (layer_map.base_blocks, len(kept)):
        raise ConfigError(
            f"the model has {count} blocks; the layer map is of a model of"
            f" {layer_map.base_blocks} and an emulator of {len(kept)}"
        )
    if len(kept) != layer_map.base_blocks or len(set(kept)) == len(kept):
        return count != layer_map.base_blocks
    repeat = next(i for i in range(1, len(kept)) if kept[i] == kept[i - 1])
    own, first = ({id(p) for p in blocks.modules[i].parameters()} for i in (repeat, repeat - 1))
    return not own.isdisjoint(first)


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
