"""Gradient-preserving compression: how much stays, what λ does, and what is refused."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch.nn import functional
from transformers import MixtralConfig, PreTrainedModel

from offsite.emulator.blocks import find_blocks, in_attention, parameter_count
from offsite.emulator.build import build_emulator
from offsite.emulator.factored import FactoredLinear
from offsite.emulator.layer_map import Placement
from offsite.emulator.linear import features, linear_layers, weight_out_in
from offsite.emulator.methods.backward_stream import BackwardStream
from offsite.emulator.methods.block_parts import BlockParts
from offsite.emulator.methods.direction_scores import directions
from offsite.emulator.methods.gradient import GradientPreserving, SmallBlocks
from offsite.emulator.methods.gradient_statistics import LayerMoments
from offsite.emulator.methods.method import MethodName, MethodOptions
from offsite.emulator.progress import silent
from offsite.emulator.weights import named_weights, replace_parameters
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]
MIDDLE = range(1, 4)
SANDWICH = Placement(1, 1)


def plan(
    model: PreTrainedModel, ratio: float, tokens: torch.Tensor, **options: float
) -> SmallBlocks:
    return GradientPreserving(**options).plan(model, MIDDLE, ratio, [tokens], silent)


def emulator_of(
    model: PreTrainedModel, ratio: float, tokens: torch.Tensor, slope_weight: float = 0.0
) -> PreTrainedModel:
    options = MethodOptions(gradient_lambda=slope_weight)
    calibration = [tokens[:1], tokens[1:]]
    return build_emulator(
        model, SANDWICH, MethodName.GRADIENT, ratio, calibration, options=options
    ).model


def loss_of(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    with torch.inference_mode():
        logits = model(input_ids=tokens).logits[:, :-1].flatten(0, 1)
        return float(functional.cross_entropy(logits, tokens[:, 1:].flatten()))


@pytest.mark.parametrize("ratio", [0.9, 0.7, 0.5])
def test_ratio_is_met_from_below_to_within_a_step(
    ratio: float, family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    emulator = emulator_of(base, ratio, tokens)
    for index in MIDDLE:
        full, small = (find_blocks(model).modules[index] for model in (base, emulator))
        costs = [option.costs for option in BlockParts.of(full).options.values()]
        step = max(b - a for each in costs for a, b in pairwise(each))
        left = ratio * parameter_count(full) - parameter_count(small)
        assert 0 <= left < step


def test_emulator_computes_the_full_model_with_products_and_without_channels(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """The reference is the full model, its own weights overwritten by those products."""
    base = make_model(family)
    emulator = emulator_of(base, 0.45, tokens)
    planned = plan(base, 0.45, tokens)
    made = {index: planned.small_block(index) for index in MIDDLE}
    factored = 0
    for index in MIDDLE:
        full, small = (find_blocks(model).modules[index] for model in (base, emulator))
        for path, layer in linear_layers(small):
            if isinstance(layer, FactoredLinear):
                weight_out_in(full.get_submodule(path)).copy_(layer.weight)
                factored += in_attention(full, path)
        mlp, keep = made[index].mlp, made[index].channels
        mask = torch.zeros(mlp.channels)
        mask[keep] = 1.0
        weight_out_in(full.get_submodule(mlp.down)).mul_(mask)
    assert factored >= 2
    with torch.inference_mode():
        torch.testing.assert_close(emulator(tokens).logits, base(tokens).logits)


def test_ratio_one_keeps_every_bit(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    kept = build_emulator(base, SANDWICH, MethodName.GRADIENT, 1.0).model
    before, after = named_weights(base), named_weights(kept)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_never_alias_the_full_model(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    for ratio in (0.9, 1.0):
        planned = plan(base, ratio, tokens)
        for index in MIDDLE:
            block = find_blocks(base).modules[index]
            own = {tensor.data_ptr() for tensor in named_weights(block).values()}
            new = planned.weights(index, block).values()
            assert own.isdisjoint(tensor.data_ptr() for tensor in new)


def test_same_input_same_emulator(make_model: MakeModel, tokens: torch.Tensor) -> None:
    first, second = (named_weights(emulator_of(make_model("llama"), 0.6, tokens)) for _ in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_groups_of_blocks_change_nothing(make_model: MakeModel, tokens: torch.Tensor) -> None:
    base = make_model("llama")
    done: list[tuple[int, int]] = []
    one = plan(base, 0.6, tokens)
    method = GradientPreserving(group_bytes=1)
    batches = [tokens[:1], tokens[1:]]
    many = method.plan(base, MIDDLE, 0.6, batches, lambda *told: done.append(told))
    assert done == [(1, 2), (2, 2)]
    assert (len(one.groups), len(many.groups)) == (1, 3)
    for index in MIDDLE:
        block = find_blocks(base).modules[index]
        once, thrice = (planned.weights(index, block) for planned in (one, many))
        assert once.keys() == thrice.keys()
        for name in once:
            assert torch.equal(once[name], thrice[name])


def test_a_plan_holds_no_weights_and_a_block_only_needs_those_above(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """Blocks are made when they are asked for, with the ones below gone, as in a consuming build.

    So neither all factored projections nor the moments of all blocks exist at once.
    """
    base = make_model(family)
    expected = plan(base, 0.6, tokens)
    blocks = find_blocks(base).modules
    whole = {index: expected.weights(index, blocks[index]) for index in MIDDLE}
    planned = plan(base, 0.6, tokens, group_bytes=1)
    assert not planned._made
    for index in MIDDLE:
        for below in blocks[:index]:
            replace_parameters(below, lambda _, old: old.detach().to("meta"))
        small = planned.weights(index, blocks[index])
        assert not planned._made
        assert small.keys() == whole[index].keys()
        assert all(torch.equal(small[name], whole[index][name]) for name in small)


def test_middle_may_have_gaps(make_model: MakeModel, tokens: torch.Tensor) -> None:
    base = make_model("llama")
    made = []
    for group_bytes in (1, None):
        method = GradientPreserving(group_bytes=group_bytes)
        planned = method.plan(base, (1, 3), 0.6, [tokens], silent)
        assert planned.kept == (1, 3)
        made.append([planned.weights(i, find_blocks(base).modules[i]) for i in (1, 3)])
    for apart, together in zip(*made, strict=True):
        assert all(torch.equal(apart[name], together[name]) for name in apart)


def test_larger_lambda_gives_a_worse_language_model_of_the_same_size(
    make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model("llama")
    emulators = [emulator_of(base, 0.6, tokens, value) for value in (0.0, 1.0, 8.0)]
    losses = [loss_of(emulator, tokens) for emulator in emulators]
    assert losses[0] < losses[1] < losses[2]
    sizes = [parameter_count(emulator) for emulator in emulators]
    assert max(sizes) - min(sizes) <= 0.05 * sizes[0]


def test_the_strongest_directions_stay_whatever_lambda_says(
    make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """Each projection that stays lossy under a huge λ keeps its strongest direction."""
    base = make_model("llama")
    layers = BlockParts.of(find_blocks(base).modules[2]).attention
    moments = {path: LayerMoments.zeros(layer) for path, layer in layers.items()}
    stream = BackwardStream(base, 2, [tokens], silent)
    stream.backpropagate({layers[p]: m.see for p, m in moments.items()})
    small = plan(base, 0.4, tokens, slope_weight=1e6).small_block(2)
    assert small.factors
    for path, (down, _) in small.factors.items():
        moments[path].divide(tokens.numel(), path)
        found = directions(layers[path], moments[path])
        strongest = found.down[found.scores.curvature.argmax()]
        cosines = functional.cosine_similarity(down.double(), strongest[None])
        assert float(cosines.abs().max()) > 0.999
        assert len(down) >= 0.05 * min(features(layers[path]))


def test_lambda_must_be_a_size(make_model: MakeModel) -> None:
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="gradient_lambda"):
            GradientPreserving(value)


def test_smallest_ratio_is_named_and_reachable(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    with pytest.raises(ConfigError, match="gradient cannot keep only") as refusal:
        emulator_of(base, 0.01, tokens)
    smallest = float(str(refusal.value).split(" is ")[-1].split(";")[0])
    emulator_of(base, smallest, tokens)
    with pytest.raises(ConfigError, match="smallest ratio"):
        emulator_of(base, smallest - 0.001, tokens)


def test_calibration_is_needed(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="gradient needs calibration tokens"):
        build_emulator(make_model("llama"), SANDWICH, MethodName.GRADIENT, 0.7)


def test_experts_are_refused(make_model: MakeModel, tokens: torch.Tensor) -> None:
    config = MixtralConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="does not know the MLP of MixtralDecoderLayer"):
        emulator_of(make_model("", config=config), 0.7, tokens)


def test_a_bfloat16_model_gives_a_bfloat16_emulator(
    make_model: MakeModel, tokens: torch.Tensor
) -> None:
    emulator = emulator_of(make_model("llama", torch.bfloat16), 0.6, tokens)
    assert {p.dtype for p in emulator.parameters()} == {torch.bfloat16}
    assert bool(emulator(tokens).logits.isfinite().all())
