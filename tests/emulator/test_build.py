"""Emulators of every family: built by every method, rebuilt from config and schema alone."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import GPTNeoConfig, PreTrainedModel

from offsite.emulator.blocks import find_blocks
from offsite.emulator.build import build_emulator
from offsite.emulator.instantiate import instantiate
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.methods.uniform_drop import even_indices
from offsite.emulator.schema import spec_of
from offsite.emulator.weights import named_weights
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]
SANDWICH = Placement(1, 1)

EVERY_METHOD = pytest.mark.parametrize(
    "method", [MethodName.UNIFORM_DROP, MethodName.WIDTH_PRUNE], ids=lambda method: method.value
)
"""One that makes a model shallow and one that makes it narrow; all are in `methods/`."""
EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(tokens).logits


def test_blocks_are_found(family: str, make_model: MakeModel) -> None:
    blocks = find_blocks(make_model(family))
    assert len(blocks.modules) == 5
    assert blocks.name_of(3) == f"{blocks.path}.3"


def test_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="no list of equal transformer blocks"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))


@EVERY_DTYPE
@EVERY_METHOD
@pytest.mark.parametrize("ratio", [1.0, 0.7])
def test_rebuilt_from_config_and_schema(
    family: str,
    method: MethodName,
    ratio: float,
    dtype: torch.dtype,
    make_model: MakeModel,
    tokens: torch.Tensor,
) -> None:
    built = build_emulator(make_model(family, dtype), SANDWICH, method, ratio, [tokens])
    emulator, weights = built.model, named_weights(built.model)
    schema = {name: spec_of(tensor) for name, tensor in weights.items()}
    rebuilt = instantiate(emulator.config.to_dict(), schema, dtype, built.layer_map.kept)
    for name, target in named_weights(rebuilt).items():
        target.copy_(weights[name])
    assert torch.equal(logits(rebuilt, tokens), logits(emulator, tokens))
    if rebuilt.config.tie_word_embeddings:
        assert "lm_head.weight" not in weights
        assert rebuilt.lm_head.weight is rebuilt.get_input_embeddings().weight


@EVERY_METHOD
def test_ratio_one_is_the_full_model(
    family: str, method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    emulator = build_emulator(base, SANDWICH, method, 1.0)
    assert emulator.layer_map.kept == (0, 1, 2, 3, 4)
    assert torch.equal(logits(emulator.model, tokens), logits(base, tokens))


def test_drop_computes_the_full_model_without_those_blocks(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    emulator = build_emulator(base, SANDWICH, MethodName.UNIFORM_DROP, 0.67)
    assert emulator.layer_map.kept == (0, 1, 3, 4)

    def skip(_: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    find_blocks(base).modules[2].register_forward_hook(skip, with_kwargs=True)
    assert torch.equal(logits(emulator.model, tokens), logits(base, tokens))


def test_per_block_config_lists_follow_the_kept_blocks(make_model: MakeModel) -> None:
    emulator = build_emulator(make_model("gemma2"), SANDWICH, MethodName.UNIFORM_DROP, 0.67).model
    assert emulator.config.layer_types == [
        "sliding_attention",
        "full_attention",
        "full_attention",
        "sliding_attention",
    ]
    neo = GPTNeoConfig(
        vocab_size=96, hidden_size=32, num_layers=4, num_heads=4, max_position_embeddings=64,
        attention_types=[[["global", "local"], 2]], bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    emulator = build_emulator(make_model("", config=neo), SANDWICH, MethodName.UNIFORM_DROP, 0.5)
    assert emulator.model.config.attention_layers == ["global", "local", "local"]


def test_attention_scaled_by_depth_is_refused_for_drop(make_model: MakeModel) -> None:
    base = make_model("gpt2")
    base.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(ConfigError, match="index of the block"):
        build_emulator(base, SANDWICH, MethodName.UNIFORM_DROP, 0.5)


@pytest.mark.parametrize("method", MethodName, ids=lambda method: method.value)
@pytest.mark.parametrize("placement", [Placement(0, 2), Placement(2, 0), Placement(0, 0)], ids=str)
def test_either_side_may_have_no_slots(
    placement: Placement, method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model("llama")
    emulator = build_emulator(base, placement, method, 0.7, [tokens])
    assert len(emulator.layer_map.slots) == placement.bottom + placement.top
    assert logits(emulator.model, tokens).isfinite().all()
    same = build_emulator(base, placement, method, 1.0).model
    assert torch.equal(logits(same, tokens), logits(base, tokens))


@EVERY_METHOD
@pytest.mark.parametrize("ratio", [1.0, 0.7])
def test_blocks_never_alias_the_full_model(
    method: MethodName, ratio: float, family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    emulator = build_emulator(base, SANDWICH, method, ratio, [tokens]).model
    for parameter in find_blocks(emulator).modules.parameters():
        assert not parameter.requires_grad
        parameter.fill_(9.0)
    after = base.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_embedding_is_shared_not_copied(make_model: MakeModel) -> None:
    base = make_model("llama")
    emulator = build_emulator(base, SANDWICH, MethodName.UNIFORM_DROP, 0.5).model
    own, theirs = emulator.get_input_embeddings().weight, base.get_input_embeddings().weight
    assert own.data_ptr() == theirs.data_ptr()


def test_emulator_config_names_no_folder(make_model: MakeModel) -> None:
    base = make_model("llama")
    base.config._name_or_path = "/home/owner/secret-model"
    emulator = build_emulator(base, SANDWICH, MethodName.UNIFORM_DROP, 0.5).model
    assert "secret" not in str(emulator.config.to_dict())
    assert not emulator.config.use_cache
    assert base.config.num_hidden_layers == 5


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, float("nan")])
def test_ratio_outside_its_range_is_refused(ratio: float, make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="ratio"):
        build_emulator(make_model("llama"), SANDWICH, MethodName.UNIFORM_DROP, ratio)


def test_drop_keeps_at_least_one_block(make_model: MakeModel) -> None:
    emulator = build_emulator(make_model("llama"), SANDWICH, MethodName.UNIFORM_DROP, 0.01)
    assert emulator.layer_map.kept == (0, 2, 4)


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (20, 8, [0, 3, 5, 8, 11, 14, 16, 19]),  # OPT-1.3B, 2-8-2 of the reference
        (26, 12, [0, 2, 5, 7, 9, 11, 14, 16, 18, 20, 23, 25]),
        (7, 7, [0, 1, 2, 3, 4, 5, 6]),
        (7, 2, [0, 6]),
        (7, 1, [3]),
    ],
)
def test_uniform_indices(length: int, count: int, expected: list[int]) -> None:
    assert even_indices(length, count) == expected
