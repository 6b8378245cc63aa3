"""Collecting a round's updates: each is opened as it comes in, a bad one never costs a good one."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message, Metadata

from offsite.coordinator.attempt import Attempt
from offsite.coordinator.campaign_parts import Campaign
from offsite.emulator.rounds.instruction import sealed_update_of
from offsite.emulator.rounds.plan import plan_digest
from offsite.emulator.rounds.update import Update, UpdateTerms, open_update
from offsite.secure.errors import PeerError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replies:
    """What came back in time: good updates with their messages' metadata, and how many were bad
    or late. A message itself would hold the update a second time, sealed."""

    updates: list[tuple[Metadata, Update]]
    refused: int
    late: int
    update_bytes: int
    """The largest update, as it travelled: signed and sealed."""

    def counts(self) -> dict[str, float]:
        """For the round's metrics."""
        return {
            "updates": float(len(self.updates)),
            "refused": float(self.refused),
            "late": float(self.late),
            "examples": float(sum(update.num_examples for _, update in self.updates)),
            "update_bytes": float(self.update_bytes),
        }


def collect(campaign: Campaign, attempt: Attempt, message_ids: Sequence[str]) -> Replies:
    """Open every update as it comes in; refuse what is wrong with it and keep the others."""
    updates: list[tuple[Metadata, Update]] = []
    refused, answered, largest = 0, 0, 0
    for reply in _replies(campaign, attempt.plan.deadline_unix_s, message_ids):
        answered += 1
        try:
            update = _open_reply(campaign, attempt, reply)
            if any(update.client_id == other.client_id for _, other in updates):
                raise PeerError(f"update of {update.client_id}: a second one in the same round")
            updates.append((reply.metadata, update))
            largest = max(largest, len(sealed_update_of(reply)))
        except PeerError as error:
            refused += 1
            log.warning("round %d: refused: %s", attempt.row.round, error)
    return Replies(updates, refused, len(message_ids) - answered, largest)


def _replies(
    campaign: Campaign, deadline_unix_s: float, message_ids: Sequence[str]
) -> Iterator[Message]:
    """Each reply once, until all are there or the deadline has passed."""
    waiting = list(message_ids)
    while waiting:
        left_s = deadline_unix_s - campaign.clock()
        for reply in campaign.grid.pull_messages(tuple(waiting)):
            if reply.metadata.reply_to_message_id in waiting:
                waiting.remove(reply.metadata.reply_to_message_id)
                yield reply
        if left_s <= 0:
            return
        if waiting:
            campaign.pause(min(campaign.settings.poll_s, left_s))


def _open_reply(campaign: Campaign, attempt: Attempt, reply: Message) -> Update:
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
        schema=campaign.record.release.schema,
        max_examples=campaign.settings.max_examples,
    )
    return open_update(sealed, campaign.keys.sealing, terms)
