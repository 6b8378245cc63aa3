"""Killed at any step and started again, a campaign ends with the adapter it would have had."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from tests.coordinator.fleet import Fleet, FormulaGate, campaign, open_store
from torch import Tensor

from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.config_strategy import StrategyName, StrategySection
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.tables.campaigns import CampaignTable, RoundState
from offsite.coordinator.tables.database import Database
from offsite.secure.errors import IntegrityError, MachineError


class Killed(BaseException):
    """Stands for `kill -9`: nothing handles it."""


class Deadly:
    """Calls through to an object; dies before or after its n-th call of a method that writes."""

    WRITES = frozenset(
        {
            *("create", "set_state", "open_round", "set_plan", "close_round"),
            *("push_messages", "pull_messages", "close", "write", "score"),
            *("keep", "forget", "add"),
        }
    )

    def __init__(self, target: object, fuse: list[int], *, before: bool) -> None:
        self._target, self._fuse, self._before = target, fuse, before

    def __getattr__(self, name: str):
        found = getattr(self._target, name)
        return self._deadly(found) if name in self.WRITES else found

    def _deadly(self, method):
        def call(*args, **kwargs):
            self._fuse[0] -= 1
            if self._fuse[0] == 0 and self._before:
                raise Killed
            result = method(*args, **kwargs)
            if self._fuse[0] == 0:
                raise Killed
            return result

        return call


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _gate() -> FormulaGate:
    """By the last digits of a weight, so that some rounds are rolled back."""
    return FormulaGate(lambda adapter: 0.5 + (float(adapter["top.0.w"][0, 0]) * 1e5 % 1.0) * 0.3)


PAIR = ("alice", "bob")
SIZE: dict[str, object] = {"rounds": 2, "min_clients": 2}


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize(
    ("strategy", "durable", "before", "stride"),
    [
        (StrategyName.FEDADAM, True, True, 1),
        (StrategyName.FEDADAM, True, False, 7),
        (StrategyName.FEDADAM, False, False, 5),
        (StrategyName.FEDAVG, True, False, 9),
    ],
)
def test_a_restart_at_any_step_gives_the_same_adapter_bit_for_bit(
    strategy: StrategyName, durable: bool, before: bool, stride: int, tmp_path: Path
) -> None:
    expected = run_campaign(
        campaign(tmp_path / "whole", Fleet(names=PAIR), strategy=StrategySection(strategy), **SIZE)
    )
    step, killed = 0, True
    while killed:
        step += stride
        folder = tmp_path / str(step)
        folder.mkdir()
        fleet = Fleet(names=PAIR)
        grid = LocalGrid(fleet.apps())
        killed = _run_until_killed(folder, fleet, grid, strategy, step, before)
        fleet.now += 1.0  # a restart takes time, and a plan made again would have another deadline
        if not durable:
            grid = LocalGrid(fleet.apps())
        result = run_campaign(
            campaign(folder, fleet, grid, strategy=StrategySection(strategy), **SIZE)
        )
        assert _equal(result.adapter, expected.adapter), f"killed at step {step}"
        rounds = open_store(folder).rounds(1)
        closed = [r.round for r in rounds if r.state is RoundState.CLOSED]
        assert closed == [1, 2] and len(rounds) == 2
        if durable:  # nobody was asked twice
            assert sorted(fleet.trained) == sorted((n, r, 1) for n in PAIR for r in (1, 2))
        assert not grid._instructions  # nothing stays behind, of sums neither
        assert not kept_decisions(folder)
    assert step > 50


def kept_decisions(folder: Path) -> list[str]:
    """What is still kept of the sums of rounds that are over."""
    rows = Database(folder / "coordinator.sqlite").rows("SELECT sum_id FROM sum_decisions")
    return [row["sum_id"] for row in rows]


def _run_until_killed(
    folder: Path, fleet: Fleet, grid: LocalGrid, strategy: StrategyName, step: int, before: bool
) -> bool:
    fuse = [step]
    subject = campaign(folder, fleet, grid, strategy=StrategySection(strategy), **SIZE)
    record = dataclasses.replace(
        subject.record,
        store=Deadly(subject.record.store, fuse, before=before),
        files=Deadly(subject.record.files, fuse, before=before),
    )
    deadly = dataclasses.replace(
        subject,
        record=record,
        grid=Deadly(grid, fuse, before=before),
        secure=dataclasses.replace(
            subject.secure,
            decisions=Deadly(subject.secure.decisions, fuse, before=before),
            results=Deadly(subject.secure.results, fuse, before=before),
        ),
        gate=Deadly(subject.gate, fuse, before=before),
    )
    try:
        run_campaign(deadly)
    except Killed:
        return True
    return False


class Stops(LocalGrid):
    """Dies when it is to send the instructions of the round after `rounds`."""

    rounds = 1
    pushes = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        self.pushes += pushed[0].metadata.message_type == "train"
        if self.pushes > self.rounds:
            raise Killed
        return super().push_messages(pushed)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_rolled_back_round_survives_a_restart(rounds: int, tmp_path: Path) -> None:
    expected = run_campaign(campaign(tmp_path / "whole", Fleet(), rounds=4, gate=_gate()))
    fleet = Fleet()
    grid = Stops(fleet.apps())
    grid.rounds = rounds
    with pytest.raises(Killed):
        run_campaign(campaign(tmp_path, fleet, grid, rounds=4, gate=_gate()))
    again = run_campaign(campaign(tmp_path, fleet, rounds=4, gate=_gate()))
    assert _equal(again.adapter, expected.adapter)
    assert again.standing == expected.standing
    assert 0 < again.standing.accepted < 4


def test_the_full_model_is_scored_once_per_campaign(tmp_path: Path) -> None:
    fleet, gate = Fleet(), FormulaGate()
    with pytest.raises(Killed):
        run_campaign(campaign(tmp_path, fleet, Stops(fleet.apps()), gate=gate))
    run_campaign(campaign(tmp_path, fleet, gate=gate))
    assert gate.baselines == 1


def _closed_adapter(folder: Path, store: CampaignTable) -> Path:
    adapter = store.rounds(1)[-1].adapter
    assert adapter is not None
    return folder / adapter.path


def test_a_changed_adapter_file_is_never_used(tmp_path: Path) -> None:
    run_campaign(campaign(tmp_path, Fleet(), rounds=1))
    path = _closed_adapter(tmp_path, open_store(tmp_path))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="changed since it was written"):
        run_campaign(campaign(tmp_path, Fleet(), rounds=1))


def test_a_lost_adapter_file_is_a_clear_error(tmp_path: Path) -> None:
    run_campaign(campaign(tmp_path, Fleet(), rounds=1))
    _closed_adapter(tmp_path, open_store(tmp_path)).unlink()
    with pytest.raises(MachineError, match="restore the state folder"):
        run_campaign(campaign(tmp_path, Fleet(), rounds=1))
