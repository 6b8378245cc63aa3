"""What one client, and all together, may ask of the service at a time.

    calls      a bucket of tokens for each client: `call_burst` at once, `calls_per_s` in the long run
    uploads    `uploads_per_client` and `upload_bytes_per_client` of one client; more are refused
    turns      `uploads_at_once` of all clients are received; more wait in the order in which they came

Notable: whoever is refused hears when to come back, and comes back (`BusyError`); whoever waits for its
turn costs little, because nothing is read from it and HTTP/2 lets it send no further. So memory and
disk see a bounded number of uploads, and none is starved: turns are given in order, and one that takes
longer than `TURN_S` while others wait ends. Its bytes are kept, and the edge goes on at the end of the
queue.

Rules: only what is of a client that was let in is counted; a bucket that is full is forgotten, so
memory does not grow with names.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from offsite.secure import limits
from offsite.secure.errors import BusyError

TURN_S: Final = 300.0
"""Of an upload while others wait."""
UPLOAD_RETRY_S: Final = 2.0
MOST_WAITING: Final = 256
"""Uploads in the queue; each may hold `server.SEND_AHEAD_BYTES` of memory."""
QUEUE_RETRY_S: Final = 10.0
_MOST_BUCKETS: Final = 4 * limits.CLIENTS


@dataclass(frozen=True, slots=True)
class QuotaSettings:
    """See `config_quotas.QuotaSection`, which names and bounds them."""

    calls_per_s: float = 100.0
    call_burst: int = 500
    uploads_per_client: int = 3
    upload_bytes_per_client: int = 4096 * limits.MIB
    uploads_at_once: int = 16


class Quotas:
    """Counts for one service; its methods run in the service's event loop."""

    def __init__(
        self,
        settings: QuotaSettings = QuotaSettings(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._clock = settings, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._uploads: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._turns = asyncio.Semaphore(settings.uploads_at_once)
        self._waiting = 0

    def admit_call(self, client_id: str) -> None:
        """Takes a token.

        Raises:
            BusyError: there is none; says when there will be.
        """
        now, rate, burst = self._clock(), self._settings.calls_per_s, self._settings.call_burst
        tokens, since = self._buckets.get(client_id, (float(burst), now))
        tokens = min(tokens + (now - since) * rate, float(burst))
        if tokens < 1.0:
            raise BusyError(
                f"expected at most {rate:g} calls a second, and {burst} at once: come back later",
                (1.0 - tokens) / rate,
            )
        self._buckets[client_id] = (tokens - 1.0, now)
        if len(self._buckets) > _MOST_BUCKETS:
            self._forget_full(now)

    @contextmanager
    def uploading(self, client_id: str, size_bytes: int) -> Iterator[None]:
        """Counts an upload of a client while it lasts.

        Raises:
            BusyError: it has too many, or too large ones, under way.
        """
        settings = self._settings
        if self._uploads[client_id] >= settings.uploads_per_client:
            raise BusyError(
                f"expected at most {settings.uploads_per_client} uploads of a client at a time: "
                "come back when one has ended",
                UPLOAD_RETRY_S,
            )
        under_way = self._bytes[client_id] + size_bytes
        if self._uploads[client_id] and under_way > settings.upload_bytes_per_client:
            raise BusyError(
                f"expected at most {settings.upload_bytes_per_client} bytes of a client in uploads "
                f"at a time, found {under_way}: come back when one has ended",
                UPLOAD_RETRY_S,
            )
        self._uploads[client_id] += 1
        self._bytes[client_id] += size_bytes
        try:
            yield
        finally:
            self._uploads[client_id] -= 1
            self._bytes[client_id] -= size_bytes
            if not self._uploads[client_id]:
                del self._uploads[client_id], self._bytes[client_id]

    @asynccontextmanager
    async def turn(self) -> AsyncIterator["Turn"]:
        """Waits until an upload may be received.

        Raises:
            BusyError: too many wait already.
        """
        if self._waiting >= MOST_WAITING:
            raise BusyError(
                f"{self._waiting} uploads wait for their turn: come back later", QUEUE_RETRY_S
            )
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield Turn(self, self._clock() + TURN_S)
        finally:
            self._turns.release()

    @property
    def waiting(self) -> int:
        """Uploads that wait for their turn."""
        return self._waiting

    def now(self) -> float:
        return self._clock()

    def _forget_full(self, now: float) -> None:
        rate, burst = self._settings.calls_per_s, self._settings.call_burst
        self._buckets = {
            name: (tokens, since)
            for name, (tokens, since) in self._buckets.items()
            if tokens + (now - since) * rate < burst
        }


@dataclass(frozen=True, slots=True)
class Turn:
    """The time of one upload."""

    quotas: Quotas
    ends_s: float

    def check(self) -> None:
        """To be called between pieces.

        Raises:
            BusyError: it has lasted long enough, and others wait.
        """
        if self.quotas.waiting and self.quotas.now() > self.ends_s:
            raise BusyError("other uploads wait: this one goes on after them; resume it", 0.0)
