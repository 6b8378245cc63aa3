"""The attack: it learns, it states its compute, and it leaves nothing behind."""

import math
from pathlib import Path

import pytest
import torch
from tests.emulator.conftest import FAMILIES, MakeModel
from tests.emulator.exams import Setting, make_setting, perplexity
from torch import nn

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.leak.heal import HealRecipe, healed
from offsite.emulator.linear import linear_layers
from offsite.emulator.methods.method import MethodName
from offsite.secure.errors import ConfigError

RECIPE = HealRecipe(steps=40, tokens_per_step=96, rank=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder: Path = tmp_path_factory.mktemp("setting")
    return make_setting(folder)


def state(model: nn.Module) -> list[tuple[str, int, torch.Tensor, bool]]:
    """Names, objects, values and flags of all parameters."""
    return [(n, id(p), p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()]


def assert_as_before(model: nn.Module, before: list[tuple[str, int, torch.Tensor, bool]]) -> None:
    after = state(model)
    assert [item[:2] for item in after] == [item[:2] for item in before]
    assert [item[3] for item in after] == [item[3] for item in before]
    for (name, _, wanted, _), (_, _, found, _) in zip(before, after, strict=True):
        assert torch.equal(wanted, found), name
    assert not hasattr(model, "peft_config")


def test_it_wins_back_what_compression_cost(setting: Setting) -> None:
    emulator = setting.emulator(0.5, MethodName.UNIFORM_DROP).model
    whole, before = (perplexity(model, setting.text) for model in (setting.base, emulator))
    with healed(emulator, setting.text, RECIPE) as healing:
        after = perplexity(emulator, setting.text)
    assert math.log(before / after) > 0.8 * math.log(before / whole) > 0.2
    assert healing.last_loss < healing.first_loss
    assert (healing.steps, healing.tokens) == (40, 40 * 4 * 23)
    assert healing.epochs == pytest.approx(20)
    assert healing.seconds > 0
    assert perplexity(emulator, setting.text) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "phi3", "bloom"])
@pytest.mark.parametrize("method", [MethodName.UNIFORM_DROP, MethodName.ACTIVATION_SVD])
def test_the_model_is_restored_bit_for_bit(
    family: str,
    method: MethodName,
    dtype: torch.dtype,
    make_model: MakeModel,
    tokens: torch.Tensor,
) -> None:
    base = make_model(family, dtype)
    model = build_emulator(base, Placement(1, 1), method, 0.5, (tokens,)).model
    before, output = state(model), model(input_ids=tokens).logits
    with healed(model, (tokens,), HealRecipe(steps=3, tokens_per_step=16, rank=2)):
        assert not torch.equal(model(input_ids=tokens).logits, output)
    assert_as_before(model, before)
    assert torch.equal(model(input_ids=tokens).logits, output)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_layer_but_the_head_is_attacked(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    model = make_model(family)
    head = model.get_output_embeddings()
    layers = [path for path, layer in linear_layers(model) if layer is not head]
    recipe = HealRecipe(steps=1, tokens_per_step=16, rank=2)
    with healed(model, (tokens,), recipe):
        names = [name for name, _ in model.named_parameters() if ".lora_" in name]
        attacked = {name.split(".lora_")[0] for name in names}
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.dtype is torch.float32 for p in trained)
        assert len(trained) == 2 * len(layers)
    assert attacked == set(layers)


def test_harmonisers_are_attacked_too(setting: Setting) -> None:
    emulator = build_emulator(
        setting.base, Placement(1, 1), MethodName.HARMONISE, 0.5, setting.text[:1]
    ).model
    before = state(emulator)
    with healed(emulator, setting.text, HealRecipe(steps=1, tokens_per_step=96, rank=2)):
        assert any("harmonisers" in n and "lora_A" in n for n, _ in emulator.named_parameters())
    assert_as_before(emulator, before)


def test_it_is_restored_when_looking_at_it_fails(setting: Setting) -> None:
    emulator = setting.emulator(0.5).model
    before = state(emulator)
    with pytest.raises(KeyError), healed(emulator, setting.text, RECIPE):
        raise KeyError
    assert_as_before(emulator, before)
    diverging = HealRecipe(steps=5, tokens_per_step=96, rank=2)
    emulator.model.layers[0].input_layernorm.weight[0] = torch.nan  # a copy, not the full model's
    with pytest.raises(ConfigError, match="diverged"), healed(emulator, setting.text, diverging):
        pass
    assert not hasattr(emulator, "peft_config")


def test_the_same_seed_is_the_same_attack(setting: Setting) -> None:
    emulator = setting.emulator(0.5).model
    found = []
    for seed in (0, 0, 1):
        recipe = HealRecipe(steps=4, tokens_per_step=96, rank=2, seed=seed)
        with healed(emulator, setting.text, recipe) as healing:
            found.append((healing.last_loss, perplexity(emulator, setting.text)))
    assert found[0] == found[1] != found[2]


def test_a_model_with_an_adapter_attached_is_refused(setting: Setting) -> None:
    emulator = setting.emulator(0.5)
    adapter = make_adapter(AdapterSpec(AdapterKind.LORA, 2, 4), emulator.layer_map)
    adapter.attach(emulator.model)
    with (
        pytest.raises(ConfigError, match="nothing attached"),
        healed(emulator.model, setting.text, RECIPE),
    ):
        pass
    assert adapter.trainable(emulator.model)


def test_more_compute_heals_more(setting: Setting) -> None:
    emulator = setting.emulator(0.5, MethodName.UNIFORM_DROP).model
    found = []
    for steps in (2, 10, 40):
        recipe = HealRecipe(steps=steps, tokens_per_step=96, rank=8, learning_rate=1e-2)
        with healed(emulator, setting.text, recipe):
            found.append(perplexity(emulator, setting.text))
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"tokens_per_step": 23}, "tokens_per_step is 23; expected at least a row, 24"),
        ({"steps": 0, "tokens_per_step": 96}, "steps is 0"),
        ({"rank": 0}, "rank is 0"),
    ],
)
def test_compute_that_cannot_be_is_refused(
    setting: Setting, recipe: dict[str, int], named: str
) -> None:
    emulator = setting.emulator(0.5).model
    with (
        pytest.raises(ConfigError, match=named),
        healed(emulator, setting.text, HealRecipe(**recipe)),
    ):
        pass
    with pytest.raises(ConfigError, match="found none"), healed(emulator, (), RECIPE):
        pass


def test_weights_that_can_train_are_spared_and_can_train_afterwards(setting: Setting) -> None:
    emulator = setting.emulator(0.5).model
    block = emulator.model.layers[1].requires_grad_(True)
    before = state(emulator)
    with healed(emulator, setting.text, HealRecipe(steps=1, tokens_per_step=96, rank=2)):
        assert not any(
            parameter.requires_grad for parameter in block.mlp.up_proj.base_layer.parameters()
        )
    assert_as_before(emulator, before)
    assert all(parameter.grad is None for parameter in block.parameters())
