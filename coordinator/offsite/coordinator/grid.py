"""Flower's `Grid` on our own service: the round loop's view of the mailbox.

Any Flower strategy runs on it unchanged. What Flower's own grids lack: it is durable. A message is
on the disk before `push_messages` returns, replies stay until the round is closed, and after a
restart `find` gives the messages of the open round, so that nobody trains twice.

Rules it enforces:

* a reply's metadata are taken from what the coordinator itself wrote (who was asked, in which
  round), never from the reply;
* a reply that cannot be read becomes a Flower `Error`, so that one client cannot stop a round;
* what was pulled can be pulled again;
* a large array of a reply stays on the disk until somebody reads it (`stored_array`).
"""

import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from offsite.coordinator.leases import GONE_S
from offsite.coordinator.mailbox import Mailbox, Outgoing
from offsite.coordinator.store import Store
from offsite.coordinator.tables.clients import ClientStatus
from offsite.coordinator.tables.messages import MessageRow
from offsite.emulator.durable import unreadable
from offsite.emulator.rounds.flower_internals import (
    SERVER_NODE_ID,
    Run,
    assign_message_id,
    empty_run,
    message_with_metadata,
    set_task_identity,
)
from offsite.emulator.rounds.messages import message_from_file, message_to_parts
from offsite.secure import limits
from offsite.secure.errors import ConfigError, PeerError
from offsite.secure.names import node_id

PRESENCE_S: Final = GONE_S
"""A client counts as there if it was heard from so recently; while it tunes it reports in too."""
UNREADABLE_REPLY: Final = 4
"""Flower's code for "reply message unavailable"."""
MOST_REPLY_BYTES: Final = 64 * limits.MIB
"""Where nobody knows better."""
_POLL_S: Final = 0.25

_log = logging.getLogger(__name__)


class GrpcGrid(Grid):
    """One campaign's messages; `run_id` is the campaign's number."""

    def __init__(
        self,
        mailbox: Mailbox,
        store: Store,
        run_id: int,
        clock: Callable[[], float] = time.time,
        most_reply_bytes: Callable[[Message], int] = lambda _: MOST_REPLY_BYTES,
    ) -> None:
        """`most_reply_bytes`: how large the reply to an instruction may be."""
        self._mailbox = mailbox
        self._store = store
        self._clock = clock
        self._most_reply_bytes = most_reply_bytes
        self._run = empty_run(run_id)
        set_task_identity(run_id, SERVER_NODE_ID)

    # ---- Flower's Grid

    def set_run(self, run: Run) -> None:
        """Sets the run that messages belong to."""
        self._run = run
        set_task_identity(run.run_id, SERVER_NODE_ID)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A new instruction; `Message(...)` does the same."""
        return Message(
            content=content,
            message_type=message_type,
            dst_node_id=dst_node_id,
            group_id=group_id,
            ttl=ttl,
        )

    def get_node_ids(self) -> Iterable[int]:
        """The clients that are enrolled, not revoked and were heard from lately."""
        since = self._clock() - PRESENCE_S
        return [
            client.node_id
            for client in self._store.clients.active()
            if client.last_seen_unix_s is not None and client.last_seen_unix_s >= since
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends instructions of one round; they are durable, all or none, when this returns.

        An instruction to a client that is gone or was revoked meanwhile is left out, and so is
        its id.
        """
        remaining = iter(messages)
        first = next(remaining, None)
        if first is None:
            return []
        group_id = first.metadata.group_id
        outgoing = self._outgoing(group_id, itertools.chain([first], remaining))
        return self._mailbox.post(self._run.run_id, group_id, outgoing)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, read one by one; each can be pulled again until its round
        is closed.

        Raises:
            MachineError: a reply that was accepted cannot be read.
        """
        for message_id in message_ids:
            row = self._mailbox.get(message_id)
            path = None if row is None else self._mailbox.reply_path(row)
            if row is not None and path is not None:
                yield _reply(row, path)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends instructions and waits for all replies, `timeout` seconds or the deadlines."""
        return self.receive(self.push_messages(messages), timeout=timeout)

    # ---- what a durable grid adds

    def find(self, group_id: str) -> list[str]:
        """The ids of a round's messages, also of those sent before a restart."""
        return [row.message_id for row in self._mailbox.of_group(self._run.run_id, group_id)]

    def receive(self, message_ids: Iterable[str], *, timeout: float | None = None) -> list[Message]:
        """Waits for the replies to messages sent earlier and returns those that came.

        Returns early once every message was answered or its deadline has passed. For Flower's own
        loops; the campaign pulls, so that it opens each update as it comes in.
        """
        ids = list(message_ids)
        until = math.inf if timeout is None else time.monotonic() + timeout
        while self._any_open(ids) and (left_s := until - time.monotonic()) > 0:
            time.sleep(min(left_s, _POLL_S))
        return list(self.pull_messages(ids))

    def close(self, group_id: str) -> None:
        """Ends a round: the messages of the group and of those inside it are withdrawn and erased,
        answered or not."""
        self._mailbox.close(self._run.run_id, group_id)

    # ---- inside

    def _outgoing(self, group_id: str, messages: Iterable[Message]) -> Iterator[Outgoing]:
        for message in messages:
            if message.metadata.group_id != group_id:
                raise ConfigError(
                    f"expected messages of group {group_id!r} alone, found one of "
                    f"{message.metadata.group_id!r}: push every round's by themselves"
                )
            client = self._store.clients.by_node(message.metadata.dst_node_id)
            if client is None or client.status is not ClientStatus.ACTIVE:
                _log.warning("left out node %d: not enrolled", message.metadata.dst_node_id)
                continue
            assign_message_id(message, secrets.token_hex(16))
            yield Outgoing(
                message_id=message.metadata.message_id,
                client_id=client.client_id,
                parts=message_to_parts(message),
                deadline_unix_s=message.metadata.created_at + message.metadata.ttl,
                most_reply_bytes=self._most_reply_bytes(message),
            )

    def _any_open(self, message_ids: Iterable[str]) -> bool:
        rows = (self._mailbox.get(message_id) for message_id in message_ids)
        return any(row is not None and self._mailbox.is_open(row) for row in rows)


def _reply(row: MessageRow, path: Path) -> Message:
    """The reply to `row`, with metadata that say what the coordinator knows."""
    try:
        found = message_from_file(path)
    except OSError as error:
        raise unreadable(path, error) from error
    except PeerError as error:
        _log.warning("reply of client %s cannot be read: %s", row.client_id, error)
        reason = f"the reply of {row.client_id} cannot be read"
        return message_with_metadata(_metadata(row, "train"), Error(UNREADABLE_REPLY, reason))
    body = found.error if found.has_error() else found.content
    return message_with_metadata(_metadata(row, found.metadata.message_type), body)


def _metadata(row: MessageRow, message_type: str) -> Metadata:
    assert row.reply_sha256 is not None
    return Metadata(
        run_id=row.run_id,
        message_id=row.reply_sha256.hex(),
        src_node_id=node_id(row.client_id),
        dst_node_id=SERVER_NODE_ID,
        reply_to_message_id=row.message_id,
        group_id=row.group_id,
        created_at=row.created_unix_s,
        ttl=row.deadline_unix_s - row.created_unix_s,
        message_type=message_type,
    )
