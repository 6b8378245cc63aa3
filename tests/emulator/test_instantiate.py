"""What a config and a schema from the other side may and may not ask for."""

from collections.abc import Callable

import pytest
import torch
from transformers import GPTNeoConfig, LlamaConfig, PreTrainedModel, Qwen2MoeConfig

from offsite.emulator.instantiate import (
    attention_implementation,
    config_from_json,
    emulator_config,
    instantiate,
)
from offsite.emulator.schema import TensorSpec, spec_of
from offsite.emulator.weights import named_weights
from offsite.secure.errors import PeerError

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def base(make_model: MakeModel) -> PreTrainedModel:
    return make_model("llama")


@pytest.fixture
def config(base: PreTrainedModel) -> dict[str, object]:
    return dict(base.config.to_dict())


@pytest.fixture
def schema(base: PreTrainedModel) -> dict[str, TensorSpec]:
    return {name: spec_of(tensor) for name, tensor in named_weights(base).items()}


def test_model_is_frozen_and_of_the_asked_dtype(
    config: dict[str, object], schema: dict[str, TensorSpec]
) -> None:
    model = instantiate(config, schema, torch.bfloat16)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"model_type": "unheard-of"}, "unheard-of"),
        ({"model_type": None}, "None"),
        ({"model_type": ["llama"]}, "llama"),
        ({"model_type": "t5"}, "not a text-only decoder"),
        ({"model_type": "llava"}, "not a text-only decoder"),
        ({"hidden_size": "wide"}, "llama"),
        ({"num_attention_heads": 0}, "llama"),
        ({"hidden_act": "os.system"}, "os.system"),
        ({"hidden_size": 64}, "by the config"),
        ({"vocab_size": 95}, "by the config"),
        ({"num_hidden_layers": 6}, r"layers\.5\."),
        ({"num_hidden_layers": 4}, r"layers\.4\."),
        ({"num_hidden_layers": 10**9}, "only 48 tensors"),
        ({"vocab_size": 10**12}, "by the config"),
        ({"head_dim": 10**12}, "by the config|buffers"),
        ({"intermediate_size": 10**15}, None),
    ],
)
def test_config_that_does_not_fit_is_refused(
    change: dict[str, object],
    message: str | None,
    config: dict[str, object],
    schema: dict[str, TensorSpec],
) -> None:
    if message is None:  # linear layers take the schema's shapes, so nothing is allocated
        model = instantiate(config | change, schema)
        assert model.model.layers[0].mlp.up_proj.weight.shape == (64, 32)
        return
    with pytest.raises(PeerError, match=message):
        instantiate(config | change, schema)


def test_large_buffers_are_refused(make_model: MakeModel) -> None:
    """GPT-Neo makes a causal mask of the square of its positions."""
    config = GPTNeoConfig(
        vocab_size=96, hidden_size=8, num_layers=2, num_heads=2, max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]], bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    weights = named_weights(make_model("", config=config))
    schema = {name: spec_of(tensor) for name, tensor in weights.items()}
    fields = dict(config.to_dict())
    assert instantiate(fields, schema)
    schema["transformer.wpe.weight"] = TensorSpec("F32", (10**6, 8))
    with pytest.raises(PeerError, match="bytes of buffers"):
        instantiate(fields | {"max_position_embeddings": 10**6}, schema)


def test_kernel_names_in_a_config_are_ignored(
    config: dict[str, object], schema: dict[str, TensorSpec]
) -> None:
    kernel = "someone/attention-kernel"
    names = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
    model = instantiate(config | dict.fromkeys(names, kernel), schema)
    assert model.config._attn_implementation == "sdpa"


def test_capped_attention_scores_are_computed_eagerly(make_model: MakeModel) -> None:
    assert attention_implementation(make_model("gemma2").config) == "eager"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lm_head.weight", (90, 32)),
        ("model.norm.weight", (33,)),
        ("model.layers.1.mlp.up_proj.weight", (64, 32, 1)),
        ("model.layers.1.self_attn.q_proj.weight", (8, 32)),
        ("model.layers.9.mlp.up_proj.weight", (64, 32)),
        ("model.layers.1.mlp.up_proj.bias", (64,)),
    ],
)
def test_schema_that_does_not_fit_is_refused(
    name: str, shape: tuple[int, ...], config: dict[str, object], schema: dict[str, TensorSpec]
) -> None:
    with pytest.raises(PeerError, match=name.replace(".", r"\.")):
        instantiate(config, schema | {name: TensorSpec("F32", shape)})


def test_missing_tensor_in_a_schema_is_refused(
    config: dict[str, object], schema: dict[str, TensorSpec]
) -> None:
    del schema["model.layers.2.self_attn.k_proj.weight"]
    with pytest.raises(PeerError, match=r"layers\.2\.self_attn\.k_proj\.weight"):
        instantiate(config, schema)


def test_lists_of_block_indices_are_renumbered() -> None:
    config = Qwen2MoeConfig(num_hidden_layers=6, mlp_only_layers=[0, 3, 5])
    assert emulator_config(config, (0, 2, 3, 5)).mlp_only_layers == [0, 2, 3]


def test_other_lists_of_that_length_stay() -> None:
    config = LlamaConfig(num_hidden_layers=3, eos_token_id=[1, 2, 3])
    assert emulator_config(config, (0, 2)).eos_token_id == [1, 2, 3]


def test_config_is_not_changed_by_reading_it(config: dict[str, object]) -> None:
    before = dict(config)
    config_from_json(config)
    assert config == before
