"""Building an emulator: the full model with its middle compressed, block by block.

Notable decisions: blocks are copied or made anew one at a time into a model that starts without
storage, so beside the full model there is never more than the emulator's own blocks. With
`consume` the full model gives up each block as the emulator takes it over, and there is never more
than one block beside the full model. What stands outside the blocks (embedding, last norm, head)
never trains here and shares the full model's storage.

Rules: no tensor of the emulator's blocks aliases the full model, so neither training nor
distillation can change it; the emulator comes frozen and in eval mode; at ratio 1 every weight is
the full model's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.blocks import Blocks, find_blocks
from offsite.emulator.harmoniser import tensor_name
from offsite.emulator.heap import give_back_freed_memory
from offsite.emulator.instantiate import emulator_config, skeleton
from offsite.emulator.layer_map import LayerMap, Placement, first_positions
from offsite.emulator.methods.method import Compression, MethodName, MethodOptions, make_method
from offsite.emulator.progress import Report, silent
from offsite.emulator.schema import spec_of
from offsite.emulator.weights import named_weights, replace_parameters
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
    *,
    options: MethodOptions | None = None,
    consume: bool = False,
) -> Emulator:
    """Compress the middle of a model; the model is left as it is, unless consumed.

    Args:
        base_model: the full model.
        placement: which blocks stay as adapter slots.
        method: how the middle is compressed.
        ratio: share of the middle's parameters that stays, in (0, 1]; 1 keeps all of it.
        calibration: token batches (B, T) of public text, for methods that look at activations.
        report: told after each calibration batch and each block.
        options: what some methods can be told beside the ratio.
        consume: let the full model's blocks go as the emulator takes them over; what is left of
            it can only be thrown away.

    Raises:
        ConfigError: the model, placement or ratio is not one that the method can serve.
    """
    if not 0 < ratio <= 1:
        raise ConfigError(f"emulator ratio is {ratio:g}; expected above 0 and at most 1")
    blocks = find_blocks(base_model)
    middle = placement.middle(len(blocks.modules))
    progress = _Progress(report)
    # (1) decide what stays of the middle
    planner = make_method(method, options)
    compression = planner.plan(base_model, middle, ratio, calibration, progress.calibrated)
    layer_map = _layer_map(placement, len(blocks.modules), method, compression)
    # (2) gather the weights under their names in the emulator
    weights = _outside_blocks(base_model, blocks)
    weights |= _harmonisers(base_model, layer_map, compression)
    if consume:
        _let_go(blocks, set(range(len(blocks.modules))) - set(layer_map.kept))
    for position, first in enumerate(first_positions(layer_map.kept)):
        if position == first:
            index = layer_map.kept[position]
            block = _block_weights(blocks, index, compression, copy=not consume)
            if consume:
                _let_go(blocks, {index})
            weights |= {f"{blocks.path}.{position}.{name}": block[name] for name in block}
        progress.placed(position + 1, len(layer_map.kept))
    # (3) put them into a model of that shape
    return Emulator(_assemble(base_model, layer_map.kept, weights), layer_map)


class _Progress:
    """Calibration batches and blocks, counted as one."""

    def __init__(self, report: Report) -> None:
        self._report, self._batches = report, 0

    def calibrated(self, done: int, total: int) -> None:
        """A batch was looked at."""
        self._batches = total
        self._report(done, 2 * total)

    def placed(self, done: int, total: int) -> None:
        """A block is in the emulator; calibration, if any, was the first half."""
        if self._batches:
            self._report(self._batches + self._batches * done // total, 2 * self._batches)
        else:
            self._report(done, total)


def _layer_map(
    placement: Placement, base_blocks: int, method: MethodName, compression: Compression
) -> LayerMap:
    try:
        return LayerMap.of(placement, base_blocks, compression.kept)
    except ConfigError as error:
        raise ConfigError(f"{method.value}: {error}") from None


def _outside_blocks(base_model: PreTrainedModel, blocks: Blocks) -> dict[str, torch.Tensor]:
    prefix = f"{blocks.path}."
    weights = named_weights(base_model)
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}


def _harmonisers(
    base_model: PreTrainedModel, layer_map: LayerMap, compression: Compression
) -> dict[str, torch.Tensor]:
    """The weights of the maps between blocks, by name in the emulator."""
    weights = {}
    for index, harmoniser in compression.harmonisers.items():
        if layer_map.kept.count(index) != 1:
            raise ConfigError(f"harmoniser before block {index}: expected a block kept once")
        position = layer_map.kept.index(index)
        for factor, tensor in (("down", harmoniser.down), ("up", harmoniser.up)):
            weights[tensor_name(position, factor)] = tensor.to(base_model.device, base_model.dtype)
    return weights


def _block_weights(
    blocks: Blocks, index: int, compression: Compression, copy: bool
) -> dict[str, torch.Tensor]:
    """Weights of a block: compressed in the middle, as they are in a slot."""
    block = blocks.modules[index]
    weights = named_weights(block)
    if index not in compression.kept:
        return {name: tensor.clone() for name, tensor in weights.items()} if copy else weights
    dtype = next(block.parameters()).dtype
    return {
        name: tensor.to(dtype=weights[name].dtype if name in weights else dtype).contiguous()
        for name, tensor in compression.weights(index, block).items()
    }


def _let_go(blocks: Blocks, indices: Iterable[int]) -> None:
    """Free the storage of blocks that nobody needs any more, for the whole machine."""
    for index in indices:
        replace_parameters(blocks.modules[index], lambda _, old: old.detach().to("meta"))
    give_back_freed_memory()


def _assemble(
    base_model: PreTrainedModel, kept: Sequence[int], weights: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    """A model that takes over the weights, without a copy."""
    schema = {name: spec_of(tensor) for name, tensor in weights.items()}
    try:
        model = skeleton(emulator_config(base_model.config, kept), schema, base_model.dtype, kept)
    except PeerError as error:  # what would be the sender's fault in a bundle
        raise ConfigError(f"this model cannot be made into an emulator: {error}") from error
    replace_parameters(model, lambda name, _: weights[name])
    for name in weights.keys() - {name for name, _ in model.named_parameters()}:
        model.get_buffer(name).copy_(weights[name])
    nn.Module.to(model, base_model.device)  # the buffers; the weights are there already
    return model
