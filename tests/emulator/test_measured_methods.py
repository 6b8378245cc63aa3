"""What holds for every method that looks at activations, in every family."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks, slot_blocks
from offsite.emulator.build import Emulator, build_emulator
from offsite.emulator.instantiate import instantiate
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName, MethodOptions, make_method
from offsite.emulator.progress import silent
from offsite.emulator.schema import spec_of
from offsite.emulator.weights import named_weights

MakeModel = Callable[..., PreTrainedModel]
SANDWICH = Placement(1, 1)
METHODS = pytest.mark.parametrize(
    "method",
    [
        MethodName.IMPORTANCE_DROP,
        MethodName.CLUSTER_SHARE,
        MethodName.ACTIVATION_SVD,
        MethodName.HARMONISE,
    ],
    ids=lambda method: method.value,
)


def build(
    base: PreTrainedModel, method: MethodName, tokens: torch.Tensor, consume: bool = False
) -> Emulator:
    options = MethodOptions(harmoniser_rank=4)
    return build_emulator(base, SANDWICH, method, 0.7, [tokens], options=options, consume=consume)


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(tokens).logits


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rebuilt_from_config_schema_and_layer_map(
    family: str,
    method: MethodName,
    dtype: torch.dtype,
    make_model: MakeModel,
    tokens: torch.Tensor,
) -> None:
    base = make_model(family, dtype)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    emulator = build(base, method, tokens)
    weights = named_weights(emulator.model)
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {dtype}
    schema = {name: spec_of(tensor) for name, tensor in weights.items()}
    config = emulator.model.config.to_dict()
    rebuilt = instantiate(config, schema, dtype, emulator.layer_map.kept)
    for name, target in named_weights(rebuilt).items():
        target.copy_(weights[name])
    assert torch.equal(logits(rebuilt, tokens), logits(emulator.model, tokens))
    for parameter in find_blocks(emulator.model).modules.parameters():
        parameter.fill_(9.0)  # which must not reach the full model
    assert all(torch.equal(base.state_dict()[name], before[name]) for name in before)


@METHODS
def test_ratio_one_is_the_full_model_without_calibration(
    family: str, method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    emulator = build_emulator(base, SANDWICH, method, 1.0)
    assert emulator.layer_map.kept == (0, 1, 2, 3, 4)
    weights, own = named_weights(base), named_weights(emulator.model)
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in weights)
    assert torch.equal(logits(emulator.model, tokens), logits(base, tokens))


@METHODS
def test_consumed_or_not_the_same_bytes(
    family: str, method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """Twice from the same input; once with a full model that gives its blocks up on the way."""
    first = build(make_model(family), method, tokens)
    second = build(make_model(family), method, tokens, consume=True)
    assert first.layer_map == second.layer_map
    weights, own = named_weights(first.model), named_weights(second.model)
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in weights)


@METHODS
def test_slots_keep_their_shapes_and_weights(
    family: str, method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model(family)
    emulator = build(base, method, tokens)
    ours = slot_blocks(base, emulator.layer_map)
    for name, (_, block) in slot_blocks(emulator.model, emulator.layer_map).items():
        full = named_weights(ours[name][1])
        assert all(torch.equal(full[path], own) for path, own in named_weights(block).items())


@METHODS
def test_progress_ends_at_its_total(
    method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    told: list[tuple[int, int]] = []
    planner = make_method(method, MethodOptions(harmoniser_rank=4))
    assert planner.name is method and planner.needs_calibration
    planner.plan(
        make_model("llama"), (1, 2, 3), 0.7, [tokens[:1], tokens[1:]], lambda *p: told.append(p)
    )
    done = [step for step, _ in told]
    assert len({total for _, total in told}) == 1 and done == sorted(done)
    assert told[-1][0] == told[-1][1]


@METHODS
def test_nothing_is_left_on_the_model(
    method: MethodName, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    base = make_model("llama")
    planner = make_method(method, MethodOptions(harmoniser_rank=4))
    plan = planner.plan(base, (1, 2, 3), 0.7, [tokens], silent)
    plan.weights(1, find_blocks(base).modules[1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())
