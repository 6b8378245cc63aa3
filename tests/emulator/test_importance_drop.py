"""Drop by importance: the score by hand, which blocks go, and what is refused."""

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, PreTrainedModel

from offsite.emulator.blocks import find_blocks
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.importance_drop import (
    ImportanceDrop,
    block_importance,
    least_important,
)
from offsite.emulator.methods.method import MethodName
from offsite.emulator.progress import silent
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]
MIDDLE = (1, 2, 3)


def test_importance_is_one_minus_the_mean_cosine(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """By hand, from the hidden states that the library itself hands out."""
    base = make_model(family)
    with torch.inference_mode():
        states = base(tokens, output_hidden_states=True).hidden_states
    hooks = [len(module._forward_hooks) for module in base.modules()]  # the library's own
    importance = block_importance(base, MIDDLE, [tokens[:1], tokens[1:]], silent)
    for index in MIDDLE:
        before, after = states[index].double(), states[index + 1].double()
        cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        assert importance[index] == pytest.approx(1 - cosine.mean().item(), abs=1e-6)
    assert [len(module._forward_hooks) for module in base.modules()] == hooks


def test_the_least_important_blocks_go(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    importance = block_importance(base, MIDDLE, [tokens], silent)
    kept = ImportanceDrop().plan(base, MIDDLE, 0.67, [tokens], silent).kept
    assert set(MIDDLE) - set(kept) == {min(importance, key=importance.__getitem__)}
    one = ImportanceDrop().plan(base, MIDDLE, 0.01, [tokens], silent).kept
    assert one == (max(importance, key=importance.__getitem__),)


def test_a_block_that_does_nothing_goes_first(make_model: MakeModel, tokens: torch.Tensor) -> None:
    base = make_model("llama")
    idle = find_blocks(base).modules[2]
    idle.self_attn.o_proj.weight.zero_()
    idle.mlp.down_proj.weight.zero_()
    emulator = build_emulator(base, Placement(1, 1), MethodName.IMPORTANCE_DROP, 0.67, [tokens])
    assert emulator.layer_map.kept == (0, 1, 3, 4)
    with torch.inference_mode():
        assert torch.equal(emulator.model(tokens).logits, base(tokens).logits)


def test_equal_blocks_go_in_their_order() -> None:
    assert least_important({3: 0.5, 1: 0.5, 2: 0.1}) == [2, 1, 3]


def test_spread_slots_stay(make_model: MakeModel, tokens: torch.Tensor) -> None:
    placement = Placement(1, 1, spread=1)
    emulator = build_emulator(
        make_model("llama"), placement, MethodName.IMPORTANCE_DROP, 0.5, [tokens]
    )
    slots = {slot.base_block for slot in emulator.layer_map.slots}
    assert slots == {0, 2, 4} and len(emulator.layer_map.kept) == 4


@pytest.mark.parametrize(
    "method", [MethodName.IMPORTANCE_DROP, MethodName.CLUSTER_SHARE, MethodName.HARMONISE]
)
def test_blocks_that_know_their_index_are_refused(
    method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    config = GPT2Config(
        vocab_size=96, n_embd=32, n_layer=5, n_head=4, n_positions=64,
        bos_token_id=1, eos_token_id=2, scale_attn_by_inverse_layer_idx=True,
    )  # fmt: skip
    base = make_model("", config=config)
    with pytest.raises(ConfigError, match=rf"{method.value}.*scale_attn_by_inverse_layer_idx"):
        build_emulator(base, Placement(1, 1), method, 0.67, [tokens])
    assert build_emulator(base, Placement(1, 1), method, 1.0).layer_map.kept == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    "method",
    [
        MethodName.IMPORTANCE_DROP,
        MethodName.CLUSTER_SHARE,
        MethodName.HARMONISE,
        MethodName.ACTIVATION_SVD,
    ],
)
def test_calibration_is_needed(method: MethodName, make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match=f"{method.value} needs calibration tokens"):
        build_emulator(make_model("llama"), Placement(1, 1), method, 0.67)
