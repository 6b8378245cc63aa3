"""The only file that touches Flower symbols outside its public app layer.

Flower's exported names (`flwr.app`, `flwr.serverapp`, `flwr.clientapp`) did not change from 1.36
to 1.42; what lies beneath does. Carrying a `Message` on an engine of our own needs four things
from beneath, and each has a contract test in `tests/emulator/rounds/test_flower_internals.py`:

- since 1.38 a `Message` can only be made in a process that has a task identity;
- a message with given metadata (one that arrived) is made through an undocumented keyword;
- the engine assigns the message id, and the metadata has no setter for it;
- `Grid.run` must return a `Run`.
"""

import logging
import os

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [  # `Run` is what `Grid.run` returns
    "CLIENT_APP_RAISED",
    "SERVER_NODE_ID",
    "Run",
    "assign_message_id",
    "empty_run",
    "message_with_metadata",
    "quieten",
    "set_task_identity",
]

CLIENT_APP_RAISED = 2
"""Flower's code for an exception in a client's code."""
SERVER_NODE_ID = 1
"""Flower's number for the server's own node."""
TASK_ID = 1
"""Flower numbers the tasks of a run; an engine of our own has one."""


def set_task_identity(run_id: int, node_id: int) -> None:
    """Name run and node of this process, which `Message(...)` writes into its metadata."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = TASK_ID


def message_with_metadata(metadata: Metadata, body: RecordDict | Error) -> Message:
    """A message as it arrived, with the metadata it had when it was sent."""
    if isinstance(body, Error):
        return Message(metadata=metadata, error=body)  # type: ignore[call-overload, no-any-return]
    return Message(metadata=metadata, content=body)  # type: ignore[call-overload, no-any-return]


def assign_message_id(message: Message, message_id: str) -> None:
    """Set the id, which Flower leaves empty for the engine to fill in."""
    message.metadata.__dict__["_message_id"] = message_id


def empty_run(run_id: int) -> Run:
    """A run that has a number and nothing else."""
    return Run.create_empty(run_id)


def quieten() -> None:
    """Turn off Flower's telemetry, its update check and its chatter below warnings."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    logging.getLogger("flwr").setLevel(logging.WARNING)
