"""What tuning an emulator takes in memory, estimated from shapes; stated in manifests.

An edge chooses among the emulators of a release by this number, so it is an estimate of the peak
while a round is tuned, not a bound, and rather too high than too low:

    weights      d · weights of the emulator
    adapter      26 · adapter values: as received, masters, gradients, two moments, copies
    activations  tokens · what the blocks from the lowest slot upwards keep for the backward pass
    head         tokens · V · (d + 12): logits, and in fp32 their logarithm and two gradients
    a constant   224 MiB: what the allocator and the kernels for matrices hold beside

with d bytes a value (bf16 2, fp32 4), V words, and for a block of hidden size H, in bytes a token,

    d · (outputs of all linear layers + inputs of the MLP's last one) + 8 · H
    + in a whole block that trains  d · inputs of its linear layers, each size once + 4 · H
    + in a block with LoRA          4 · outputs of the layers that it covers
      and where A trains, too       4 · their inputs, which only A's gradient needs

The 8 · H are what two norms keep in fp32, and LoRA computes in fp32. With gradient checkpointing a
block keeps its input alone, and only the largest is there in full. Not counted: what the process
takes before it loads a model (0.4 GiB), attention that keeps its scores (`eager`), and data with
few learnt tokens, for which the head takes much less than this says.

Who fetched an emulator does not have to believe the number: `Bundle.check_tuning_bytes` recomputes the
least that it can be, and an edge recomputes all of it when a plan says how a round is tuned.

Measured once, on SmolLM2-135M with half of its middle, text, bf16, on a CPU: the estimate is 3 to 12 %
too high (docs/adr/0005-per-edge-emulators.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offsite.emulator.layer_map import LayerMap
from offsite.emulator.schema import Schema

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ADAPTER_BYTES = 26
CONSTANT_BYTES = 224 << 20
HEAD_BYTES = 12
NORM_BYTES = 8
TRAINED_NORM_BYTES = 4
LORA_BYTES = 4


@dataclass(frozen=True, slots=True)
class TuningLoad:
    """What of a campaign's tuning settings decides over memory."""

    micro_batch_tokens: int = 2048
    value_bytes: int = 2  # 2 for bf16, 4 for fp32
    gradient_checkpointing: bool = False


LEAST = TuningLoad(micro_batch_tokens=0)
"""What every plan takes: weights in two bytes a value, the adapter and the constant."""


def tuning_bytes(
    model: "PreTrainedModel", layer_map: LayerMap, adapter: Schema, load: TuningLoad
) -> int:
    """The estimate for an emulator without its adapter in it; `adapter` is its schema."""
    from offsite.emulator.weights import named_weights

    weights = sum(tensor.numel() for tensor in named_weights(model).values())
    values = sum(spec.elements for spec in adapter.values())
    head = int(model.config.vocab_size) * (load.value_bytes + HEAD_BYTES)
    token_bytes = head + _block_bytes(model, layer_map, load, _factors(adapter))
    return (
        load.value_bytes * weights
        + ADAPTER_BYTES * values
        + load.micro_batch_tokens * token_bytes
        + CONSTANT_BYTES
    )


def _factors(adapter: Schema) -> frozenset[str]:
    """Those of a LoRA that train; none for whole blocks."""
    return frozenset(
        factor for factor in ("lora_A", "lora_B") if any(f".{factor}." in name for name in adapter)
    )


def _block_bytes(
    model: "PreTrainedModel", layer_map: LayerMap, load: TuningLoad, factors: frozenset[str]
) -> int:
    """What the blocks keep of a token for the backward pass."""
    from offsite.emulator.blocks import find_blocks

    hidden = int(model.config.hidden_size)
    slots = {slot.emulator_block: slot for slot in layer_map.slots}
    kept = []
    for position, block in enumerate(find_blocks(model).modules):
        if position < min(slots, default=0):
            continue
        block_bytes = _frozen_bytes(block, hidden, load.value_bytes)
        if position in slots and factors:
            is_middle = slots[position].is_middle
            block_bytes += _lora_bytes(block, factors, attention_alone=is_middle)
        elif position in slots:
            block_bytes += _trained_bytes(block, hidden, load.value_bytes)
        kept.append(block_bytes)
    if load.gradient_checkpointing:
        return load.value_bytes * hidden * len(kept) + max(kept)
    return sum(kept)


def _frozen_bytes(block: "nn.Module", hidden: int, value_bytes: int) -> int:
    from offsite.emulator.blocks import mlp_layers
    from offsite.emulator.linear import features

    outputs = sum(outputs for _, _, outputs in _sizes(block))
    last = [features(layer)[0] for layer in mlp_layers(block).values()][-1:]
    return value_bytes * (outputs + sum(last)) + NORM_BYTES * hidden


def _trained_bytes(block: "nn.Module", hidden: int, value_bytes: int) -> int:
    inputs = {inputs for _, inputs, _ in _sizes(block)}  # layers side by side share theirs
    return value_bytes * sum(inputs) + TRAINED_NORM_BYTES * hidden


def _lora_bytes(block: "nn.Module", factors: frozenset[str], *, attention_alone: bool) -> int:
    from offsite.emulator.blocks import in_attention

    return LORA_BYTES * sum(
        (inputs if "lora_A" in factors else 0) + outputs
        for name, inputs, outputs in _sizes(block)
        if not attention_alone or in_attention(block, name)
    )


def _sizes(block: "nn.Module") -> Iterator[tuple[str, int, int]]:
    """(path, inputs, outputs) of every linear layer."""
    from offsite.emulator.linear import features, linear_layers

    for name, layer in linear_layers(block):
        yield name, *features(layer)
