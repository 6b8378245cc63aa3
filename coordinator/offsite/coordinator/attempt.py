"""One attempt at a round: who is there, what the plan says, and the instructions that carry it.

The plan is stored before an instruction is sent. So an attempt that was interrupted goes on with
the same plan, the same seed and, on an engine of ours, the same messages; on stock Flower, which
forgets them, it is abandoned and the next attempt begins.
"""

import gc
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from torch import Tensor

from offsite.coordinator.campaign_parts import Campaign, DurableGrid, group_id
from offsite.coordinator.mailbox import Phase
from offsite.coordinator.strategies.instructions import instructions
from offsite.coordinator.tables.campaigns import CampaignRow, CampaignState, RoundRow
from offsite.emulator.heap import give_back_freed_memory
from offsite.emulator.rounds.flower_internals import SERVER_NODE_ID, set_task_identity
from offsite.emulator.rounds.instruction import PLAN, TERMS, adapter_digest
from offsite.emulator.rounds.plan import RoundPlan, sign_plan
from offsite.secure import envelope as envelopes
from offsite.secure.names import node_id

log = logging.getLogger(__name__)

Asked = tuple[bytes, Sequence[str]]
"""Signed terms of a sum, and the ids of the clients that are asked for it."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An open attempt at a round and what it starts from."""

    row: RoundRow
    plan: RoundPlan
    envelope: envelopes.Envelope
    adapter: Mapping[str, Tensor]
    state: Mapping[str, Tensor]

    @property
    def group_id(self) -> str:
        return group_id(self.row)


def open_attempt(
    campaign: Campaign, row: CampaignRow, round_number: int, heard: int | None = None
) -> Attempt:
    """The attempt that was under way, or a new one; `heard` as in `CampaignStore.open_round`."""
    opened = campaign.record.store.open_attempt(row.campaign_id)
    if opened is not None and not isinstance(campaign.grid, DurableGrid):
        opened = None  # what was sent before the restart cannot be found again
    if opened is None or opened.plan is None:
        wait_for_clients(campaign, row.campaign_id)
        if opened is None:
            opened = campaign.record.store.open_round(
                row.campaign_id, round_number, campaign.clock(), heard
            )
    adapter, state = campaign.record.start(row)
    if opened.plan is not None:
        log.info("round %d goes on, attempt %d", opened.round, opened.attempt)
        envelope = envelopes.from_bytes(opened.plan)
        plan = RoundPlan.from_json(envelope.payload)
        return Attempt(opened, plan, envelope, adapter, state)
    plan = _plan(campaign, opened, adapter_digest(adapter))
    envelope = sign_plan(plan, campaign.keys.identity)
    campaign.record.store.set_plan(opened, envelopes.to_bytes(envelope))
    return Attempt(opened, plan, envelope, adapter, state)


def wait_for_clients(campaign: Campaign, campaign_id: int) -> None:
    """Returns when enough are there."""
    said = ""
    while text := missing_clients(campaign):
        if text != said:
            log.info("%s", text)
            campaign.announce(Phase.WAITING, text)
            said = text
        campaign.pause(campaign.settings.poll_s)
    campaign.record.store.set_state(campaign_id, CampaignState.RUNNING, campaign.clock())


def missing_clients(campaign: Campaign) -> str:
    """How many of those that a round needs are there, in words; "" if they are enough."""
    found, wanted = len(campaign.eligible()), campaign.settings.min_clients
    if found >= wanted:
        return ""
    unfit = len(campaign.connected()) - found
    without = f", without {unfit} that the policy leaves out" if unfit else ""
    return f"{found} of {wanted} clients are there{without}"


def _plan(campaign: Campaign, opened: RoundRow, adapter_sha256: str) -> RoundPlan:
    settings = campaign.settings
    seed = hashlib.sha256(f"{settings.seed}/{group_id(opened)}".encode()).digest()
    return RoundPlan(
        campaign_id=opened.campaign_id,
        round=opened.round,
        total_rounds=max(settings.rounds, opened.round),
        attempt=opened.attempt,
        bundle_sha256=campaign.record.release.bundle_sha256.hex(),
        adapter_sha256=adapter_sha256,
        settings=settings.tuning,
        deadline_unix_s=campaign.clock() + settings.deadline_s,
        seed=int.from_bytes(seed[:7], "big"),
        proximal_mu=settings.strategy.plan_proximal_mu,
    )


def send(campaign: Campaign, attempt: Attempt, asked: Sequence[Asked]) -> list[str]:
    """Send the attempt's instructions, unless they were sent before; returns the messages' ids.

    Args:
        asked: the clients of each sum, with its signed terms.
    """
    campaign.announce(Phase.RUNNING, "")
    grid = campaign.grid
    if isinstance(grid, DurableGrid) and (found := grid.find(attempt.group_id)):
        log.info("round %d: found %d instructions", attempt.row.round, len(found))
        return found
    set_task_identity(attempt.plan.campaign_id, SERVER_NODE_ID)
    ids = list(grid.push_messages(_messages(campaign, attempt, asked)))
    # An adapter's worth of arrays, which Flower's records hold in cycles; the sum comes hours later.
    gc.collect()
    give_back_freed_memory()
    log.info("round %d: sent %d instructions", attempt.row.round, len(ids))
    return ids


def _messages(campaign: Campaign, attempt: Attempt, asked: Sequence[Asked]) -> Iterator[Message]:
    strategy, number = campaign.settings.strategy, attempt.row.round
    ttl_s = max(attempt.plan.deadline_unix_s - campaign.clock(), 1.0)
    plan = envelopes.to_bytes(attempt.envelope)
    for terms, names in asked:
        config = {PLAN: plan, TERMS: terms}
        nodes = [node_id(name) for name in names]
        for message in instructions(strategy, number, attempt.adapter, config, nodes):
            message.metadata.group_id = attempt.group_id
            message.metadata.ttl = ttl_s
            yield message
