"""What is packed of an emulator: the compressed middle, whatever its form, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from tests.emulator.forms import FORMS, Form, planned
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks
from offsite.emulator.build import Emulator, build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.packing.middle import packed_axes, roundtrip
from offsite.emulator.packing.packing import Packing
from offsite.emulator.weights import named_weights

MakeModel = Callable[..., PreTrainedModel]
PACKINGS = [Packing.INT8, Packing.NF4]


def built(base: PreTrainedModel, form: Form, placement: Placement) -> Emulator:
    with planned(form):
        return build_emulator(base, placement, MethodName.UNIFORM_DROP, 0.5)


def copies(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in named_weights(model).items()}


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_family_is_packed_in_its_middle_alone(
    packing: Packing, family: str, make_model: MakeModel
) -> None:
    emulator = built(make_model(family), Form(), Placement(1, 1, spread=1))
    before, blocks = copies(emulator.model), find_blocks(emulator.model)
    roundtrip(emulator.model, emulator.layer_map, packing)
    after = named_weights(emulator.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    middle = tuple(f"{blocks.name_of(position)}." for position in emulator.layer_map.middle)
    matrices = {name for name, tensor in before.items() if tensor.ndim >= 2}
    assert changed == {name for name in matrices if name.startswith(middle)}
    assert changed == packed_axes(emulator.model, emulator.layer_map).keys()
    for name in changed:
        error = (after[name] - before[name]).norm() / before[name].norm()
        assert error < (0.01 if packing is Packing.INT8 else 0.12)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_factors_and_harmonisers_are_packed_and_shared_weights_once(
    form: Form, family: str, make_model: MakeModel
) -> None:
    emulator = built(make_model(family), form, Placement(1, 1))
    axes = packed_axes(emulator.model, emulator.layer_map)
    weights = named_weights(emulator.model)
    assert axes.keys() <= weights.keys()
    for part in (".down.weight", "harmonisers."):
        assert {n for n in weights if part in n} == {n for n in axes if part in n}
    once = copies(emulator.model)
    roundtrip(emulator.model, emulator.layer_map, Packing.NF4)
    assert all(not torch.equal(once[n], named_weights(emulator.model)[n]) for n in axes)


def test_a_slot_of_lora_in_the_middle_is_a_compressed_block_all_the_same(
    make_model: MakeModel,
) -> None:
    base = make_model("llama")
    plain = built(base, FORMS["narrow"], Placement(1, 1))
    with_lora = built(base, FORMS["narrow"], Placement(1, 1, middle_lora=True))
    axes = packed_axes(with_lora.model, with_lora.layer_map)
    assert axes and axes == packed_axes(plain.model, plain.layer_map)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_scale_of_int8_belongs_to_an_output(family: str, make_model: MakeModel) -> None:
    """GPT-2 stores its weights the other way round."""
    emulator = built(make_model(family), Form(), Placement(1, 1))
    axes = packed_axes(emulator.model, emulator.layer_map)
    assert set(axes.values()) == {0 if family == "gpt2" else 1}


def test_no_packing_changes_nothing(make_model: MakeModel) -> None:
    emulator = built(make_model("llama"), Form(), Placement(1, 1))
    before = copies(emulator.model)
    roundtrip(emulator.model, emulator.layer_map, Packing.NONE)
    assert all(torch.equal(before[n], t) for n, t in named_weights(emulator.model).items())
