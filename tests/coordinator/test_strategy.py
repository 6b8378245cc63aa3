"""Flower's strategies under our hands: what they compute, and their state saved and given back."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from offsite.coordinator.config import StrategyName
from offsite.coordinator.strategy import (
    TAU,
    CohortUpdate,
    aggregate,
    begin_round,
    instructions,
    make_strategy,
    state_of,
    state_schema,
)
from offsite.emulator.rounds.flower_internals import set_task_identity
from offsite.emulator.rounds.instruction import ARRAYS, CONFIG, PLAN, SERVER_ROUND, TERMS
from offsite.emulator.schema import TensorSpec, spec_of, tensors_from_bytes, tensors_to_bytes

ADAPTER = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([[0.5, 0.0, 3.0]])}
SCHEMA = {name: TensorSpec("F32", tuple(value.shape)) for name, value in ADAPTER.items()}


def _mean(name: str, weight: float, scale: float) -> CohortUpdate:
    delta = {key: scale * torch.ones_like(value) / 3 for key, value in ADAPTER.items()}
    return CohortUpdate(name, delta, weight)


MEANS = [_mean("1.1.1.2", 3, 0.011), _mean("1.1.1.0", 1, 0.037), _mean("1.1.1.1", 7, -0.013)]


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
        new = aggregate(strategy, step, adapter, MEANS)
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
    first = aggregate(kept, 1, ADAPTER, MEANS)
    saved = tensors_to_bytes(state_of(kept))
    begin_round(kept, first, {})
    expected = aggregate(kept, 2, first, MEANS)

    restored = make_strategy(name)
    begin_round(restored, first, tensors_from_bytes(saved, state_schema(name, SCHEMA)))
    found = aggregate(restored, 2, first, MEANS)
    assert list(found) == list(ADAPTER)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert {key: spec_of(value) for key, value in found.items()} == SCHEMA


@pytest.mark.parametrize("name", list(StrategyName))
def test_the_result_does_not_depend_on_the_order_of_the_cohorts(name: StrategyName) -> None:
    adapter = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    means = []
    for mean in MEANS:
        generator = torch.Generator().manual_seed(int(mean.weight))
        delta = {"w": torch.randn(1000, generator=generator)}
        means.append(dataclasses.replace(mean, delta=delta))
    results = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        strategy = make_strategy(name)
        begin_round(strategy, adapter, {})
        results.append(aggregate(strategy, 1, adapter, [means[i] for i in order]))
    assert all(torch.equal(a[key], results[0][key]) for a in results for key in a)


def test_every_node_gets_the_plan_the_terms_and_the_adapter() -> None:
    set_task_identity(1, 1)
    strategy = make_strategy(StrategyName.FEDADAM)
    config = {PLAN: b"plan", TERMS: b"terms"}
    messages = list(instructions(strategy, 4, ADAPTER, config, [9, 5, 7]))
    assert sorted(message.metadata.dst_node_id for message in messages) == [5, 7, 9]
    for message in messages:
        assert message.metadata.message_type == "train"
        assert message.content[CONFIG] == {PLAN: b"plan", TERMS: b"terms", SERVER_ROUND: 4}
        arrays = {name: array.numpy() for name, array in message.content[ARRAYS].items()}
        assert all(np.array_equal(arrays[name], value) for name, value in ADAPTER.items())
