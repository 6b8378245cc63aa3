"""A Flower `Grid` in this process: the `local` engine, for tests and simulation.

Each node is a real Flower `ClientApp` with a `Context` that it keeps between rounds. A message
travels as bytes both ways, as it does on the wire, so whatever an engine could not carry fails
here too. Replies are computed when they are first asked for, one after the other or on threads.

A client that raises gives an error reply, as on Flower's own engines.
"""

import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from offsite.emulator.rounds.flower_internals import (
    CLIENT_APP_RAISED,
    SERVER_NODE_ID,
    Run,
    assign_message_id,
    empty_run,
    quieten,
    set_task_identity,
)
from offsite.emulator.rounds.messages import message_from_bytes, message_to_bytes


class LocalGrid(Grid):
    """Calls the `ClientApp` of each node in this process."""

    def __init__(
        self,
        apps: Mapping[int, ClientApp],
        run_id: int = 1,
        *,
        threads: int = 1,
        folder: Path | None = None,
    ) -> None:
        """`folder`: where each instruction gets a folder of its own, as on an edge."""
        quieten()
        set_task_identity(run_id, SERVER_NODE_ID)
        self._apps = dict(apps)
        self._run = empty_run(run_id)
        self._threads = threads
        self._folder = folder
        self._states = {node: RecordDict() for node in apps}
        self._instructions: dict[str, bytes] = {}
        self._replies: dict[str, bytes] = {}

    def set_run(self, run: Run) -> None:
        """Part of `Grid`; the run is given when the grid is made."""

    @property
    def run(self) -> Run:
        """The run of this grid."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A new instruction."""
        return Message(
            content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl
        )

    def get_node_ids(self) -> Iterable[int]:
        """The nodes, in the order they were given."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages as bytes; returns their ids."""
        ids = []
        for message in messages:
            ids.append(uuid.uuid4().hex)
            assign_message_id(message, ids[-1])
            self._instructions[ids[-1]] = message_to_bytes(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies, computed now where they were not yet; read one by one."""
        wanted = [i for i in message_ids if i in self._instructions]
        missing = [i for i in wanted if i not in self._replies]
        if self._threads == 1:
            self._replies.update((i, self._answer(i)) for i in missing)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                self._replies.update(zip(missing, pool.map(self._answer, missing), strict=True))
        return (message_from_bytes(self._replies[i]) for i in wanted)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull; a local client is waited for."""
        return self.pull_messages(self.push_messages(messages))

    def find(self, group_id: str) -> list[str]:
        """Ids of the messages of a round that were pushed and not closed."""
        parsed = {i: message_from_bytes(data) for i, data in self._instructions.items()}
        return [i for i, message in parsed.items() if message.metadata.group_id == group_id]

    def close(self, group_id: str) -> None:
        """Forget the messages of a round, and those of the groups inside it, `<group>.<more>`."""
        for message_id, data in list(self._instructions.items()):
            if f"{message_from_bytes(data).metadata.group_id}.".startswith(f"{group_id}."):
                self._instructions.pop(message_id, None)
                self._replies.pop(message_id, None)

    def _answer(self, message_id: str) -> bytes:
        instruction = message_from_bytes(self._instructions[message_id])
        node = instruction.metadata.dst_node_id
        try:
            reply = self._apps[node](instruction, self._context(node, message_id))
        except Exception as error:  # noqa: BLE001  # whatever a client's code raises is its reply
            reply = Message(
                Error(CLIENT_APP_RAISED, f"{type(error).__name__}: {error}"), reply_to=instruction
            )
        assign_message_id(reply, uuid.uuid4().hex)
        return message_to_bytes(reply)

    def _context(self, node: int, message_id: str) -> Context:
        config: dict[str, bool | float | int | str] = {}
        if self._folder is not None:
            folder = self._folder / str(node) / message_id
            folder.mkdir(parents=True, exist_ok=True)
            config["round-folder"] = str(folder.resolve())
        run_id = self._run.run_id
        return Context(run_id, node, config, self._states[node], {})
