"""Orders given at any step of a campaign, and kills after them: what is ordered comes about, once.

An order comes from another process, on a connection of its own, while the campaign writes; a kill
comes so many steps later. What must hold follows from the rows alone (`check_line`).
"""

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from tests.coordinator.fleet import (
    ADAPTER,
    NAMES,
    SCHEMA,
    Announcements,
    Fleet,
    FormulaGate,
    campaign,
    delta_of,
    examples_of,
    open_store,
)
from torch import Tensor

from offsite.coordinator.adapter_files import AdapterFiles
from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import Campaign
from offsite.coordinator.campaign_record import CampaignResult
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.mailbox import Phase
from offsite.coordinator.policy.eligibility import Eligibility, Facts
from offsite.coordinator.policy.orders import Command, Order, Stage, stage_of, starts_from
from offsite.coordinator.policy.sampling import Sample
from offsite.coordinator.policy.schedule import DAY_S, Schedule, Window
from offsite.coordinator.policy.settings import PolicySettings
from offsite.coordinator.tables.campaigns import INTERRUPTED, CampaignTable, RoundState
from offsite.coordinator.tables.database import Database
from offsite.emulator.rounds.instruction import adapter_digest
from offsite.emulator.rounds.plan import RoundPlan
from offsite.secure import envelope
from offsite.secure.errors import TransportError
from offsite.secure.names import node_id

pytestmark = pytest.mark.usefixtures("no_fsync")

ROUNDS = 3
PAIR = ("alice", "bob")
STRIDE = 10
"""Between the steps at which an order is tried; a campaign of three rounds has about a hundred."""
RESUME = Order(Command.RESUME)
ORDERS = {
    "pause": Order(Command.PAUSE, "a"),
    "pause --now": Order(Command.PAUSE, "b", at_once=True),
    "abort": Order(Command.ABORT, "c"),
    "rollback 0": Order(Command.ROLLBACK, to_round=0),
    "rollback 1": Order(Command.ROLLBACK, to_round=1),
}


class Killed(BaseException):
    """Stands for `kill -9`: nothing handles it."""


class Stepping:
    """Calls through to an object, and a hook before every call of a method that writes or waits."""

    STEPS = frozenset(
        {
            *("set_state", "open_round", "set_plan", "close_round", "abandon_round"),
            *("push_messages", "pull_messages", "close", "write", "score", "keep", "forget", "add"),
        }
    )

    def __init__(self, target: object, step: Callable[[], None]) -> None:
        self._target, self._step = target, step

    def __getattr__(self, name: str):
        found = getattr(self._target, name)
        if name not in self.STEPS:
            return found

        def call(*args, **kwargs):
            self._step()
            return found(*args, **kwargs)

        return call


@dataclass
class Owner:
    """Gives one order at a step, and dies some steps later; gives `resume` after some waiting."""

    folder: Path
    order: Order | None = None
    at_step: int = 0
    killed_after: int | None = None
    step: int = 0
    closed_then: int | None = None
    """Rounds that were closed when the order was given; None: it was not."""
    waits_when_paused: int = field(default=0)

    def on_step(self) -> None:
        self.step += 1
        if self.order is not None and self.step == self.at_step:
            self.give(self.order)
        if self.killed_after is not None and self.step == self.at_step + self.killed_after:
            raise Killed

    def on_wait(self) -> None:
        """Resumes a campaign that stands still, after a while."""
        table, row = self.table, self.table.current()
        assert row is not None
        state = stage_of(Stage(row.state.value), table.orders(row.campaign_id))
        if state is Stage.PAUSED:
            self.waits_when_paused += 1
            if self.waits_when_paused % 3 == 0:
                table.give_order(row.campaign_id, RESUME, 0.0)

    def give(self, order: Order) -> None:
        table = self.table
        row = table.current()
        if row is None:
            return
        closed = [r for r in table.rounds(row.campaign_id) if r.state is RoundState.CLOSED]
        if (order.to_round or 0) <= len(closed):
            table.give_order(row.campaign_id, order, 0.0)
            self.closed_then = len(closed)

    @cached_property
    def table(self) -> CampaignTable:
        return CampaignTable(Database(self.folder / "coordinator.sqlite"))


def _ordered_campaign(folder: Path, fleet: Fleet, grid: LocalGrid, owner: Owner) -> Campaign:
    """A campaign in which the owner watches every step and wait."""

    def pause(seconds: float) -> None:
        owner.on_wait()
        owner.on_step()
        fleet.pause(seconds)

    subject = campaign(
        folder, fleet, grid, pause=pause, rounds=ROUNDS, min_clients=len(fleet.names)
    )
    step = owner.on_step
    return dataclasses.replace(
        subject,
        record=dataclasses.replace(
            subject.record,
            store=Stepping(subject.record.store, step),
            files=Stepping(subject.record.files, step),
        ),
        grid=Stepping(grid, step),
        secure=dataclasses.replace(
            subject.secure,
            decisions=Stepping(subject.secure.decisions, step),
            results=Stepping(subject.secure.results, step),
        ),
        gate=Stepping(subject.gate, step),
    )


def _run(folder: Path, fleet: Fleet, grid: LocalGrid, owner: Owner) -> CampaignResult:
    """Run it, and again if it was killed."""
    try:
        return run_campaign(_ordered_campaign(folder, fleet, grid, owner))
    except Killed:
        fleet.now += 1.0
        owner.killed_after, owner.order = None, None
        return run_campaign(_ordered_campaign(folder, fleet, grid, owner))


def check_line(folder: Path, names: Sequence[str] = NAMES) -> list[int]:
    """Every closed round started from where rows and orders say, and is the mean of its clients.

    Returns the rounds that were started from, in order.
    """
    table, files = open_store(folder), AdapterFiles(folder)
    orders = table.orders(1)
    made: dict[int, dict[str, Tensor]] = {0: dict(ADAPTER)}
    starts = []
    for row in (r for r in table.rounds(1) if r.state is RoundState.CLOSED):
        before = [given for given in orders if given.after_round == row.round - 1]
        start = starts_from(row.round - 1, before)
        assert row.plan is not None and row.adapter is not None
        plan = RoundPlan.from_json(envelope.from_bytes(row.plan).payload)
        assert plan.adapter_sha256 == adapter_digest(made[start]), f"round {row.round}"
        made[row.round] = files.read(row.adapter, SCHEMA)
        _check_mean(made[start], made[row.round], plan.seed, names)
        starts.append(start)
    return starts


def _check_mean(
    start: dict[str, Tensor], made: dict[str, Tensor], seed: int, names: Sequence[str]
) -> None:
    weights = {name: examples_of(name) for name in names}
    for key, value in start.items():
        total = sum(weights[name] * delta_of(name, start, seed)[key] for name in names)
        expected = value + total / sum(weights.values())
        torch.testing.assert_close(made[key], expected, rtol=0, atol=1e-5)


def _steps(name: str) -> Iterator[tuple[int, int | None]]:
    """Steps at which an order is given, and how much later the coordinator is killed."""
    draw = random.Random(name)
    for at_step in range(1, 100, STRIDE):
        yield at_step + draw.randrange(STRIDE), draw.choice([None, 0, 1, 2, 5, 11])


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_at_any_step_and_a_kill_after_it_come_out_as_ordered(
    name: str, tmp_path: Path
) -> None:
    order, given = ORDERS[name], 0
    for number, (at_step, killed_after) in enumerate(_steps(name)):
        folder, fleet = tmp_path / str(number), Fleet(names=PAIR)
        folder.mkdir()
        grid = LocalGrid(fleet.apps())
        owner = Owner(folder, order, at_step, killed_after)
        result = _run(folder, fleet, grid, owner)
        _check_outcome(order, owner, result, folder)
        assert len(set(fleet.trained)) == len(fleet.trained), "somebody tuned twice for one attempt"
        assert not grid._instructions, "instructions of an attempt that is over stay behind"
        given += owner.closed_then is not None
    assert given > 3


def _check_outcome(order: Order, owner: Owner, result: CampaignResult, folder: Path) -> None:
    table, starts = open_store(folder), check_line(folder, PAIR)
    row = table.current()
    assert row is not None
    stage = stage_of(Stage(row.state.value), table.orders(1))
    rounds, closed = table.rounds(1), owner.closed_then
    assert not [r for r in rounds if r.state is RoundState.OPEN]
    if closed is not None and order.command is Command.ABORT:
        assert (result.standing.closed, stage) == (closed, Stage.ABORTED)
        assert result.reason.startswith(f"aborted by its owner after round {closed}: c; ")
        return
    assert (result.standing.closed, stage) == (ROUNDS, Stage.ENDED)
    usual = list(range(ROUNDS))
    if closed is not None and order.to_round is not None and closed < ROUNDS:
        usual[closed] = order.to_round
    assert starts == usual
    if closed is not None and order.command is Command.PAUSE and order.at_once:
        given_up = [r.attempt for r in rounds if INTERRUPTED in r.metrics]
        assert len(given_up) <= 1


# ---- what a pause means


@pytest.mark.parametrize(("at_once", "attempts"), [(False, 1), (True, 2)])
def test_a_pause_lets_the_open_round_end_and_a_pause_now_gives_it_up(
    at_once: bool, attempts: int, tmp_path: Path
) -> None:
    owner = Owner(tmp_path)
    paused_at: list[float] = []

    def pausing(name, message, answer):
        reply = answer(message)
        if message.metadata.message_type == "train" and name == "carol" and not paused_at:
            owner.give(Order(Command.PAUSE, "holidays", at_once=at_once))
            paused_at.append(fleet.now)
        return reply

    fleet = Fleet(replies={"carol": pausing})
    subject = _ordered_campaign(tmp_path, fleet, LocalGrid(fleet.apps()), owner)
    run_campaign(subject)
    rounds = open_store(tmp_path).rounds(1)
    assert [r.round for r in rounds] == [1] * attempts + [2, 3]
    assert owner.waits_when_paused == 3
    assert isinstance(subject.announce, Announcements)
    said = [text for phase, text in subject.announce.phases if phase is Phase.PAUSED]
    assert said == ["paused by its owner: holidays"]
    held = rounds[attempts if not at_once else 1]
    assert held.opened_unix_s > paused_at[0]
    check_line(tmp_path)


@pytest.mark.parametrize("name", ["pause --now", "abort", "rollback 0"])
def test_an_order_ends_a_wait_for_edges_within_a_poll(name: str, tmp_path: Path) -> None:
    """Carol is silent: without the order everybody would wait for her until the deadline."""

    class Silent(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            silent = node_id("carol")
            for reply in super().pull_messages(message_ids):
                if (reply.metadata.group_id, reply.metadata.src_node_id) != ("2.1", silent):
                    yield reply

    fleet, owner = Fleet(), Owner(tmp_path)
    grid = Silent(fleet.apps())
    waits = 0

    def pause(seconds: float) -> None:
        nonlocal waits
        fleet.pause(seconds)
        waits += bool(grid.find("2.1"))
        if owner.closed_then is not None:
            assert not grid.find("2.1"), "still waiting, a poll after the order"
            owner.on_wait()
        elif waits == 3:
            owner.give(ORDERS[name])

    run_campaign(campaign(tmp_path, fleet, grid, pause=pause, rounds=2))
    assert waits == 3 and fleet.now < 1_000 + 30  # of a deadline of 60
    assert [r.state for r in open_store(tmp_path).rounds(1)][1] is RoundState.ABANDONED


def test_a_paused_campaign_stays_paused_when_the_coordinator_starts_again(tmp_path: Path) -> None:
    fleet = Fleet()
    subject = campaign(tmp_path, fleet, rounds=2)
    row = subject.record.open(0.0)
    open_store(tmp_path).give_order(row.campaign_id, ORDERS["pause"], 0.0)
    waits = iter(range(5))

    def pause(seconds: float) -> None:
        if next(waits, None) is None:
            raise Killed

    with pytest.raises(Killed):
        run_campaign(dataclasses.replace(subject, pause=pause))
    assert not fleet.trained and not open_store(tmp_path).rounds(1)
    open_store(tmp_path).give_order(row.campaign_id, RESUME, 0.0)
    assert run_campaign(campaign(tmp_path, fleet, rounds=2)).standing.closed == 2


def test_attempts_that_the_owner_ended_do_not_count_as_failures(tmp_path: Path) -> None:
    """Three tries are three tries at the clients, whatever the owner ordered between them."""
    owner = Owner(tmp_path)
    calls = 0

    def failing(name, message, answer):
        nonlocal calls
        calls += 1
        if calls in (1, 4, 7):
            owner.give(Order(Command.PAUSE, at_once=True))
        raise RuntimeError("down")

    fleet = Fleet(replies=dict.fromkeys(NAMES, failing))
    subject = _ordered_campaign(tmp_path, fleet, LocalGrid(fleet.apps()), owner)
    with pytest.raises(TransportError, match="in 3 attempts"):
        run_campaign(subject)
    rounds = open_store(tmp_path).rounds(1)
    assert sum(INTERRUPTED in r.metrics for r in rounds) == 3
    assert len(rounds) == 6


# ---- abort


def test_an_aborted_campaign_never_goes_on_and_its_best_round_is_its_result(tmp_path: Path) -> None:
    fleet, owner = Fleet(), Owner(tmp_path)
    accs = iter([0.6, 0.55, 0.5])

    def score(adapter):
        acc = next(accs)
        if acc == 0.5:
            owner.give(ORDERS["abort"])
        return acc

    gate = FormulaGate(score)
    subject = campaign(tmp_path, fleet, rounds=3, gate=gate)
    result = run_campaign(subject)
    assert (result.standing.closed, result.standing.best_round, result.released) == (2, 1, True)
    assert isinstance(subject.announce, Announcements)
    assert subject.announce.phases[-1][0] is Phase.ENDED
    trained = len(fleet.trained)
    again = run_campaign(campaign(tmp_path, fleet, rounds=3, gate=gate))
    assert again.campaign_id == 1 and len(fleet.trained) == trained
    assert again.reason == result.reason and "aborted by its owner after round 2: c" in again.reason
    other = run_campaign(campaign(tmp_path, fleet, rounds=1, gate=None, seed=9))
    assert other.campaign_id == 2  # another one, for its settings are others


# ---- rollback


def test_a_rollback_brings_back_adapter_and_gate_of_that_round(tmp_path: Path) -> None:
    fleet, owner = Fleet(), Owner(tmp_path)
    accs = iter([0.6, 0.8, 0.7, 0.75])
    calls = 0

    def score(adapter):
        nonlocal calls
        calls += 1
        if calls == 3:
            owner.give(ORDERS["rollback 1"])  # gives the attempt at round 3 up
        return next(accs)

    result = run_campaign(campaign(tmp_path, fleet, rounds=3, gate=FormulaGate(score)))
    states = [(r.round, r.attempt, r.state) for r in open_store(tmp_path).rounds(1)]
    assert states[2:] == [(3, 1, RoundState.ABANDONED), (3, 2, RoundState.CLOSED)]
    assert check_line(tmp_path) == [0, 1, 1]
    # Round 2, with its gate of 0.8, is not of this line any more.
    assert (result.standing.best_round, result.standing.best_acc) == (3, 0.75)
    assert (result.standing.closed, result.standing.accepted) == (3, 2)


def test_an_ended_campaign_that_is_rolled_back_goes_on_with_the_rounds_it_has_left(
    tmp_path: Path,
) -> None:
    fleet = Fleet()
    run_campaign(campaign(tmp_path, fleet, rounds=9, patience=2))  # the gate never improves again
    assert len(check_line(tmp_path)) == 3
    open_store(tmp_path).give_order(1, ORDERS["rollback 1"], 0.0)
    result = run_campaign(campaign(tmp_path, fleet, rounds=9, patience=2))
    assert result.campaign_id == 1
    assert check_line(tmp_path) == [0, 1, 2, 1, 4]


# ---- whom a round asks


def _policy(**changes: object) -> dict[str, object]:
    return {"policy": PolicySettings(**changes)}  # type: ignore[arg-type]


def test_a_round_asks_the_share_that_its_seed_draws(tmp_path: Path) -> None:
    fleet = Fleet(names=tuple(f"edge-{n}" for n in range(9)))
    subject = campaign(
        tmp_path, fleet, rounds=6, min_clients=9, gate=None, **_policy(sample=Sample(share=0.5))
    )
    run_campaign(subject)
    asked = [{n for n, r, _ in fleet.trained if r == number} for number in range(1, 7)]
    assert all(len(names) == 5 for names in asked)
    assert len(set(map(frozenset, asked))) > 1


def test_never_fewer_are_asked_than_a_sum_needs(tmp_path: Path) -> None:
    fleet = Fleet(names=tuple(f"edge-{n}" for n in range(9)))
    policy = _policy(sample=Sample(share=0.1), min_cohort=4)
    run_campaign(campaign(tmp_path, fleet, rounds=1, min_clients=9, **policy))
    assert len(fleet.trained) == 4


def test_a_client_that_does_not_state_enough_is_not_asked(tmp_path: Path) -> None:
    fleet, wanted = Fleet(), Eligibility(least_examples=100)
    stated = {"alice": Facts(examples=100), "bob": Facts(), "carol": Facts(examples=500)}
    subject = campaign(tmp_path, fleet, rounds=1, min_clients=2)
    run_campaign(
        dataclasses.replace(subject, misfit=lambda client_id: wanted.why_not(stated[client_id]))
    )
    assert sorted(name for name, _, _ in fleet.trained) == ["alice", "carol"]


def test_a_campaign_that_nobody_fits_waits_and_says_so(tmp_path: Path) -> None:
    def pause(seconds: float) -> None:
        raise Killed

    fleet = Fleet()
    subject = campaign(tmp_path, fleet, pause=pause)
    subject = dataclasses.replace(subject, misfit=lambda client_id: "too small")
    with pytest.raises(Killed):
        run_campaign(subject)
    assert isinstance(subject.announce, Announcements)
    said = "0 of 3 clients are there, without 3 that the policy leaves out"
    assert subject.announce.phases == [(Phase.WAITING, said)]


# ---- when


def test_rounds_begin_in_their_window_and_not_sooner_than_the_interval(tmp_path: Path) -> None:
    midnight = 20_000 * DAY_S
    fleet = Fleet(now=midnight + 12 * 3600.0)
    schedule = Schedule(interval_s=3 * 3600.0, windows=(Window.parse("22:00-02:00"),))
    subject = campaign(tmp_path, fleet, rounds=4, poll_s=30.0, **_policy(schedule=schedule))
    run_campaign(subject)
    begun = [r.opened_unix_s - midnight for r in open_store(tmp_path).rounds(1)]
    for found, hours in zip(begun, (22, 25, 46, 49), strict=True):
        assert 0 <= found - hours * 3600 <= 60
    assert isinstance(subject.announce, Announcements)
    first = subject.announce.phases[0]
    assert first == (Phase.WAITING, "the next round may begin at 2024-10-04 22:00:00 UTC")


def test_a_small_gain_counts_against_patience_and_small_gains_add_up(tmp_path: Path) -> None:
    accs = iter([0.60, 0.605, 0.611, 0.612, 0.613, 0.9])
    gate = FormulaGate(lambda adapter: next(accs))
    result = run_campaign(
        campaign(tmp_path, Fleet(), rounds=9, patience=2, gate=gate, **_policy(least_gain=0.01))
    )
    # 0.60 gains on 0.5, 0.605 does not, 0.611 does on 0.60; then two in a row do not.
    assert result.standing.closed == 5
    assert (result.standing.best_round, result.standing.mark) == (5, 0.611)


def test_a_client_that_is_left_out_keeps_its_node(tmp_path: Path) -> None:
    fleet = Fleet()
    subject = dataclasses.replace(
        campaign(tmp_path, fleet), misfit=lambda name: "" if name != "bob" else "no"
    )
    assert subject.eligible() == sorted(map(node_id, ("alice", "carol")))
    assert subject.connected() == sorted(map(node_id, NAMES))
