"""Files of the messages on the coordinator's disk.

    spool/<message id>/instruction   what goes to a client, complete
                       reply.part    a reply on its way, preallocated to its full size
                       reply.state   digest, size and bytes stored of `reply.part`
                       reply         a reply, complete and hashed

A file without `.part` in its name is complete and on the disk: it was written beside, fsynced and
renamed. Whether a reply *counts* is decided by the store's row, which is written after it.

Rules it enforces: an upload states its size and digest first; it is stopped at the first surplus
byte; the disk is reserved before the first byte is taken, so that two uploads cannot fill it
between them; what was stored survives a cut and a kill; nothing is complete before its digest was
compared. `reply.state` is trusted for the length only: if a power cut lost bytes that it counts,
the digest differs at the end and the upload starts anew. It is the first to go: bytes without it
count for nothing, while a state without its bytes would promise what is not there.

A message that is erased meanwhile is met as a FileNotFoundError; whatever else the operating system
refuses is an error of ours.
"""

import contextlib
import hashlib
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from offsite.emulator.durable import is_disk_full, machine_error, sync_folder
from offsite.secure import limits
from offsite.secure.errors import DiskFullError, IntegrityError, MachineError, PeerError

_MESSAGE_ID = re.compile(r"[0-9a-f]{32}")
_STATE = struct.Struct(">32sQQ")  # SHA-256, size, bytes stored
_STORED = struct.Struct(">Q")
_STORED_AT = _STATE.size - _STORED.size
_READ_BYTES = 4 * limits.MIB


def check_digest(sha256: bytes) -> None:
    """Refuses what cannot be a digest, before it is compared, stored or logged.

    Raises:
        PeerError: not 32 bytes.
    """
    if len(sha256) != 32:
        raise PeerError(f"expected a SHA-256 of 32 bytes, found {len(sha256)}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What was written."""

    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ReplyFile:
    """Which bytes an upload promises."""

    message_id: str
    size_bytes: int
    sha256: bytes

    def __post_init__(self) -> None:
        if not 0 < self.size_bytes <= limits.ROUND_MESSAGE_BYTES:
            raise PeerError(
                f"expected a reply of 1 to {limits.ROUND_MESSAGE_BYTES} bytes, "
                f"found {self.size_bytes}"
            )
        check_digest(self.sha256)


@dataclass(slots=True)
class Upload:
    """A reply that is being written. One writer at a time; `close` it in any case."""

    file: ReplyFile
    folder: Path
    stored_bytes: int
    _data: int
    _state: int
    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def write(self, data: bytes) -> None:
        """Stores the next bytes.

        Raises:
            PeerError: more bytes than the header promised; none of the surplus is kept.
            MachineError: the disk refused them.
        """
        if self.stored_bytes + len(data) > self.file.size_bytes:
            raise PeerError(
                f"expected {self.file.size_bytes} bytes, found more: the upload was stopped"
            )
        with _explained(self.folder, len(data)):
            _write_at(self._data, data, self.stored_bytes)
            self._hash.update(data)
            self.stored_bytes += len(data)
            _write_at(self._state, _STORED.pack(self.stored_bytes), _STORED_AT)

    def finish(self) -> None:
        """Completes the reply: digest compared, fsync, rename.

        Raises:
            PeerError: bytes are missing; they may still be sent.
            IntegrityError: the digest differs; nothing is kept and the upload starts anew.
            FileNotFoundError: the message was erased meanwhile.
        """
        # (1) Complete?
        if self.stored_bytes != self.file.size_bytes:
            raise PeerError(
                f"expected {self.file.size_bytes} bytes, found {self.stored_bytes}: "
                "resume the upload"
            )
        # (2) The bytes that were promised?
        if self._hash.digest() != self.file.sha256:
            _forget_part(self.folder)
            raise IntegrityError(
                f"expected a reply with SHA-256 {self.file.sha256.hex()}, found "
                f"{self._hash.hexdigest()}: send it again from the start"
            )
        # (3) On the disk under its final name.
        with _explained(self.folder, self.file.size_bytes):
            os.fsync(self._data)
            (self.folder / "reply.state").unlink()
            (self.folder / "reply.part").rename(self.folder / "reply")
            sync_folder(self.folder)

    def close(self) -> None:
        """Lets go of the files; what was stored stays."""
        os.close(self._data)
        os.close(self._state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder `spool/`; see the module for what is in it."""

    folder: Path

    def instruction(self, message_id: str) -> Path:
        """Where the instruction of `message_id` lies."""
        return self._folder(message_id) / "instruction"

    def reply(self, message_id: str) -> Path:
        """Where the complete reply to `message_id` lies, if there is one."""
        return self._folder(message_id) / "reply"

    def write_instruction(self, message_id: str, parts: Iterable[bytes | memoryview]) -> StoredFile:
        """Stores an instruction, part by part; it is on the disk when this returns."""
        folder = self._folder(message_id)
        path, digest, size = folder / "instruction.part", hashlib.sha256(), 0
        with _explained(self.folder, 0):
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("wb", buffering=0) as file:
                for part in parts:
                    with _explained(self.folder, len(part)):
                        _write_at(file.fileno(), part, size)
                    digest.update(part)
                    size += len(part)
                os.fsync(file.fileno())
            path.rename(folder / "instruction")
            sync_folder(folder)
            sync_folder(self.folder)
        return StoredFile(size, digest.digest())

    def stored_bytes(self, message_id: str, sha256: bytes, size_bytes: int | None = None) -> int:
        """How many bytes of the reply with this digest are stored and not yet complete.

        With `size_bytes`, only of one that promised this size: no more than that was reserved.
        """
        folder = self._folder(message_id)
        try:
            with _explained(folder, 0):
                found, size, stored = _STATE.unpack((folder / "reply.state").read_bytes())
                reserved = (folder / "reply.part").stat().st_size
        except (FileNotFoundError, struct.error):
            return 0
        # A power cut may leave the state and take its bytes.
        if (found, size) != (sha256, reserved) or size_bytes not in (None, size):
            return 0
        return int(stored)

    def open_upload(self, file: ReplyFile, offset: int) -> Upload:
        """Opens a reply for writing at `offset`, which must be what is stored of it.

        Raises:
            PeerError: another offset.
            DiskFullError: no room for all of it; nothing was taken.
            FileNotFoundError: the message was erased meanwhile.
        """
        folder = self._folder(file.message_id)
        stored = self.stored_bytes(file.message_id, file.sha256, file.size_bytes)
        if offset != stored:
            raise PeerError(f"expected the upload to go on at byte {stored}, found {offset}")
        if stored == 0:
            _reserve(folder, file)
        with _explained(folder, file.size_bytes), contextlib.ExitStack() as opened:
            data = _opened(folder / "reply.part", opened)
            state = _opened(folder / "reply.state", opened)
            upload = Upload(file, folder, stored, data, state)
            _hash_up_to(data, stored, upload._hash)
            opened.pop_all()  # the upload closes them from here on
        return upload

    def erase(self, message_id: str) -> None:
        """Removes everything of a message."""
        shutil.rmtree(self._folder(message_id), ignore_errors=True)

    def message_ids(self) -> list[str]:
        """The messages that have files."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if _MESSAGE_ID.fullmatch(p.name))

    def _folder(self, message_id: str) -> Path:
        # Ids arrive from clients; nothing but one of our own may become a path.
        if not _MESSAGE_ID.fullmatch(message_id):
            raise PeerError(f"expected a message id of 32 hex digits, found {message_id[:80]!r}")
        return self.folder / message_id


def _reserve(folder: Path, file: ReplyFile) -> None:
    """Preallocates `reply.part` and writes its state; an older part is dropped."""
    _forget_part(folder)
    with _explained(folder, file.size_bytes):
        try:
            with (folder / "reply.part").open("wb", buffering=0) as part:
                _preallocate(part.fileno(), file.size_bytes)
            (folder / "reply.state").write_bytes(_STATE.pack(file.sha256, file.size_bytes, 0))
        except OSError:
            _forget_part(folder)
            raise


def _preallocate(descriptor: int, size_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size_bytes)
    else:  # macOS reserves nothing; a full disk is then met while writing
        os.ftruncate(descriptor, size_bytes)


@contextlib.contextmanager
def _explained(folder: Path, size_bytes: int) -> Iterator[None]:
    """What the operating system refuses inside, as an error about `size_bytes` in `folder`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_disk_full(error):
            raise _no_room(folder, size_bytes) from error
        raise machine_error(folder, error) from error


def _no_room(folder: Path, size_bytes: int) -> MachineError:
    free = shutil.disk_usage(folder).free
    return DiskFullError(
        f"expected room for {size_bytes} bytes in the spool, found {free} free: "
        f"free at least {max(size_bytes - free, 1)} bytes on the coordinator's disk"
    )


def _opened(path: Path, owner: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_RDWR)
    owner.callback(os.close, descriptor)
    return descriptor


def _hash_up_to(descriptor: int, size_bytes: int, digest: "hashlib._Hash") -> None:
    position = 0
    while position < size_bytes:
        data = os.pread(descriptor, min(_READ_BYTES, size_bytes - position), position)
        if not data:
            raise IntegrityError(f"expected {size_bytes} stored bytes, found {position}")
        digest.update(data)
        position += len(data)


def _write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Writes all of `data`; one call may take less than it was given."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def _forget_part(folder: Path) -> None:
    (folder / "reply.state").unlink(missing_ok=True)
    (folder / "reply.part").unlink(missing_ok=True)
