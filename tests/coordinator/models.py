"""Tiny full models with an emulator's layer map, and adapters that differ from them."""

from collections.abc import Callable
from pathlib import Path

import torch
from tests.tiny import save_tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from offsite.coordinator.export.tuned import Tuned
from offsite.emulator.adapters.adapter import Adapter, AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.layer_map import LayerMap, Placement

BLOCKS = 5
VOCABULARY = 384
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 128}
NEOX = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**LLAMA, tie_word_embeddings=False),
    "llama-tied": lambda: LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(**GPT2, tie_word_embeddings=False),
    "gpt2-tied": lambda: GPT2Config(**GPT2, tie_word_embeddings=True),
    "gpt-neox": lambda: GPTNeoXConfig(**NEOX),
}
LAYER_MAP = LayerMap.of(Placement(2, 1), BLOCKS, [2])


def make_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(7)
    config = FAMILIES[family]()
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def make_tuned(
    family: str,
    kind: AdapterKind,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> Tuned:
    """A model saved in `folder` and an adapter that was changed everywhere."""
    model = make_model(family, dtype)
    model.save_pretrained(folder)
    tokenizer = save_tokenizer(folder, VOCABULARY)
    adapter = make_adapter(AdapterSpec(kind, rank=4, alpha=8), LAYER_MAP)
    tensors = changed(model, adapter, change or _noise)
    return Tuned(model, tokenizer, adapter, tensors, str(folder), "ab" * 32)


def changed(
    model: PreTrainedModel, adapter: Adapter, change: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    adapter.attach(model)
    tensors = adapter.extract(model)
    adapter.detach(model)
    torch.manual_seed(3)
    return {name: change(name, value) for name, value in tensors.items()}


def _noise(name: str, value: Tensor) -> Tensor:
    return value + 0.05 * torch.randn(value.shape)


def untouched(name: str, value: Tensor) -> Tensor:
    return value


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def tokens() -> Tensor:
    return torch.arange(2 * 12).reshape(2, 12) * 7 % VOCABULARY


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=tokens()).logits.float()
