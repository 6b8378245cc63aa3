"""A configuration can describe a model and nothing else."""

import json

import pytest
import transformers
from transformers import PretrainedConfig

from offsite.emulator.bundle.config_rules import check_config, neutral_config
from offsite.secure.errors import PeerError

FAMILIES = [
    "Bloom",
    "Falcon",
    "GPT2",
    "GPTJ",
    "GPTNeo",
    "GPTNeoX",
    "Gemma",
    "Gemma2",
    "Gemma3Text",
    "Granite",
    "Llama",
    "Mistral",
    "Mixtral",
    "Mpt",
    "OPT",
    "Olmo2",
    "Phi",
    "Phi3",
    "Qwen2",
    "Qwen3",
    "SmolLM3",
    "StableLm",
]


def sent(config: PretrainedConfig) -> dict[str, object]:
    value = neutral_config(json.loads(config.to_json_string()))
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_of_decoders_pass(family: str) -> None:
    config = getattr(transformers, f"{family}Config")()
    config._name_or_path = "/home/owner/models/secret"
    value = sent(config)
    assert "/home" not in json.dumps(value)
    assert check_config(value, config.num_hidden_layers) == value
    with pytest.raises(PeerError, match="layer map"):
        check_config(value, config.num_hidden_layers + 1)


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoConfig": "evil.Config"}},
        {"auto_map": None},
        {"_attn_implementation": "evil/kernel"},
        {"_attn_implementation_internal": "evil/kernel"},
        {"attn_implementation": "eager"},
        {"experts_implementation": 1},
        {"kernel_config": {"RMSNorm": 1}},
        {"use_mamba_kernels": True},
        {"quantization_config": {"load_in_4bit": True}},
        {"custom_pipelines": {}},
        {"trust_remote_code": True},
        {"_name_or_path": "x"},
        {"_private": 1},
        {"hidden_act": "evil/repository"},
        {"hidden_act": "a b"},
        {"hidden_act": "x" * 65},
        {"unheard_of": "text"},
        {"nested": {"unheard_of": "text"}},
        {"nested": {"auto_map": 1}},
        {"layer_types": ["../x"]},
        {"hidden_size": 1 << 25},
        {"num_attention_heads": -(1 << 25)},
        {"num_attention_heads": 4097},
        {"num_key_value_heads": 1 << 24},
        {"n_head": 4097},
        {"num_heads": 4097},
        {"n_heads": 4097},
        {"n_head_kv": 4097},
        {"num_kv_heads": 4097},
        {"nested": {"num_attention_heads": 4097}},
        {"num_attention_heads": [4097]},
        {"n_inner": 1 << 25},
        {"max_position_embeddings": 1 << 60},
        {"rope": [[[[[1]]]]]},
        {"layer_types": ["full_attention"] * 20_000},
        {"model_type": ""},
        {"model_type": None},
        {"bad key": 1},
        {"num_labels": 2},
        {"id2label": {"0": 1}},
        {"label2id": {}},
        {"nested": {"num_labels": 10**7}},
        {"attention_types": [[["global"], 10**8]]},
        {"attention_types": [[["global"], 10_000], [["global"], 1]]},
        {"attention_types": [[["global", "local"], 6_000]]},
        {"attention_types": ["global", 10]},
        {"attention_types": [[[], 6_000], [[], 6_000]]},
        {"attention_types": 10**8},
        {"nested": {"attention_types": [[["global"], 10**8]]}},
        {"mlp_only_layers": [10**8]},
        {"layer_types": [10**8]},
        {"block_types": [[1, 10**8]]},
        {"num_layers": 10**7},
        {"num_decoder_layers": 10**7},
        {"model_type": "rwkv"},
        {"model_type": "yoso"},
    ],
    ids=lambda change: str(change)[:48],
)
def test_a_setting_that_could_surprise_is_refused(change: dict[str, object]) -> None:
    value = sent(transformers.LlamaConfig())
    check_config(value, 32)
    with pytest.raises(PeerError, match=r"config\.json"):
        check_config(value | change, 32)  # type: ignore[arg-type]


def test_counts_of_heads_are_bounded_and_their_sizes_are_not() -> None:
    value = sent(transformers.LlamaConfig())
    plenty = {"num_attention_heads": 4096, "num_key_value_heads": 4096, "head_dim": 1 << 16}
    assert check_config(value | plenty, 32) == value | plenty


def test_numbers_in_lists_that_are_no_layers_stay_free() -> None:
    value = sent(transformers.LlamaConfig()) | {"eos_token_id": [128_001, 128_009]}
    assert check_config(value, 32) == value


def test_a_configuration_that_is_no_object_is_refused() -> None:
    with pytest.raises(PeerError):
        check_config([], 1)
