"""At least 200 faults over some campaigns, in memory: the right aggregate, nothing lost or doubled.

A seed that fails says everything: run this file with it and the same faults come at the same points.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.coordinator.fleet import ADAPTER, COORDINATOR, KEYS, NAMES, SCHEMA, examples_of
from tests.system.chaos.campaigns import Lived, Ran
from tests.system.chaos.edges import CAMPAIGN, STEPS, _Free, update_of
from tests.system.chaos.weather import Fault, Weather

from offsite.coordinator.adapter_files import AdapterFiles
from offsite.coordinator.tables.campaigns import RoundState
from offsite.edge_client.privacy.ledger_folder import ENTRIES
from offsite.emulator.rounds.plan import RoundPlan
from offsite.emulator.rounds.vector import from_vector
from offsite.secure import envelope
from offsite.secure.aggregation.evidence import Evidence, words_sha256
from offsite.secure.aggregation.fixed_point import LEAST_WEIGHT, decode, encode
from offsite.secure.aggregation.member import open_config
from offsite.secure.aggregation.messages import Result, Upload, claimed, opened
from offsite.secure.privacy.ledger.bodies import Charged, Claimed, Committed
from offsite.secure.privacy.ledger.verification import verify_ledger

pytestmark = pytest.mark.usefixtures("no_fsync")

FAULTS = 40
"""Of one campaign."""
GENTLE = (-60.0, -5.0, 5.0, 20.0)
"""Seconds that a clock may jump without passing a deadline."""
HARSH = (-60.0, 20.0, 130.0, 4000.0)
SETTINGS: dict[str, object] = {"rounds": 3, "deadline_s": 3600.0, "attempts": 60, "gate": None}


def _lived(folder: Path, seed: int, jumps_s: tuple[float, ...], most: int = FAULTS) -> Ran:
    weather = Weather(seed, most)
    ran = Lived(folder, weather, jumps_s).run(**SETTINGS)
    ran.settings["weather"] = weather
    return ran


@pytest.mark.parametrize("seed", range(3))
def test_what_no_deadline_cut_off_is_as_without_any_fault(seed: int, tmp_path: Path) -> None:
    calm = _lived(tmp_path / "calm", seed, GENTLE, most=0)
    ran = _lived(tmp_path / "ran", seed, GENTLE)
    assert len(_weather(ran).log) == FAULTS and ran.starts > 1
    assert [(r.round, r.attempt) for r in ran.store.campaigns.rounds(1)] == [(1, 1), (2, 1), (3, 1)]
    for name, value in calm.result.adapter.items():
        assert torch.equal(ran.result.adapter[name], value), name
    _check(ran, tmp_path / "ran")


@pytest.mark.parametrize("seed", range(100, 103))
def test_every_sum_is_that_of_its_survivors_whatever_happens(seed: int, tmp_path: Path) -> None:
    ran = _lived(tmp_path, seed, HARSH)
    assert len(_weather(ran).log) == FAULTS
    _check(ran, tmp_path)


def test_the_seed_of_a_failure_reproduces_it(tmp_path: Path) -> None:
    first = _lived(tmp_path / "first", 7, HARSH, most=20)
    again = _lived(tmp_path / "again", 7, HARSH, most=20)
    assert _weather(first).log == _weather(again).log
    for name, value in first.result.adapter.items():
        assert torch.equal(again.result.adapter[name], value)


def test_there_are_at_least_two_hundred_faults_of_every_kind(tmp_path: Path) -> None:
    assert FAULTS * (3 + 3) + 20 >= 200
    weather = Weather(1, 10_000, rate=0.5)
    for fault in Fault:
        while not weather.strikes(fault, "here"):
            pass
    assert set(weather.counts()) == set(Fault)


def _weather(ran: Ran) -> Weather:
    found = ran.settings["weather"]
    assert isinstance(found, Weather)
    return found


def _check(ran: Ran, folder: Path) -> None:
    """The invariants, from what lies on the disks."""
    rounds = ran.store.campaigns.rounds(1)
    closed = [row for row in rounds if row.state is RoundState.CLOSED]
    assert [row.round for row in closed] == [1, 2, 3]
    adapter = dict(ADAPTER)
    for row in closed:
        assert row.plan is not None and row.adapter is not None
        plan = RoundPlan.from_json(envelope.from_bytes(row.plan).payload)
        name = f"1.{row.round}.{row.attempt}.0"
        survivors = _check_sum(folder / "evidence" / name, adapter, plan.seed)
        # Nothing accepted is lost: whose vector was accepted in time is in the sum.
        assert ran.accepted_before_the_line[name] == set(survivors)
        made = AdapterFiles(folder).read(row.adapter, SCHEMA)
        _check_next(folder / "evidence" / name, adapter, made, plan.seed, survivors)
        adapter = made
    for edge_name in NAMES:
        _check_ledger(folder / edge_name, edge_name, ran)
    assert not list((folder / "spool").iterdir())


def _evidence(folder: Path) -> Evidence:
    return Evidence.from_bytes((folder / "evidence").read_bytes())


def _total(folder: Path, adapter: dict[str, torch.Tensor], seed: int, names: list[str]):
    terms = open_config(_evidence(folder).config, COORDINATOR.public)
    total = np.zeros(terms.values + 1, np.uint32)
    for name in names:
        weight = min(max(examples_of(name) / terms.full_weight, LEAST_WEIGHT), 1.0)
        total += encode(update_of(name, adapter, seed), weight, terms.fixed_point)
    return total, terms


def _check_sum(folder: Path, adapter: dict[str, torch.Tensor], seed: int) -> list[str]:
    """The published sum is that of the survivors' updates in clear, each once, to the last bit."""
    names = [claimed(Upload, data)[1].client_id for data in _evidence(folder).uploads]
    assert len(set(names)) == len(names) >= 2
    total, _ = _total(folder, adapter, seed, names)
    result = opened(Result, (folder / "result").read_bytes(), COORDINATOR.public)
    assert result.sum_sha256 == words_sha256(total)
    return names


def _check_next(folder: Path, adapter, made, seed: int, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    total, terms = _total(folder, adapter, seed, names)
    mean = from_vector(decode(total, len(names), terms.fixed_point).values, SCHEMA)
    for name, value in adapter.items():
        torch.testing.assert_close(made[name], value + mean[name], rtol=1e-6, atol=1e-7)


def _check_ledger(folder: Path, name: str, ran: Ran) -> None:
    """Every step is claimed once, and has one end; what was given away was paid for."""
    edge = next(edge for edge in ran.edges if edge.name == name)
    edge.ledger()  # as after a start: what is open is charged
    data = (folder / "ledger" / ENTRIES).read_bytes()
    findings = verify_ledger(data, KEYS[name].public, accounting=_Free())
    assert findings.faults == ()
    bodies = [record.entry.body for record in findings.records]
    claims = [body for body in bodies if isinstance(body, Claimed)]
    ends = [body.claim for body in bodies if isinstance(body, Committed | Charged)]
    firsts = [claim.first_step for claim in claims]
    assert firsts == [STEPS * number for number in range(len(claims))]  # none twice, none left out
    assert len(ends) == len(set(ends)) == len(claims)
    spent = findings.budget.campaigns[CAMPAIGN]
    assert spent.next_step == STEPS * len(claims)
    # Tuning that ran to its end was claimed for that very attempt, as often as it ran.
    paid = Counter((claim.round, claim.attempt) for claim in claims)
    for turn, times in Counter(edge.tuned).items():
        assert paid[turn] >= times
    assert set(edge.tuned) >= {
        (row.round, row.attempt)
        for row in ran.store.campaigns.rounds(1)
        if name in ran.accepted_before_the_line.get(f"1.{row.round}.{row.attempt}.0", ())
    }
