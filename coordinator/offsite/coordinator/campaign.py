"""A campaign: rounds of tuning at the data owners, until the adapter is as good as it gets.

`run_campaign` is the protocol on one screen. It is written against Flower's `Grid`, so it runs on
our service, in one process and on Flower's own engine alike, and against the rows of the store.

Notable decisions:

- A round reads everything it needs from rows and files and leaves everything in rows and files:
  standing, adapter and strategy state. There is no memory between rounds, so going on after
  `kill -9` is the normal path: the open attempt is found, its instructions are found on the grid
  and not sent again, and the round is closed once, with the adapter that it made.
- A file is written before the row that names it; closing a round is one row.
- An attempt with too few updates, or too few cohorts for the strategy, is repeated; after
  `attempts` of them the campaign fails. Run again, it goes on from its last closed round with as
  many attempts more.

Rules: what a client tuned reaches this program in a secure sum and no other way; a client that
sends what does not fit is logged and left out, the others count. Who is late is left out. The gate
decides what stays (`standing`). An order of the owner ends an attempt at any step (`policy.turns`).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from offsite.coordinator.attempt import Attempt, open_attempt, send
from offsite.coordinator.campaign_parts import Campaign
from offsite.coordinator.campaign_record import CampaignResult
from offsite.coordinator.mailbox import Phase
from offsite.coordinator.policy.turns import Interrupted, Turn, next_turn
from offsite.coordinator.replies import Replies, collect
from offsite.coordinator.round_metrics import (
    BASELINE,
    CORRECTED,
    GATE,
    GATE_STDERR,
    GAVE_UP,
    ROLLED_BACK,
)
from offsite.coordinator.secure_sums.cohorts import draw_cohorts, forget_attempt
from offsite.coordinator.standing import Standing
from offsite.coordinator.strategies.aggregation import aggregate
from offsite.coordinator.strategies.fit import fewest_cohorts
from offsite.coordinator.tables.campaigns import (
    AttemptOverError,
    CampaignRow,
    CampaignState,
    RoundState,
)
from offsite.secure.errors import TransportError

log = logging.getLogger(__name__)


def run_campaign(campaign: Campaign) -> CampaignResult:
    """Run the campaign to its end, going on where an earlier run was stopped.

    Raises:
        TransportError: a round had too few updates in every attempt; the campaign has failed.
        ConfigError: a campaign of another release is under way in this state folder.
    """
    # (1) A new campaign, or the one that was interrupted; how good the full model is by itself.
    row = campaign.record.open(campaign.clock())
    _withdraw_old_messages(campaign, row)
    baseline = _baseline(campaign, row)
    # (2) Its owner lets the next round begin, it is time, and enough clients are there.
    while (turn := next_turn(campaign, row, baseline)) is not None:
        try:
            _run_attempt(turn, row, baseline)
        except (Interrupted, AttemptOverError):
            _withdraw_old_messages(campaign, row)
    # (9) The best adapter is the result, if it may be released.
    return _end(campaign, row)


def _run_attempt(turn: Turn, row: CampaignRow, baseline: float | None) -> None:
    """One attempt at the next round; it leaves a closed round, or one more attempt that came to nothing."""
    campaign, now = turn.campaign, turn.now
    # (3) The round's plan is made and signed.
    attempt = open_attempt(campaign, row, now.closed + 1, turn.heard)
    # (4) Cohorts are drawn; instructions go out, configured by the strategy, with the terms of
    #     the sums. What was drawn and sent before is found.
    cohorts = draw_cohorts(campaign, attempt)
    message_ids = send(campaign, attempt, [(c.terms, sorted(c.keys)) for c in cohorts])
    # (5) Clients tune until all are done or the deadline has passed; each cohort is summed.
    replies = collect(campaign, attempt, cohorts, message_ids)
    if _too_few(campaign, replies):
        _repeat(campaign, attempt, replies)
        return
    # (6) The strategy makes the next adapter of them.
    made = _aggregate(campaign, attempt, now, replies)
    # (7) The adapter is plugged into the full model; the gate keeps it or rolls it back.
    judged = _judge(campaign, attempt, now, made)
    # (8) The round is closed: files, then one row.
    _close(turn, attempt, judged, replies, baseline)


@dataclass(frozen=True, slots=True)
class _Made:
    """What a round leaves behind."""

    adapter: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    metrics: Mapping[str, float]


def _withdraw_old_messages(campaign: Campaign, row: CampaignRow) -> None:
    """Killed between closing a round and withdrawing its messages: withdraw them now."""
    for old in campaign.record.store.rounds(row.campaign_id):
        if old.state is not RoundState.OPEN:
            forget_attempt(campaign, old)


def _baseline(campaign: Campaign, row: CampaignRow) -> float | None:
    """The full model's gate; written down with every round, so scored once."""
    if campaign.gate is None:
        return None
    known = campaign.record.baseline(row)
    if known is not None:
        return known
    score = campaign.gate.baseline()
    log.info("gate of the full model: %.4f", score.acc)
    return score.acc


def _too_few(campaign: Campaign, replies: Replies) -> str:
    """What an attempt lacks; "" if it counts."""
    settings = campaign.settings
    if replies.survivors < settings.min_replies:
        return f"at least {settings.min_replies} updates, found {replies.survivors}"
    if len(replies.means) < (fewest := fewest_cohorts(settings.strategy)):
        name = settings.strategy.name.value
        return f"at least {fewest} cohorts for {name}, found {len(replies.means)}"
    return ""


def _repeat(campaign: Campaign, attempt: Attempt, replies: Replies) -> None:
    """Too few: the attempt does not count; after the last one the campaign fails."""
    row, settings, store = attempt.row, campaign.settings, campaign.record.store
    tries = campaign.record.tries(row)
    gives_up = tries >= settings.attempts
    counts = replies.counts() | ({GAVE_UP: 1.0} if gives_up else {})
    store.abandon_round(row, counts, campaign.clock())
    forget_attempt(campaign, row)
    reason = (
        f"round {row.round}: expected {_too_few(campaign, replies)} ({replies.refused} refused,"
        f" {replies.late} late, {replies.dropped} dropped out)"
    )
    log.warning("%s; attempt %d of %d", reason, tries, settings.attempts)
    if gives_up:
        store.set_state(row.campaign_id, CampaignState.FAILED, campaign.clock(), reason)
        campaign.announce(Phase.FAILED, reason)
        raise TransportError(f"{reason} in {tries} attempts; check the edges and start again")


def _aggregate(campaign: Campaign, attempt: Attempt, now: Standing, replies: Replies) -> _Made:
    """The next adapter and the strategy's next state."""
    strategy, aggregation = campaign.settings.strategy, now.accepted + 1
    made = aggregate(strategy, aggregation, attempt.adapter, attempt.state, replies.means)
    return _Made(made.adapter, made.state, {})


def _judge(campaign: Campaign, attempt: Attempt, now: Standing, made: _Made) -> _Made:
    """The same, or where the round started from if the gate has regressed."""
    if campaign.gate is None:
        return made
    score = campaign.gate.score(made.adapter)
    metrics = {**made.metrics, GATE: score.acc, GATE_STDERR: score.stderr}
    if score.is_corrected:
        metrics[CORRECTED] = 1.0
    if not now.regresses(score.acc, campaign.settings.tolerance):
        return _Made(made.adapter, made.state, metrics)
    log.warning("round %d: gate %.4f has regressed: rolled back", attempt.row.round, score.acc)
    return _Made(attempt.adapter, attempt.state, {**metrics, ROLLED_BACK: 1.0})


def _close(
    turn: Turn, attempt: Attempt, made: _Made, replies: Replies, baseline: float | None
) -> None:
    row, campaign, record = attempt.row, turn.campaign, turn.campaign.record
    name = f"campaign-{row.campaign_id}-round-{row.round}"
    adapter = record.files.write(name, made.adapter)
    state = record.files.write(f"{name}-strategy", made.state) if made.state else None
    metrics = {**made.metrics, **replies.counts()}
    if baseline is not None:
        metrics[BASELINE] = baseline
    record.store.close_round(row, adapter, state, metrics, campaign.clock(), turn.heard)
    forget_attempt(campaign, row)
    log.info("round %d closed: %s", row.round, _summary(metrics))


def _summary(metrics: Mapping[str, float]) -> str:
    """What an operator wants to see at once; the row has all of it."""
    text = (
        "{updates:.0f} updates in {cohorts:.0f} cohorts, {refused:.0f} refused, {late:.0f} late,"
        " {dropped:.0f} dropped out, {secure_s:.1f} s for the sums"
    ).format_map(metrics)
    if GATE in metrics:
        text += f", gate {metrics[GATE]:.4f} ± {metrics[GATE_STDERR]:.4f}"
    text += ", corrected" if CORRECTED in metrics else ""
    return text + (", rolled back" if ROLLED_BACK in metrics else "")


def _end(campaign: Campaign, row: CampaignRow) -> CampaignResult:
    result = campaign.record.result(row)
    campaign.record.store.set_state(
        row.campaign_id, CampaignState.ENDED, campaign.clock(), result.reason
    )
    campaign.announce(Phase.ENDED, result.reason)
    log.info("campaign %d ended: %s", row.campaign_id, result.reason)
    return result
