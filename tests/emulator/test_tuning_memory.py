"""The estimate of tuning's memory: what it counts, and which emulator takes less."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tests.varied import SANDWICH, SIGNER, tiny_varied
from transformers import PreTrainedModel

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, TrainedFactors, make_adapter
from offsite.emulator.build import build_emulator
from offsite.emulator.bundle.writer import write_bundle
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.tuning_memory import CONSTANT_BYTES, TuningLoad, tuning_bytes

MakeModel = Callable[..., PreTrainedModel]
LORA = AdapterSpec(AdapterKind.LORA, rank=4, alpha=8)
BOTH = replace(LORA, trains=TrainedFactors.AB)
WHOLE = AdapterSpec(AdapterKind.WHOLE_BLOCK)
ONE = TuningLoad(micro_batch_tokens=1)
NONE = TuningLoad(micro_batch_tokens=0)


def estimate(
    base: PreTrainedModel,
    load: TuningLoad,
    spec: AdapterSpec = WHOLE,
    ratio: float = 1.0,
    placement: Placement = SANDWICH,
) -> int:
    emulator = build_emulator(base, placement, MethodName.UNIFORM_DROP, ratio)
    schema = make_adapter(spec, emulator.layer_map).specs(emulator.model)
    return tuning_bytes(emulator.model, emulator.layer_map, schema, load)


def test_weights_adapter_and_tokens_are_counted_as_documented(make_model: MakeModel) -> None:
    """A Llama of H 32, MLP 64, keys and values 16, V 96: written out by hand."""
    base = make_model("llama")
    block = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32
    weights = 2 * 96 * 32 + 5 * block + 32
    assert estimate(base, NONE) == 2 * weights + 26 * 2 * block + CONSTANT_BYTES
    outputs = 32 + 16 + 16 + 32 + 64 + 64 + 32
    frozen = 2 * (outputs + 64) + 8 * 32
    trained = frozen + 2 * (32 + 64) + 4 * 32
    per_token = 3 * frozen + 2 * trained + 96 * (2 + 12)
    assert estimate(base, ONE) - estimate(base, NONE) == per_token


def test_lora_keeps_copies_of_what_goes_out_and_of_what_goes_in_where_a_trains(
    make_model: MakeModel,
) -> None:
    base = make_model("llama")
    inputs, outputs = 4 * 32 + 2 * 32 + 64, 32 + 16 + 16 + 32 + 64 + 64 + 32
    frozen = 5 * (2 * (outputs + 64) + 8 * 32) + 96 * 14
    per_token = estimate(base, ONE, LORA) - estimate(base, NONE, LORA)
    assert per_token == frozen + 2 * 4 * outputs
    per_token = estimate(base, ONE, BOTH) - estimate(base, NONE, BOTH)
    assert per_token == frozen + 2 * 4 * (inputs + outputs)


def test_what_is_kept_for_the_backward_pass_is_what_is_said(make_model: MakeModel) -> None:
    """Of a block with LoRA, asked of autograd: where A trains its inputs are kept, and only there."""
    kept = {
        spec.trains: saved_bytes(make_model("llama", torch.bfloat16), spec) for spec in (LORA, BOTH)
    }
    inputs = 4 * 32 + 2 * 32 + 64
    assert kept[TrainedFactors.AB] - kept[TrainedFactors.B] == 2 * 4 * inputs


def saved_bytes(base: PreTrainedModel, spec: AdapterSpec) -> float:
    """Bytes a token of activations that autograd holds, shared ones once."""
    emulator = build_emulator(base, SANDWICH, MethodName.UNIFORM_DROP, 1.0)
    model = emulator.model
    make_adapter(spec, emulator.layer_map).attach(model)
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    found: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            found[place] = tensor
        return tensor

    tokens = torch.arange(64)[None] % 96
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(tokens)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values()) / 64


def test_what_takes_less_is_stated_as_less(family: str, make_model: MakeModel) -> None:
    base, load = make_model(family), TuningLoad()
    full = estimate(base, load)
    assert estimate(base, load, ratio=0.34) < full
    assert estimate(base, load, placement=Placement(0, 2)) < full  # the blocks below keep nothing
    assert estimate(base, TuningLoad(gradient_checkpointing=True)) < full
    assert estimate(base, TuningLoad(micro_batch_tokens=1024)) < full
    assert estimate(base, TuningLoad(value_bytes=4)) > full


def test_lora_in_the_middle_counts_the_attention_alone(make_model: MakeModel) -> None:
    base = make_model("llama")
    plain = estimate(base, ONE, LORA) - estimate(base, NONE, LORA)
    everywhere = Placement(1, 1, middle_lora=True)
    wide = estimate(base, ONE, LORA, placement=everywhere)
    wide -= estimate(base, NONE, LORA, placement=everywhere)
    assert wide - plain == 3 * 4 * (32 + 16 + 16 + 32)


def test_a_release_states_the_load_that_it_was_written_for(tmp_path: Path) -> None:
    varied = tiny_varied(tmp_path / "model")
    contents, facts = varied.contents(1.0), varied.facts()
    stated = []
    for tokens in (256, 2048):
        loaded = replace(contents, load=TuningLoad(tokens))
        stated.append(write_bundle(tmp_path / "b", loaded, facts, SIGNER).tuning_bytes)
    assert isinstance(contents.model, PreTrainedModel)
    schema = make_adapter(contents.adapter_spec, contents.layer_map).specs(contents.model)
    assert stated == [
        tuning_bytes(contents.model, contents.layer_map, schema, TuningLoad(tokens))
        for tokens in (256, 2048)
    ]
