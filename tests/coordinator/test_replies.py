"""What is kept of a round's replies while it lasts."""

import gc
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from flwr.app import Message
from tests.coordinator.fleet import Fleet, campaign

from offsite.coordinator.attempt import open_attempt, send
from offsite.coordinator.local_grid import LocalGrid
from offsite.coordinator.replies import collect


class Watched(LocalGrid):
    """Knows which of the messages that it gave away are still held by somebody."""

    given: list[weakref.ref[Message]]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for message in super().pull_messages(message_ids):
            self.given.append(weakref.ref(message))
            yield message


def test_an_opened_update_is_not_kept_sealed_as_well(tmp_path: Path) -> None:
    fleet = Fleet()
    grid = Watched(fleet.apps())
    grid.given = []
    subject = campaign(tmp_path, fleet, grid)
    attempt = open_attempt(subject, subject.record.open(fleet.now), 1)
    replies = collect(subject, attempt, send(subject, attempt))
    gc.collect()
    assert len(replies.updates) == len(grid.given) == 3
    assert [ref() for ref in grid.given] == [None] * 3
    assert replies.update_bytes > sum(t.nbytes for t in replies.updates[0][1].delta.values())
