"""Flower's `Grid` on a stock SuperLink: the `flower` engine as the round loop sees it.

Nodes are named by client: Flower's own numbers are translated by the key that each client told over
its authenticated call, and whoever has no such key is nobody here.

Notable: this grid is not durable. A SuperLink keeps its messages, but a run ends with the ServerApp
that started it, and a reply comes once. So after a restart of the coordinator the attempt at hand is
abandoned and the next one begins (`attempt.py`). A SuperLink that falls over and comes back within
`PATIENCE_S` goes on with the same run; when a run is lost for good, every message of it is answered
with an error here, so that the attempt ends at once instead of at its deadline, and the next attempt
gets a new run.

Rules it enforces: a reply's metadata are taken from what was sent, never from the reply: who was
asked, in which round.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from offsite.coordinator.engines.flower.node_keys import NodeKeys
from offsite.emulator.rounds.flower_internals import (
    SERVER_NODE_ID,
    Run,
    empty_run,
    message_with_metadata,
)
from offsite.secure.errors import PeerError, TransportError
from offsite.secure.names import node_id

if TYPE_CHECKING:
    from offsite.emulator.engines.flower.internals import ServerTask

PAUSE_S: Final = 0.2
"""Least time between two looks for replies: each is a call to another process."""
AT_ONCE: Final = 4
"""Replies that are in memory at a time."""
LOST: Final = 3
"""Flower's code for "message unavailable"."""

_log = logging.getLogger(__name__)


class Runs(Protocol):
    """Where runs come from."""

    def start(self) -> "ServerTask":
        """A new run that this process is the ServerApp of."""
        ...


class FlowerGrid(Grid):
    """One campaign's messages on whatever run there is."""

    def __init__(self, runs: Runs, keys: NodeKeys, ring: Callable[[], None] = lambda: None) -> None:
        """`ring` is called when instructions were sent."""
        self._runs = runs
        self._keys = keys
        self._ring = ring
        self._task: ServerTask | None = None
        self._sent: dict[str, Metadata] = {}
        self._lost: set[str] = set()
        self._looked_s = float("-inf")

    # ---- Flower's Grid

    def set_run(self, run: Run) -> None:
        """Part of `Grid`; the run is chosen here."""

    @property
    def run(self) -> Run:
        """The run at hand."""
        return empty_run(0 if self._task is None else self._task.run_id)

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
            content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl
        )

    def get_node_ids(self) -> Iterable[int]:
        """The clients whose SuperNode is online."""
        try:
            return list(self._nodes())
        except (TransportError, PeerError) as error:
            self._lose(error)
            return []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends instructions one by one; one to a client that is not there is left out.

        Raises:
            TransportError: there is no SuperLink, and none comes up.
        """
        task, nodes, ids = self._open(), self._nodes(), []
        for message in messages:
            node = nodes.get(message.metadata.dst_node_id)
            sent = None if node is None else task.push(_addressed(message, task.run_id, node))
            if sent is None:
                _log.warning("left out node %d: not online", message.metadata.dst_node_id)
                continue
            self._sent[sent] = message.metadata
            ids.append(sent)
            self._ring()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies that came since; each comes once."""
        wanted = [message_id for message_id in message_ids if message_id in self._sent]
        time.sleep(max(self._looked_s + PAUSE_S - time.monotonic(), 0.0))
        self._looked_s = time.monotonic()
        for batch in _batches(wanted, AT_ONCE):
            for reply in self._pulled(batch):
                yield self._mapped(reply)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends instructions and waits for the replies, `timeout` seconds at most."""
        waiting = set(self.push_messages(messages))
        until = float("inf") if timeout is None else time.monotonic() + timeout
        found: list[Message] = []
        while waiting and time.monotonic() < until:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                found.append(reply)
        return found

    def finish(self) -> None:
        """Ends the run."""
        if self._task is not None:
            self._task.finish()
            self._task.close()
            self._task = None

    # ---- inside

    def _open(self) -> "ServerTask":
        """The run at hand, or a new one."""
        if self._task is not None and self._task.is_lost:
            self._lose(TransportError("Flower no longer knows the run"))
        if self._task is None:
            self._task = self._runs.start()
        return self._task

    def _nodes(self) -> dict[int, int]:
        """Flower's number by ours, of whoever is online and told a key."""
        online, clients = self._open().nodes(), self._keys.clients()
        return {node_id(clients[key]): node for key, node in online.items() if key in clients}

    def _pulled(self, message_ids: list[str]) -> list[Message]:
        lost = [message_id for message_id in message_ids if message_id in self._lost]
        asked = [message_id for message_id in message_ids if message_id not in self._lost]
        replies = [self._unavailable(message_id) for message_id in lost]
        if not asked or self._task is None:
            return replies
        try:
            if self._task.is_lost:
                raise TransportError("Flower no longer knows the run")
            return replies + self._task.pull(asked)
        except (TransportError, PeerError) as error:
            self._lose(error)
            return replies + [self._unavailable(message_id) for message_id in asked]

    def _lose(self, error: Exception) -> None:
        """The run is over: its messages will not be answered."""
        if self._task is None:
            return
        _log.warning("a run of Flower is lost: %s; the next attempt gets another", error)
        self._lost |= self._sent.keys()
        task, self._task = self._task, None
        task.close()

    def _unavailable(self, message_id: str) -> Message:
        """What stands for the reply to a message that was lost with its run."""
        metadata = _answering(self._sent[message_id], message_id, "")
        return message_with_metadata(metadata, Error(LOST, "lost with its run"))

    def _mapped(self, reply: Message) -> Message:
        """The reply with metadata of ours; its message is answered now."""
        message_id = reply.metadata.reply_to_message_id
        sent = self._sent.pop(message_id)
        self._lost.discard(message_id)
        body = reply.error if reply.has_error() else reply.content
        return message_with_metadata(_answering(sent, message_id, reply.metadata.message_id), body)


def _batches(ids: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _addressed(message: Message, run_id: int, node: int) -> Message:
    """The same instruction under Flower's numbers."""
    metadata = message.metadata
    addressed = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=SERVER_NODE_ID,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=metadata.group_id,
        created_at=metadata.created_at,
        ttl=metadata.ttl,
        message_type=metadata.message_type,
    )
    return message_with_metadata(addressed, message.content)


def _answering(sent: Metadata, message_id: str, reply_id: str) -> Metadata:
    return Metadata(
        run_id=sent.run_id,
        message_id=reply_id,
        src_node_id=sent.dst_node_id,
        dst_node_id=SERVER_NODE_ID,
        reply_to_message_id=message_id,
        group_id=sent.group_id,
        created_at=sent.created_at,
        ttl=sent.ttl,
        message_type=sent.message_type,
    )
