"""Every method that looks at activations refuses numbers that are not finite, and says where."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName, MethodOptions, make_method
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]
BLOCKS = 5
LOOKING = [name for name in MethodName if make_method(name).needs_calibration]
RATIO = 0.6
OPTIONS = MethodOptions(harmoniser_rank=4)


def build(model: PreTrainedModel, method: MethodName, tokens: torch.Tensor) -> None:
    batches = [tokens[:1], tokens[1:]]
    build_emulator(model, Placement(1, 1), method, RATIO, batches, options=OPTIONS)


@pytest.mark.parametrize("damage", [float("inf"), float("nan")])
@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("method", LOOKING)
def test_a_damaged_weight_is_refused_and_its_block_named(
    method: MethodName, block: int, damage: float, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model("llama")
    find_blocks(base).modules[block].mlp.down_proj.weight[3, 5] = damage
    with pytest.raises(ConfigError, match=f"block {block} of the full model .* not finite"):
        build(base, method, tokens)


@pytest.mark.parametrize("method", LOOKING)
def test_an_overflow_in_half_precision_is_refused_and_its_block_named(
    method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model("llama", torch.float16)
    for path in ("gate_proj", "up_proj"):
        find_blocks(base).modules[2].mlp.get_submodule(path).weight.mul_(2000.0)
    assert all(bool(weight.isfinite().all()) for weight in base.parameters())
    with pytest.raises(ConfigError, match=r"block 2 of the full model .* bfloat16 or float32"):
        build(base, method, tokens)


@pytest.mark.parametrize("method", LOOKING)
def test_a_damaged_embedding_is_named(
    method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model("llama")
    base.get_input_embeddings().weight[tokens[0, 0]] = float("nan")
    with pytest.raises(ConfigError, match=r"the embedding of the full model .* not finite"):
        build(base, method, tokens)


def test_a_damaged_head_is_refused_by_what_goes_backward(
    make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model("llama")
    base.lm_head.weight[7, 1] = float("inf")
    with pytest.raises(ConfigError, match=r"block 1 of the full model .* not finite"):
        build(base, MethodName.GRADIENT, tokens)


@pytest.mark.parametrize("method", [MethodName.WIDTH_PRUNE, MethodName.ACTIVATION_SVD])
def test_sums_that_overflow_are_refused_though_every_activation_is_finite(
    method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """Squares of 1e20 do not fit fp32; the norms keep the hidden states themselves in bounds."""
    base = make_model("llama")
    mlp = find_blocks(base).modules[2].mlp
    mlp.up_proj.weight.mul_(1e22)
    mlp.down_proj.weight.mul_(1e-22)
    with pytest.raises(ConfigError, match=r"block 2 of the full model .* not finite"):
        build(base, method, tokens)
