"""Which tensors of an emulator are packed, and putting the packed values into one that is measured.

Packed are the weights with two axes or more of the compressed middle: of its blocks, their factors
where a layer is factored, and the harmonisers. Never the slots, for what trains there must start
as the full model has it; never embeddings, the head, norms and biases.

Notable: LoRA may cover a compressed block too (slots named `middle.`); the block itself is packed,
the adapter is not part of it.
"""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.emulator.blocks import find_blocks
from offsite.emulator.harmoniser import HARMONISERS
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.linear import out_dim
from offsite.emulator.packing.packing import Packing, is_packable, pack, unpack
from offsite.emulator.schema import spec_of


def packed_axes(model: nn.Module, layer_map: LayerMap) -> dict[str, int]:
    """Name of every tensor to pack, to the axis of its inputs, over which int8 shares a scale."""
    blocks = find_blocks(model)
    prefixes = tuple(f"{blocks.name_of(position)}." for position in layer_map.middle)
    prefixes = (*prefixes, f"{HARMONISERS}.")
    return {
        name: _input_axis(model, name, parameter)
        for name, parameter in model.named_parameters()  # a shared one once
        if name.startswith(prefixes) and is_packable(spec_of(parameter))
    }


def _input_axis(model: nn.Module, name: str, parameter: nn.Parameter) -> int:
    owner = model.get_submodule(name.rpartition(".")[0])
    return 1 - out_dim(owner) if isinstance(owner, Conv1D) else parameter.ndim - 1


@torch.no_grad()
def roundtrip(model: nn.Module, layer_map: LayerMap, packing: Packing) -> None:
    """Puts the values that an edge will unpack into the middle of an emulator, in place.

    Guarantees: a bundle of this model with this packing loads to the same values, bit for bit
    (`test_what_was_measured_is_what_an_edge_loads`).
    """
    if packing is Packing.NONE:
        return
    for name, axis in packed_axes(model, layer_map).items():
        parameter = model.get_parameter(name)
        parameter.copy_(unpack(pack(parameter, packing, axis), parameter.shape, packing))
