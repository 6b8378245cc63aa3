"""Whose turn it is: the next round of a campaign, or nobody's while its owner or the clock says so.

Before a round, `next_turn` waits while the campaign is paused, until the schedule lets a round begin
and until enough clients are there. During it every wait looks for new orders, and one that gives the attempt up ends the wait by
`Interrupted`; so an order is obeyed within a poll, and after a gate's scoring at the latest, which
is no wait. An order's own transaction ends an open attempt, and none is opened or closed over the
head of an order (`tables.campaigns`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from offsite.coordinator.attempt import missing_clients
from offsite.coordinator.campaign_parts import Campaign, DurableGrid
from offsite.coordinator.mailbox import Phase
from offsite.coordinator.policy.orders import GivenOrder, described, is_paused
from offsite.coordinator.standing import Standing
from offsite.coordinator.tables.campaigns import CampaignRow, RoundState

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The owner ordered otherwise: what was waited for is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A round that may begin, or go on."""

    campaign: Campaign
    """The same campaign, whose waits end by `Interrupted` at an order."""
    now: Standing
    heard: int
    """Position of the last order that `now` takes into account."""


def next_turn(campaign: Campaign, row: CampaignRow, baseline: float | None) -> Turn | None:
    """The next round, once it may begin; None when the campaign is over."""
    while True:
        # Heard first: whatever is ordered from here on interrupts.
        heard = max((g.position for g in campaign.record.store.orders(row.campaign_id)), default=0)
        now = campaign.record.standing(row, baseline)
        if campaign.record.is_over(row, now):
            return None
        listening = _listening(campaign, row, heard)
        try:
            _hold(listening, row)
        except Interrupted:
            continue
        return Turn(listening, now, heard)


def _listening(campaign: Campaign, row: CampaignRow, heard: int) -> Campaign:
    store = campaign.record.store

    def pause(seconds: float) -> None:
        campaign.pause(seconds)
        new = store.orders(row.campaign_id, heard)
        if new and _is_interrupted(new, has_begun=_has_begun(campaign, row)):
            log.info("by order of the owner: %s", ", ".join(given.order.command for given in new))
            raise Interrupted

    return replace(campaign, pause=pause)


def _is_interrupted(new: Sequence[GivenOrder], *, has_begun: bool) -> bool:
    return not has_begun or any(given.order.gives_up_attempt for given in new)


def _has_begun(campaign: Campaign, row: CampaignRow) -> bool:
    """Whether an attempt is under way that clients may know of."""
    opened = campaign.record.store.open_attempt(row.campaign_id)
    return opened is not None and opened.plan is not None


def _hold(campaign: Campaign, row: CampaignRow) -> None:
    """Returns when a round may begin, or has begun."""
    said = ""
    goes_on = isinstance(
        campaign.grid, DurableGrid
    )  # elsewhere, what was sent cannot be found again
    while not (goes_on and _has_begun(campaign, row)):
        phase, text = _why_not_now(campaign, row)
        if not text:
            return
        if text != said:
            log.info("%s", text)
            campaign.announce(phase, text)
            said = text
        campaign.pause(campaign.settings.poll_s)


def _why_not_now(campaign: Campaign, row: CampaignRow) -> tuple[Phase, str]:
    """What keeps the next round from beginning, in words; "" if nothing does."""
    orders = campaign.record.store.orders(row.campaign_id)
    if is_paused(orders):
        return Phase.PAUSED, described(orders)
    rounds = campaign.record.store.rounds(row.campaign_id)
    closed = [r.opened_unix_s for r in rounds if r.state is RoundState.CLOSED]
    now_unix_s = campaign.clock()
    schedule = campaign.settings.policy.schedule
    start_unix_s = schedule.next_start(max(closed, default=None), now_unix_s)
    if start_unix_s > now_unix_s:
        when = datetime.fromtimestamp(start_unix_s, UTC)
        return Phase.WAITING, f"the next round may begin at {when:%Y-%m-%d %H:%M:%S} UTC"
    return Phase.WAITING, missing_clients(campaign)
