"""Simulated campaigns: the real loop and clients, in time that jumps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from tests.simulation.conftest import TUNING, Made, make_scene, settings
from torch import Tensor

from offsite.coordinator.config_strategy import StrategyName, StrategySection
from offsite.coordinator.secure_sums.settings import SumSettings
from offsite.coordinator.store import Store
from offsite.emulator.bundle.bundle import Bundle
from offsite.secure.errors import ConfigError
from offsite.secure.privacy.ledger.ledger import Ledger
from offsite.simulation.campaigns import DATABASE, simulate_campaign, steps_at
from offsite.simulation.figures import comparison
from offsite.simulation.partition import iid
from offsite.simulation.request import Request, SumKind
from offsite.simulation.visible import VisibleRounds
from offsite.simulation.weather import Moment, Weather

pytestmark = pytest.mark.usefixtures("no_fsync")
STORMY = Weather(dropout=0.4, stragglers=0.2, seed=3)


def _close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], atol: float) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], rtol=0, atol=atol) for name in one
    )


def test_the_same_seed_gives_the_same_adapters_and_the_same_figures(
    b_only: Bundle, rows: Path, tmp_path: Path
) -> None:
    runs, scenes = [], []
    for number in range(2):
        made = make_scene(b_only, rows, weather=STORMY, sample=6)
        found = simulate_campaign(made.scene, settings(sample=6), tmp_path / str(number))
        runs.append([{**line, "real_s": 0} for line in found.lines()])
        scenes.append(made)
    assert runs[0] == runs[1] and len(runs[0]) == 2
    for one, other in zip(scenes[0].gate.adapters, scenes[1].gate.adapters, strict=True):
        assert _close(one, other, 0.0)
    other = make_scene(b_only, rows, weather=STORMY, sample=6, seed=1)
    simulate_campaign(other.scene, settings(sample=6, seed=1), tmp_path / "other")
    assert not _close(other.gate.adapters[0], scenes[0].gate.adapters[0], 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_visible_sums_have_the_members_and_the_mean_of_secure_ones(
    b_only: Bundle, rows: Path, tmp_path: Path, seed: int
) -> None:
    """Whoever leaves when: the same are in the sums, and the same sums come to nothing."""
    weather = Weather(dropout=0.5, seed=seed)
    found: list[tuple[Made, list[Mapping[str, float]]]] = []
    for sums in SumKind:
        made = make_scene(b_only, rows, weather=weather, sums=sums)
        chosen = settings(rounds=2, sums=SumSettings(full_weight=64, cohorts=2), attempts=9)
        simulate_campaign(made.scene, chosen, tmp_path / sums)
        with Store(tmp_path / sums / DATABASE) as store:
            metrics = [row.metrics for row in store.campaigns.rounds(1)]
        found.append((made, metrics))
    (secure, secure_rows), (visible, visible_rows) = found
    names = ("updates", "late", "dropped", "cohorts", "cohorts_lost", "refused")
    assert [[m[n] for n in names] for m in secure_rows] == [
        [m[n] for n in names] for m in visible_rows
    ]
    for one, other in zip(secure.gate.adapters, visible.gate.adapters, strict=True):
        assert _close(one, other, 1e-6)


def test_dropouts_meet_secure_aggregation_at_every_moment() -> None:
    """The seeds above are not all good weather."""
    names = [f"client-{i}" for i in range(8)]
    met = {
        Weather(dropout=0.5, seed=seed).leaves_at(name, 1, 1) for seed in range(4) for name in names
    }
    assert met == {None, *Moment}


def test_clients_in_stacks_give_the_campaign_of_clients_one_by_one(
    b_only: Bundle, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of unequal sizes, and so of unequal weights: each gives what is its own."""
    sizes = (2, 4, 6, 8, 10, 12, 9, 9)
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    parts = tuple(tuple(range(s, s + n)) for s, n in zip(starts, sizes, strict=True))
    given: dict[str, set[float]] = {}
    plain = VisibleRounds.begin

    def noted(self: VisibleRounds, *arguments: Any) -> RecordDict:
        given.setdefault(self.client_id, set()).add(arguments[-1])
        return plain(self, *arguments)

    monkeypatch.setattr(VisibleRounds, "begin", noted)
    made = {}
    for stack in (1, 3, 0):
        made[stack] = make_scene(b_only, rows, parts=parts, stack=stack, sums=SumKind.VISIBLE)
        simulate_campaign(made[stack].scene, settings(), tmp_path / str(stack))
    assert len(given) == len(sizes) and all(len(examples) == 1 for examples in given.values())
    for stack in (3, 0):
        for one, other in zip(made[1].gate.adapters, made[stack].gate.adapters, strict=True):
            assert _close(one, other, 1e-3)
            assert all((one[name] - other[name]).norm() < 3e-3 * one[name].norm() for name in one)
    assert any("one by one and" in note and "in a stack" in note for note in made[0].notes)


def test_who_is_slower_than_the_deadline_is_late(
    b_only: Bundle, rows: Path, tmp_path: Path
) -> None:
    weather = Weather(stragglers=0.4, seed=1)
    made = make_scene(b_only, rows, weather=weather, step_s=100.0)
    found = simulate_campaign(made.scene, settings(rounds=1, deadline_s=500.0), tmp_path / "run")
    clients = made.scene.fleet.clients
    late = [c for c in clients if 2 * 100.0 * weather.factor(c.client_id) > 500.0]
    assert 0 < len(late) < len(clients)
    (line,) = found.rounds
    assert (line.late, line.answered) == (len(late), len(clients) - len(late))
    assert 500.0 <= line.simulated_s < 600.0 and line.asked == len(clients)


def test_without_a_step_time_the_median_client_needs_a_third_of_the_deadline(
    b_only: Bundle, rows: Path
) -> None:
    made, chosen = make_scene(b_only, rows), settings(deadline_s=900.0)
    steps = steps_at(made.scene.fleet.clients[0], chosen.tuning)
    assert made.scene.step_s(chosen) * steps == pytest.approx(300.0)


def test_a_campaign_that_nobody_answers_fails_and_says_so(
    b_only: Bundle, rows: Path, tmp_path: Path
) -> None:
    made = make_scene(b_only, rows, weather=Weather(dropout=1.0))
    found = simulate_campaign(made.scene, settings(), tmp_path / "run")
    assert found.is_failed and not found.rounds and "expected at least 2 updates" in found.reason
    assert comparison([found]) == "no strategy closed a round that was kept"


def test_every_client_keeps_its_own_ledger(b_only: Bundle, rows: Path, tmp_path: Path) -> None:
    made = make_scene(b_only, rows, 4, epsilon=8.0, stack=0)
    found = simulate_campaign(made.scene, settings(rounds=2), tmp_path / "run")
    assert not found.is_failed and len(made.gate.adapters) == 2
    spent = [one.epsilon for one in found.rounds]
    assert spent[0] is not None and spent[1] is not None and 0 < spent[0] < spent[1] <= 8.0
    for client in made.scene.fleet.clients:
        folder = client.folder(tmp_path / "run") / "ledger"
        ledger, _ = Ledger.read((folder / "entries").read_bytes(), client.key.public, [])
        assert [c.spent for c in ledger.budget.campaigns.values()] == [2 * TUNING.local_steps]


def test_a_limit_that_the_rows_are_too_few_for_is_refused(
    b_only: Bundle, rows: Path, tmp_path: Path
) -> None:
    made = make_scene(b_only, rows, 4, epsilon=8.0, delta=0.1)
    with pytest.raises(ConfigError, match="--delta: expected less than 1/15"):
        simulate_campaign(made.scene, settings(), tmp_path / "run")


def test_strategies_meet_the_same_clients_and_the_same_weather(
    b_only: Bundle, rows: Path, tmp_path: Path
) -> None:
    made = make_scene(b_only, rows, weather=STORMY, sums=SumKind.VISIBLE)
    runs = [
        simulate_campaign(
            made.scene, settings(strategy=StrategySection(name), rounds=1), tmp_path / name.value
        )
        for name in (StrategyName.FEDAVG, StrategyName.FEDADAM)
    ]
    assert [run.strategy for run in runs] == ["fedavg", "fedadam"]
    first, second = (run.rounds[0] for run in runs)
    assert (first.answered, first.late, first.dropped) == (
        second.answered,
        second.late,
        second.dropped,
    )
    assert not _close(*made.gate.adapters, 1e-6)
    text = comparison(runs)
    assert "fedadam 0.5200 (round 1), fedavg 0.5100 (round 1); full model 0.5000" in text
    assert "ahead by 0.0100, no more than one standard error (0.0100)" in text


def test_a_client_has_the_rows_of_its_part_alone(b_only: Bundle, rows: Path) -> None:
    parts = iid(60, 7, 0)
    made = make_scene(b_only, rows, 7, parts=parts)
    lines = [[row.line for row in c.data.rows] for c in made.scene.fleet.clients]
    assert lines == [[place + 1 for place in part] for part in parts]
    assert sorted(line for own in lines for line in own) == list(range(1, 61))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sample": 9}, "--sample"),
        ({"stack": -1}, "--stack"),
        ({"ranks": (2,)}, "expected --sums visible"),
        ({"ranks": (2,), "sums": SumKind.VISIBLE, "stack": 4}, "--ranks: expected --stack 1"),
        ({"strategies": (StrategyName.KRUM,) * 2}, "each strategy once"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    b_only: Bundle, rows: Path, wrong: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_scene(b_only, rows, **wrong)
    assert Request(rows).asked == 100
