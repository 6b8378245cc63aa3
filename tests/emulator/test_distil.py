"""Distillation trains the middle and nothing else, towards the full model."""

from pathlib import Path

import pytest
import torch
from tests.emulator.exams import Setting, make_setting, perplexity
from transformers import PreTrainedModel

from offsite.emulator.build import Emulator, build_emulator
from offsite.emulator.distil import (
    DistilOutcome,
    DistilRecipe,
    distil,
    hidden_loss,
    middle_end,
    middle_parameters,
)
from offsite.emulator.hidden_states import read_states, relative_error
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.methods.method import MethodName
from offsite.secure.errors import ConfigError

RECIPE = DistilRecipe(steps=40, tokens_per_step=96, learning_rate=3e-3, micro_batch_tokens=60)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder: Path = tmp_path_factory.mktemp("setting")
    return make_setting(folder)


def copied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def run(setting: Setting, emulator: Emulator, recipe: DistilRecipe = RECIPE) -> DistilOutcome:
    return distil(setting.base, emulator, setting.text, recipe)


@pytest.mark.parametrize("method", [MethodName.WIDTH_PRUNE, MethodName.UNIFORM_DROP])
def test_the_emulator_comes_nearer_to_the_full_model(setting: Setting, method: MethodName) -> None:
    emulator = setting.emulator(0.5, method)
    ids, end = setting.text[0], middle_end(emulator.layer_map)

    def distance() -> float:
        found, wanted = read_states(emulator.model, ids), read_states(setting.base, ids)
        return relative_error(found[end[0]], wanted[end[1]])

    before = distance(), perplexity(emulator.model, setting.text)
    outcome = run(setting, emulator)
    after = distance(), perplexity(emulator.model, setting.text)
    assert after[0] < 0.7 * before[0]
    assert after[1] < before[1]
    assert outcome.last_hidden_loss < 0.5 * outcome.first_hidden_loss
    assert outcome.last_language_loss < outcome.first_language_loss
    assert outcome.tokens == 40 * 4 * 23


def test_only_the_middle_changes(setting: Setting) -> None:
    emulator = setting.emulator(0.5)
    base, student = copied(setting.base), copied(emulator.model)
    run(setting, emulator)
    assert all(torch.equal(base[n], v) for n, v in setting.base.state_dict().items())
    middle = middle_parameters(emulator.model, emulator.layer_map)
    for name, value in emulator.model.state_dict().items():
        assert torch.equal(student[name], value) is (name not in middle), name
    assert not any(parameter.requires_grad for parameter in emulator.model.parameters())
    assert not emulator.model.training


def test_bf16_weights_take_small_steps(tmp_path: Path) -> None:
    """Masters carry what bf16 weights cannot: in every matrix something moves in the end."""
    setting = make_setting(tmp_path, trained=False)
    for parameter in setting.base.parameters():
        parameter.data = parameter.data.bfloat16()
    emulator = setting.emulator(0.5)
    before = copied(emulator.model)
    run(setting, emulator, DistilRecipe(steps=60, tokens_per_step=96, learning_rate=1e-4))
    middle = middle_parameters(emulator.model, emulator.layer_map)
    assert all(parameter.dtype is torch.bfloat16 for parameter in middle.values())
    moved = [bool((p != before[name]).any()) for name, p in middle.items() if p.dim() > 1]
    assert all(moved)


def test_harmonisers_and_shared_blocks_train(setting: Setting) -> None:
    for method, prefix in ((MethodName.HARMONISE, "harmonisers."), (MethodName.CLUSTER_SHARE, "")):
        emulator = build_emulator(setting.base, Placement(1, 1), method, 0.5, setting.text[:1])
        before = copied(emulator.model)
        middle = middle_parameters(emulator.model, emulator.layer_map)
        run(setting, emulator, DistilRecipe(steps=3, tokens_per_step=96))
        chosen = [name for name in middle if name.startswith(prefix)]
        assert chosen
        after = emulator.model.state_dict()
        assert all(not torch.equal(before[name], after[name]) for name in chosen)


def test_the_loss_is_that_of_the_reference() -> None:
    student, teacher = torch.randn(2, 5, 8), 3 * torch.randn(2, 5, 8)
    rms = teacher.pow(2).mean().sqrt()
    wanted = (teacher - student).div(rms).pow(2).mean()
    torch.testing.assert_close(hidden_loss(student, teacher), wanted)


def test_the_middle_ends_where_the_last_slots_begin() -> None:
    assert middle_end(LayerMap.of(Placement(1, 2), 8, (1, 3))) == (3, 6)
    assert middle_end(LayerMap.of(Placement(1, 0), 8, (1, 3))) == (3, 8)
    assert middle_end(LayerMap.of(Placement(1, 1, middle_lora=True), 4, (1, 2))) == (3, 3)
    spread = LayerMap.of(Placement(0, 1, spread=1), 8, (0, 1, 5))
    assert middle_end(spread) == (4, 7)


def test_the_weights_decide_what_is_learnt(setting: Setting) -> None:
    found = []
    for hidden_weight in (0.0, 30.0):
        recipe = DistilRecipe(20, 96, learning_rate=3e-3, hidden_weight=hidden_weight)
        found.append(run(setting, setting.emulator(0.5), recipe).last_hidden_loss)
    assert found[1] < 0.5 * found[0]


def test_a_consumed_full_model_is_refused(setting: Setting, tmp_path: Path) -> None:
    other = make_setting(tmp_path, trained=False)
    emulator = build_emulator(
        other.base, Placement(1, 1), MethodName.UNIFORM_DROP, 0.5, consume=True
    )
    with pytest.raises(ConfigError, match="without consuming"):
        run(other, emulator)


def test_progress_is_told(setting: Setting) -> None:
    told: list[tuple[int, int]] = []
    recipe = DistilRecipe(steps=2, tokens_per_step=96)
    distil(
        setting.base,
        setting.emulator(0.5),
        setting.text,
        recipe,
        lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 2), (2, 2)]
