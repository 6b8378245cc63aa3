"""Tiny models with random weights, one per family that the emulator must serve."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from offsite.emulator.instantiate import attention_implementation

VOCABULARY = 96
BLOCKS = 5

TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GATED = TINY | {"num_key_value_heads": 2, "intermediate_size": 64}
OLD_NAMES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GATED),
    "llama-tied": lambda: LlamaConfig(**GATED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**GATED, head_dim=8),
    "mistral": lambda: MistralConfig(**GATED, sliding_window=8),
    "gemma": lambda: GemmaConfig(**GATED, head_dim=8),
    "gemma2": lambda: Gemma2Config(**GATED, head_dim=8, sliding_window=8),
    "phi": lambda: PhiConfig(**TINY, intermediate_size=64),
    "phi3": lambda: Phi3Config(**GATED),
    "gpt2": lambda: GPT2Config(**OLD_NAMES, n_embd=32, n_layer=BLOCKS, n_head=4, n_positions=64),
    "opt": lambda: OPTConfig(**TINY, ffn_dim=64, word_embed_proj_dim=32),
    "bloom": lambda: BloomConfig(**OLD_NAMES, hidden_size=32, n_layer=BLOCKS, n_head=4),
    "gpt-neox": lambda: GPTNeoXConfig(**TINY, intermediate_size=64),
}

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_model() -> MakeModel:
    """A frozen model with no weight at a default value, so that nothing equal is overlooked."""

    def make(
        family: str, dtype: torch.dtype = torch.float32, config: PreTrainedConfig | None = None
    ) -> PreTrainedModel:
        config = config or FAMILIES[family]()
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention_implementation(config)
        )
        model.eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """(2, 16) token ids."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, VOCABULARY, (2, 16), generator=generator)
