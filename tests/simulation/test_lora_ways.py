"""Ways to aggregate LoRA that need every update by itself: what they add up to in the models."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.simulation.conftest import TUNING, Made, make_scene, settings
from torch import Tensor

from offsite.coordinator.config_strategy import StrategyName
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import tune
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.linear import weight_out_in
from offsite.emulator.lora_aggregation.factors import HIGH, LOW
from offsite.emulator.lora_aggregation.kinds import LoraAggregation
from offsite.emulator.rounds.plan import ComputeDtype
from offsite.secure.errors import ConfigError
from offsite.simulation.campaigns import simulate_campaign
from offsite.simulation.lora_ways import check_way
from offsite.simulation.request import SumKind
from offsite.simulation.visible import Seen

pytestmark = pytest.mark.usefixtures("no_fsync")
Kind = LoraAggregation


class Spy:
    """Keeps what the clients of a campaign gave, as `lora_ways` sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from offsite.simulation import lora_ways

        self.rounds: list[tuple[list[dict[str, tuple[Tensor, Tensor]]], list[float]]] = []
        plain = lora_ways.aggregate_lora

        def kept(
            kind: Kind, updates: Sequence[object], weights: Sequence[float], scaling: float
        ) -> object:
            own = [
                {layer: (one.low.clone(), one.high.clone()) for layer, one in update.items()}  # type: ignore[attr-defined]
                for update in updates
            ]
            self.rounds.append((own, list(weights)))
            return plain(kind, updates, weights, scaling)  # type: ignore[arg-type]

        monkeypatch.setattr(lora_ways, "aggregate_lora", kept)

    def meant(self, number: int, layer: str, scaling: float) -> Tensor:
        """The weighted mean of what the clients' own products change."""
        own, weights = self.rounds[number]
        parts = [
            w / sum(weights) * u[layer][1] @ u[layer][0] for u, w in zip(own, weights, strict=True)
        ]
        return scaling * torch.stack(parts).sum(0)


def _run(
    bundle: Bundle, rows: Path, folder: Path, way: Kind, rounds: int = 2, **request: object
) -> Made:
    made = make_scene(bundle, rows, 5, way=way, sums=SumKind.VISIBLE, **request)
    chosen = settings(rounds=rounds, tuning=replace(TUNING, learning_rate=5e-2))
    found = simulate_campaign(made.scene, chosen, folder)
    assert not found.is_failed, found.reason
    return made


def _changed(made: Made, number: int, layer: str) -> Tensor:
    """By how much the judged model's layer differs from the untouched one, LoRA and all."""
    adapter = made.scene.warm.adapter
    assert isinstance(adapter, LoraAdapter)
    target = next(t for t in adapter.targets(made.gate.model) if t.wire_name == layer)
    before = weight_out_in(target.layer)
    after = made.gate.weights[number][f"{target.path}.weight"]
    given = made.gate.adapters[number]
    return after - before + adapter.spec.scaling * given[layer + HIGH] @ given[layer + LOW]


def _layers(made: Made) -> list[str]:
    return [
        name.removesuffix(HIGH) for name in made.scene.bundle.adapter_schema if name.endswith(HIGH)
    ]


@pytest.mark.parametrize("way", [Kind.RESIDUAL, Kind.STACK])
def test_the_gate_judges_the_mean_of_the_clients_products(
    both: Bundle, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Kind
) -> None:
    spy = Spy(monkeypatch)
    made = _run(both, rows, tmp_path / "run", way)
    scaling = both.manifest.adapter.scaling
    for layer in _layers(made):
        first = spy.meant(0, layer, scaling)
        assert first.norm() > 1e-3
        torch.testing.assert_close(_changed(made, 0, layer), first, rtol=1e-3, atol=1e-6)
        # The second round adds to what the first has put into the frozen weights.
        frozen = first if way is Kind.STACK else first - _product(made, 0, layer)
        second = frozen + spy.meant(1, layer, scaling)
        torch.testing.assert_close(_changed(made, 1, layer), second, rtol=1e-3, atol=1e-6)


def _product(made: Made, number: int, layer: str) -> Tensor:
    given = made.gate.adapters[number]
    return made.scene.bundle.manifest.adapter.scaling * given[layer + HIGH] @ given[layer + LOW]


def test_the_product_of_means_is_not_the_mean_of_products(
    both: Bundle, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    made = _run(both, rows, tmp_path / "run", Kind.RESIDUAL, rounds=1)
    layer = _layers(made)[0]
    meant = spy.meant(0, layer, both.manifest.adapter.scaling)
    assert (_product(made, 0, layer) - meant).norm() > 1e-3 * meant.norm()


def test_a_round_that_is_rolled_back_takes_its_frozen_change_along(
    both: Bundle, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    made = make_scene(both, rows, 5, way=Kind.STACK, sums=SumKind.VISIBLE)
    made.gate.formula = lambda number: {1: 0.6, 2: 0.2}.get(number, 0.6)
    found = simulate_campaign(made.scene, settings(rounds=3, tolerance=0.01), tmp_path / "run")
    assert [one.is_rolled_back for one in found.rounds] == [False, True, False]
    scaling = both.manifest.adapter.scaling
    for layer in _layers(made):
        expected = spy.meant(0, layer, scaling) + spy.meant(2, layer, scaling)
        torch.testing.assert_close(_changed(made, 2, layer), expected, rtol=1e-3, atol=1e-6)


def test_clients_tune_on_the_frozen_change_of_the_rounds_before(
    both: Bundle, rows: Path, tmp_path: Path
) -> None:
    made = _run(both, rows, tmp_path / "run", Kind.STACK)
    emulator = made.scene.warm.model(ComputeDtype.FLOAT32)
    adapter = made.scene.warm.adapter
    assert isinstance(adapter, LoraAdapter)
    for target in adapter.targets(emulator):
        name = f"{target.path}.weight"
        judged = made.gate.weights[0][name]  # the emulator is the full model here
        torch.testing.assert_close(weight_out_in(target.layer), judged, rtol=0, atol=1e-6)
        assert not torch.equal(judged, made.gate.model.state_dict()[name])


@pytest.mark.parametrize("name", ["b_only", "both"])
@pytest.mark.parametrize("way", [Kind.PADDED, Kind.SLICES])
def test_a_client_of_a_lower_rank_has_nothing_beyond_it(
    request: pytest.FixtureRequest,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    way: Kind,
) -> None:
    from offsite.simulation import visible

    bundle, seen = request.getfixturevalue(name), list[Seen]()
    plain = visible.VisibleRounds.begin

    def noted(self: visible.VisibleRounds, *given: object) -> object:
        reply = plain(self, *given)  # type: ignore[arg-type]
        seen.extend(self.board.updates[list(self.board.updates)[-1]].values())
        return reply

    monkeypatch.setattr(visible.VisibleRounds, "begin", noted)
    made = _run(bundle, rows, tmp_path / "run", way, rounds=1, ranks=(1, 2, 4))
    ranks = {c.client_id: (1, 2, 4)[c.place % 3] for c in made.scene.fleet.clients}
    from offsite.emulator.rounds.vector import from_vector

    assert {one.client_id for one in seen} == set(ranks)
    for one in seen:
        for key, delta in from_vector(one.values, bundle.adapter_schema).items():
            beyond = (
                delta[ranks[one.client_id] :]
                if key.endswith(LOW)
                else delta[:, ranks[one.client_id] :]
            )
            within = (
                delta[: ranks[one.client_id]]
                if key.endswith(LOW)
                else delta[:, : ranks[one.client_id]]
            )
            assert not beyond.any() and (within.any() or key.endswith(LOW))


def test_a_client_of_full_rank_in_such_a_campaign_tunes_as_ever(
    b_only: Bundle, rows: Path, tmp_path: Path
) -> None:
    padded = _run(b_only, rows, tmp_path / "one", Kind.PADDED, rounds=1, ranks=(4,))
    plain = _run(b_only, rows, tmp_path / "two", Kind.AVERAGE, rounds=1)
    for name, values in plain.gate.adapters[0].items():
        torch.testing.assert_close(padded.gate.adapters[0][name], values, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("fixture", "way", "ranks", "strategies", "cohorts", "said"),
    [
        (
            "b_only",
            Kind.RESIDUAL,
            (),
            [StrategyName.FEDAVG],
            1,
            'residual is for adapter.trains "ab"',
        ),
        ("both", Kind.RESIDUAL, (2,), [StrategyName.FEDAVG], 1, "residual needs one rank"),
        (
            "both",
            Kind.PADDED,
            (5,),
            [StrategyName.FEDAVG],
            1,
            "expected 1 to 4, that of the release",
        ),
        ("both", Kind.STACK, (), [StrategyName.FEDADAM], 1, "expected fedavg or fedprox"),
        ("both", Kind.STACK, (), [StrategyName.FEDAVG], 2, "expected campaign.cohorts = 1"),
    ],
)
def test_a_way_that_cannot_do_what_it_promises_is_refused(
    request: pytest.FixtureRequest,
    fixture: str,
    way: Kind,
    ranks: tuple[int, ...],
    strategies: list[StrategyName],
    cohorts: int,
    said: str,
) -> None:
    bundle = request.getfixturevalue(fixture)
    from offsite.emulator.adapters.adapter import make_adapter

    adapter = make_adapter(bundle.manifest.adapter, bundle.manifest.layer_map)
    with pytest.raises(ConfigError, match=said):
        check_way(way, ranks, adapter, strategies, cohorts)
    check_way(Kind.AVERAGE, (), adapter, strategies, cohorts)


def test_the_loop_of_a_client_is_the_edges(b_only: Bundle, rows: Path) -> None:
    """Without a way and without stacks nothing stands between a client and `tune`."""
    made = make_scene(b_only, rows)
    from offsite.simulation.stacks import Stacks

    stacks = Stacks(1, made.scene.warm, lambda name, tokens: [], made.notes.append)
    model = made.scene.warm.model(ComputeDtype.FLOAT32)
    base = b_only.load_adapter()
    from offsite.edge_client.workbench import Workbench
    from offsite.emulator.progress import silent

    data = made.scene.fleet.clients[0].data
    bench = Workbench(
        b_only, data, made.scene.warm.device, made.notes.append, silent, made.scene.warm
    )
    examples, task = bench.examples(512).examples, Task(TUNING)
    parameters = made.scene.warm.adapter.trainable(model)
    found = stacks.tune_of("client-0")(model, parameters, base, examples, task)
    expected = tune(model, parameters, base, examples, task)
    assert all(torch.equal(found.delta[name], expected.delta[name]) for name in expected.delta)
