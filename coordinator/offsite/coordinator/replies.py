"""Collecting a round's updates: each is opened as it comes in, a bad one never costs a good one.

Rules: an update is what `rounds.update` accepts, one per client. Of three or more, one whose norm
(over all its tensors) is more than `MOST_TIMES_MEDIAN` times the lower median of the round's norms
is refused and logged, and the others count: with the same settings and the same start, honest
updates differ far less. Of two nobody can say which one is the odd one.
"""

import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message, Metadata

from offsite.coordinator.attempt import Attempt
from offsite.coordinator.campaign_parts import Campaign
from offsite.emulator.rounds.instruction import sealed_update_of
from offsite.emulator.rounds.plan import plan_digest
from offsite.emulator.rounds.update import Update, UpdateTerms, open_update
from offsite.secure.errors import PeerError

log = logging.getLogger(__name__)

MOST_TIMES_MEDIAN = 10.0
FEWEST_TO_COMPARE = 3


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
    """Open every update as it comes in; refuse what is wrong with it and keep the others.

    Guarantees:
        Of at least three updates none is kept whose norm is more than ten times the lower median
        (test_an_update_far_larger_than_the_others_is_refused_and_they_count).
    """
    updates: list[tuple[Metadata, Update]] = []
    refused, answered, largest = 0, 0, 0
    for reply in pulled(campaign, attempt.plan.deadline_unix_s, message_ids):
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
    kept = _without_outliers(updates, attempt.row.round)
    refused += len(updates) - len(kept)
    return Replies(kept, refused, len(message_ids) - answered, largest)


def _without_outliers(
    updates: list[tuple[Metadata, Update]], round_number: int
) -> list[tuple[Metadata, Update]]:
    """Those whose norm is not far from what is usual in the round."""
    if len(updates) < FEWEST_TO_COMPARE:
        return updates
    norms = [_norm(update) for _, update in updates]
    most = MOST_TIMES_MEDIAN * statistics.median_low(norms)
    for (_, update), norm in zip(updates, norms, strict=True):
        if norm > most:
            log.warning(
                "round %d: refused: update of %s: expected a norm of at most %.4g, ten times the"
                " median, found %.4g",
                round_number,
                update.client_id,
                most,
                norm,
            )
    return [pair for pair, norm in zip(updates, norms, strict=True) if norm <= most]


def _norm(update: Update) -> float:
    """The L2 norm over all tensors."""
    parts = (
        float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
        for tensor in update.delta.values()
    )
    return math.hypot(*parts)


def pulled(
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
