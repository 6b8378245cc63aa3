"""Activation-aware SVD: factors against the optimum, ranks against the ratio, blocks in turn."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks, parameter_count
from offsite.emulator.build import build_emulator
from offsite.emulator.factored import FactoredLinear
from offsite.emulator.layer_map import Placement
from offsite.emulator.linear import features, linear_layers, weight_out_in
from offsite.emulator.methods.activation_svd import RIDGE_SHARE, ActivationSvd
from offsite.emulator.methods.block_stream import BlockStream
from offsite.emulator.methods.method import MethodName
from offsite.emulator.progress import silent
from offsite.emulator.weights import named_weights
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]
MIDDLE = (1, 2, 3)
SANDWICH = Placement(1, 1)
RATIO = 0.7


def inputs_of(model: PreTrainedModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every linear layer receives inside the whole model, as fp64 rows."""
    seen: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _, args: seen.update({path: args[0].flatten(0, -2).double()})

    handles = [layer.register_forward_pre_hook(keep(p)) for p, layer in linear_layers(model)]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return seen


def test_every_factored_layer_is_the_best_of_its_rank(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """Against the SVD of the weight, densely whitened by the layer's inputs in the full model."""
    base = make_model(family)
    emulator = build_emulator(base, SANDWICH, MethodName.ACTIVATION_SVD, RATIO, [tokens]).model
    received = inputs_of(base, tokens)
    path = find_blocks(base).path
    factored = 0
    for index in MIDDLE:
        for name, layer in linear_layers(find_blocks(emulator).modules[index]):
            full = base.get_submodule(f"{path}.{index}.{name}")
            if not isinstance(layer, FactoredLinear):
                assert torch.equal(layer.weight, full.weight)
                continue
            factored += 1
            weight, rows = weight_out_in(full).double(), received[f"{path}.{index}.{name}"]
            ridge = RIDGE_SHARE * rows.square().mean() * len(rows)
            moment = rows.T @ rows + ridge * torch.eye(rows.shape[1])
            rank = layer.down.weight.shape[0]
            lost = torch.linalg.svdvals(weight @ torch.linalg.cholesky(moment))[rank:]
            difference = weight - layer.up.weight.double() @ layer.down.weight.double()
            error = ((difference @ moment) * difference).sum()
            assert error.item() == pytest.approx(lost.square().sum().item(), rel=1e-3)
    assert factored >= len(MIDDLE)


@pytest.mark.parametrize("ratio", [0.9, 0.75, 0.62])
def test_ratio_is_the_share_of_the_middles_parameters(
    ratio: float, family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    emulator = build_emulator(base, SANDWICH, MethodName.ACTIVATION_SVD, ratio, [tokens]).model
    for index in MIDDLE:
        full, small = (find_blocks(model).modules[index] for model in (base, emulator))
        step = max(8 * sum(features(layer)) for _, layer in linear_layers(full))
        left = ratio * parameter_count(full) - parameter_count(small)
        assert 0 <= left < 2 * step
    for index in (0, 4):
        full, slot = (find_blocks(model).modules[index] for model in (base, emulator))
        for name, tensor in named_weights(full).items():
            assert torch.equal(named_weights(slot)[name], tensor)


def test_smallest_reachable_ratio_is_named_and_reachable(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    with pytest.raises(ConfigError, match="smallest ratio") as refusal:
        build_emulator(base, SANDWICH, MethodName.ACTIVATION_SVD, 0.1, [tokens])
    smallest = float(str(refusal.value).split(" is ")[-1].split(";")[0])
    emulator = build_emulator(base, SANDWICH, MethodName.ACTIVATION_SVD, smallest, [tokens]).model
    ranks = {
        layer.down.weight.shape[0]
        for _, layer in linear_layers(find_blocks(emulator).modules[2])
        if isinstance(layer, FactoredLinear)
    }
    assert ranks == {8}
    with pytest.raises(ConfigError, match="smallest ratio"):
        build_emulator(base, SANDWICH, MethodName.ACTIVATION_SVD, smallest - 0.002, [tokens])


def test_same_input_same_bytes(make_model: MakeModel, tokens: torch.Tensor) -> None:
    base = make_model("llama", torch.bfloat16)
    first, second = (
        build_emulator(base, SANDWICH, MethodName.ACTIVATION_SVD, RATIO, [tokens[:1], tokens[1:]])
        for _ in range(2)
    )
    for name, tensor in named_weights(first.model).items():
        assert torch.equal(named_weights(second.model)[name], tensor)


def test_blocks_run_by_themselves_see_what_they_see_in_the_model(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """Batches of two shapes; a slot lies between the two stretches."""
    base = make_model(family)
    batches = [tokens[:1], tokens, tokens[1:]]
    stream = BlockStream(base, (1, 3), batches, silent)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())
    modules = find_blocks(base).modules
    for index in (1, 3):
        for i, _ in enumerate(stream.advance(index, modules[index])):
            with torch.no_grad():
                states = base(batches[i], output_hidden_states=True).hidden_states
            torch.testing.assert_close(stream.outputs(i), states[index + 1])


def test_earlier_blocks_may_be_gone(make_model: MakeModel, tokens: torch.Tensor) -> None:
    """What `consume` relies on: weights need the block at hand alone."""
    base = make_model("llama")
    expected = build_emulator(base, SANDWICH, MethodName.ACTIVATION_SVD, RATIO, [tokens])
    plan = ActivationSvd().plan(base, MIDDLE, RATIO, [tokens], silent)
    for index in MIDDLE:
        find_blocks(base).modules[index - 1].to("meta")
        weights = plan.weights(index, find_blocks(base).modules[index])
        made = named_weights(find_blocks(expected.model).modules[index])
        assert weights.keys() == made.keys()
        assert all(torch.equal(made[name], weights[name]) for name in weights)


def test_block_that_depends_on_its_model_is_refused(
    make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model("llama")
    block = find_blocks(base).modules[1]
    calls = []

    def drift(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * (1.0 + len(calls))

    block.register_forward_hook(drift, prepend=True)
    with pytest.raises(ConfigError, match="LlamaDecoderLayer run by itself differs"):
        build_emulator(base, SANDWICH, MethodName.ACTIVATION_SVD, RATIO, [tokens])


def test_layer_that_never_runs_is_refused(make_model: MakeModel, tokens: torch.Tensor) -> None:
    base = make_model("llama")
    find_blocks(base).modules[2].spare = nn.Linear(32, 32)
    with pytest.raises(ConfigError, match="spare receives nothing"):
        build_emulator(base, SANDWICH, MethodName.ACTIVATION_SVD, RATIO, [tokens])
