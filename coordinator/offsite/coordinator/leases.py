"""Who is there, who is gone, and for whom a round need not wait.

An edge asks for its next instruction every 20 seconds, also while it tunes. Each question renews its
lease; one that has not asked for `GONE_S` is said to be gone, and is asked for nothing new. What it was
asked for before it may still answer until the deadline.

With `leave_s` a round goes on before its deadline if all that is missing are clients that have been gone
for so long, and every cohort has enough members without them. It is off by default: tuning takes hours
and lines are cut for nights, an edge tunes on without one, and what it sends in time counts. Leaving one
out reveals nothing, for who is in a sum is drawn among those who have tuned.

Rule: silence counts while somebody listens. It begins with the service, so that a restart makes nobody
gone, and it has to last by a clock that never jumps, so that a wrong wall clock makes nobody gone either.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

GONE_S: Final = 90.0
"""Without a sign of life; three times the longest pause between two."""
HOLD_S: Final = 45.0
"""How long all that is missing has to be gone, by the steady clock: two signs of life."""


def silent_s(last_seen_unix_s: float | None, since_unix_s: float, now_unix_s: float) -> float:
    """How long nothing was heard of a client, by a service that listens since `since_unix_s`."""
    return now_unix_s - max(last_seen_unix_s or since_unix_s, since_unix_s)


def is_gone(last_seen_unix_s: float | None, now_unix_s: float) -> bool:
    """For the operator: whether a client is not there now."""
    return last_seen_unix_s is None or now_unix_s - last_seen_unix_s > GONE_S


@dataclass
class Patience:
    """Asked again and again while a round waits; True once it need not any more."""

    leave_s: float
    """0: for ever."""
    silent_s: Callable[[int], float]
    """By Flower's node id."""
    steady: Callable[[], float] = time.monotonic
    _since: float | None = field(default=None, init=False)

    def is_over(self, missing: Collection[int], has_enough: bool) -> bool:
        """Whether all of `missing` are gone for good, and the others are enough."""
        if not self.leave_s or not missing or not has_enough:
            self._since = None
            return False
        if any(self.silent_s(node) < self.leave_s for node in missing):
            self._since = None
            return False
        now = self.steady()
        self._since = now if self._since is None else self._since
        return now - self._since >= HOLD_S
