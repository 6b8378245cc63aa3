"""What cannot be built is known before anything is measured, in the words of the method."""

from collections.abc import Iterator

import pytest
import torch
from tests.tiny import save_llama
from transformers import PreTrainedModel

from offsite.coordinator.building import placement_of
from offsite.coordinator.config import CoordinatorConfig
from offsite.coordinator.config_release import EmulatorSection, VariantSection
from offsite.coordinator.feasible import check_feasible, check_plan, check_variants
from offsite.coordinator.measuring_inputs import options_of
from offsite.emulator.base_model import load_base_model
from offsite.emulator.build import build_emulator
from offsite.emulator.methods.method import MethodName
from offsite.secure.errors import ConfigError

SECTIONS = {
    MethodName.WIDTH_PRUNE: EmulatorSection(MethodName.WIDTH_PRUNE, 0.01, 1, 1),
    MethodName.ACTIVATION_SVD: EmulatorSection(MethodName.ACTIVATION_SVD, 0.01, 1, 1),
    MethodName.GRADIENT: EmulatorSection(MethodName.GRADIENT, 0.01, 1, 1),
    MethodName.HARMONISE: EmulatorSection(MethodName.HARMONISE, 0.5, 1, 1, harmoniser_rank=999),
    MethodName.CLUSTER_SHARE: EmulatorSection(MethodName.CLUSTER_SHARE, 0.01, 1, 1, 1),
    MethodName.UNIFORM_DROP: EmulatorSection(MethodName.UNIFORM_DROP, 0.5, 1, 1, middle_lora=True),
}
"""Of every method settings that it refuses; `importance_drop` refuses none of a Llama."""
TEXT = (torch.arange(64).view(2, 32) % 96,)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreTrainedModel]:
    yield load_base_model(save_llama(tmp_path_factory.mktemp("model") / "mine", blocks=6))


@pytest.mark.parametrize("section", SECTIONS.values(), ids=lambda s: s.method.value)
def test_it_refuses_what_building_refuses_in_the_same_words(
    section: EmulatorSection, model: PreTrainedModel
) -> None:
    with pytest.raises(ConfigError) as building:
        build_emulator(
            model, placement_of(section), section.method, section.ratio, TEXT,
            options=options_of(section),
        )  # fmt: skip
    with pytest.raises(ConfigError) as checking:
        check_plan(section, model)
    assert str(checking.value) in str(building.value)


@pytest.mark.parametrize("method", MethodName, ids=lambda method: method.value)
@pytest.mark.parametrize("ratio", [0.7, 1.0])
def test_what_can_be_built_passes_and_leaves_the_model_alone(
    method: MethodName, ratio: float, model: PreTrainedModel
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_plan(EmulatorSection(method, ratio, 1, 1, harmoniser_rank=2), model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_emulator_that_cannot_is_named(model: PreTrainedModel) -> None:
    bad = SECTIONS[MethodName.WIDTH_PRUNE]
    sections = {"main": bad, "good": EmulatorSection(MethodName.UNIFORM_DROP, 0.5, 1, 1), "b": bad}
    with pytest.raises(ConfigError) as caught:
        check_feasible(CoordinatorConfig(), sections, model)
    main, _, variant = str(caught.value).partition("; variant b: ")
    assert main.startswith("width_prune cannot keep only 0.01") and variant.startswith(main)
    assert "good" not in str(caught.value)


def test_variants_need_one_placement_of_a_search(model: PreTrainedModel) -> None:
    """With a spread slot the middle is in two parts, of which each keeps a block."""
    share = VariantSection("s", MethodName.CLUSTER_SHARE, 0.2)
    config = CoordinatorConfig(emulator=EmulatorSection(variants=(share,)))
    whole = EmulatorSection(MethodName.UNIFORM_DROP, 0.5, 1, 1)
    parted = EmulatorSection(MethodName.UNIFORM_DROP, 0.5, 1, 1, 1)
    check_variants(config, [parted, whole], model)
    check_variants(CoordinatorConfig(), [parted], model)
    with pytest.raises(ConfigError, match=r"variant s: cluster_share cannot keep only 0\.2"):
        check_variants(config, [parted], model)
