"""The durable post office between the round loop and the service.

The round loop (a thread) posts instructions and collects replies; the service (an event loop)
hands instructions out and takes replies in. The bytes lie in the spool, what counts stands in the
store, and this module keeps the two in step and wakes whoever waits.

    posted ──> answered ──> closed (row and files erased)
       └── deadline passed: no reply is taken any more

Rules it enforces:

* an instruction is on the disk before `post` returns, all of one call or none;
* only the addressee sees a message, and a stranger cannot tell a foreign id from an unknown one;
* a reply counts once its row is written: first file, then row, then acknowledgement. The same
  reply again is acknowledged again, another one is refused and logged;
* no reply is taken past the deadline of its instruction;
* a closed round leaves nothing behind.
"""

import enum
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from offsite.coordinator.policy.eligibility import Eligibility, Facts
from offsite.coordinator.spool import ReplyFile, Spool, StoredFile, Upload, check_digest
from offsite.coordinator.store import Store
from offsite.coordinator.tables.messages import MessageRow
from offsite.secure.errors import ExpiredError, PeerError

_log = logging.getLogger(__name__)


class Phase(enum.Enum):
    """What the campaign is doing, as an edge sees it."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()
    FAILED = enum.auto()
    PAUSED = enum.auto()


@dataclass(frozen=True, slots=True)
class CampaignStatus:
    """The phase, and why it ended or failed. `reason` goes to the edges: at most 500 characters."""

    phase: Phase
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An instruction to be posted: serialised in parts, with the id that is inside them."""

    message_id: str
    client_id: str
    parts: Iterable[bytes | memoryview]
    """Taken once, one by one."""
    deadline_unix_s: float
    most_reply_bytes: int
    """A larger reply is refused before a byte of it is taken."""


class Mailbox:
    """Messages of the rounds on this coordinator. Safe to call from any thread; calls may block
    for a disk flush, so an event loop calls them through `asyncio.to_thread`."""

    def __init__(
        self,
        store: Store,
        spool: Spool,
        clock: Callable[[], float] = time.time,
        eligibility: Eligibility | None = None,
    ) -> None:
        """`eligibility`: what clients must state to be asked; None: nothing."""
        self._store = store
        self._spool = spool
        self._clock = clock
        self._eligibility = eligibility or Eligibility()
        self._lock = threading.Lock()
        self._listeners: dict[str, set[Callable[[], None]]] = {}
        self._status = CampaignStatus(Phase.WAITING)
        self._told: set[str] = set()
        self._remove_strays()

    # ---- the round loop's side

    def post(self, run_id: int, group_id: str, messages: Iterable[Outgoing]) -> list[str]:
        """Makes instructions durable, then visible, together; returns their ids in order.

        The messages are taken one by one, so a generator keeps a single one in memory.
        """
        rows: list[MessageRow] = []
        begun: list[str] = []
        try:
            for message in messages:
                begun.append(message.message_id)
                stored = self._spool.write_instruction(message.message_id, message.parts)
                rows.append(_row(run_id, group_id, message, stored, self._clock()))
            self._store.messages.add(rows)
        except BaseException:
            # An interrupt may come after the rows were written: then the messages count.
            for message_id in begun:
                if self._store.messages.get(message_id) is None:
                    self._spool.erase(message_id)
            raise
        for row in rows:
            self._ring(row.client_id)
        return [row.message_id for row in rows]

    def of_group(self, run_id: int, group_id: str) -> list[MessageRow]:
        """The messages of a round, also those from before a restart."""
        return self._store.messages.of_group(run_id, group_id)

    def get(self, message_id: str) -> MessageRow | None:
        """A message that was posted and not closed."""
        return self._store.messages.get(message_id)

    def reply_path(self, row: MessageRow) -> Path | None:
        """The accepted reply to a message, if there is one."""
        return None if row.reply_sha256 is None else self._spool.reply(row.message_id)

    def is_open(self, row: MessageRow) -> bool:
        """Whether a reply is still to be expected."""
        return row.reply_sha256 is None and self._clock() <= row.deadline_unix_s

    def close(self, run_id: int, group_id: str) -> None:
        """Withdraws the messages of a round, and those of the groups inside, `<group>.<more>`;
        erases their bytes, answered or not."""
        rows = self._store.messages.within_group(run_id, group_id)
        self._store.messages.delete_within(run_id, group_id)
        for row in rows:
            self._spool.erase(row.message_id)

    def set_status(self, status: CampaignStatus) -> None:
        """Tells every edge that waits what the campaign does now."""
        with self._lock:
            self._status = status
            clients = list(self._listeners)
        for client_id in clients:
            self._ring(client_id)

    # ---- the service's side

    @property
    def status(self) -> CampaignStatus:
        """What the campaign is doing."""
        with self._lock:
            return self._status

    @property
    def told(self) -> frozenset[str]:
        """The clients that asked after the campaign had ended and went on with nothing since.

        A busy edge asks too, as a sign of life; one that then goes on with its message did not
        take the answer, and is to be told again.
        """
        with self._lock:
            return frozenset(self._told)

    def tell_end(self, client_id: str) -> None:
        """Notes that a client was told that the campaign is over."""
        with self._lock:
            self._told.add(client_id)

    def heard_from(self, client_id: str, doing: str, facts: Facts | None = None) -> None:
        """Notes that a client is there, what it says it does, and what it states of itself."""
        self._store.clients.touch(client_id, doing, self._clock())
        if facts is not None:
            self._store.clients.state_facts(client_id, facts)

    def misfit(self, client_id: str) -> str:
        """Why a client is not to be asked, by what it stated; "" if it is."""
        if self._eligibility.asks_nothing:
            return ""
        row = self._store.clients.get(client_id)
        return self._eligibility.why_not(Facts() if row is None else row.facts)

    def next_instruction(self, client_id: str) -> MessageRow | None:
        """The oldest instruction to a client that is still open."""
        rows = self._store.messages.unanswered(client_id)
        return next((row for row in rows if self.is_open(row)), None)

    def instruction_path(self, client_id: str, message_id: str) -> Path:
        """Where the bytes of an instruction lie.

        Raises:
            PeerError: no such message for this client.
        """
        return self._spool.instruction(self._addressed(client_id, message_id).message_id)

    def stored_bytes(self, client_id: str, message_id: str, sha256: bytes) -> int | None:
        """How many bytes of a reply are stored; None once it was accepted.

        Raises:
            PeerError: no such message for this client, it was answered differently, or the digest
                is none.
            ExpiredError: the deadline has passed.
        """
        if self._check_answer(client_id, message_id, sha256):
            return None
        return self._spool.stored_bytes(message_id, sha256)

    def open_upload(self, client_id: str, file: ReplyFile, offset: int) -> Upload | None:
        """Opens a reply for writing; None if this very reply was accepted already.

        Raises:
            PeerError, ExpiredError: as `stored_bytes`; or the size or offset is out of bounds.
            DiskFullError: no room.
        """
        if self._check_answer(client_id, file.message_id, file.sha256):
            return None
        row = self._addressed(client_id, file.message_id)
        allowed = row.most_reply_bytes
        if file.size_bytes > allowed:
            raise PeerError(f"expected a reply of at most {allowed} bytes, found {file.size_bytes}")
        try:
            return self._spool.open_upload(file, offset)
        except FileNotFoundError:
            raise _unknown(file.message_id) from None

    def accept(self, client_id: str, upload: Upload) -> None:
        """Completes a reply: file, then row; it is durable and counts when this returns.

        Raises:
            PeerError: bytes are missing or wrong, or the round was closed meanwhile.
            ExpiredError: the deadline has passed.
        """
        file = upload.file
        if self._check_answer(client_id, file.message_id, file.sha256):
            return
        try:
            upload.finish()
        except FileNotFoundError:
            raise _unknown(file.message_id) from None
        self._store.messages.accept_reply(file.message_id, file.size_bytes, file.sha256)

    @contextmanager
    def listening(self, client_id: str, ring: Callable[[], None]) -> Iterator[None]:
        """Calls `ring` (from any thread) when something changes for a client."""
        with self._lock:
            self._listeners.setdefault(client_id, set()).add(ring)
        try:
            yield
        finally:
            with self._lock:
                self._listeners[client_id].discard(ring)
                if not self._listeners[client_id]:
                    del self._listeners[client_id]

    # ---- inside

    def _addressed(self, client_id: str, message_id: str) -> MessageRow:
        with self._lock:
            self._told.discard(client_id)  # whoever works on a message has not taken the end
        row = self._store.messages.get(message_id)
        if row is None or row.client_id != client_id:
            raise _unknown(message_id)
        return row

    def _check_answer(self, client_id: str, message_id: str, sha256: bytes) -> bool:
        """Whether this very reply was accepted; raises if no reply like it can be any more."""
        check_digest(sha256)
        row = self._addressed(client_id, message_id)
        if row.reply_sha256 == sha256:
            return True
        if row.reply_sha256 is not None:
            _log.warning(
                "client %s sent a second, different reply to message %s: accepted %s, refused %s",
                client_id,
                message_id,
                row.reply_sha256.hex(),
                sha256.hex(),
            )
            raise PeerError(
                f"expected the reply to message {message_id} that was accepted before, found "
                "another one: only the first counts"
            )
        late_s = self._clock() - row.deadline_unix_s
        if late_s > 0:
            raise ExpiredError(
                f"the deadline for the reply to message {message_id} passed {late_s:.0f} s ago: "
                "the round goes on without it; wait for the next instruction"
            )
        return False

    def _ring(self, client_id: str) -> None:
        with self._lock:
            listeners = list(self._listeners.get(client_id, ()))
        for ring in listeners:
            ring()

    def _remove_strays(self) -> None:
        """Erases files whose row was never written, or whose erasure was interrupted."""
        wanted = set(self._store.messages.ids())
        for message_id in self._spool.message_ids():
            if message_id not in wanted:
                self._spool.erase(message_id)


def _row(
    run_id: int, group_id: str, message: Outgoing, stored: StoredFile, now_unix_s: float
) -> MessageRow:
    return MessageRow(
        message_id=message.message_id,
        run_id=run_id,
        group_id=group_id,
        client_id=message.client_id,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
        created_unix_s=now_unix_s,
        deadline_unix_s=message.deadline_unix_s,
        most_reply_bytes=message.most_reply_bytes,
    )


def _unknown(message_id: str) -> PeerError:
    return PeerError(
        f"message {message_id[:64]!r} is not known to you: it was withdrawn or never sent to you; "
        "wait for the next instruction"
    )
