"""Waiting for replies on any of Flower's grids."""

from collections.abc import Callable, Iterator, Sequence

from flwr.app import Message

from offsite.coordinator.campaign_parts import Campaign


def pulled(
    campaign: Campaign,
    deadline_unix_s: float,
    message_ids: Sequence[str],
    poll_s: float,
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[Message]:
    """Each reply once, until all are there, the deadline has passed, or `is_over` says so."""
    waiting = list(message_ids)
    while waiting:
        left_s = deadline_unix_s - campaign.clock()
        for reply in campaign.grid.pull_messages(tuple(waiting)):
            if reply.metadata.reply_to_message_id in waiting:
                waiting.remove(reply.metadata.reply_to_message_id)
                yield reply
        if left_s <= 0 or is_over():
            return
        if waiting:
            campaign.pause(min(poll_s, left_s))
