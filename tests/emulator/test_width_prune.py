"""Width pruning: which channels go, how many, and what is refused."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, PreTrainedModel

from offsite.emulator.blocks import find_blocks, parameter_count
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.linear import weight_out_in
from offsite.emulator.methods.method import MethodName
from offsite.emulator.methods.mlp import find_mlp
from offsite.emulator.methods.width_prune import WidthPrune
from offsite.emulator.progress import silent
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]
MIDDLE = range(1, 4)
SANDWICH = Placement(1, 1)

EXPECTED_MLP = {
    "llama": (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", 64, False),
    "llama-tied": (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", 64, False),
    "qwen3": (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", 64, False),
    "mistral": (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", 64, False),
    "gemma": (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", 64, False),
    "gemma2": (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", 64, False),
    "phi": (("mlp.fc1",), "mlp.fc2", 64, False),
    "phi3": (("mlp.gate_up_proj",), "mlp.down_proj", 64, True),
    "gpt2": (("mlp.c_fc",), "mlp.c_proj", 128, False),
    "opt": (("fc1",), "fc2", 64, False),
    "bloom": (("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", 128, False),
    "gpt-neox": (("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", 64, False),
}


def kept_channels(
    model: PreTrainedModel, ratio: float, tokens: torch.Tensor
) -> Mapping[int, torch.Tensor]:
    return WidthPrune().plan(model, MIDDLE, ratio, [tokens], silent).channels


def test_mlp_is_found_by_structure(family: str, make_model: MakeModel) -> None:
    mlp = find_mlp(find_blocks(make_model(family)).modules[2])
    assert (mlp.inputs, mlp.down, mlp.channels, mlp.is_fused) == EXPECTED_MLP[family]


def test_pruned_emulator_computes_the_full_model_without_those_channels(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """The reference keeps every channel and silences those that go at the down projection."""
    base = make_model(family)
    emulator = build_emulator(base, SANDWICH, MethodName.WIDTH_PRUNE, 0.7, [tokens]).model
    blocks = find_blocks(base).modules
    for index, keep in kept_channels(base, 0.7, tokens).items():
        mask = torch.zeros(find_mlp(blocks[index]).channels)
        mask[keep] = 1.0
        assert 8 <= len(keep) < len(mask)
        down = blocks[index].get_submodule(find_mlp(blocks[index]).down)
        weight_out_in(down).mul_(mask)
    with torch.inference_mode():
        torch.testing.assert_close(emulator(tokens).logits, base(tokens).logits)


@pytest.mark.parametrize("ratio", [0.9, 0.75, 0.65])
def test_ratio_is_the_share_of_the_middles_parameters(
    ratio: float, family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    emulator = build_emulator(base, SANDWICH, MethodName.WIDTH_PRUNE, ratio, [tokens]).model
    full, pruned = (find_blocks(model).modules[2] for model in (base, emulator))
    step = 8 * find_mlp(full).channel_parameters(full) / parameter_count(full)
    assert parameter_count(pruned) / parameter_count(full) == pytest.approx(ratio, abs=step / 2)
    assert find_mlp(pruned).channels % 8 == 0


def test_smallest_reachable_ratio_is_named_and_reachable(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    with pytest.raises(ConfigError, match="smallest ratio") as refusal:
        build_emulator(base, SANDWICH, MethodName.WIDTH_PRUNE, 0.1, [tokens])
    smallest = float(str(refusal.value).split(" is ")[-1].split(";")[0])
    emulator = build_emulator(base, SANDWICH, MethodName.WIDTH_PRUNE, smallest, [tokens]).model
    assert find_mlp(find_blocks(emulator).modules[2]).channels == 8
    with pytest.raises(ConfigError, match="smallest ratio"):
        build_emulator(base, SANDWICH, MethodName.WIDTH_PRUNE, smallest - 0.001, [tokens])


def test_the_strongest_channels_stay(make_model: MakeModel, tokens: torch.Tensor) -> None:
    """Recomputes the score of one block from a hand-written forward."""
    base = make_model("llama")
    seen = []
    mlp = base.model.layers[2].mlp
    mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.inference_mode():
        base(tokens)
    root_mean_square = seen[0].double().square().mean(0).sqrt()
    score = root_mean_square * mlp.down_proj.weight.double().square().sum(0).sqrt()
    keep = kept_channels(base, 0.7, tokens)[2]
    assert keep.tolist() == sorted(score.argsort(descending=True)[: len(keep)].tolist())


def test_scores_add_up_over_batches(make_model: MakeModel, tokens: torch.Tensor) -> None:
    base = make_model("llama")
    done = []
    plan = WidthPrune().plan(
        base, MIDDLE, 0.7, [tokens[:1], tokens[1:]], lambda *progress: done.append(progress)
    )
    for index, keep in kept_channels(base, 0.7, tokens).items():
        assert torch.equal(plan.channels[index], keep)
    assert done == [(1, 2), (2, 2)]
    assert not any(module._forward_pre_hooks for module in base.modules())


def test_calibration_is_needed(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="calibration tokens"):
        build_emulator(make_model("llama"), SANDWICH, MethodName.WIDTH_PRUNE, 0.7)


def test_experts_are_refused(make_model: MakeModel, tokens: torch.Tensor) -> None:
    config = MixtralConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, num_local_experts=2,
    )  # fmt: skip
    base = make_model("", config=config)
    with pytest.raises(ConfigError, match="does not know the MLP of MixtralDecoderLayer"):
        build_emulator(base, SANDWICH, MethodName.WIDTH_PRUNE, 0.7, [tokens])


def test_norm_over_the_channels_is_refused(make_model: MakeModel) -> None:
    block = find_blocks(make_model("llama")).modules[2]
    block.mlp.inner_norm = nn.LayerNorm(64)
    with pytest.raises(ConfigError, match=r"mlp\.inner_norm\.weight has the channels too"):
        find_mlp(block)


def test_interleaved_gate_and_up_are_refused(make_model: MakeModel, tokens: torch.Tensor) -> None:
    base = make_model("phi3")

    class Interleaved(type(base.model.layers[0].mlp)):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            both = self.gate_up_proj(hidden)
            return self.down_proj(both[..., 1::2] * self.activation_fn(both[..., ::2]))

    for layer in base.model.layers:
        layer.mlp.__class__ = Interleaved
    with pytest.raises(ConfigError, match="one after the other"):
        build_emulator(base, SANDWICH, MethodName.WIDTH_PRUNE, 0.7, [tokens])


def test_the_channels_are_moved_to_where_the_weights_are(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are summed on the CPU; on another device an index from there would be refused."""
    select = torch.Tensor.index_select

    def strict(tensor: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
        assert index.device == tensor.device
        return select(tensor, axis, index)

    monkeypatch.setattr(torch.Tensor, "index_select", strict)
    block = find_blocks(make_model("llama")).modules[1]
    mlp = find_mlp(block)
    block.to("meta")
    weights = {name: parameter.detach() for name, parameter in block.named_parameters()}
    small = mlp.select(block, weights, torch.arange(8))
    assert small["mlp.down_proj.weight"].shape == (32, 8)
    assert {tensor.device.type for tensor in small.values()} == {"meta"}
