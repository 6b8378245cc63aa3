"""A campaign: rounds of tuning at the data owners, until the adapter is as good as it gets.

`run_campaign` is the protocol on one screen. It is written against Flower's `Grid`, so it runs on
our service, in one process and on Flower's own engine alike, and against the rows of the store.

Notable decisions:

- A round reads everything it needs from rows and files and leaves everything in rows and files:
  standing, adapter and strategy state. There is no memory between rounds, so going on after
  `kill -9` is the normal path: the open attempt is found, its instructions are found on the grid
  and not sent again, and the round is closed once, with the adapter that it made.
- A file is written before the row that names it; closing a round is one row.
- An attempt with too few updates is repeated; after `attempts` of them the campaign fails.

Rules: an update is used only after every check of `rounds.update`, one per client; a bad one is
logged and left out, the others count. Late updates are left out. The gate decides what stays
(`standing`).
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from offsite.coordinator.adapter_files import AdapterFiles
from offsite.coordinator.config import StrategyName
from offsite.coordinator.gate import Gate
from offsite.coordinator.mailbox import Phase
from offsite.coordinator.standing import ClosedRound, Standing, standing
from offsite.coordinator.strategy import (
    SERVER_LEARNING_RATE,
    aggregate,
    begin_round,
    instructions,
    make_strategy,
    state_of,
    state_schema,
)
from offsite.coordinator.tables.campaigns import (
    CampaignRow,
    CampaignState,
    FileRef,
    RoundRow,
    RoundState,
)
from offsite.emulator.rounds.flower_internals import set_task_identity
from offsite.emulator.rounds.instruction import adapter_digest, sealed_update_of
from offsite.emulator.rounds.plan import RoundPlan, TuningSettings, plan_digest, sign_plan
from offsite.emulator.rounds.update import Update, UpdateTerms, open_update
from offsite.emulator.schema import TensorSpec
from offsite.secure import envelope as envelopes
from offsite.secure.errors import ConfigError, PeerError, TransportError
from offsite.secure.identity import IdentityKey, IdentityPublicKey
from offsite.secure.sealing import SealingKey

log = logging.getLogger(__name__)

SERVER_NODE = 1


@dataclass(frozen=True, slots=True)
class CampaignSettings:
    """How many rounds, with whom, and what counts."""

    tuning: TuningSettings
    strategy: StrategyName = StrategyName.FEDAVG
    server_learning_rate: float = SERVER_LEARNING_RATE
    min_clients: int = 2
    min_replies: int = 2
    rounds: int = 3
    attempts: int = 3
    """How often a round is tried before the campaign fails."""
    patience: int = 0
    """Rounds without a gain of the gate after which it ends; 0: never."""
    tolerance: float = 0.01
    """Accuracy that a plug-in may lose against the full model."""
    deadline_s: float = 3600.0
    max_examples: int = 1_000_000
    """Most examples that one client may claim; they weigh its update."""
    seed: int = 0
    poll_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Member:
    """A client of the directory."""

    client_id: str
    identity_key: IdentityPublicKey


@dataclass(frozen=True, slots=True)
class Release:
    """What the campaign tunes: the bundle by digest, and the untouched adapter."""

    bundle_sha256: bytes
    schema: Mapping[str, TensorSpec]
    adapter: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class CoordinatorKeys:
    """What signs the plans and opens the updates."""

    identity: IdentityKey
    sealing: SealingKey


class CampaignStore(Protocol):
    """The rows of campaigns and rounds; `tables.campaigns.CampaignTable` is one."""

    def create(self, release_sha256: bytes, settings: str, now_unix_s: float) -> CampaignRow: ...
    def current(self) -> CampaignRow | None: ...
    def set_state(
        self, campaign_id: int, state: CampaignState, now_unix_s: float, reason: str = ""
    ) -> None: ...
    def open_round(self, campaign_id: int, round_number: int, now_unix_s: float) -> RoundRow: ...
    def set_plan(self, opened: RoundRow, plan: bytes) -> None: ...
    def close_round(
        self,
        opened: RoundRow,
        adapter: FileRef,
        strategy: FileRef | None,
        metrics: Mapping[str, float],
        now_unix_s: float,
    ) -> None: ...
    def abandon_round(
        self, opened: RoundRow, metrics: Mapping[str, float], now_unix_s: float
    ) -> None: ...
    def rounds(self, campaign_id: int) -> list[RoundRow]: ...
    def open_attempt(self, campaign_id: int) -> RoundRow | None: ...


@runtime_checkable
class DurableGrid(Protocol):
    """What our engines add to Flower's `Grid`: messages that survive a restart."""

    def find(self, group_id: str) -> list[str]: ...
    def close(self, group_id: str) -> None: ...


def no_announcement(phase: Phase, reason: str) -> None:
    """For engines whose edges do not ask."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """Everything a campaign works with."""

    settings: CampaignSettings
    release: Release
    keys: CoordinatorKeys
    store: CampaignStore
    files: AdapterFiles
    grid: Grid
    members: Callable[[], Mapping[int, Member]]
    """Clients of the directory that are not revoked, by Flower node id."""
    gate: Gate | None
    announce: Callable[[Phase, str], None] = no_announcement
    clock: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class CampaignResult:
    """How a campaign ended."""

    campaign_id: int
    standing: Standing
    released: bool
    """False: no round came within the tolerance; `adapter` is the untouched one."""
    adapter: dict[str, Tensor]
    reason: str


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An open attempt at a round and what it starts from."""

    row: RoundRow
    plan: RoundPlan
    envelope: envelopes.Envelope
    adapter: dict[str, Tensor]
    state: dict[str, Tensor]

    @property
    def group_id(self) -> str:
        return group_id(self.row)


@dataclass(frozen=True, slots=True)
class _Replies:
    """What came back in time: good updates with their messages, and how many were bad or late."""

    updates: list[tuple[Message, Update]]
    refused: int
    late: int


def run_campaign(campaign: Campaign) -> CampaignResult:
    """Run the campaign to its end, going on where an earlier run was stopped.

    Raises:
        TransportError: a round had too few updates in every attempt; the campaign has failed.
        ConfigError: another release's campaign is still running in this state folder.
    """
    # (1) A new campaign, or the one that was interrupted.
    row = _campaign_row(campaign)
    baseline = _baseline(campaign, row)
    while not (now := _standing(campaign, row, baseline)).is_over(
        campaign.settings.rounds, campaign.settings.patience
    ):
        # (2) Enough clients are there; the round's plan is made and signed.
        attempt = _open_attempt(campaign, row, now)
        # (3) Instructions go out, configured by the strategy; those already sent are found.
        message_ids = _send(campaign, attempt)
        # (4) Updates come in until all are there or the deadline has passed.
        replies = _collect(campaign, attempt, message_ids)
        if len(replies.updates) < campaign.settings.min_replies:
            _repeat(campaign, attempt, replies)
            continue
        # (5) The strategy makes the next adapter of them.
        adapter, state, means = _aggregate(campaign, attempt, now, replies)
        # (6) The adapter is plugged into the full model, the gate decides, the round is closed.
        _close(campaign, attempt, now, (adapter, state), _metrics(replies, means, baseline))
    # (7) The best adapter is the result, if it may be released.
    return _end(campaign, row, now)


def result_of(campaign: Campaign) -> CampaignResult | None:
    """The result as far as the rows go, without running anything; None before the first round."""
    row = campaign.store.current()
    closed = [] if row is None else _closed(campaign, row)
    if row is None or not closed:
        return None
    now = _standing(campaign, row, closed[-1].metrics.get("full_acc"))
    return _result(campaign, row, now)


def group_id(row: RoundRow) -> str:
    """What Flower's messages call an attempt at a round."""
    return f"{row.round}.{row.attempt}"


# ---- (1) the campaign


def _campaign_row(campaign: Campaign) -> CampaignRow:
    row = campaign.store.current()
    settings = json.dumps(asdict(campaign.settings), sort_keys=True)
    if row is None or row.state is CampaignState.FAILED or not _is_same(campaign, row, settings):
        row = campaign.store.create(campaign.release.bundle_sha256, settings, campaign.clock())
    if row.settings != settings:
        log.warning("campaign %d goes on with settings that were changed", row.campaign_id)
    _withdraw_old_messages(campaign, row)
    return row


def _is_same(campaign: Campaign, row: CampaignRow, settings: str) -> bool:
    """Whether the campaign of the row is the one to go on with, or to report again."""
    same_release = row.release_sha256 == campaign.release.bundle_sha256
    if row.state is CampaignState.ENDED:
        return same_release and row.settings == settings
    if not same_release:
        raise ConfigError(
            f"campaign {row.campaign_id} is under way with release {row.release_sha256.hex()[:16]},"
            f" found release {campaign.release.bundle_sha256.hex()[:16]}; put the old bundle back"
            " to go on, or use another state folder"
        )
    return True


def _withdraw_old_messages(campaign: Campaign, row: CampaignRow) -> None:
    """Killed between closing a round and withdrawing its messages: withdraw them now."""
    if isinstance(campaign.grid, DurableGrid):
        for old in campaign.store.rounds(row.campaign_id):
            if old.state is not RoundState.OPEN:
                campaign.grid.close(group_id(old))


def _baseline(campaign: Campaign, row: CampaignRow) -> float | None:
    """The full model's gate, scored once per campaign."""
    if campaign.gate is None:
        return None
    for closed in _closed(campaign, row):
        if "full_acc" in closed.metrics:
            return closed.metrics["full_acc"]
    score = campaign.gate.baseline()
    log.info("gate of the full model: %.4f", score.acc)
    return score.acc


def _closed(campaign: Campaign, row: CampaignRow) -> list[RoundRow]:
    rounds = campaign.store.rounds(row.campaign_id)
    return [attempt for attempt in rounds if attempt.state is RoundState.CLOSED]


def _standing(campaign: Campaign, row: CampaignRow, baseline: float | None) -> Standing:
    closed = [
        ClosedRound(r.round, r.metrics.get("gate_acc"), r.metrics.get("rolled_back") == 1.0)
        for r in _closed(campaign, row)
    ]
    return standing(baseline, closed)


# ---- (2) the plan


def _open_attempt(campaign: Campaign, row: CampaignRow, now: Standing) -> _Attempt:
    """The attempt that was under way, or a new one."""
    opened = campaign.store.open_attempt(row.campaign_id)
    if opened is not None and not isinstance(campaign.grid, DurableGrid):
        opened = None  # what was sent before the restart cannot be found again
    if opened is None or opened.plan is None:
        _wait_for_clients(campaign, row)
        if opened is None:
            opened = campaign.store.open_round(row.campaign_id, now.closed + 1, campaign.clock())
    adapter, state = _start(campaign, row)
    if opened.plan is not None:
        log.info("round %d goes on, attempt %d", opened.round, opened.attempt)
        envelope = envelopes.from_bytes(opened.plan)
        plan = RoundPlan.from_json(envelope.payload)
        return _Attempt(opened, plan, envelope, adapter, state)
    plan = _plan(campaign, opened, adapter_digest(adapter))
    envelope = sign_plan(plan, campaign.keys.identity)
    campaign.store.set_plan(opened, envelopes.to_bytes(envelope))
    return _Attempt(opened, plan, envelope, adapter, state)


def _wait_for_clients(campaign: Campaign, row: CampaignRow) -> None:
    wanted = campaign.settings.min_clients
    seen = -1
    while (found := len(_eligible(campaign))) < wanted:
        if found != seen:
            log.info("waiting for clients: %d of %d", found, wanted)
            campaign.announce(Phase.WAITING, f"{found} of {wanted} clients are there")
            seen = found
        campaign.pause(campaign.settings.poll_s)
    campaign.store.set_state(row.campaign_id, CampaignState.RUNNING, campaign.clock())


def _eligible(campaign: Campaign) -> list[int]:
    """Nodes that are connected and in the directory."""
    return sorted(set(campaign.grid.get_node_ids()) & campaign.members().keys())


def _start(campaign: Campaign, row: CampaignRow) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adapter and strategy state that the next round starts from."""
    schema = campaign.release.schema
    closed = _closed(campaign, row)
    if not closed:
        return {name: campaign.release.adapter[name] for name in schema}, {}
    last = closed[-1]
    assert last.adapter is not None  # of every closed round
    adapter = campaign.files.read(last.adapter, schema)
    if last.strategy is None:
        return adapter, {}
    state = state_schema(campaign.settings.strategy, schema)
    return adapter, campaign.files.read(last.strategy, state)


def _plan(campaign: Campaign, opened: RoundRow, adapter_sha256: str) -> RoundPlan:
    settings = campaign.settings
    seed = hashlib.sha256(f"{settings.seed}/{group_id(opened)}".encode()).digest()
    return RoundPlan(
        campaign_id=opened.campaign_id,
        round=opened.round,
        total_rounds=max(settings.rounds, opened.round),
        attempt=opened.attempt,
        bundle_sha256=campaign.release.bundle_sha256.hex(),
        adapter_sha256=adapter_sha256,
        settings=settings.tuning,
        deadline_unix_s=campaign.clock() + settings.deadline_s,
        sealing_public_key=campaign.keys.sealing.public_bytes,
        seed=int.from_bytes(seed[:7], "big"),
    )


# ---- (3) instructions


def _send(campaign: Campaign, attempt: _Attempt) -> list[str]:
    campaign.announce(Phase.RUNNING, "")
    grid = campaign.grid
    if isinstance(grid, DurableGrid) and (found := grid.find(attempt.group_id)):
        log.info("round %d: found %d instructions", attempt.row.round, len(found))
        return found
    set_task_identity(attempt.plan.campaign_id, SERVER_NODE)
    strategy = make_strategy(campaign.settings.strategy, campaign.settings.server_learning_rate)
    messages = instructions(
        strategy,
        attempt.row.round,
        attempt.adapter,
        envelopes.to_bytes(attempt.envelope),
        _eligible(campaign),
    )
    ttl_s = max(attempt.plan.deadline_unix_s - campaign.clock(), 1.0)
    ids = list(grid.push_messages(_addressed(messages, attempt.group_id, ttl_s)))
    log.info("round %d: sent %d instructions", attempt.row.round, len(ids))
    return ids


def _addressed(messages: Iterable[Message], group: str, ttl_s: float) -> Iterator[Message]:
    for message in messages:
        message.metadata.group_id = group
        message.metadata.ttl = ttl_s
        yield message


# ---- (4) updates


def _collect(campaign: Campaign, attempt: _Attempt, message_ids: Sequence[str]) -> _Replies:
    """Open every update as it comes in; refuse what is wrong with it and keep the others."""
    found = _Replies([], 0, 0)
    refused = 0
    answered: set[str] = set()
    for reply in _replies(campaign, attempt.plan.deadline_unix_s, message_ids):
        answered.add(reply.metadata.reply_to_message_id)
        try:
            update = _open_reply(campaign, attempt, reply)
            if any(update.client_id == other.client_id for _, other in found.updates):
                raise PeerError(f"update of {update.client_id}: a second one in the same round")
            found.updates.append((reply, update))
        except PeerError as error:
            refused += 1
            log.warning("round %d: refused: %s", attempt.row.round, error)
    return _Replies(found.updates, refused, len(message_ids) - len(answered))


def _replies(
    campaign: Campaign, deadline_unix_s: float, message_ids: Sequence[str]
) -> Iterator[Message]:
    """Each reply once, until all are there or the deadline has passed."""
    waiting = list(message_ids)
    while waiting:
        left_s = deadline_unix_s - campaign.clock()
        for reply in campaign.grid.pull_messages(waiting):
            if reply.metadata.reply_to_message_id in waiting:
                waiting.remove(reply.metadata.reply_to_message_id)
                yield reply
        if left_s <= 0:
            return
        if waiting:
            campaign.pause(min(campaign.settings.poll_s, left_s))


def _open_reply(campaign: Campaign, attempt: _Attempt, reply: Message) -> Update:
    node = reply.metadata.src_node_id
    member = campaign.members().get(node)
    if member is None:
        raise PeerError(f"reply of node {node}: not, or no longer, in the directory")
    try:
        sealed = sealed_update_of(reply)
    except PeerError as error:
        raise PeerError(f"reply of {member.client_id}: {error}") from error
    terms = UpdateTerms(
        plan_digest=plan_digest(attempt.envelope),
        client_id=member.client_id,
        client_key=member.identity_key,
        schema=campaign.release.schema,
        max_examples=campaign.settings.max_examples,
    )
    return open_update(sealed, campaign.keys.sealing, terms)


def _repeat(campaign: Campaign, attempt: _Attempt, replies: _Replies) -> None:
    """Too few updates: the attempt does not count; after the last one the campaign fails."""
    row, settings = attempt.row, campaign.settings
    campaign.store.abandon_round(row, _counts(replies), campaign.clock())
    if isinstance(campaign.grid, DurableGrid):
        campaign.grid.close(attempt.group_id)
    reason = (
        f"round {row.round}: expected at least {settings.min_replies} updates, found"
        f" {len(replies.updates)} ({replies.refused} refused, {replies.late} late)"
    )
    log.warning("%s; attempt %d of %d", reason, row.attempt, settings.attempts)
    if row.attempt >= settings.attempts:
        campaign.store.set_state(row.campaign_id, CampaignState.FAILED, campaign.clock(), reason)
        campaign.announce(Phase.FAILED, reason)
        raise TransportError(f"{reason} in {row.attempt} attempts; check the edges and start again")


# ---- (5) and (6)


def _aggregate(
    campaign: Campaign, attempt: _Attempt, now: Standing, replies: _Replies
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """The next adapter, the strategy's next state and the clients' mean metrics."""
    strategy = make_strategy(campaign.settings.strategy, campaign.settings.server_learning_rate)
    begin_round(strategy, attempt.adapter, attempt.state)
    adapter, means = aggregate(strategy, now.accepted + 1, attempt.adapter, replies.updates)
    return adapter, state_of(strategy), means


def _close(
    campaign: Campaign,
    attempt: _Attempt,
    now: Standing,
    made: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    metrics: dict[str, float],
) -> None:
    row, (adapter, state) = attempt.row, made
    if campaign.gate is not None:
        score = campaign.gate.score(adapter)
        metrics |= {"gate_acc": score.acc, "gate_stderr": score.stderr}
        if now.regresses(score.acc, campaign.settings.tolerance):
            log.warning("round %d: gate %.4f is a regression: rolled back", row.round, score.acc)
            metrics["rolled_back"] = 1.0
            adapter, state = attempt.adapter, attempt.state
    name = f"campaign-{row.campaign_id}-round-{row.round}"
    adapter_file = campaign.files.write(name, adapter)
    state_file = campaign.files.write(f"{name}-strategy", state) if state else None
    campaign.store.close_round(row, adapter_file, state_file, metrics, campaign.clock())
    if isinstance(campaign.grid, DurableGrid):
        campaign.grid.close(attempt.group_id)
    log.info("round %d closed: %s", row.round, metrics)


def _metrics(
    replies: _Replies, means: Mapping[str, float], baseline: float | None
) -> dict[str, float]:
    metrics = {f"client_{name}": value for name, value in means.items()} | _counts(replies)
    return metrics if baseline is None else metrics | {"full_acc": baseline}


def _counts(replies: _Replies) -> dict[str, float]:
    return {
        "updates": float(len(replies.updates)),
        "refused": float(replies.refused),
        "late": float(replies.late),
        "examples": float(sum(update.num_examples for _, update in replies.updates)),
    }


# ---- (7) the result


def _end(campaign: Campaign, row: CampaignRow, now: Standing) -> CampaignResult:
    result = _result(campaign, row, now)
    campaign.store.set_state(row.campaign_id, CampaignState.ENDED, campaign.clock(), result.reason)
    campaign.announce(Phase.ENDED, result.reason)
    log.info("campaign %d ended: %s", row.campaign_id, result.reason)
    return result


def _result(campaign: Campaign, row: CampaignRow, now: Standing) -> CampaignResult:
    released = now.may_release(campaign.settings.tolerance)
    adapter = {name: campaign.release.adapter[name] for name in campaign.release.schema}
    if released:
        best = next(r for r in _closed(campaign, row) if r.round == now.best_round)
        assert best.adapter is not None  # of every closed round
        adapter = campaign.files.read(best.adapter, campaign.release.schema)
    return CampaignResult(row.campaign_id, now, released, adapter, _reason(campaign, now))


def _reason(campaign: Campaign, now: Standing) -> str:
    if not now.may_release(campaign.settings.tolerance):
        return (
            f"nothing is released: no round came within {campaign.settings.tolerance} of the full"
            f" model's gate {now.baseline}"
        )
    if now.best_acc is None:
        return f"round {now.best_round} of {now.closed} is the result, unjudged: there is no gate"
    return (
        f"round {now.best_round} of {now.closed} is best: gate {now.best_acc:.4f}, full model"
        f" {now.baseline:.4f}"
    )
