"""What the engine does not own it refuses by name; it never returns a sum then."""

from collections.abc import Mapping

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from tests.emulator.conftest import MakeModel
from tests.emulator.privacy.backends.cells import UNITS, make_batch
from tests.emulator.privacy.per_example.square import square_batch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.training.batches import MicroBatch
from offsite.emulator.training.masters import Masters
from offsite.secure.errors import ConfigError


def trained(model: nn.Module, *parts: str) -> dict[str, nn.Parameter]:
    """Parameters whose names have one of the parts, made to train."""
    found = {n: p for n, p in model.named_parameters() if any(part in n for part in parts)}
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def run(model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> torch.Tensor:
    total = torch.zeros(sum(parameter.numel() for parameter in parameters.values()))
    model.train()
    with PerExampleEngine(model, parameters) as engine:
        engine.clipped_sum_into(make_batch(), UNITS, 1.0, total)
    return total


def refused(model: PreTrainedModel, parameters: Mapping[str, nn.Parameter], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        run(model, parameters)
    assert all(parameter.grad is None for parameter in model.parameters())


ATTENTION = ["q_proj", "v_proj"]
STRANGERS: dict[str, PeftConfig] = {
    "dora": LoraConfig(target_modules=ATTENTION, use_dora=True, r=4),
    "ia3": IA3Config(target_modules=ATTENTION, feedforward_modules=[]),
    "vera": VeraConfig(target_modules=ATTENTION, r=4),
    "adalora": AdaLoraConfig(target_modules=ATTENTION, total_step=10, init_r=4),
    "lora of an embedding": LoraConfig(target_modules=["embed_tokens"], r=4),
}


@pytest.mark.parametrize("config", STRANGERS.values(), ids=STRANGERS)
def test_adapters_of_other_kinds(config: PeftConfig, make_model: MakeModel) -> None:
    model = make_model("llama")
    get_peft_model(model, config)  # in place
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    refused(model, parameters, "would train.*use a whole_block or lora adapter$")


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_what_is_fed_with_something_else_than_rows_and_tokens(
    name: str, make_model: MakeModel
) -> None:
    """The head sees learnt tokens alone; an embedding has no rule."""
    model = make_model("llama")
    refused(model, trained(model, name), name)


def test_a_position_table(make_model: MakeModel) -> None:
    """GPT-2 looks its positions up once for the whole batch."""
    model = make_model("gpt2")
    refused(model, trained(model, "wpe"), "wpe")


def test_a_tied_parameter(make_model: MakeModel) -> None:
    model = make_model("llama-tied")
    refused(model, trained(model, "embed_tokens"), "embed_tokens.* and lm_head")


def test_what_trains_and_is_not_named(make_model: MakeModel) -> None:
    model = make_model("llama")
    parameters = trained(model, "layers.0.mlp")
    trained(model, "layers.1.mlp.up_proj")
    refused(model, parameters, r"layers\.1\.mlp\.up_proj")


def test_what_is_named_and_does_not_train(make_model: MakeModel) -> None:
    model = make_model("llama")
    parameters = trained(model, "layers.0.mlp")
    parameters["model.layers.0.mlp.up_proj.weight"].requires_grad_(False)
    refused(model, parameters, r"up_proj.*frozen")


def test_what_is_in_no_model(make_model: MakeModel) -> None:
    model = make_model("llama")
    refused(model, trained(model, "q_proj") | {"x": nn.Parameter(torch.zeros(3))}, "^x ")


def test_no_parameters(make_model: MakeModel) -> None:
    refused(make_model("llama"), {}, "no parameters")


def test_a_parameter_that_is_used_past_its_layer(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    mlp = type(model.model.layers[0].mlp)
    right = mlp.forward
    monkeypatch.setattr(
        mlp, "forward", lambda self, x: right(self, x) + x.sum(-1, True) * self.up_proj.weight[0, 0]
    )
    parameters = trained(model, "layers.0.mlp.up_proj")
    refused(model, parameters, "up_proj.*past its layer")
    model.bfloat16()  # then the masters take what a parameter is given the moment it is there
    values = {name: parameter.detach().float() for name, parameter in parameters.items()}
    with Masters(parameters, values, 0.0) as masters:
        refused(model, parameters, "up_proj.*past its layer")
        assert all(master.grad is None for master in masters.values.values())


def test_a_parameter_that_no_gradient_reaches(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    mlp = type(model.model.layers[0].mlp)
    right = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: right(self, x).detach())
    refused(model, trained(model, "layers.0.mlp.up_proj", "layers.0.self_attn.q"), "up_proj")


def test_reentrant_checkpointing_of_inputs_without_gradients(make_model: MakeModel) -> None:
    """Then autograd never runs the blocks again, and would say so in a warning at most."""
    model = make_model("llama")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.disable_input_require_grads()
    with (
        pytest.warns(UserWarning, match="None of the inputs"),
        pytest.raises((ConfigError, RuntimeError)),
    ):
        run(model, trained(model, "layers.0.mlp"))


@pytest.mark.parametrize("batch", [make_batch(), square_batch()], ids=["oblong", "square"])
def test_tokens_before_rows(
    batch: MicroBatch, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that computes on [T, B, H]."""
    model = make_model("llama")
    mlp = type(model.model.layers[0].mlp)
    right = mlp.forward
    monkeypatch.setattr(
        mlp, "forward", lambda self, x: right(self, x.transpose(0, 1)).transpose(0, 1)
    )
    parameters = trained(model, "layers.0.mlp.up_proj")
    with (
        pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up_proj is given"),
        PerExampleEngine(model.train(), parameters) as engine,
    ):
        total = torch.zeros(parameters["model.layers.0.mlp.up_proj.weight"].numel())
        engine.clipped_sum_into(batch, torch.arange(len(batch.ids)), 1.0, total)


def test_one_input_for_the_whole_batch(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a prompt encoder does: its output is the same for every row."""
    model = make_model("llama")
    mlp = type(model.model.layers[0].mlp)
    right = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: right(self, x[:1]).expand_as(x))
    refused(model, trained(model, "layers.0.mlp.up_proj"), "up_proj is given")


def test_batch_norm(make_model: MakeModel) -> None:
    model = make_model("llama")
    model.model.extra = nn.BatchNorm1d(4).requires_grad_(False)
    refused(model, trained(model, "layers.0.mlp"), "model.extra .BatchNorm1d. computes with the")


def test_a_layer_whose_forward_is_another(make_model: MakeModel) -> None:
    model = make_model("llama")
    layer = model.model.layers[0].mlp.up_proj
    layer.forward = lambda x: x @ layer.weight.T
    refused(model, trained(model, "layers.0.mlp"), r"layers\.0\.mlp\.up_proj")


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rows_that_change_the_rotary_embedding_of_others(kind: str, make_model: MakeModel) -> None:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64 if kind == "longrope" else 12,
        rope_parameters={
            "rope_type": kind,
            "rope_theta": 1e4,
            "factor": 2.0,
            "original_max_position_embeddings": 12,
            "long_factor": [2.0] * 4,
            "short_factor": [1.0] * 4,
        },
    )
    model = make_model("llama", config=config)
    refused(model, trained(model, "layers.0.mlp"), "beyond 12")
