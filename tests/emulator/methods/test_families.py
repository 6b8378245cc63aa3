"""Every method with every family: from the full model to the plug-in, by either adapter."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from offsite.emulator.adapters.adapter import Adapter, AdapterKind, AdapterSpec, make_adapter
from offsite.emulator.build import Emulator, build_emulator
from offsite.emulator.instantiate import instantiate
from offsite.emulator.layer_map import LayerMap, Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.schema import load_checked, schema_from_json, schema_to_json, spec_of
from offsite.emulator.weights import named_weights
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]
EVERY_METHOD = pytest.mark.parametrize("method", MethodName, ids=lambda method: method.value)
SPECS = {
    "whole": AdapterSpec(AdapterKind.WHOLE_BLOCK),
    "lora": AdapterSpec(AdapterKind.LORA, rank=4, alpha=8, seed=5),
}
SOME_FAMILIES = pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
SANDWICH = Placement(1, 1)
PLACEMENTS = {"top": Placement(0, 2), "spread": Placement(0, 1, spread=1)}
RATIO = 0.7
DROPPING = {
    MethodName.UNIFORM_DROP,
    MethodName.IMPORTANCE_DROP,
    MethodName.CLUSTER_SHARE,
    MethodName.HARMONISE,
}


def built(
    base: PreTrainedModel,
    method: MethodName,
    tokens: torch.Tensor,
    placement: Placement = SANDWICH,
    ratio: float = RATIO,
) -> Emulator:
    return build_emulator(base, placement, method, ratio, [tokens[:1], tokens[1:]])


def received(emulator: Emulator, folder: Path) -> Emulator:
    """The emulator as the other side makes it, of text and tensors alone."""
    weights = named_weights(emulator.model)
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / "e.safetensors")
    schema_text = json.dumps(schema_to_json({n: spec_of(t) for n, t in weights.items()}))
    config_text = emulator.model.config.to_json_string()
    map_text = json.dumps(emulator.layer_map.to_json())
    schema = schema_from_json(json.loads(schema_text), "schema")
    layer_map = LayerMap.from_json(json.loads(map_text))
    dtype = next(emulator.model.parameters()).dtype
    model = instantiate(json.loads(config_text), schema, dtype, layer_map.kept)
    targets = named_weights(model)
    for name, tensor in load_checked(folder / "e.safetensors", schema).items():
        targets[name].copy_(tensor)
    return Emulator(model, layer_map)


def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(tokens).logits


def copies(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in named_weights(model).items()}


def restore(model: PreTrainedModel, values: dict[str, torch.Tensor]) -> None:
    for name, tensor in named_weights(model).items():
        tensor.copy_(values[name])


def same(before: dict[str, torch.Tensor], model: PreTrainedModel) -> bool:
    after = named_weights(model)
    return before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )


def tuned(
    adapter: Adapter, model: PreTrainedModel, tokens: torch.Tensor, steps: int
) -> dict[str, torch.Tensor]:
    adapter.attach(model)
    parameters = adapter.trainable(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    for step in range(steps):
        batch = tokens.roll(step, dims=0)[:1]
        model(batch, labels=batch).loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
        optimizer.step()
        optimizer.zero_grad()
    return adapter.extract(model)


@EVERY_METHOD
def test_from_the_full_model_to_the_plug_in(
    family: str, method: MethodName, make_model: MakeModel, tokens: torch.Tensor, tmp_path: Path
) -> None:
    base = make_model(family)
    before, output = copies(base), logits(base, tokens)
    emulator = built(base, method, tokens)
    assert same(before, base)
    other = received(emulator, tmp_path)
    assert torch.equal(logits(other.model, tokens), logits(emulator.model, tokens))
    for spec in SPECS.values():
        adapter = make_adapter(spec, other.layer_map)
        assert adapter.specs(other.model) == adapter.specs(base)  # the slots keep their shapes
        adapter.attach(other.model)
        adapter.plug_in(base, adapter.extract(other.model))
        assert same(before, base)  # untouched, it is the identity
        tensors = tuned(adapter, other.model, tokens, steps=1)
        adapter.detach(other.model)
        adapter.plug_in(base, tensors)
        changed = {
            name for name in before if not torch.equal(before[name], named_weights(base)[name])
        }
        names = {name.split(".lora_")[0] for name in adapter.base_names(base).values()}
        assert changed
        assert changed <= {name if name in before else f"{name}.weight" for name in names}
        assert logits(base, tokens).isfinite().all()
        assert not torch.equal(logits(base, tokens), output)
        restore(base, before)


@EVERY_METHOD
def test_at_ratio_one_tuning_the_emulator_is_tuning_the_full_model_bit_for_bit(
    family: str, method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """Same seed, same batches, fp32; nothing of the full model is missing or changed."""
    base = make_model(family)
    before = copies(base)
    emulator = built(base, method, tokens, ratio=1.0)
    for spec in SPECS.values():
        adapter = make_adapter(spec, emulator.layer_map)
        assert same(before, emulator.model)
        results = []
        for model in (emulator.model, base):
            results.append(tuned(adapter, model, tokens, steps=3))
            adapter.detach(model)
            restore(model, before)
        assert results[0].keys() == results[1].keys()
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@SOME_FAMILIES
@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
@EVERY_METHOD
def test_slots_elsewhere_and_in_bf16(
    family: str,
    method: MethodName,
    placement: Placement,
    make_model: MakeModel,
    tokens: torch.Tensor,
    tmp_path: Path,
) -> None:
    base = make_model(family, torch.bfloat16)
    before = copies(base)
    other = received(built(base, method, tokens, placement), tmp_path)
    assert logits(other.model, tokens).isfinite().all()
    for spec in SPECS.values():
        adapter = make_adapter(spec, other.layer_map)
        assert adapter.specs(other.model) == adapter.specs(base)
        adapter.attach(other.model)
        adapter.plug_in(base, adapter.extract(other.model))
        adapter.detach(other.model)
        assert same(before, base)


@EVERY_METHOD
def test_lora_on_the_middle_or_a_refusal_by_name(
    family: str, method: MethodName, make_model: MakeModel, tokens: torch.Tensor, tmp_path: Path
) -> None:
    base = make_model(family)
    placement = Placement(1, 1, middle_lora=True)
    if method in DROPPING:
        with pytest.raises(ConfigError, match=rf"{method.value}: .*middle_lora"):
            built(base, method, tokens, placement)
        return
    before = copies(base)
    other = received(built(base, method, tokens, placement), tmp_path)
    with pytest.raises(ConfigError, match="whole_block adapters cannot train middle slots"):
        make_adapter(SPECS["whole"], other.layer_map)
    adapter = make_adapter(SPECS["lora"], other.layer_map)
    assert adapter.specs(other.model) == adapter.specs(base)
    adapter.attach(other.model)
    adapter.plug_in(base, adapter.extract(other.model))
    assert same(before, base)
    tensors = tuned(adapter, other.model, tokens, steps=2)
    adapter.plug_in(base, tensors)
    assert not same(before, base)


@EVERY_METHOD
def test_a_consumed_model_gives_the_same_emulator(
    method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    expected = built(make_model("llama"), method, tokens)
    emulator = build_emulator(
        make_model("llama"), SANDWICH, method, RATIO, [tokens[:1], tokens[1:]], consume=True
    )
    assert emulator.layer_map == expected.layer_map
    assert same(copies(expected.model), emulator.model)
