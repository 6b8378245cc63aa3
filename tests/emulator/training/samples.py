"""Tiny models and random examples for the tests of tuning."""

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from offsite.emulator.training.tokens import Example

VOCAB = 96


def make_model(family: str) -> PreTrainedModel:
    """A random model of two blocks, always the same; GPT-2 has dropout."""
    torch.manual_seed(7)
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": VOCAB}
        return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


def make_examples(count: int, *, seed: int = 0) -> list[Example]:
    """Sequences of 4 to 24 tokens with a completion of 1 to 3; the tokens repeat, so it learns."""
    random = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        length, learnt_tokens = int(random.integers(4, 25)), int(random.integers(1, 4))
        ids = random.integers(2, VOCAB, length).astype(np.int32)
        ids[-learnt_tokens:] = 5
        learnt = np.zeros(length, np.bool_)
        learnt[-learnt_tokens:] = True
        examples.append(Example(ids, learnt))
    return examples
