"""Flower's strategies under our hands: what they compute, what they remember, what they withstand."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from tests.coordinator.strategies.formulas import FORMULAS, Memory, step
from torch import Tensor

from offsite.coordinator.config_strategy import StrategyName, StrategySection
from offsite.coordinator.strategies.aggregation import aggregate
from offsite.coordinator.strategies.cohort_update import CohortUpdate
from offsite.coordinator.strategies.fit import ROBUST, fewest_cohorts
from offsite.coordinator.strategies.flower_strategies import state_schema
from offsite.coordinator.strategies.instructions import instructions
from offsite.emulator.rounds.flower_internals import set_task_identity
from offsite.emulator.rounds.instruction import ARRAYS, CONFIG, PLAN, SERVER_ROUND, TERMS
from offsite.emulator.schema import TensorSpec, spec_of, tensors_from_bytes, tensors_to_bytes
from offsite.secure.errors import PolicyError

SHAPES = {"b": (3, 5), "a": (7,)}
SCHEMA = {name: TensorSpec("F32", shape) for name, shape in SHAPES.items()}
EVERY = pytest.mark.parametrize("name", StrategyName, ids=lambda name: name.value)
EVERY_ROBUST = pytest.mark.parametrize(
    "name", sorted(ROBUST, key=lambda name: name.value), ids=lambda name: name.value
)
COHORTS = 9
"""Enough for every default, of which Bulyan needs 7."""


def drawn(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}


def means_of(seed: int, count: int = COHORTS) -> list[CohortUpdate]:
    """Changes as fine-tuning makes them, about 1e-3, of unequal weight; not in order."""
    common = drawn(1000 + seed, 1e-3)
    found = []
    for place in range(count):
        own = drawn(100 * seed + place, 7e-4)
        delta = {name: common[name] + own[name] for name in SHAPES}
        found.append(CohortUpdate(f"1.1.1.{place}", delta, float(3 + 5 * place % 7)))
    return found[::-1]


def flat(tensors: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([tensors[name].double().numpy().ravel() for name in SHAPES])


def by_formula(section: StrategySection, means: list[CohortUpdate], memory: Memory) -> np.ndarray:
    ordered = sorted(means, key=lambda mean: mean.name)
    changes = np.stack([flat(dict(mean.delta)) for mean in ordered])
    return step(section, changes, np.array([mean.weight for mean in ordered]), memory)


@EVERY
def test_every_strategy_is_its_published_formula(name: StrategyName) -> None:
    """Over three rounds, the state saved and given back between them."""
    section, memory = StrategySection(name), Memory()
    adapter, state = drawn(7), {}
    for number in (1, 2, 3):
        means = means_of(number)
        made = aggregate(section, number, adapter, state, means)
        wanted = by_formula(section, means, memory)
        found = flat(made.adapter) - flat(adapter)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-7)
        assert np.abs(wanted).max() > 1e-4
        saved = tensors_to_bytes(made.state)
        state = tensors_from_bytes(saved, state_schema(section, SCHEMA))
        adapter = made.adapter


def test_every_strategy_has_a_formula() -> None:
    assert FORMULAS.keys() == set(StrategyName)


@pytest.mark.parametrize(
    "section",
    [
        StrategySection(StrategyName.FEDAVGM, server_learning_rate=0.5, server_momentum=0.9),
        StrategySection(StrategyName.FEDAVGM, server_learning_rate=0.5, server_momentum=0.0),
        StrategySection(StrategyName.FEDTRIMMEDAVG, trim_share=0.4),
        StrategySection(StrategyName.KRUM, hostile_cohorts=3),
        StrategySection(StrategyName.KRUM, hostile_cohorts=0),
        StrategySection(StrategyName.MULTIKRUM, hostile_cohorts=2, chosen_cohorts=2),
        StrategySection(StrategyName.BULYAN, hostile_cohorts=0),
    ],
    ids=lambda section: section.name.value,
)
def test_settings_reach_the_formula(section: StrategySection) -> None:
    memory, adapter, state = Memory(), drawn(7), {}
    for number in (1, 2):
        means = means_of(10 + number)
        made = aggregate(section, number, adapter, state, means)
        wanted = by_formula(section, means, memory)
        np.testing.assert_allclose(flat(made.adapter) - flat(adapter), wanted, rtol=0, atol=5e-7)
        adapter, state = made.adapter, made.state
        assert state.keys() == state_schema(section, SCHEMA).keys()


def test_bulyan_asks_krum_again_after_every_choice() -> None:
    """As its paper has it; to take the best of one ranking would choose others here."""
    section, different = StrategySection(StrategyName.BULYAN, hostile_cohorts=2), 0
    for seed in range(6):
        means = means_of(seed, 11)
        vectors = [flat(dict(m.delta)) for m in sorted(means, key=lambda mean: mean.name)]
        far = np.array([[((a - b) ** 2).sum() for b in vectors] for a in vectors])
        once = np.argsort(np.sort(far, axis=1)[:, 1:8].sum(1))[:7]
        found = flat(aggregate(section, 1, drawn(7, 0.0), {}, means).adapter)
        np.testing.assert_allclose(found, by_formula(section, means, Memory()), atol=1e-7)
        chosen = np.stack([vectors[i] for i in once])
        near = np.argsort(np.abs(chosen - np.median(chosen, 0)), axis=0)[:3]
        by_one_ranking = np.take_along_axis(chosen, near, 0).mean(0)
        different += not np.allclose(found, by_one_ranking, atol=1e-7)
    assert different >= 3


@EVERY
def test_a_state_that_was_saved_goes_on_bit_for_bit(name: StrategyName) -> None:
    section = StrategySection(name)
    first = aggregate(section, 1, drawn(7), {}, means_of(1))
    expected = aggregate(section, 2, first.adapter, first.state, means_of(2))
    saved = tensors_from_bytes(tensors_to_bytes(first.state), state_schema(section, SCHEMA))
    found = aggregate(section, 2, first.adapter, saved, means_of(2))
    assert list(found.adapter) == list(SHAPES)
    assert {key: spec_of(value) for key, value in found.adapter.items()} == SCHEMA
    for key in expected.adapter:
        assert torch.equal(found.adapter[key], expected.adapter[key])
    remembers = {StrategyName.FEDAVGM, StrategyName.FEDADAM, StrategyName.FEDYOGI}
    assert bool(first.state) == (name in remembers)
    if name in remembers:
        fresh = aggregate(section, 2, first.adapter, {}, means_of(2)).adapter
        assert not torch.equal(fresh["b"], expected.adapter["b"])


@EVERY
def test_the_result_does_not_depend_on_the_order_of_the_cohorts(name: StrategyName) -> None:
    means, adapter = means_of(3), drawn(7)
    results = [
        aggregate(StrategySection(name), 1, adapter, {}, order).adapter
        for order in (means, means[::-1], means[4:] + means[:4])
    ]
    assert all(torch.equal(a[key], results[0][key]) for a in results for key in a)


@EVERY_ROBUST
@pytest.mark.parametrize("large", [1e-2, 1.0, 1e3])
def test_a_hostile_cohort_cannot_move_a_robust_strategy(name: StrategyName, large: float) -> None:
    """Whatever it sends and whatever it says it weighs, every value stays among the honest ones."""
    section, honest = StrategySection(name), means_of(5, COHORTS - 1)
    hostile = {key: torch.full(shape, -large) for key, shape in SHAPES.items()}
    means = [*honest, CohortUpdate("1.1.1.9", hostile, 1e9)]
    adapter = drawn(7, 0.0)
    changes = np.stack([flat(dict(mean.delta)) for mean in honest])
    found = flat(aggregate(section, 1, adapter, {}, means).adapter)
    slack = 1e-7
    assert (found >= changes.min(0) - slack).all() and (found <= changes.max(0) + slack).all()
    moved = flat(aggregate(StrategySection(), 1, adapter, {}, means).adapter)
    assert moved.max() < -0.9 * large  # and an average goes wherever that cohort wants


@EVERY_ROBUST
def test_robust_strategies_count_every_cohort_alike(name: StrategyName) -> None:
    means, adapter = means_of(6), drawn(7)
    alike = [dataclasses.replace(mean, weight=1.0) for mean in means]
    one, other = (aggregate(StrategySection(name), 1, adapter, {}, m) for m in (means, alike))
    assert all(torch.equal(one.adapter[key], other.adapter[key]) for key in SHAPES)


@pytest.mark.parametrize("name", [StrategyName.KRUM, StrategyName.MULTIKRUM, StrategyName.BULYAN])
def test_distances_are_those_of_changes_not_of_adapters(name: StrategyName) -> None:
    """Of adapters of norm 5,000 that differ by 1e-3, fp32 distances would be noise.

    Adapters are whole numbers of 2^-10 and changes of 2^-20, so what is added up is exact.
    """
    section, near = StrategySection(name), drawn(7, 0.0)
    far = {key: 1024.0 + torch.zeros(shape) for key, shape in SHAPES.items()}
    for seed in range(2):
        means = [
            dataclasses.replace(
                mean, delta={k: (v * 2**13).round() / 2**13 for k, v in mean.delta.items()}
            )
            for mean in means_of(seed)
        ]
        one = aggregate(section, 1, near, {}, means).adapter
        other = aggregate(section, 1, far, {}, means).adapter
        for key in SHAPES:
            torch.testing.assert_close(other[key] - 1024, one[key], rtol=0, atol=2**-12)


@EVERY_ROBUST
def test_too_few_means_are_refused_with_the_number_that_is_needed(name: StrategyName) -> None:
    section = StrategySection(name)
    fewest = fewest_cohorts(section)
    aggregate(section, 1, drawn(7), {}, means_of(1, fewest))
    needed = re.escape(f"{name.value}: expected the means of at least {fewest} cohorts")
    with pytest.raises(PolicyError, match=needed):
        aggregate(section, 1, drawn(7), {}, means_of(1, fewest - 1))


@EVERY
def test_every_node_gets_the_plan_the_terms_and_the_adapter(name: StrategyName) -> None:
    set_task_identity(1, 1)
    config, adapter = {PLAN: b"plan", TERMS: b"terms"}, drawn(7)
    messages = list(instructions(StrategySection(name), 4, adapter, config, [9, 5, 7]))
    assert sorted(message.metadata.dst_node_id for message in messages) == [5, 7, 9]
    for message in messages:
        assert message.metadata.message_type == "train"
        said = dict(message.content[CONFIG])
        assert said.pop("proximal-mu", None) == (0.1 if name is StrategyName.FEDPROX else None)
        assert said == {PLAN: b"plan", TERMS: b"terms", SERVER_ROUND: 4}
        arrays = {key: array.numpy() for key, array in message.content[ARRAYS].items()}
        assert all(np.array_equal(arrays[key], value) for key, value in adapter.items())
