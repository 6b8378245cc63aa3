"""The round loop, on real Flower messages, strategies and ClientApps in one process."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import Message, Metadata
from flwr.serverapp import Grid
from tests.coordinator.fleet import (
    ADAPTER,
    KEYS,
    NAMES,
    SEALING,
    Announcements,
    Fleet,
    FormulaGate,
    campaign,
    delta_of,
    honest,
    open_store,
)
from torch import Tensor

from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_parts import DurableGrid
from offsite.coordinator.config import StrategyName
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.mailbox import Phase
from offsite.coordinator.strategy import aggregate, begin_round, make_strategy
from offsite.coordinator.tables.campaigns import CampaignState, RoundState
from offsite.emulator.rounds.flower_internals import message_with_metadata
from offsite.emulator.rounds.instruction import reply_content
from offsite.emulator.rounds.update import Update, seal_update
from offsite.secure.errors import ConfigError, TransportError
from offsite.secure.names import node_id


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_fedavg_is_the_mean_weighted_by_examples(tmp_path: Path) -> None:
    seeds: list[int] = []

    def remember(name, message, adapter, digest, seed):
        seeds.append(seed)
        return honest(name, message, adapter, digest, seed)

    fleet = Fleet(replies={name: remember for name in NAMES})
    result = run_campaign(campaign(tmp_path, fleet, rounds=1))
    weights = {name: (1 + i) / 6 for i, name in enumerate(NAMES)}
    for key, value in ADAPTER.items():
        mean = sum(weights[n] * (value + delta_of(n, ADAPTER, seeds[0])[key]) for n in NAMES)
        torch.testing.assert_close(result.adapter[key], mean, rtol=0, atol=1e-6)
        assert result.adapter[key].dtype == torch.float32


def test_fedadam_goes_on_with_its_moments_from_round_to_round(tmp_path: Path) -> None:
    seeds: list[int] = []

    def remember(name, message, adapter, digest, seed):
        seeds.append(seed)
        return honest(name, message, adapter, digest, seed)

    fleet = Fleet(replies={"alice": remember})
    adam = StrategyName.FEDADAM
    found = run_campaign(campaign(tmp_path, fleet, rounds=3, gate=None, strategy=adam))
    strategy, adapter = make_strategy(adam), dict(ADAPTER)  # one object for all rounds
    metadata = Metadata(1, "r", 5, 1, "m", "1.1", 0.0, 9.0, "train")
    for number, seed in enumerate(seeds, start=1):
        updates = [
            (metadata, Update(name, delta_of(name, adapter, seed), 10 * (1 + i), {}))
            for i, name in enumerate(NAMES)
        ]
        begin_round(strategy, adapter, {})
        adapter, _ = aggregate(strategy, number, adapter, updates)
    assert len(seeds) == 3 and _equal(found.adapter, adapter)


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
    assert (metrics["updates"], metrics["examples"], metrics["client_loss"]) == (3, 60, 1.0)


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


# ---- bad updates


def _nan(name, message, adapter, digest, seed):
    return _sealed(message, {k: v * float("nan") for k, v in adapter.items()}, digest)


def _missing(name, message, adapter, digest, seed):
    return _sealed(message, {"top.0.w": adapter["top.0.w"]}, digest)


def _extra(name, message, adapter, digest, seed):
    return _sealed(message, {**adapter, "top.9.w": torch.ones(1)}, digest)


def _misshapen(name, message, adapter, digest, seed):
    return _sealed(message, {**adapter, "top.0.b": torch.ones(4)}, digest)


def _huge(name, message, adapter, digest, seed):
    return _sealed(message, {k: torch.full_like(v, 3e38) for k, v in adapter.items()}, digest)


def _stale(name, message, adapter, digest, seed):
    return _sealed(message, adapter, b"o" * 32)


def _borrowed(name, message, adapter, digest, seed):
    return honest("alice", message, adapter, digest, seed)


def _raises(name, message, adapter, digest, seed):
    raise RuntimeError("no memory")


def _plain(name, message, adapter, digest, seed):
    return Message(message.content, reply_to=message)


def _sealed(message: Message, delta: dict[str, Tensor], digest: bytes) -> Message:
    sealed = seal_update(
        delta,
        num_examples=1,
        metrics={},
        plan_digest=digest,
        client_id="bob",
        identity=KEYS["bob"],
        sealing_public=SEALING.public_bytes,
    )
    return Message(reply_content(sealed, 1), reply_to=message)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (_nan, "update of bob: tensor top.0.b: .*NaN"),
        (_missing, "update of bob: tensor top.0.b: expected .*found none"),
        (_extra, "update of bob: tensor top.9.w: expected none"),
        (_misshapen, "update of bob: tensor top.0.b"),
        (_huge, "update of bob: tensor top.0..: changes by more than 10000"),
        (_stale, "update of bob: .*another round"),
        (_borrowed, "update of bob: it was made by another client"),
        (_raises, "reply of bob: the client could not do it: RuntimeError: no memory"),
        (_plain, "reply of bob: reply: expected a sealed update"),
    ],
)
def test_a_bad_update_is_named_and_the_others_count(
    reply,
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("offsite.emulator.rounds.update._check_own", lambda *_: None)
    fleet = Fleet(replies={"bob": reply})
    result = run_campaign(campaign(tmp_path, fleet, rounds=1))
    without = run_campaign(
        campaign(tmp_path / "other", Fleet(names=("alice", "carol")), rounds=1, min_clients=2)
    )
    assert result.released and _equal(result.adapter, without.adapter)
    assert any(re.search(said, record.getMessage()) for record in caplog.records)
    row = open_store(tmp_path).rounds(1)[0]
    assert (row.metrics["updates"], row.metrics["refused"]) == (2, 1)


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
    assert "update of alice: a second one in the same round" in caplog.text


def test_a_client_that_claims_too_many_examples_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_campaign(campaign(tmp_path, Fleet(), rounds=1, max_examples=29))
    assert re.search("update of carol: .*from 1 to 29, found 30", caplog.text)
    assert open_store(tmp_path).rounds(1)[0].metrics["examples"] == 30


def _of_norm(norm: float) -> Callable[..., Message]:
    def reply(
        name: str, message: Message, adapter: dict[str, Tensor], digest: bytes, seed: int
    ) -> Message:
        entries = sum(tensor.numel() for tensor in adapter.values())
        delta = {key: torch.full_like(t, norm / entries**0.5) for key, t in adapter.items()}
        sealed = seal_update(
            delta,
            num_examples=10,
            metrics={},
            plan_digest=digest,
            client_id=name,
            identity=KEYS[name],
            sealing_public=SEALING.public_bytes,
        )
        return Message(reply_content(sealed, 1), reply_to=message)

    return reply


def test_an_update_far_larger_than_the_others_is_refused_and_they_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replies = {"alice": _of_norm(0.1), "bob": _of_norm(1.1), "carol": _of_norm(0.1)}
    result = run_campaign(campaign(tmp_path, Fleet(replies), rounds=1))
    without = Fleet(replies, names=("alice", "carol"))
    expected = run_campaign(campaign(tmp_path / "other", without, rounds=1, min_clients=2))
    assert _equal(result.adapter, expected.adapter)
    assert re.search("refused: update of bob: expected a norm of at most 1, .*1.1", caplog.text)
    row = open_store(tmp_path).rounds(1)[0]
    assert (row.metrics["updates"], row.metrics["refused"]) == (2, 1)


@pytest.mark.parametrize(
    "replies",
    [
        {"alice": _of_norm(0.1), "bob": _of_norm(0.9), "carol": _of_norm(0.1)},
        {"alice": _of_norm(0.0), "bob": _of_norm(0.0), "carol": _of_norm(0.0)},
    ],
)
def test_updates_of_usual_norms_all_count(replies, tmp_path: Path) -> None:
    run_campaign(campaign(tmp_path, Fleet(replies), rounds=1))
    assert open_store(tmp_path).rounds(1)[0].metrics["updates"] == 3


def test_of_two_updates_neither_is_an_outlier(tmp_path: Path) -> None:
    fleet = Fleet({"alice": _of_norm(0.1), "bob": _of_norm(5.0)}, names=("alice", "bob"))
    run_campaign(campaign(tmp_path, fleet, rounds=1, min_clients=2))
    assert open_store(tmp_path).rounds(1)[0].metrics["updates"] == 2


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

    def flaky(name, message, adapter, digest, seed):
        if next(failures, False):
            raise RuntimeError("busy")
        return honest(name, message, adapter, digest, seed)

    fleet = Fleet(replies={"bob": flaky, "carol": flaky})
    assert run_campaign(campaign(tmp_path, fleet, rounds=1)).released
    states = [(r.attempt, r.state) for r in open_store(tmp_path).rounds(1)]
    assert states == [(1, RoundState.ABANDONED), (2, RoundState.CLOSED)]


def test_a_round_without_updates_fails_clearly_and_the_next_run_goes_on(tmp_path: Path) -> None:
    fleet = Fleet(replies={name: _raises for name in NAMES})
    subject = campaign(tmp_path, fleet, rounds=1)
    said = r"round 1: expected at least 2 updates, found 0 \(3 refused, 0 late\) in 3 attempts"
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

    def fails_from_round_two(name, message, adapter, digest, seed):
        if _equal(adapter, ADAPTER):
            return honest(name, message, adapter, digest, seed)
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
    run_campaign(campaign(tmp_path, Fleet(), rounds=2, gate=gate, strategy=StrategyName.FEDADAM))
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
