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
from offsite.coordinator.secure_sums.cohorts import draw_cohorts


class Watched(LocalGrid):
    """Knows which of the messages that it gave away are still held by somebody."""

    given: list[weakref.ref[Message]]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for message in super().pull_messages(message_ids):
            self.given.append(weakref.ref(message))
            yield message


def test_no_reply_of_a_client_is_kept_once_it_was_added(tmp_path: Path) -> None:
    """A masked vector is as large as the adapter, and there may be 255 of them."""
    fleet = Fleet()
    grid = Watched(fleet.apps())
    grid.given = []
    subject = campaign(tmp_path, fleet, grid)
    attempt = open_attempt(subject, subject.record.open(fleet.now), 1)
    cohorts = draw_cohorts(subject, attempt)
    ids = send(subject, attempt, [(c.terms, tuple(c.keys)) for c in cohorts])
    replies = collect(subject, attempt, cohorts, ids)
    gc.collect()
    assert (replies.survivors, len(grid.given)) == (3, 3 * 6)
    assert [ref() for ref in grid.given] == [None] * 18
    assert replies.update_bytes > 4 * 16
