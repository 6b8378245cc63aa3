"""Cluster and share: the similarity by hand, the best cut by brute force, shared blocks."""

from collections.abc import Callable
from itertools import combinations, pairwise

import pytest
import torch
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks, parameter_count
from offsite.emulator.build import build_emulator
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods import cluster_share
from offsite.emulator.methods.cluster_share import (
    ClusterShare,
    best_clusters,
    linear_cka,
    sampled_outputs,
)
from offsite.emulator.methods.method import MethodName
from offsite.emulator.progress import silent
from offsite.secure.errors import ConfigError

MakeModel = Callable[..., PreTrainedModel]
MIDDLE = (1, 2, 3)


def test_cka_is_that_of_the_covariances() -> None:
    """‖XᵀY‖² / (‖XᵀX‖·‖YᵀY‖) of centred features, the form in features instead of tokens."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, width, generator=generator) for width in (6, 9))
    similarity = linear_cka([x, y, 3.0 * x @ torch.linalg.qr(torch.randn(6, 6)).Q])
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    expected = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert similarity[0, 1].item() == pytest.approx(expected.item())
    assert similarity[0, 2].item() == pytest.approx(1.0)  # rotation and scale do not matter
    assert torch.allclose(similarity.diagonal(), torch.ones(3, dtype=torch.float64))


def test_sample_is_evenly_spread_over_the_batches(
    make_model: MakeModel, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_share, "SAMPLED_TOKENS", 5)
    base = make_model("llama")
    with torch.inference_mode():
        states = base(tokens, output_hidden_states=True).hidden_states
    sampled = sampled_outputs(base, MIDDLE, [tokens[:1], tokens[1:]], silent)
    for index in MIDDLE:
        rows = states[index + 1].flatten(0, 1)[[0, 6, 12, 19, 25]]
        torch.testing.assert_close(sampled[index], rows / rows.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("runs", [[7], [3, 4], [1, 5, 1]])
@pytest.mark.parametrize("count", [3, 4, 7])
def test_the_cut_is_the_best_there_is(runs: list[int], count: int) -> None:
    """Against every way to cut."""
    points = torch.rand(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distance = torch.cdist(points, points)
    walls = [sum(runs[:i]) for i in range(1, len(runs))]

    def cost(cuts: tuple[int, ...]) -> float:
        edges = (0, *cuts, 7)
        return sum(float(distance[a:b, a:b].sum(0).min()) for a, b in pairwise(edges))

    cuts = [c for c in combinations(range(1, 7), count - 1) if set(walls) <= set(c)]
    stand_ins = best_clusters(distance, runs, count)
    found = sum(float(distance[i, stand_in]) for i, stand_in in enumerate(stand_ins))
    assert found == pytest.approx(min(map(cost, cuts)))
    assert len(set(stand_ins)) == count and stand_ins == sorted(stand_ins)
    for wall in walls:
        assert max(stand_ins[:wall]) < wall <= min(stand_ins[wall:])


def test_shared_blocks_stand_for_their_neighbours(
    family: str, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    """The emulator computes what the full model does with the stand-ins' weights copied."""
    base = make_model(family)
    emulator = build_emulator(base, Placement(1, 1), MethodName.CLUSTER_SHARE, 0.67, [tokens])
    kept = emulator.layer_map.kept
    assert len(kept) == 5 and len(set(kept)) == 4
    shared, whole = (parameter_count(find_blocks(m).modules) for m in (emulator.model, base))
    assert shared * 5 == whole * 4
    if family == "gemma2":
        return  # its blocks alternate; the copy would keep its own kind of attention
    blocks = find_blocks(base).modules
    for position, index in enumerate(kept):
        blocks[position].load_state_dict(blocks[index].state_dict())
    with torch.inference_mode():
        assert torch.equal(emulator.model(tokens).logits, base(tokens).logits)


def test_twins_share(make_model: MakeModel, tokens: torch.Tensor) -> None:
    """Two blocks after which the hidden states are the same are one cluster."""
    base = make_model("llama")
    idle = find_blocks(base).modules[3]
    idle.self_attn.o_proj.weight.zero_()
    idle.mlp.down_proj.weight.zero_()
    assert ClusterShare().plan(base, MIDDLE, 0.67, [tokens], silent).kept == (1, 2, 2)


def test_no_cluster_reaches_over_a_slot(make_model: MakeModel, tokens: torch.Tensor) -> None:
    base, placement = make_model("llama"), Placement(1, 1, spread=1)
    emulator = build_emulator(base, placement, MethodName.CLUSTER_SHARE, 1.0)
    assert emulator.layer_map.kept == (0, 1, 2, 3, 4)
    with pytest.raises(ConfigError, match=r"smallest ratio is 1\.000; or place fewer spread"):
        build_emulator(base, placement, MethodName.CLUSTER_SHARE, 0.5, [tokens])
