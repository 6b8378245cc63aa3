"""Averaging A and B apart is biased; with A fixed, a residual or stacking it is not. In fp64."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.emulator.adapters.lora import first_low
from offsite.emulator.lora_aggregation.aggregate import LoraAggregate, aggregate_lora
from offsite.emulator.lora_aggregation.factors import (
    LoraFactors,
    Update,
    factors_of,
    tensors_of,
)
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.emulator.lora_aggregation.ranks import on_whole_low
from offsite.secure.errors import ConfigError

SCALING = 1.5
LAYERS = {"bottom.0.up": (7, 5), "top.0.down": (4, 9)}
"""(out, in)."""
EXACT = 1e-12
EXACT_KINDS = (LoraAggregation.RESIDUAL, LoraAggregation.STACK)

CLIENTS = st.integers(1, 6)
SEEDS = st.integers(0, 2**31)
WEIGHTS = st.floats(0.1, 1e4)
RANKS = st.lists(st.integers(1, 4), min_size=1, max_size=6)


def drawn(seed: int, ranks: Sequence[int], shared_low: bool = False) -> list[Update]:
    """The factors of a client for each rank."""
    generator = torch.Generator().manual_seed(seed)
    updates: list[Update] = []
    for rank in ranks:
        update = {}
        for layer, (outputs, inputs) in LAYERS.items():
            low = torch.randn(rank, inputs, generator=generator, dtype=torch.float64)
            if shared_low:
                low = first_low(3, layer, (rank, inputs)).double()
            high = torch.randn(outputs, rank, generator=generator, dtype=torch.float64)
            update[layer] = LoraFactors(low, high)
        updates.append(update)
    return updates


def meant(updates: Sequence[Update], weights: Sequence[float], layer: str) -> torch.Tensor:
    """s · sum p_i · B_i·A_i, element by element."""
    total = torch.zeros(LAYERS[layer], dtype=torch.float64)
    for update, weight in zip(updates, weights, strict=True):
        one = update[layer]
        total += weight * torch.einsum("or,ri->oi", one.high, one.low)
    return SCALING * total / sum(weights)


def bias(found: LoraAggregate, updates: Sequence[Update], weights: Sequence[float]) -> float:
    """The largest difference from what is meant, relative to the largest value."""
    wanted = {layer: meant(updates, weights, layer) for layer in LAYERS}
    return max(
        float((found.change(layer) - wanted[layer]).abs().max() / wanted[layer].abs().max())
        for layer in LAYERS
    )


@given(SEEDS, st.lists(WEIGHTS, min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_residual_and_stack_are_exact(seed: int, weights: list[float]) -> None:
    updates = drawn(seed, [3] * len(weights))
    for kind in EXACT_KINDS:
        assert bias(aggregate_lora(kind, updates, weights, SCALING), updates, weights) < EXACT


@given(SEEDS, st.lists(WEIGHTS, min_size=2, max_size=6))
@settings(deadline=None, max_examples=60)
def test_an_average_of_both_factors_is_biased_by_their_covariance(
    seed: int, weights: list[float]
) -> None:
    """What is missing is s · sum p_i · (B_i - mean B)·(A_i - mean A), and it is not small."""
    updates = drawn(seed, [3] * len(weights))
    found = aggregate_lora(LoraAggregation.AVERAGE, updates, weights, SCALING)
    shares = [weight / sum(weights) for weight in weights]
    for layer, shape in LAYERS.items():
        mean, covariance = found.factors[layer], torch.zeros(shape, dtype=torch.float64)
        for share, update in zip(shares, updates, strict=True):
            one = update[layer]
            covariance += share * (one.high - mean.high) @ (one.low - mean.low)
        wanted = meant(updates, weights, layer)
        missing = wanted - found.change(layer)
        torch.testing.assert_close(missing, SCALING * covariance, rtol=0, atol=1e-11)
        if min(shares) > 0.1:
            assert missing.norm() > 0.05 * wanted.norm()
    biased = aggregate_lora(LoraAggregation.AVERAGE, updates, [1.0] * len(updates), SCALING)
    assert bias(biased, updates, [1.0] * len(updates)) > 0.01


@given(SEEDS, st.lists(WEIGHTS, min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_with_a_fixed_an_average_is_exact(seed: int, weights: list[float]) -> None:
    """FFA-LoRA, which is what `adapter.trains = "b"` does."""
    updates = drawn(seed, [3] * len(weights), shared_low=True)
    found = aggregate_lora(LoraAggregation.AVERAGE, updates, weights, SCALING)
    assert bias(found, updates, weights) < EXACT
    for layer in LAYERS:
        torch.testing.assert_close(
            found.factors[layer].low, updates[0][layer].low, rtol=EXACT, atol=EXACT
        )


@given(SEEDS, RANKS)
@settings(deadline=None, max_examples=60)
def test_several_ranks_are_exact_stacked_or_with_a_fixed(seed: int, ranks: list[int]) -> None:
    weights = [1.0 + place for place in range(len(ranks))]
    updates = drawn(seed, ranks)
    stacked = aggregate_lora(LoraAggregation.STACK, updates, weights, SCALING)
    assert bias(stacked, updates, weights) < EXACT
    assert {one.rank for one in stacked.factors.values()} == {sum(ranks)}
    fixed = drawn(seed, ranks, shared_low=True)
    lows = {n: first_low(3, n, (max(ranks), inputs)).double() for n, (_, inputs) in LAYERS.items()}
    filled = [{n: on_whole_low(one, lows[n]) for n, one in update.items()} for update in fixed]
    found = aggregate_lora(LoraAggregation.AVERAGE, filled, weights, SCALING)
    assert bias(found, fixed, weights) < EXACT


def test_slices_are_means_over_those_who_have_them() -> None:
    ranks, weights = (1, 3, 2), (1.0, 2.0, 5.0)
    updates = drawn(4, ranks)
    found = aggregate_lora(LoraAggregation.SLICES, updates, weights, SCALING)
    padded = aggregate_lora(LoraAggregation.PADDED, updates, weights, SCALING)
    for layer, place in itertools.product(LAYERS, range(3)):
        held = [(u[layer], w) for u, w, r in zip(updates, weights, ranks, strict=True) if r > place]
        low = sum(w * one.low[place] for one, w in held)
        high = sum(w * one.high[:, place] for one, w in held)
        among = sum(w for _, w in held)
        torch.testing.assert_close(found.factors[layer].low[place], low / among)
        torch.testing.assert_close(found.factors[layer].high[:, place], high / among)
        torch.testing.assert_close(padded.factors[layer].low[place], low / sum(weights))
        torch.testing.assert_close(padded.factors[layer].high[:, place], high / sum(weights))


@pytest.mark.parametrize("kind", [LoraAggregation.PADDED, LoraAggregation.SLICES])
def test_of_one_rank_padding_and_slices_are_the_average(kind: LoraAggregation) -> None:
    updates, weights = drawn(8, [3, 3, 3]), (1.0, 2.0, 4.0)
    wanted = aggregate_lora(LoraAggregation.AVERAGE, updates, weights, SCALING)
    found = aggregate_lora(kind, updates, weights, SCALING)
    for layer in LAYERS:
        torch.testing.assert_close(found.change(layer), wanted.change(layer), rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", LoraAggregation, ids=lambda kind: kind.value)
def test_a_client_alone_is_itself_and_nothing_is_changed(kind: LoraAggregation) -> None:
    updates = drawn(1, [2])
    before = [(one.low.clone(), one.high.clone()) for one in updates[0].values()]
    found = aggregate_lora(kind, updates, [3.0], SCALING)
    assert bias(found, updates, [3.0]) < EXACT
    assert bool(found.residual) == (kind is LoraAggregation.RESIDUAL)
    for (low, high), one in zip(before, updates[0].values(), strict=True):
        assert torch.equal(low, one.low) and torch.equal(high, one.high)


def test_what_does_not_belong_together_is_refused_by_name() -> None:
    average = LoraAggregation.AVERAGE
    two = drawn(1, [2, 3])
    for kind in (average, LoraAggregation.RESIDUAL):
        with pytest.raises(ConfigError, match=rf"{kind.value} needs one rank, found \[2, 3\]"):
            aggregate_lora(kind, two, [1, 1], SCALING)
    for updates, weights in (([], []), (two, [1.0]), (drawn(1, [2]), [0.0])):
        with pytest.raises(ConfigError, match="expected"):
            aggregate_lora(average, updates, weights, SCALING)
    with pytest.raises(ConfigError, match="same layers"):
        aggregate_lora(average, [two[0], {"x": two[0]["top.0.down"]}], [1, 1], SCALING)
    other = {name: two[0][one] for name, one in zip(LAYERS, reversed(LAYERS), strict=True)}
    with pytest.raises(ConfigError, match="one size of the layer"):
        aggregate_lora(average, [two[0], other], [1, 1], SCALING)
    with pytest.raises(ConfigError, match="the beginning of the whole one"):
        on_whole_low(two[0]["top.0.down"], two[1]["top.0.down"].low)
    with pytest.raises(ConfigError, match=r"A \(rank, in\) and B \(out, rank\)"):
        LoraFactors(torch.zeros(2, 3), torch.zeros(3, 1))


def test_factors_and_wire_tensors_are_one_another() -> None:
    (update,) = drawn(2, [2])
    tensors = tensors_of(update)
    assert set(tensors) == {f"{layer}.lora_{f}.weight" for layer in LAYERS for f in "AB"}
    back = factors_of(tensors)
    assert all(torch.equal(back[layer].product, update[layer].product) for layer in LAYERS)
    assert update["top.0.down"].first(1).rank == 1
    del tensors["top.0.down.lora_A.weight"]
    with pytest.raises(ConfigError, match="both factors"):
        factors_of(tensors)
