"""The models, what trains in them, and the rows that they see."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.linear import linear_layers
from offsite.emulator.training.batches import MicroBatch, pack
from offsite.emulator.training.tokens import Example

RANK = 8


@dataclass(frozen=True, slots=True)
class Size:
    """Of a model and of the batches that it sees."""

    hidden: int
    blocks: int
    vocabulary: int
    rows: int
    width: int


LORA, BLOCKS = Size(384, 10, 8192, 8, 128), Size(512, 8, 8192, 8, 128)
QUICK_LORA, QUICK_BLOCKS = Size(256, 6, 4096, 8, 64), Size(256, 6, 4096, 8, 64)


@dataclass(frozen=True, slots=True)
class Setup:
    """A model in training mode and its trainable parameters by name."""

    model: PreTrainedModel
    parameters: dict[str, nn.Parameter]


Make = Callable[[Size], Setup]


def make_lora_qv(size: Size) -> Setup:
    """LoRA on the queries and values of every block."""
    return _with_lora(size, lambda path: path.endswith(("q_proj", "v_proj")))


def make_lora_all(size: Size) -> Setup:
    """LoRA on every linear layer of every block."""
    return _with_lora(size, lambda path: "layers." in path)


def make_blocks(size: Size) -> Setup:
    """The product's whole-block adapter on two blocks at either end."""
    model = _random_model(size)
    middle = tuple(range(2, size.blocks - 2))
    layer_map = LayerMap.of(Placement(2, 2), size.blocks, middle)
    adapter = make_adapter(AdapterSpec(AdapterKind.WHOLE_BLOCK), layer_map)
    adapter.attach(model)
    return Setup(model, adapter.trainable(model))


ADAPTERS: dict[str, Make] = {
    "lora_qv": make_lora_qv,
    "lora_all": make_lora_all,
    "blocks_2_2": make_blocks,
}


def size_of(adapter: str, *, is_quick: bool) -> Size:
    """What it is measured with."""
    if adapter == "blocks_2_2":
        return QUICK_BLOCKS if is_quick else BLOCKS
    return QUICK_LORA if is_quick else LORA


def random_batch(size: Size) -> MicroBatch:
    """Rows of which every token is learnt."""
    random = np.random.default_rng(0)
    learnt = np.ones(size.width + 1, np.bool_)
    learnt[0] = False
    shape = (size.rows, size.width + 1)
    ids = random.integers(size.vocabulary, size=shape, dtype=np.int32)
    return pack([Example(row, learnt) for row in ids])


def _with_lora(size: Size, is_target: Callable[[str], bool]) -> Setup:
    model = _random_model(size)
    targets = [path for path, _ in linear_layers(model) if is_target(path)]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, bias="none")
    inject_adapter_in_model(config, model)
    model.requires_grad_(False)
    parameters = {name: value for name, value in model.named_parameters() if ".lora_" in name}
    for parameter in parameters.values():
        parameter.detach().normal_(0, 0.02)  # B is no longer 0, so both factors have gradients
        parameter.requires_grad_(True)
    return Setup(model, parameters)


def _random_model(size: Size) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=8 * size.hidden // 3 // 64 * 64,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.train(True)
    return model
