"""The end of a service that a signal stops, within ten seconds and with nothing lost.

(1) nothing new begins: no upload, no fetch, and whoever waits is told to come back later
(2) uploads under way may end, `DRAIN_S` seconds long: each that does is durable and acknowledged
(3) what is left is cut; its bytes are on the disk, and the edge resumes after them

Calls that a stopping coordinator refuses have the status of one that cannot be reached, so edges
try again until it is back. The round is open as it was: the same command finds it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from offsite.coordinator.service.rounds import RoundService
from offsite.coordinator.service.server import RunningServer

DRAIN_S: Final = 6.0
"""Time for uploads under way; with what follows it stays below `offsite.emulator.stopping.STOP_S`."""
CUT_S: Final = 0.5
"""Time for whatever call is left after that."""


@contextmanager
def drained(
    server: RunningServer,
    rounds: RoundService,
    say: Callable[[str], None],
    drain_s: float = DRAIN_S,
) -> Iterator[None]:
    """Stops `server` in order if what runs inside is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        if under_way := rounds.uploads_under_way():
            say(f"stopping: {under_way} uploads may end, within {drain_s:g} s")
        try:
            if cut := server.run(rounds.drain(drain_s)):
                say(f"stopping: {cut} uploads are cut; their edges resume them")
        finally:
            server.stop(CUT_S)
        raise
