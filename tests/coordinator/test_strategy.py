"""Flower's strategies under our hands: what they compute, and their state saved and given back."""

import dataclasses
import statistics
import time

import numpy as np
import pytest
import torch
from flwr.app import Metadata
from torch import Tensor

from offsite.coordinator.config import StrategyName
from offsite.coordinator.strategy import (
    TAU,
    aggregate,
    begin_round,
    instructions,
    make_strategy,
    state_of,
    state_schema,
)
from offsite.emulator.rounds.flower_internals import set_task_identity
from offsite.emulator.rounds.instruction import ARRAYS, CONFIG, PLAN, SERVER_ROUND
from offsite.emulator.rounds.update import Update
from offsite.emulator.schema import TensorSpec, spec_of, tensors_from_bytes, tensors_to_bytes

ADAPTER = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([[0.5, 0.0, 3.0]])}
SCHEMA = {name: TensorSpec("F32", tuple(value.shape)) for name, value in ADAPTER.items()}


def _update(client: str, examples: int, scale: float) -> tuple[Metadata, Update]:
    delta = {name: scale * torch.ones_like(value) / 3 for name, value in ADAPTER.items()}
    metadata = Metadata(1, "r", 5, 1, "m", "1.1", time.time(), 9.0, "train")
    return metadata, Update(client, delta, examples, {"loss": scale, client: 1.0})


UPDATES = [_update("zoe", 3, 0.011), _update("adam", 1, 0.037), _update("kim", 7, -0.013)]


def _adam(m: Tensor, v: Tensor, delta: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Reddi et al., algorithm 2, with Flower's bias correction and our defaults."""
    m = 0.9 * m + 0.1 * delta
    v = 0.99 * v + 0.01 * delta**2
    eta = 1e-3 * (1 - 0.99 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
    return m, v, eta * m / (v.sqrt() + TAU)


def test_fedadam_is_the_published_update() -> None:
    adapter, state = dict(ADAPTER), {}
    m = {name: torch.zeros_like(value).double() for name, value in adapter.items()}
    v = {name: torch.zeros_like(value).double() for name, value in adapter.items()}
    for step in (1, 2, 3):
        strategy = make_strategy(StrategyName.FEDADAM)
        begin_round(strategy, adapter, state)
        new, _ = aggregate(strategy, step, adapter, UPDATES)
        state = state_of(strategy)
        mean = (3 * 0.011 + 0.037 - 7 * 0.013) / 33
        for name, before in adapter.items():
            delta = torch.full_like(before, mean).double()
            m[name], v[name], change = _adam(m[name], v[name], delta, step)
            torch.testing.assert_close(new[name] - before, change.float(), rtol=2e-3, atol=1e-6)
        adapter = new


@pytest.mark.parametrize("name", list(StrategyName))
def test_a_state_that_was_saved_goes_on_bit_for_bit(name: StrategyName) -> None:
    kept = make_strategy(name)
    begin_round(kept, ADAPTER, {})
    first, _ = aggregate(kept, 1, ADAPTER, UPDATES)
    saved = tensors_to_bytes(state_of(kept))
    begin_round(kept, first, {})
    expected, _ = aggregate(kept, 2, first, UPDATES)

    restored = make_strategy(name)
    begin_round(restored, first, tensors_from_bytes(saved, state_schema(name, SCHEMA)))
    found, _ = aggregate(restored, 2, first, UPDATES)
    assert list(found) == list(ADAPTER)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert {key: spec_of(value) for key, value in found.items()} == SCHEMA


@pytest.mark.parametrize("name", list(StrategyName))
def test_the_result_does_not_depend_on_who_answers_first(name: StrategyName) -> None:
    adapter = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    updates = []
    for metadata, update in UPDATES:
        generator = torch.Generator().manual_seed(update.num_examples)
        delta = {"w": torch.randn(1000, generator=generator)}
        updates.append((metadata, dataclasses.replace(update, delta=delta)))
    results = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        strategy = make_strategy(name)
        begin_round(strategy, adapter, {})
        results.append(aggregate(strategy, 1, adapter, [updates[i] for i in order])[0])
    assert all(torch.equal(a[key], results[0][key]) for a in results for key in a)


def test_metrics_that_every_client_sent_are_averaged_by_examples() -> None:
    _, means = aggregate(make_strategy(StrategyName.FEDAVG), 1, ADAPTER, UPDATES)
    assert means == {"loss": pytest.approx((3 * 0.011 + 0.037 - 7 * 0.013) / 11)}


@pytest.mark.parametrize("claims", [(3, 4, 10**9), (3, 10**9), (3, 10**9, 10**9, 2)])
def test_a_claim_of_many_examples_weighs_at_most_ten_times_the_median(
    claims: tuple[int, ...],
) -> None:
    updates = [_update(f"client-{i}", n, 0.01 * (i - 1)) for i, n in enumerate(claims)]
    weights = [min(n, 10 * statistics.median_low(claims)) for n in claims]
    assert max(weights) <= 40
    new, means = aggregate(make_strategy(StrategyName.FEDAVG), 1, ADAPTER, updates)
    mean = sum(w * 0.01 * (i - 1) for i, w in enumerate(weights)) / sum(weights)
    assert means["loss"] == pytest.approx(mean)
    for name, before in ADAPTER.items():
        expected = before + mean * torch.ones_like(before) / 3
        torch.testing.assert_close(new[name], expected, rtol=0, atol=1e-6)


def test_every_eligible_node_gets_the_plan_and_the_adapter() -> None:
    set_task_identity(1, 1)
    strategy = make_strategy(StrategyName.FEDADAM)
    messages = list(instructions(strategy, 4, ADAPTER, b"plan", [9, 5, 7]))
    assert sorted(message.metadata.dst_node_id for message in messages) == [5, 7, 9]
    for message in messages:
        assert message.metadata.message_type == "train"
        assert message.content[CONFIG] == {PLAN: b"plan", SERVER_ROUND: 4}
        arrays = {name: array.numpy() for name, array in message.content[ARRAYS].items()}
        assert all(np.array_equal(arrays[name], value) for name, value in ADAPTER.items())
