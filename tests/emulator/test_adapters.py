"""Adapters of every family: out of an emulator and back into the full model, by name."""

import hashlib
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.adapters.adapter import (
    Adapter,
    AdapterKind,
    AdapterSpec,
    TrainedFactors,
    make_adapter,
)
from offsite.emulator.adapters.lora import LoraAdapter, first_low
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.methods.method import MethodName
from offsite.secure.errors import ConfigError, PeerError

MakeModel = Callable[..., PreTrainedModel]
WHOLE = AdapterSpec(AdapterKind.WHOLE_BLOCK)
B_ALONE = AdapterSpec(AdapterKind.LORA, rank=4, alpha=12, seed=5)
BOTH = replace(B_ALONE, trains=TrainedFactors.AB)
SPECS = {"whole_block": WHOLE, "lora_b": B_ALONE, "lora_ab": BOTH}
EVERY_KIND = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@dataclass
class Pair:
    """A full model, its emulator (one middle block dropped) and an adapter for both."""

    base: PreTrainedModel
    emulator: PreTrainedModel
    adapter: Adapter


@pytest.fixture
def make_pair(make_model: MakeModel) -> Callable[..., Pair]:
    def make(family: str, spec: AdapterSpec, dtype: torch.dtype = torch.float32) -> Pair:
        base = make_model(family, dtype)
        built = build_emulator(base, Placement(1, 2), MethodName.UNIFORM_DROP, 0.5)
        return Pair(base, built.model, make_adapter(spec, built.layer_map))

    return make


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(tokens).logits


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    """Bit patterns, in which a negative zero differs from zero."""
    integer = {4: torch.int32, 2: torch.int16}
    return {
        name: tensor.clone().view(integer[tensor.element_size()])
        for name, tensor in model.state_dict().items()
    }


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def tuned(tensors: dict[str, torch.Tensor], scale: float = 0.1) -> dict[str, torch.Tensor]:
    """As if trained: every value moved, far enough to survive bf16."""
    generator = torch.Generator().manual_seed(11)
    return {
        name: tensor + scale * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
    }


@EVERY_DTYPE
@EVERY_KIND
def test_untouched_adapter_plugged_back_is_the_full_model_bit_for_bit(
    family: str,
    spec: AdapterSpec,
    dtype: torch.dtype,
    make_pair: Callable[..., Pair],
    tokens: torch.Tensor,
) -> None:
    pair = make_pair(family, spec, dtype)
    for parameter in pair.base.parameters():
        parameter.view(-1)[0] = -0.0  # merging must not turn it into +0.0
    built = build_emulator(pair.base, Placement(1, 2), MethodName.UNIFORM_DROP, 0.5)
    before, output = bits(pair.base), logits(pair.base, tokens)
    pair.adapter.attach(built.model)
    tensors = pair.adapter.extract(built.model)
    pair.adapter.plug_in(pair.base, tensors)
    assert not changed(before, bits(pair.base))
    assert torch.equal(logits(pair.base, tokens), output)


@EVERY_DTYPE
@EVERY_KIND
def test_attaching_changes_no_output(
    family: str,
    spec: AdapterSpec,
    dtype: torch.dtype,
    make_pair: Callable[..., Pair],
    tokens: torch.Tensor,
) -> None:
    pair = make_pair(family, spec, dtype)
    for model in (pair.base, pair.emulator):
        before, output = bits(model), logits(model, tokens)
        pair.adapter.attach(model)
        pair.adapter.load(model, pair.adapter.extract(model))
        assert torch.equal(logits(model, tokens), output)
        pair.adapter.detach(model)
        assert not changed(before, bits(model))


@EVERY_KIND
def test_plug_in_changes_exactly_the_slots_tensors(
    family: str, spec: AdapterSpec, make_pair: Callable[..., Pair]
) -> None:
    pair = make_pair(family, spec)
    pair.adapter.attach(pair.emulator)
    tensors = tuned(pair.adapter.extract(pair.emulator))
    names = pair.adapter.base_names(pair.base)
    assert names.keys() == tensors.keys()
    if spec.kind is AdapterKind.LORA:
        expected = {f"{name.split('.lora_')[0]}.weight" for name in names.values()}
    else:
        expected = set(names.values())
    before = bits(pair.base)
    pair.adapter.plug_in(pair.base, tensors)
    assert changed(before, bits(pair.base)) == expected
    blocks = {name.split(".")[-3 - name.count("lora_")] for name in expected}
    assert expected and blocks  # names are those of the full model
    if spec.kind is AdapterKind.WHOLE_BLOCK:
        state = pair.base.state_dict()
        assert all(torch.equal(state[names[name]], tensor) for name, tensor in tensors.items())


def test_slots_land_in_the_blocks_of_the_layer_map(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair("llama", WHOLE)
    names = pair.adapter.base_names(pair.base)
    suffix = "mlp.up_proj.weight"
    assert names[f"bottom.0.{suffix}"] == f"model.layers.0.{suffix}"
    assert names[f"top.0.{suffix}"] == f"model.layers.3.{suffix}"
    assert names[f"top.1.{suffix}"] == f"model.layers.4.{suffix}"
    in_emulator = pair.adapter.base_names(pair.emulator)
    assert in_emulator[f"top.0.{suffix}"] == f"model.layers.2.{suffix}"


@EVERY_DTYPE
@EVERY_KIND
def test_load_and_plug_in_compute_the_same(
    family: str,
    spec: AdapterSpec,
    dtype: torch.dtype,
    make_pair: Callable[..., Pair],
    tokens: torch.Tensor,
) -> None:
    """LoRA beside the weights, and merged into them."""
    pair = make_pair(family, spec, dtype)
    original = logits(pair.base, tokens)
    pair.adapter.attach(pair.base)
    tensors = tuned(pair.adapter.extract(pair.base))
    pair.adapter.load(pair.base, tensors)
    beside = logits(pair.base, tokens)
    assert not torch.allclose(beside, original, atol=1e-2)
    pair.adapter.plug_in(pair.base, tensors)  # detaches by itself
    assert not any(p.requires_grad for p in pair.base.parameters())
    tolerance = 1e-4 if dtype is torch.float32 else 0.05 * beside.abs().max().item()
    torch.testing.assert_close(logits(pair.base, tokens), beside, atol=tolerance, rtol=1e-4)


@EVERY_KIND
def test_only_the_slots_parameters_train(
    family: str, spec: AdapterSpec, make_pair: Callable[..., Pair], tokens: torch.Tensor
) -> None:
    pair = make_pair(family, spec)
    pair.emulator.requires_grad_(True)
    pair.adapter.attach(pair.emulator)
    pair.adapter.attach(pair.emulator)  # harmless
    trainable = pair.adapter.trainable(pair.emulator)
    ids = {id(parameter) for parameter in trainable.values()}
    assert {id(p) for p in pair.emulator.parameters() if p.requires_grad} == ids
    assert pair.emulator(tokens, labels=tokens).loss.isfinite()
    pair.emulator(tokens, labels=tokens).loss.backward()
    assert all(parameter.grad is not None for parameter in trainable.values())


@EVERY_KIND
def test_extracted_tensors_are_as_specified_and_do_not_alias(
    spec: AdapterSpec, make_pair: Callable[..., Pair]
) -> None:
    pair = make_pair("gpt2", spec)
    specs = pair.adapter.specs(pair.emulator)
    pair.adapter.attach(pair.emulator)
    tensors = pair.adapter.extract(pair.emulator)
    assert pair.adapter.specs(pair.emulator) == pair.adapter.specs(pair.base) == specs
    assert {n: s.shape for n, s in specs.items()} == {n: t.shape for n, t in tensors.items()}
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors.values())
    before = bits(pair.emulator)
    for tensor in tensors.values():
        tensor.fill_(1.0)
    assert not changed(before, bits(pair.emulator))


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "misshapen": lambda tensor: tensor.T.contiguous()[:, :-1],
    "transposed": lambda tensor: tensor.T.contiguous(),
    "half": lambda tensor: tensor.bfloat16(),
    "double": lambda tensor: tensor.double(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "nan": lambda tensor: torch.full_like(tensor, float("nan")),
    "infinite": lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("-inf")),
}


@pytest.mark.parametrize("fault", ["missing", "extra", *WRONG])
@pytest.mark.parametrize("into_emulator", [False, True], ids=["plug_in", "load"])
@EVERY_KIND
def test_wrong_tensor_is_named_and_nothing_is_written(
    spec: AdapterSpec, into_emulator: bool, fault: str, make_pair: Callable[..., Pair]
) -> None:
    pair = make_pair("llama", spec)
    pair.adapter.attach(pair.emulator)
    tensors = tuned(pair.adapter.extract(pair.emulator))
    name = next(name for name in reversed(tensors) if "mlp.down_proj" in name)
    if fault == "missing":
        del tensors[name]
    elif fault == "extra":
        name = "top.7.mlp.down_proj.weight"
        tensors[name] = torch.zeros(1)
    else:
        tensors[name] = WRONG[fault](tensors[name])
    model = pair.emulator if into_emulator else pair.base
    before = bits(model)
    write = pair.adapter.load if into_emulator else pair.adapter.plug_in
    with pytest.raises(PeerError, match=name.replace(".", r"\.")):
        write(model, tensors)
    assert not changed(before, bits(model))


@EVERY_KIND
def test_adapter_of_another_model_is_refused(
    spec: AdapterSpec, make_pair: Callable[..., Pair], make_model: MakeModel
) -> None:
    pair = make_pair("llama", spec)
    short = build_emulator(pair.base, Placement(1, 1), MethodName.UNIFORM_DROP, 0.3).model
    with pytest.raises(ConfigError, match="the model has 3 blocks"):
        pair.adapter.attach(short)
    pair.adapter.attach(pair.emulator)
    with pytest.raises(PeerError, match="tensor bottom"):
        pair.adapter.plug_in(make_model("opt"), pair.adapter.extract(pair.emulator))


def test_lora_must_be_attached_to_be_loaded(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair("llama", B_ALONE)
    with pytest.raises(ConfigError, match="attach the adapter first"):
        pair.adapter.extract(pair.emulator)


def test_lora_starts_from_its_seed_alone(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair("llama", BOTH, torch.bfloat16)
    found = []
    for model in (pair.emulator, pair.base):
        torch.manual_seed(len(found))  # what else was drawn does not matter
        pair.adapter.attach(model)
        found.append(pair.adapter.extract(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    for name, tensor in found[0].items():
        if "lora_B" in name:
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert 0.8 * bound < tensor.abs().max() <= bound
    assert all(p.dtype == torch.float32 for p in pair.adapter.trainable(pair.emulator).values())
    pair.adapter.detach(pair.base)
    other = make_adapter(replace(BOTH, seed=6), pair.adapter.layer_map)
    other.attach(pair.base)
    name = next(iter(found[0]))
    assert not torch.equal(other.extract(pair.base)[name], found[0][name])


def test_b_alone_trains_and_travels(make_pair: Callable[..., Pair], tokens: torch.Tensor) -> None:
    """And A beside it is what the spec's seed gives, in training and after plug-in alike."""
    pair = make_pair("llama", B_ALONE)
    adapter, model = pair.adapter, pair.emulator
    adapter.attach(model)
    assert all(name.endswith(".lora_B.weight") for name in adapter.specs(model))
    tensors = tuned(adapter.extract(model))
    adapter.load(model, tensors)
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora_B." in name), name
    path, layer = "model.layers.0.mlp.up_proj", "bottom.0.mlp.up_proj"
    drawn = first_low(5, layer, (4, 32))
    assert torch.equal(model.get_submodule(path).lora_A["default"].weight, drawn)
    before = pair.base.get_submodule(path).weight.clone()
    adapter.plug_in(pair.base, tensors)
    change = pair.base.get_submodule(path).weight - before
    wanted = 3.0 * tensors[f"{layer}.lora_B.weight"] @ drawn
    torch.testing.assert_close(change, wanted, atol=1e-6, rtol=1e-5)


def test_a_is_drawn_as_documented() -> None:
    """Word by word, in whole numbers; torch, NumPy and the order of layers have no say in it."""
    rank, inputs = 3, 7
    stream = hashlib.shake_256(b"offsite/lora-a/1|5|top.0.mlp.up_proj").digest(4 * rank * inputs)
    words = struct.unpack(f"<{rank * inputs}I", stream)
    values = [(2 * word + 1 - 2**32) / 2**32 / 7**0.5 for word in words]
    found = first_low(5, "top.0.mlp.up_proj", (rank, inputs))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.tensor(values, dtype=torch.float64).float().view(rank, inputs))
    assert found[0, :2].tolist() == FIRST_VALUES
    lower = first_low(5, "top.0.mlp.up_proj", (2, inputs))
    assert torch.equal(found[:2], lower)
    many = first_low(0, "x", (64, 1024)).double() * 32
    assert abs(float(many.mean())) < 0.01 and abs(float(many.var()) - 1 / 3) < 0.01


FIRST_VALUES = [-0.22118516266345978, 0.12455425411462784]
"""Written down, so that no later program draws otherwise."""


PLAIN_PEFT = """
import sys, torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/base", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, f"{folder}/peft").eval()
    with torch.inference_mode():
        logits = model(load_file(f"{folder}/tokens.safetensors")["tokens"]).logits
    save_file({"logits": logits.contiguous()}, f"{folder}/logits.safetensors")
assert not any(name.split(".")[0] == "offsite" for name in sys.modules)
"""


def test_lora_config_and_names_load_in_plain_peft(
    make_pair: Callable[..., Pair], tokens: torch.Tensor, tmp_path: Path
) -> None:
    """The coordinator's plug-in and `PeftModel.from_pretrained` compute the same logits."""
    expected = {}
    for family, spec in (("llama-tied", B_ALONE), ("phi3", BOTH), ("gpt2", B_ALONE)):
        folder = tmp_path / family
        pair = make_pair(family, spec)
        assert isinstance(pair.adapter, LoraAdapter)
        pair.base.save_pretrained(folder / "base")
        config = pair.adapter.peft_config(pair.base)
        pair.adapter.attach(pair.base)
        tensors = tuned(pair.adapter.extract(pair.base))
        config.save_pretrained(str(folder / "peft"))
        factors = pair.adapter.peft_tensors(pair.base, tensors)
        exported = {f"base_model.model.{path}": tensor for path, tensor in factors.items()}
        save_file(exported, folder / "peft" / "adapter_model.safetensors")
        save_file({"tokens": tokens}, folder / "tokens.safetensors")
        pair.adapter.plug_in(pair.base, tensors)
        expected[folder] = logits(pair.base, tokens)
    command = [sys.executable, "-c", PLAIN_PEFT, *map(str, expected)]
    subprocess.run(command, check=True, timeout=300)
    for folder, wanted in expected.items():
        found = load_file(folder / "logits.safetensors")["logits"]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_spec_json_round_trip_and_refusals() -> None:
    for spec in SPECS.values():
        assert AdapterSpec.from_json(spec.to_json()) == spec
    good = B_ALONE.to_json()
    for change in (
        {"kind": "prefix"},
        {"rank": 0},
        {"rank": 10**6},
        {"alpha": 0},
        {"trains": "a"},
        {"more": 1},
    ):
        with pytest.raises(PeerError):
            AdapterSpec.from_json({**good, **change})
    with pytest.raises(PeerError, match="trains"):
        AdapterSpec.from_json({name: good[name] for name in good if name != "trains"})
    with pytest.raises(ConfigError, match="rank is 0"):
        AdapterSpec(AdapterKind.LORA, rank=0)


def test_adapter_without_slots_is_refused() -> None:
    layer_map = LayerMap.of(Placement(0, 0), 4, (0, 3))
    with pytest.raises(ConfigError, match="no adapter slots"):
        make_adapter(B_ALONE, layer_map)


def test_interfaces_import_without_torch() -> None:
    """Commands read these names before anything heavy is loaded."""
    modules = "adapters.adapter", "methods.method", "layer_map", "progress"
    lines = [f"import offsite.emulator.{module}" for module in modules]
    lines.append("import sys; assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()")
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=120)
