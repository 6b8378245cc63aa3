"""What is summed in the backward pass equals what explicit gradients and Fisher matrices say.

The oracle makes no use of taps, checkpoints or rows: it keeps every input, has autograd make the
gradients of all weights, and multiplies activations by masks of ones to have their gradients too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks, in_attention
from offsite.emulator.linear import features, linear_layers, out_dim, weight_out_in
from offsite.emulator.methods import backward_stream
from offsite.emulator.methods.backward_stream import BackwardStream
from offsite.emulator.methods.direction_scores import ChannelMoments, directions
from offsite.emulator.methods.gradient_statistics import (
    LayerMoments,
    group_limit,
    groups,
    moments_bytes,
)
from offsite.emulator.methods.mlp import find_mlp
from offsite.emulator.progress import silent

MakeModel = Callable[..., PreTrainedModel]
BLOCK = 2
CLOSE = {"rtol": 2e-4, "atol": 1e-7}


@dataclass
class Explicit:
    """Of one layer: inputs (N, in), gradients of its outputs (N, out), of its weight (out, in)."""

    x: torch.Tensor
    g: torch.Tensor
    slope: torch.Tensor


def explicit(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], tokens: torch.Tensor
) -> dict[str, Explicit]:
    """One plain forward and backward pass of all rows at once, in which every weight trains."""
    inputs, outputs = {}, {}

    def keep(path: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            output.retain_grad()
            inputs[path], outputs[path] = args[0], output

        return hook

    handles = [layer.register_forward_hook(keep(path)) for path, layer in layers.items()]
    model.requires_grad_(True)
    loss_of(model, tokens).backward()
    for handle in handles:
        handle.remove()
    result = {}
    for path, layer in layers.items():
        x, g = inputs[path].detach().flatten(0, -2), outputs[path].grad.flatten(0, -2)
        slope = layer.weight.grad.T if out_dim(layer) else layer.weight.grad
        result[path] = Explicit(x, g, slope.clone())
    model.zero_grad()
    model.requires_grad_(False)
    return result


def loss_of(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    return functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum")


def attention_of(block: nn.Module) -> dict[str, nn.Module]:
    return {path: layer for path, layer in linear_layers(block) if in_attention(block, path)}


def collect(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], tokens: torch.Tensor
) -> dict[str, LayerMoments]:
    moments = {path: LayerMoments.zeros(layer) for path, layer in layers.items()}
    taps = {layer: moments[path].see for path, layer in layers.items()}
    stream = BackwardStream(model, BLOCK, [tokens[:1], tokens[1:]], silent)
    stream.backpropagate(taps)
    assert stream.tokens == tokens.numel()
    for path, moment in moments.items():
        moment.divide(stream.tokens, path)
    return moments


def test_moments_equal_those_of_explicit_gradients(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    model = make_model(family)
    layers = attention_of(find_blocks(model).modules[BLOCK])
    expected, n = explicit(model, layers, tokens), tokens.numel()
    for path, found in collect(model, layers, tokens).items():
        x, g = expected[path].x, expected[path].g
        torch.testing.assert_close(found.inputs, x.T @ x / n, **CLOSE)
        torch.testing.assert_close(found.gradients, g.T @ g / n, **CLOSE)
        torch.testing.assert_close(found.slope, expected[path].slope / n, **CLOSE)


def test_direction_scores_equal_those_of_the_whole_fisher_matrix(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """½·ΔWᵀ·(G ⊗ A)·ΔW with the Kronecker product written out, and ⟨∇loss, ΔW⟩."""
    model = make_model(family)
    layers = attention_of(find_blocks(model).modules[BLOCK])
    path = list(layers)[-1]
    seen, n = explicit(model, layers, tokens)[path], tokens.numel()
    fisher = torch.kron(seen.g.T @ seen.g / n, seen.x.T @ seen.x / n).double()
    found = directions(layers[path], collect(model, layers, tokens)[path])
    for c in (0, 1, 5, 20):
        change = -(found.up[:, c, None] * found.down[c])  # (out, in)
        vector = change.flatten()
        torch.testing.assert_close(
            found.scores.curvature[c], vector @ fisher @ vector / 2, rtol=1e-3, atol=1e-9
        )
        slope = (seen.slope.double() / n * change).sum()
        torch.testing.assert_close(found.scores.slope[c], slope, rtol=1e-3, atol=1e-8)


def test_directions_add_up_to_the_weight_and_so_do_their_curvatures(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    model = make_model(family)
    layers = attention_of(find_blocks(model).modules[BLOCK])
    for path, moments in collect(model, layers, tokens).items():
        found = directions(layers[path], moments)
        weight = weight_out_in(layers[path]).double()
        torch.testing.assert_close(found.up @ found.down, weight, rtol=1e-5, atol=1e-6)
        curvature = found.scores.curvature
        whole = ((moments.gradients.double() @ weight @ moments.inputs.double()) * weight).sum() / 2
        torch.testing.assert_close(curvature.sum(), whole, rtol=5e-2, atol=0)  # but for the damping
        assert len(curvature) == min(features(layers[path]))


def test_kept_directions_beat_the_weights_own_under_the_fisher_matrix(
    make_model: MakeModel, tokens: torch.Tensor
) -> None:
    model = make_model("llama")
    layers = attention_of(find_blocks(model).modules[BLOCK])
    layer, moments = layers["self_attn.o_proj"], collect(model, layers, tokens)["self_attn.o_proj"]
    weight = layer.weight.double()

    def lost(small: torch.Tensor) -> float:
        gap = weight - small
        both = moments.gradients.double() @ gap @ moments.inputs.double()
        return float((both * gap).sum())

    found = directions(layer, moments)
    down, up = found.low_rank(found.scores.curvature.argsort(descending=True)[:8])
    left, values, right = torch.linalg.svd(weight)
    assert lost(up @ down) < 0.7 * lost(left[:, :8] * values[:8] @ right[:8])


def test_channel_scores_equal_those_of_masked_channels(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    model = make_model(family)
    block = find_blocks(model).modules[BLOCK]
    mlp = find_mlp(block)
    down = block.get_submodule(mlp.down)
    a = explicit(model, {mlp.down: down}, tokens)[mlp.down].x
    mask = torch.ones(mlp.channels, requires_grad=True)
    hook = down.register_forward_pre_hook(lambda _, args: (args[0] * mask,))
    loss_of(model, tokens).backward()  # the gradient of a mask is minus the slope of its removal
    hook.remove()
    given = a[:, None] * weight_out_in(down)  # (N, H, I): what each channel gives to each output
    expected = given.square().sum(1).mean(0).double()

    moments = ChannelMoments(down)
    stream = BackwardStream(model, BLOCK, [tokens], silent)
    stream.backpropagate({down: moments.see})
    count = stream.tokens
    scores = moments.scores(count)
    torch.testing.assert_close(scores.curvature, expected, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(scores.slope, -mask.grad.double() / count, rtol=1e-3, atol=1e-7)


def test_the_model_is_left_as_it_was(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    model = make_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    collect(model, attention_of(find_blocks(model).modules[BLOCK]), tokens)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_the_inside_of_a_block_is_not_kept(make_model: MakeModel, tokens: torch.Tensor) -> None:
    """Inputs are freed after the forward pass and made again when the backward pass needs them."""
    model = make_model("llama")
    layer = find_blocks(model).modules[3].mlp.down_proj
    stream = BackwardStream(model, BLOCK, [tokens[:1]], silent)
    runs = []
    handle = layer.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    stream.backpropagate({layer: lambda x, g: None})
    handle.remove()
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1, [[2], [5], [7], [9]]), (8, [[2], [5, 7], [9]]), (99, [[2, 5, 7, 9]])],
)
def test_groups_hold_what_fits_and_at_least_one(limit: int, expected: list[list[int]]) -> None:
    assert groups({2: 6, 5: 5, 7: 3, 9: 4}, limit) == expected


def test_the_limit_is_a_share_of_the_model_so_that_building_stays_within_its_own() -> None:
    """A Llama of a billion parameters in bf16, with 165 MB of matrices in a block: one at a time."""
    sizes = dict.fromkeys(range(2, 14), 165 * 10**6)
    assert group_limit(2 * 10**9) <= 0.15 * 2 * 10**9
    assert groups(sizes, group_limit(2 * 10**9)) == [[index] for index in range(2, 14)]
    assert group_limit(0) <= 256 << 20


def test_memory_of_the_moments_is_what_was_announced(make_model: MakeModel) -> None:
    layers = attention_of(find_blocks(make_model("phi3")).modules[BLOCK])
    held = [LayerMoments.zeros(layer) for layer in layers.values()]
    taken = sum(m.inputs.nbytes + m.gradients.nbytes + m.slope.nbytes for m in held)
    assert moments_bytes([*layers.values()]) == taken


def test_the_gradient_of_the_loss_is_that_of_autograd(
    monkeypatch: pytest.MonkeyPatch, tokens: torch.Tensor
) -> None:
    """In pieces that do not divide the row, and 0 where nothing is predicted."""
    monkeypatch.setattr(backward_stream, "LOSS_TOKENS", 4)
    logits = torch.randn(1, 16, 96, generator=torch.Generator().manual_seed(1)).requires_grad_()
    row = tokens[:1]
    loss = functional.cross_entropy(logits[0, :-1], row[0, 1:], reduction="sum")
    (expected,) = torch.autograd.grad(loss, logits)
    found = backward_stream.loss_gradient(logits.detach(), row)
    assert torch.equal(found, expected)
    assert not found[0, -1].any()
