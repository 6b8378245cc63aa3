"""Work that goes on after a cut: the one place where anything is tried again.

A transfer that moves bytes is never given up because the line is bad; one that moves none is tried
again a bounded number of times, with full jitter. So a coordinator that comes back after a restart
is not stormed, and one that is gone is noticed. One that is busy says when to come back, and is waited
for as long as it takes. What the coordinator refused is not tried again.

Source of the backoff: M. Brooker, "Exponential Backoff And Jitter" (AWS, 2015), "full jitter".
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from offsite.edge_client.channel import translated
from offsite.secure import limits
from offsite.secure.errors import BusyError, TransportError

Result = TypeVar("Result")

WORKER_RETRIES: Final = 120
"""Tries of an edge inside a campaign: about ten minutes, long enough to restart a coordinator."""
BUSY_RETRIES: Final = 1000
"""Times that a coordinator may say "later" without any progress."""


@dataclass(frozen=True, slots=True)
class Persistence:
    """How often to try again without any progress, and how to wait in between."""

    retries: int = limits.RETRIES
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def run(self, attempt: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
        """The result of `attempt`, called again after each cut; `progress` grows as bytes move.

        Raises:
            TransportError: nothing moved in `retries` further attempts.
            PeerError, PolicyError: the coordinator refused; raised at once.
        """
        failures, waits, best = 0, 0, progress()
        while True:
            try:
                with translated():
                    return attempt()
            except BusyError as error:
                waits = 0 if progress() > best else waits + 1
                best = max(best, progress())
                if waits > BUSY_RETRIES:
                    raise
                # As long as it said, and a little more, so that not all come back at once.
                least_s = max(error.retry_after_s, limits.RETRY_BASE_S)
                self.sleep(self.uniform(least_s, 1.5 * least_s))
                continue
            except TransportError:
                failures = 0 if progress() > best else failures + 1
                best = max(best, progress())
                if failures > self.retries:
                    raise
            cap_s = min(
                limits.RETRY_CAP_S, limits.RETRY_BASE_S * 2.0 ** min(max(failures - 1, 0), 30)
            )
            self.sleep(self.uniform(0.0, cap_s))
