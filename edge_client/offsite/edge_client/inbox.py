"""The edge's folder of rounds, and how instructions get into it.

    returned                               how many replies were acknowledged
    rounds/<message id>/instruction.part   an instruction on its way
                        instruction        complete, its digest compared
                        tuning.safetensors the tuning's own checkpoint
                        reply              complete; all that is left is to send it

What is there says where to go on after a kill: a reply is only sent, an instruction is tuned from
the checkpoint beside it. A folder is erased once its reply was accepted or is no longer wanted, so
an edge keeps nothing of a round that is over.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import grpc

from offsite.edge_client.chunk_stream import message_chunks
from offsite.edge_client.resume import Persistence
from offsite.emulator.durable import (
    FOLDER_MODE,
    machine_error,
    machine_errors,
    sha256_of,
    sync_folder,
    write_atomic,
)
from offsite.emulator.progress import Report, silent
from offsite.secure import limits
from offsite.secure.errors import DiskFullError, IntegrityError, PeerError
from offsite.v1.rounds_pb2 import MessageRef

ROUND_FOLDER = "round-folder"
"""Key of Flower's `Context.node_config`: the folder of the message at hand, if the engine has one."""
_MESSAGE_ID = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True, slots=True)
class Inbox:
    """The folder `rounds/`."""

    folder: Path

    def of(self, message_id: str) -> Path:
        """The folder of a message; PeerError for an id that cannot name one."""
        if not _MESSAGE_ID.fullmatch(message_id):
            raise PeerError(f"expected a message id in hex digits, found {message_id[:64]!r}")
        return self.folder / message_id

    def reply(self, message_id: str) -> Path:
        """Where the reply to a message lies, once it is complete."""
        return self.of(message_id) / "reply"

    def write_reply(self, message_id: str, data: bytes) -> None:
        """Stores a reply; it is on the disk when this returns."""
        write_atomic(self.reply(message_id), data)

    def unsent(self) -> list[str]:
        """Messages that were answered and whose reply was not acknowledged yet."""
        return [name for name in self._ids() if self.reply(name).is_file()]

    def under_way(self) -> int:
        """How many messages are being worked on, or wait to be sent."""
        return len(self._ids())

    def returned(self) -> int:
        """How many replies the coordinator has acknowledged."""
        return self._returned()[0]

    def count_returned(self, message_id: str) -> None:
        """Counts an acknowledged reply, once also if a kill made it be sent again."""
        count, last = self._returned()
        if message_id != last:
            data = {"replies": count + 1, "last_message_id": message_id}
            write_atomic(self._count_file, json.dumps(data).encode())

    @property
    def _count_file(self) -> Path:
        return self.folder.with_name("returned")

    def _returned(self) -> tuple[int, str]:
        try:
            data = json.loads(self._count_file.read_bytes())
            return int(data["replies"]), str(data["last_message_id"])
        except (OSError, ValueError, KeyError, TypeError):  # nothing depends on it
            return 0, ""

    def erase(self, message_id: str) -> None:
        """Removes everything of a message."""
        shutil.rmtree(self.of(message_id), ignore_errors=True)

    def erase_others(self, message_id: str | None) -> None:
        """Removes every message but this one: their rounds are over."""
        for name in self._ids():
            if name != message_id:
                self.erase(name)

    def _ids(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if _MESSAGE_ID.fullmatch(p.name))


def fetch_instruction(
    channel: grpc.Channel,
    inbox: Inbox,
    ref: MessageRef,
    persistence: Persistence,
    report: Report = silent,
) -> Path:
    """The instruction that `ref` names, on the disk; resumes what is there of it.

    Raises:
        PeerError: it was withdrawn, or its bytes are not those that `ref` names.
        DiskFullError: no room; what was fetched is kept.
    """
    path = inbox.of(ref.message_id) / "instruction"
    if path.is_file():
        return path
    if ref.size_bytes > limits.ROUND_MESSAGE_BYTES:
        raise PeerError(
            f"expected an instruction of at most {limits.ROUND_MESSAGE_BYTES} bytes, "
            f"found {ref.size_bytes}"
        )
    with machine_errors(path.parent):
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    part = _Part(path.with_suffix(".part"), ref.size_bytes)
    resumed = part.position > 0
    persistence.run(lambda: part.receive(channel, ref.message_id, report), lambda: part.position)
    if sha256_of(part.path) != ref.sha256:
        part.path.unlink()
        if resumed:  # what a kill had left was not what it seemed
            return fetch_instruction(channel, inbox, ref, persistence, report)
        raise IntegrityError(
            f"expected an instruction with SHA-256 {ref.sha256.hex()}, found another: "
            "nothing of it was used"
        )
    part.path.rename(path)
    sync_folder(path.parent)
    return path


class _Part:
    """`instruction.part` and how much of it is there, in whole chunks."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        here = min(path.stat().st_size, size) if path.is_file() else 0
        self.position = here if here == size else here - here % limits.CHUNK_BYTES

    def receive(self, channel: grpc.Channel, message_id: str, report: Report) -> None:
        try:
            with self.path.open("ab", buffering=0) as file:
                file.truncate(self.position)
                if self.position < self.size:
                    for chunk in message_chunks(channel, message_id, self.position, self.size):
                        _write_all(file.fileno(), chunk)
                        self.position += len(chunk)
                        report(self.position, self.size)
                os.fsync(file.fileno())
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> Exception:
        explained = machine_error(self.path, error)
        if not isinstance(explained, DiskFullError):
            return explained
        missing = self.size - self.position - shutil.disk_usage(self.path.parent).free
        return DiskFullError(
            f"no room for the instruction in {self.path.parent}: free at least "
            f"{max(missing, 1)} bytes and run the same command again; what was fetched is kept"
        )


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
