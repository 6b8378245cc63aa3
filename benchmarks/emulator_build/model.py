"""A random Llama, made without a second copy of any tensor."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from offsite.emulator.instantiate import skeleton
from offsite.emulator.schema import spec_of
from offsite.emulator.weights import named_weights, replace_parameters

BLOCKS = 16
VOCABULARY = 32_000
HEAD = 64


def random_model(parameters: float) -> PreTrainedModel:
    """About that many parameters in bf16, with a head that is not tied to the embedding."""
    config = _config(parameters)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    schema = {name: spec_of(tensor) for name, tensor in named_weights(empty).items()}
    model = skeleton(config, schema, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)

    def value(name: str, old: torch.Tensor) -> torch.Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(old.shape, dtype=torch.bfloat16)
        return torch.empty(old.shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)

    replace_parameters(model, value)
    return model


def _config(parameters: float) -> LlamaConfig:
    """`BLOCKS` blocks of the width that comes nearest."""
    widths = range(HEAD, HEAD * 256, HEAD)
    hidden = min(widths, key=lambda width: abs(_parameters(width) - parameters))
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=BLOCKS,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=hidden // HEAD,
        max_position_embeddings=1024,
    )


def _parameters(hidden: int) -> int:
    return 2 * VOCABULARY * hidden + BLOCKS * 16 * hidden**2
