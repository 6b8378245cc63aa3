"""Building an emulator: the full model with its middle compressed, block by block.

Notable decisions: blocks are copied or made anew one at a time into a model that starts without
storage, so beside the full model there is never more than the emulator's own blocks. What stands
outside the blocks (embedding, last norm, head) never trains here and shares the full model's
storage.

Rules: no tensor of the emulator's blocks aliases the full model, so neither training nor
distillation can change it; the emulator comes frozen and in eval mode.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.blocks import Blocks, find_blocks
from offsite.emulator.instantiate import (
    emulator_config,
    named_weights,
    replace_parameters,
    skeleton,
)
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.methods.method import Compression, MethodName, make_method
from offsite.emulator.progress import Report, silent
from offsite.emulator.schema import spec_of
from offsite.secure.errors import ConfigError, PeerError


@dataclass(frozen=True, slots=True)
class Emulator:
    """A model of the compressed middle between the slots, and where they came from."""

    model: PreTrainedModel
    layer_map: LayerMap


def build_emulator(
    base_model: PreTrainedModel,
    placement: Placement,
    method: MethodName,
    ratio: float,
    calibration: Sequence[torch.Tensor] = (),
    report: Report = silent,
) -> Emulator:
    """Compress the middle of a model; the model is left as it is.

    Args:
        base_model: the full model.
        placement: how many blocks at either end stay as adapter slots.
        method: how the middle is compressed.
        ratio: share of the middle's parameters that stays, in (0, 1]; 1 keeps all of it.
        calibration: token batches (B, T) of public text, for methods that look at activations.
        report: told after each calibration batch.

    Raises:
        ConfigError: the model, placement or ratio is not one that the method can serve.
    """
    if not 0 < ratio <= 1:
        raise ConfigError(f"emulator ratio is {ratio:g}; expected above 0 and at most 1")
    blocks = find_blocks(base_model)
    middle = placement.middle(len(blocks.modules))
    # (1) decide what stays of the middle
    compression = make_method(method).plan(base_model, middle, ratio, calibration, report)
    layer_map = LayerMap.of(placement, len(blocks.modules), compression.kept)
    # (2) gather the weights under their names in the emulator
    weights = _outside_blocks(base_model, blocks)
    for position, index in enumerate(layer_map.kept):
        for name, tensor in _block_weights(blocks, index, compression).items():
            weights[f"{blocks.path}.{position}.{name}"] = tensor
    # (3) put them into a model of that shape
    return Emulator(_assemble(base_model, layer_map.kept, weights), layer_map)


def _outside_blocks(base_model: PreTrainedModel, blocks: Blocks) -> dict[str, torch.Tensor]:
    prefix = f"{blocks.path}."
    weights = named_weights(base_model)
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}


def _block_weights(blocks: Blocks, index: int, compression: Compression) -> dict[str, torch.Tensor]:
    """New weights of a block: compressed in the middle, copied in a slot."""
    block = blocks.modules[index]
    if index in compression.kept:
        return compression.weights(index, block)
    return {name: tensor.clone() for name, tensor in named_weights(block).items()}


def _assemble(
    base_model: PreTrainedModel, kept: Sequence[int], weights: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    """A model that takes over the weights, without a copy."""
    schema = {name: spec_of(tensor) for name, tensor in weights.items()}
    try:
        model = skeleton(emulator_config(base_model.config, kept), schema, base_model.dtype)
    except PeerError as error:  # what would be the sender's fault in a bundle
        raise ConfigError(f"this model cannot be made into an emulator: {error}") from error
    replace_parameters(model, lambda name, _: weights[name])
    for name in weights.keys() - {name for name, _ in model.named_parameters()}:
        model.get_buffer(name).copy_(weights[name])
    nn.Module.to(model, base_model.device)  # the buffers; the weights are there already
    return model
