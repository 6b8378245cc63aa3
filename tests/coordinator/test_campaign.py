"""The round loop, on real Flower messages, strategies and ClientApps in one process."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, Metadata
from flwr.serverapp import Grid
from tests.coordinator.fleet import (
    ADAPTER,
    MANY,
    NAMES,
    SCHEMA,
    Announcements,
    Delta,
    Fleet,
    FormulaGate,
    Reply,
    campaign,
    delta_of,
    open_store,
)
from torch import Tensor

from offsite.coordinator.attempt import open_attempt
from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import DurableGrid
from offsite.coordinator.config_strategy import StrategyName, StrategySection
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.mailbox import Phase
from offsite.coordinator.secure_sums.cohorts import check_sizes, divide, draw_cohorts
from offsite.coordinator.secure_sums.settings import SumSettings
from offsite.coordinator.strategies.aggregation import aggregate
from offsite.coordinator.strategies.cohort_update import CohortUpdate
from offsite.coordinator.tables.campaigns import CampaignState, RoundState
from offsite.emulator.rounds.exchange import Action, exchange_content, read_exchange
from offsite.emulator.rounds.flower_internals import message_with_metadata
from offsite.emulator.rounds.vector import to_vector
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.errors import ConfigError, TransportError
from offsite.secure.names import node_id

ADAM = StrategySection(StrategyName.FEDADAM)

pytestmark = pytest.mark.usefixtures("no_fsync")


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_fedavg_is_the_mean_weighted_by_examples(tmp_path: Path) -> None:
    fleet = Fleet()
    result = run_campaign(campaign(tmp_path, fleet, rounds=1))
    weights = {name: (1 + i) / 6 for i, name in enumerate(NAMES)}
    for key, value in ADAPTER.items():
        mean = sum(weights[n] * (value + delta_of(n, ADAPTER, fleet.seeds[0])[key]) for n in NAMES)
        torch.testing.assert_close(result.adapter[key], mean, rtol=0, atol=1e-6)
        assert result.adapter[key].dtype == torch.float32


def test_fedadam_goes_on_with_its_moments_from_round_to_round(tmp_path: Path) -> None:
    fleet, adam = Fleet(), StrategySection(StrategyName.FEDADAM)
    found = run_campaign(campaign(tmp_path, fleet, rounds=3, gate=None, strategy=adam))
    adapter, state = dict(ADAPTER), {}
    for number, seed in enumerate(fleet.seeds[:: len(NAMES)], start=1):
        deltas = [delta_of(name, adapter, seed) for name in NAMES]
        mean = {key: sum((1 + i) * d[key] for i, d in enumerate(deltas)) / 6 for key in adapter}
        made = aggregate(adam, number, adapter, state, [CohortUpdate("0", mean, 60.0)])
        adapter, state = made.adapter, made.state
    for key, value in found.adapter.items():
        torch.testing.assert_close(value, adapter[key], rtol=0, atol=1e-6)


def test_a_campaign_runs_its_rounds_and_says_so(tmp_path: Path) -> None:
    fleet, gate = Fleet(), FormulaGate()
    subject = campaign(tmp_path, fleet, rounds=3, gate=gate)
    result = run_campaign(subject)
    assert result.released and result.standing.closed == 3
    assert sorted(fleet.trained) == [(name, n, 1) for name in NAMES for n in (1, 2, 3)]
    assert gate.baselines == 1
    assert isinstance(subject.announce, Announcements)
    assert [phase for phase, _ in subject.announce.phases] == [Phase.RUNNING] * 3 + [Phase.ENDED]
    row = open_store(tmp_path).current()
    assert row is not None and row.state is CampaignState.ENDED
    assert "round 1 of 3 is best: gate 0.6000, full model 0.5000" in row.reason
    metrics = open_store(tmp_path).rounds(row.campaign_id)[0].metrics
    assert (metrics["updates"], metrics["cohorts"], metrics["dropped"]) == (3, 1, 0)
    assert metrics["update_bytes"] > 4 * 16 and metrics["secure_s"] > 0


def test_running_an_ended_campaign_again_gives_the_same_result(tmp_path: Path) -> None:
    fleet = Fleet()
    first = run_campaign(campaign(tmp_path, fleet))
    again = run_campaign(campaign(tmp_path, fleet))
    assert _equal(first.adapter, again.adapter) and len(fleet.trained) == 9
    other = run_campaign(campaign(tmp_path, fleet, seed=1))
    assert other.campaign_id == 2 and not _equal(other.adapter, first.adapter)


def test_another_release_under_way_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).create(b"x" * 32, "{}", 0.0)
    with pytest.raises(ConfigError, match="is under way with release 7878"):
        run_campaign(campaign(tmp_path, Fleet()))


# ---- bad replies


def _raises(name, message, answer):
    raise RuntimeError("no memory")


def _plain(name, message, answer):
    return Message(message.content, reply_to=message)


def _cut(name, message, answer):
    digest, body = read_exchange(answer(message))
    return Message(exchange_content(digest, body[:-1]), reply_to=message)


def _stale(name, message, answer):
    _, body = read_exchange(answer(message))
    return Message(exchange_content(bytes(32), body), reply_to=message)


def _borrowed(fleet: Fleet) -> Reply:
    return lambda name, message, answer: fleet.tune("alice", message)


def _only_when_tuning(reply: Reply) -> Reply:
    def answers(name, message, answer):
        if message.metadata.message_type != "train":
            return answer(message)
        return reply(name, message, answer)

    return answers


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (_raises, "bob left out: the client could not do it: RuntimeError: no memory"),
        (_plain, "bob left out: expected a step of a secure sum"),
        (_cut, "bob left out: "),
        (_stale, "bob left out: expected a step of this sum, found one of another"),
        ("borrowed", "bob left out: expected its own advertisement, found one of alice"),
    ],
)
def test_a_bad_reply_is_named_and_the_others_count(
    reply, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet()
    fleet.replies["bob"] = _only_when_tuning(_borrowed(fleet) if reply == "borrowed" else reply)
    result = run_campaign(campaign(tmp_path, fleet, rounds=1))
    without = run_campaign(
        campaign(tmp_path / "other", Fleet(names=("alice", "carol")), rounds=1, min_clients=2)
    )
    assert result.released and _equal(result.adapter, without.adapter)
    assert any(re.search(said, record.getMessage()) for record in caplog.records)
    row = open_store(tmp_path).rounds(1)[0]
    assert (row.metrics["updates"], row.metrics["refused"]) == (2, 1)


def test_an_update_that_is_not_finite_never_leaves(tmp_path: Path) -> None:
    broken: Delta = lambda name, adapter, seed: {k: v * float("nan") for k, v in adapter.items()}
    fleet = Fleet(deltas={"bob": broken})
    run_campaign(campaign(tmp_path, fleet, rounds=1))
    row = open_store(tmp_path).rounds(1)[0]
    assert (row.metrics["updates"], row.metrics["refused"]) == (2, 1)
    assert not list((fleet.folder / "bob").rglob("words"))


@pytest.mark.parametrize("action", Action)
def test_a_client_may_vanish_in_every_phase_and_the_round_counts(
    action: Action, tmp_path: Path
) -> None:
    order = ["train", *(a.message_type for a in Action)]

    def vanishes(name, message, answer):
        if order.index(message.metadata.message_type) >= order.index(action.message_type):
            raise RuntimeError("gone")
        return answer(message)

    fleet = Fleet({"edge-4": vanishes}, names=MANY[:6])
    run_campaign(campaign(tmp_path, fleet, rounds=1, min_clients=6))
    (row,) = open_store(tmp_path).rounds(1)
    survives = action in (Action.CONFIRM, Action.REVEAL)
    assert (row.metrics["updates"], row.state) == (6 if survives else 5, RoundState.CLOSED)


def test_a_sum_that_came_to_nothing_leaves_nothing_behind(tmp_path: Path) -> None:
    def vanishes(name, message, answer):
        if message.metadata.message_type == Action.CONFIRM.message_type:
            assert list((tmp_path / "evidence").rglob("*.masked"))
            raise RuntimeError("gone")
        return answer(message)

    fleet = Fleet({"bob": vanishes})
    with pytest.raises(TransportError, match=r"found 0 \(1 refused, 0 late, 2 dropped out"):
        run_campaign(campaign(tmp_path, fleet, rounds=1, attempts=2))
    assert not list((tmp_path / "evidence").iterdir())
    assert len(fleet.trained) == 6  # every attempt is tuned anew, for a sum of its own


def test_what_is_not_masked_never_reaches_the_coordinator(tmp_path: Path) -> None:
    """Neither in its folders nor on the grid: no float, no encoded word, no count of examples."""
    fleet = Fleet()
    grid = Hearing(fleet.apps())
    run_campaign(campaign(tmp_path, fleet, grid, rounds=1))
    stored = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert grid.heard and len(stored) > 5
    for name in NAMES:
        update = to_vector(delta_of(name, ADAPTER, fleet.seeds[0]), SCHEMA).tobytes()
        encoded = next((fleet.folder / name).rglob("words")).read_bytes()
        for data in [*grid.heard, *stored]:
            assert update[:16] not in data and encoded[:16] not in data
    assert all(b"num-examples" not in data and b"loss" not in data for data in grid.heard)


class Hearing(LocalGrid):
    """Remembers the bytes of every reply."""

    @property
    def heard(self) -> list[bytes]:
        return self._kept

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._kept: list[bytes] = []

    def _answer(self, message_id: str) -> bytes:
        self._kept.append(super()._answer(message_id))
        return self._kept[-1]


def test_a_client_revoked_during_the_round_is_left_out(tmp_path: Path) -> None:
    fleet = Fleet()
    subject = campaign(tmp_path, fleet, rounds=1)
    grid = subject.grid

    class Revoking(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            fleet.names = ("alice", "carol")
            return super().pull_messages(message_ids)

    assert isinstance(grid, LocalGrid)
    run_campaign(campaign(tmp_path, fleet, Revoking(fleet.apps()), rounds=1))
    assert open_store(tmp_path).rounds(1)[0].metrics["refused"] == 1


class Doubling(LocalGrid):
    """Answers bob's message with a second copy of alice's reply, as a thief of it would."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        if len(replies) != 3 or replies[0].metadata.message_type != "train":
            return replies
        by_node = {reply.metadata.src_node_id: reply for reply in replies}
        alice, bob = by_node[node_id("alice")], by_node[node_id("bob")]
        metadata = Metadata(
            bob.metadata.run_id,
            bob.metadata.message_id,
            node_id("alice"),
            bob.metadata.dst_node_id,
            bob.metadata.reply_to_message_id,
            bob.metadata.group_id,
            bob.metadata.created_at,
            bob.metadata.ttl,
            "train",
        )
        return [alice, message_with_metadata(metadata, alice.content), by_node[node_id("carol")]]


def test_a_client_counts_once_in_a_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    result = run_campaign(campaign(tmp_path, fleet, Doubling(fleet.apps()), rounds=1))
    without = Fleet(names=("alice", "carol"))
    expected = run_campaign(campaign(tmp_path / "other", without, rounds=1, min_clients=2))
    assert _equal(result.adapter, expected.adapter)
    assert "it was not asked, or has answered before" in caplog.text


def test_a_client_weighs_no_more_than_the_full_weight(tmp_path: Path) -> None:
    fleet = Fleet()
    sums = SumSettings(full_weight=10)  # all three have as many or more
    result = run_campaign(campaign(tmp_path, fleet, rounds=1, sums=sums))
    for key, value in ADAPTER.items():
        mean = sum(value + delta_of(n, ADAPTER, fleet.seeds[0])[key] for n in NAMES) / 3
        torch.testing.assert_close(result.adapter[key], mean, rtol=0, atol=1e-6)


def test_an_update_is_clipped_on_the_edge(tmp_path: Path) -> None:
    fleet = Fleet({}, deltas=dict.fromkeys(NAMES, _of_norm(2.0)))
    result = run_campaign(campaign(tmp_path, fleet, rounds=1, sums=SumSettings(clip_norm=0.5)))
    change = torch.cat([(result.adapter[key] - value).flatten() for key, value in ADAPTER.items()])
    assert float(change.norm()) == pytest.approx(0.5, abs=1e-4)


# ---- cohorts


def _of_norm(norm: float) -> Delta:
    def delta(name: str, adapter: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        entries = sum(tensor.numel() for tensor in adapter.values())
        return {key: torch.full_like(t, norm / entries**0.5) for key, t in adapter.items()}

    return delta


def _cohort_of(names: tuple[str, ...], cohorts: int, folder: Path) -> tuple[tuple[str, ...], ...]:
    """Who meets whom in the first attempt of a campaign's first round."""
    fleet = Fleet(names=names)
    sums = SumSettings(cohorts=cohorts)
    subject = campaign(folder, fleet, min_clients=len(names), sums=sums)
    attempt = open_attempt(subject, subject.record.open(fleet.now), 1)
    return tuple(tuple(sorted(cohort.keys)) for cohort in draw_cohorts(subject, attempt))


def _with_cohorts(
    folder: Path,
    deltas: dict[str, Delta],
    replies: dict[str, Reply] | None = None,
    strategy: StrategyName = StrategyName.FEDAVG,
) -> dict[str, Tensor]:
    fleet = Fleet(replies or {}, names=MANY, deltas=deltas)
    changes = {
        "sums": SumSettings(cohorts=3, full_weight=100),
        "strategy": StrategySection(strategy),
        "gate": None,
        "attempts": 2,
    }
    return run_campaign(campaign(folder, fleet, rounds=1, min_clients=9, **changes)).adapter


def test_cohorts_together_give_the_mean_of_all(tmp_path: Path) -> None:
    found = _with_cohorts(tmp_path, {})
    fleet = Fleet(names=MANY)
    one = run_campaign(campaign(tmp_path / "one", fleet, rounds=1, min_clients=9)).adapter
    for key, value in one.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6)
    (row,) = open_store(tmp_path).rounds(1)
    assert (row.metrics["cohorts"], row.metrics["updates"]) == (3, 9)
    assert len(list((tmp_path / "evidence").glob("1.1.1.*"))) == 3


def test_a_cohort_far_larger_than_the_others_is_refused_and_they_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = _cohort_of(MANY, 3, tmp_path / "draw")[1]
    deltas = {name: _of_norm(1.1 if name in large else 0.1) for name in MANY}
    found = _with_cohorts(tmp_path, deltas)
    for key, value in ADAPTER.items():
        change = 0.1 / 15**0.5
        torch.testing.assert_close(found[key], value + change, rtol=0, atol=1e-6)
    assert re.search(r"cohort 1.1.1.1 refused: expected a mean of norm at most 1, ", caplog.text)
    (row,) = open_store(tmp_path).rounds(1)
    assert (row.metrics["updates"], row.metrics["cohorts_lost"]) == (6, 1)


def test_a_cohort_that_fails_is_lost_and_the_others_count(tmp_path: Path) -> None:
    lost = _cohort_of(MANY, 3, tmp_path / "draw")[2]
    replies = dict.fromkeys(lost[:2], _raises)
    deltas = {name: _of_norm(5.0 if name in lost else 0.1) for name in MANY}
    found = _with_cohorts(tmp_path, deltas, replies)
    for key, value in ADAPTER.items():
        torch.testing.assert_close(found[key], value + 0.1 / 15**0.5, rtol=0, atol=1e-6)
    (row,) = open_store(tmp_path).rounds(1)
    counts = [row.metrics[key] for key in ("updates", "refused", "dropped", "cohorts_lost")]
    assert counts == [6, 2, 1, 1]


def test_a_robust_strategy_judges_a_large_cohort_by_itself(tmp_path: Path) -> None:
    """It is not left out before: with a cohort fewer than it needs no round would ever count."""
    large = _cohort_of(MANY, 3, tmp_path / "draw")[1]
    deltas = {name: _of_norm(2.0 if name in large else 0.1) for name in MANY}
    found = _with_cohorts(tmp_path, deltas, strategy=StrategyName.FEDMEDIAN)
    for key, value in ADAPTER.items():
        torch.testing.assert_close(found[key], value + 0.1 / 15**0.5, rtol=0, atol=1e-6)
    (row,) = open_store(tmp_path).rounds(1)
    assert (row.metrics["updates"], row.metrics["cohorts_lost"]) == (9, 0)


def test_a_round_without_the_cohorts_that_the_strategy_needs_does_not_count(
    tmp_path: Path,
) -> None:
    lost = _cohort_of(MANY, 3, tmp_path / "draw")[2]
    with pytest.raises(
        TransportError, match=r"at least 3 cohorts for fedmedian, found 2 .* in 2 at"
    ):
        _with_cohorts(tmp_path, {}, dict.fromkeys(lost, _raises), StrategyName.FEDMEDIAN)
    rows = open_store(tmp_path).rounds(1)
    assert [row.state for row in rows] == [RoundState.ABANDONED] * 2


@pytest.mark.parametrize("name", [StrategyName.FEDAVG, StrategyName.FEDPROX])
def test_the_proximal_term_is_in_the_signed_plan(name: StrategyName, tmp_path: Path) -> None:
    strategy = StrategySection(name, proximal_mu=0.25)
    subject = campaign(tmp_path, Fleet(), strategy=strategy)
    row = subject.record.open(subject.clock())
    plan = open_attempt(subject, row, 1).plan
    assert plan.proximal_mu == (0.25 if name is StrategyName.FEDPROX else 0.0)


def test_a_campaign_goes_on_after_its_strategy_was_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What FedAdam remembered is of no use to FedAvgM, and no reason to stop."""
    fleet = Fleet()
    run_campaign(campaign(tmp_path, fleet, rounds=1, gate=None, strategy=ADAM))
    momentum = StrategySection(StrategyName.FEDAVGM)
    subject = campaign(tmp_path, fleet, rounds=2, gate=None, strategy=momentum)
    row = open_store(tmp_path).current()
    assert row is not None
    _, state = subject.record.start(row)
    assert not state and "begins afresh" in caplog.text
    _, kept = campaign(tmp_path, fleet, strategy=ADAM).record.start(row)
    assert kept


def test_cohorts_change_with_the_seed_and_are_of_nearly_equal_size() -> None:
    first, second = (divide(MANY, 2, seed) for seed in (1, 2))
    assert [len(cohort) for cohort in first] == [5, 4]
    assert sorted(name for cohort in first for name in cohort) == sorted(MANY)
    assert first != second and first == divide(MANY[::-1], 2, 1)


@pytest.mark.parametrize(
    ("clients", "cohorts", "least", "said"),
    [(5, 2, 3, "at least min_replies = 3"), (256, 1, 2, "at least 2 cohorts")],
)
def test_a_cohort_too_small_or_too_large_is_refused(
    clients: int, cohorts: int, least: int, said: str
) -> None:
    names = [f"edge-{index}" for index in range(clients)]
    with pytest.raises(ConfigError, match=said):
        check_sizes(divide(names, cohorts, 0), least)


def test_terms_below_the_policy_of_the_edges_are_refused_by_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet(policy=PolicyFloor())  # five at least
    with pytest.raises(TransportError, match=r"found 0 \(3 refused, 0 late, 0 dropped out\)"):
        run_campaign(campaign(tmp_path, fleet, rounds=1))
    assert not fleet.trained
    assert "policy refuses the round: a cohort of 2 is enough for it" in caplog.text


# ---- stragglers, quorum, failure


class Withholding(LocalGrid):
    """Keeps back the replies of some nodes."""

    withheld: frozenset[int] = frozenset()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = super().pull_messages(message_ids)
        return [reply for reply in found if reply.metadata.src_node_id not in self.withheld]


def test_stragglers_past_the_deadline_are_left_out(tmp_path: Path) -> None:
    fleet = Fleet()
    grid = Withholding(fleet.apps())
    grid.withheld = frozenset({node_id("carol")})
    result = run_campaign(campaign(tmp_path, fleet, grid, rounds=1))
    row = open_store(tmp_path).rounds(1)[0]
    assert result.released and (row.metrics["updates"], row.metrics["late"]) == (2, 1)
    assert fleet.now == pytest.approx(1_060.0, abs=1.0)


def test_too_few_updates_repeat_the_round_with_another_seed(tmp_path: Path) -> None:
    failures = iter([True, True])

    def flaky(name, message, answer):
        if next(failures, False):
            raise RuntimeError("busy")
        return answer(message)

    fleet = Fleet(replies={"bob": flaky, "carol": flaky})
    assert run_campaign(campaign(tmp_path, fleet, rounds=1)).released
    states = [(r.attempt, r.state) for r in open_store(tmp_path).rounds(1)]
    assert states == [(1, RoundState.ABANDONED), (2, RoundState.CLOSED)]


def test_a_round_without_updates_fails_clearly_and_the_next_run_goes_on(tmp_path: Path) -> None:
    fleet = Fleet(replies={name: _raises for name in NAMES})
    subject = campaign(tmp_path, fleet, rounds=1)
    said = r"round 1: expected at least 2 updates, found 0 \(3 refused, 0 late, 0 dropped out\) in 3 attempts"
    with pytest.raises(TransportError, match=said):
        run_campaign(subject)
    row = open_store(tmp_path).current()
    assert row is not None and row.state is CampaignState.FAILED
    assert isinstance(subject.announce, Announcements)
    assert subject.announce.phases[-1][0] is Phase.FAILED
    fleet.replies.clear()
    assert run_campaign(campaign(tmp_path, fleet, rounds=1)).campaign_id == 1


def test_a_campaign_that_failed_keeps_its_closed_rounds_and_gets_as_many_attempts_again(
    tmp_path: Path,
) -> None:
    expected = run_campaign(campaign(tmp_path / "whole", Fleet(), rounds=2))

    def fails_from_round_two(name, message, answer):
        if message.metadata.group_id.startswith("1."):
            return answer(message)
        raise RuntimeError("down")

    fleet = Fleet(replies={name: fails_from_round_two for name in NAMES})
    for _ in range(2):
        with pytest.raises(TransportError, match="in 3 attempts"):
            run_campaign(campaign(tmp_path, fleet, rounds=2))
    states = [(r.round, r.state) for r in open_store(tmp_path).rounds(1)]
    assert states == [(1, RoundState.CLOSED)] + [(2, RoundState.ABANDONED)] * 6
    fleet.replies.clear()
    result = run_campaign(campaign(tmp_path, fleet, rounds=2))
    assert (result.campaign_id, result.standing.closed) == (1, 2)
    assert result.standing == expected.standing


def test_a_campaign_that_failed_is_followed_by_a_new_one_when_its_settings_changed(
    tmp_path: Path,
) -> None:
    fleet = Fleet(replies={name: _raises for name in NAMES})
    with pytest.raises(TransportError):
        run_campaign(campaign(tmp_path, fleet, rounds=1))
    fleet.replies.clear()
    assert run_campaign(campaign(tmp_path, fleet, rounds=1, seed=5)).campaign_id == 2


def test_it_waits_for_enough_clients(tmp_path: Path) -> None:
    fleet = Fleet(names=("alice",))

    class Arriving(LocalGrid):
        def get_node_ids(self) -> Iterable[int]:
            fleet.names = NAMES if fleet.now > 1_002.0 else ("alice",)
            return [node_id(name) for name in fleet.names]

    grid = Arriving(Fleet(names=NAMES).apps())
    subject = campaign(tmp_path, fleet, grid, rounds=1)
    assert run_campaign(subject).released
    assert isinstance(subject.announce, Announcements)
    assert subject.announce.phases[0] == (Phase.WAITING, "1 of 3 clients are there")


# ---- the gate


def test_a_regression_is_rolled_back_and_the_best_round_kept(tmp_path: Path) -> None:
    accs = iter([0.6, 0.2, 0.59])
    gate = FormulaGate(lambda adapter: next(accs))
    result = run_campaign(campaign(tmp_path, Fleet(), rounds=3, gate=gate))
    first, second, third = open_store(tmp_path).rounds(1)
    assert first.adapter and second.adapter and third.adapter
    assert second.adapter.sha256 == first.adapter.sha256 != third.adapter.sha256
    assert (result.standing.best_round, result.standing.accepted) == (1, 2)


def test_the_state_of_a_rolled_back_round_is_forgotten(tmp_path: Path) -> None:
    accs = iter([0.6, 0.2])
    gate = FormulaGate(lambda adapter: next(accs))
    run_campaign(campaign(tmp_path, Fleet(), rounds=2, gate=gate, strategy=ADAM))
    first, second = open_store(tmp_path).rounds(1)
    assert first.strategy and second.strategy
    assert first.strategy.sha256 == second.strategy.sha256


def test_a_plug_in_worse_than_the_full_model_is_not_released(tmp_path: Path) -> None:
    result = run_campaign(campaign(tmp_path, Fleet(), gate=FormulaGate(lambda adapter: 0.4)))
    assert not result.released
    assert _equal(result.adapter, ADAPTER)
    assert "nothing is released" in result.reason


def test_it_stops_when_the_gate_no_longer_improves(tmp_path: Path) -> None:
    result = run_campaign(campaign(tmp_path, Fleet(), rounds=9, patience=2))
    assert result.standing.closed == 3


def test_without_a_gate_the_last_round_is_the_result(tmp_path: Path) -> None:
    result = run_campaign(campaign(tmp_path, Fleet(), rounds=2, gate=None))
    assert (result.released, result.standing.best_round) == (True, 2)


# ---- Flower's own engine


class Stock(Grid):
    """A grid with nothing but Flower's methods."""

    def __init__(self, inner: LocalGrid) -> None:
        self._inner = inner

    def set_run(self, run):
        self._inner.set_run(run)

    @property
    def run(self):
        return self._inner.run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self):
        return self._inner.get_node_ids()

    def push_messages(self, messages):
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids):
        return self._inner.pull_messages(message_ids)

    def send_and_receive(self, messages, *, timeout=None):
        return self._inner.send_and_receive(messages, timeout=timeout)


def test_it_runs_on_any_flower_grid(tmp_path: Path) -> None:
    fleet = Fleet()
    grid = Stock(LocalGrid(fleet.apps()))
    assert not isinstance(grid, DurableGrid)
    result = run_campaign(campaign(tmp_path, fleet, grid))
    ours = run_campaign(campaign(tmp_path / "other", Fleet()))
    assert _equal(result.adapter, ours.adapter)


def test_threads_do_not_change_the_result(tmp_path: Path) -> None:
    one = run_campaign(campaign(tmp_path, Fleet()))
    fleet = Fleet()
    grid = LocalGrid(fleet.apps(), threads=3)
    three = run_campaign(campaign(tmp_path / "other", fleet, grid))
    assert _equal(one.adapter, three.adapter)
