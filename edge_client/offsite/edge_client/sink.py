"""A file that grows by verified chunks while the next ones are still on the line.

A thread of its own compares every chunk with its digest and then writes it; hashing and writing
release the interpreter, so receiving goes on meanwhile. On a fast line chunks are handed over eight
at a time, for waking a thread costs as much as hashing a chunk. At most 6 MiB wait, which bounds memory and slows
the peer down when the disk is slow. Every 16 MiB the kernel is told that
the file will not be read soon: it starts to write back what is dirty and drops what is clean, so the
last fsync is short and a large bundle does not push the machine's other work out of memory.

Rules it enforces: no byte is written before its digest was compared; `position` counts bytes in the
file; an error of the thread reaches the caller at the next call.
"""

import contextlib
import errno
import hashlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from offsite.secure import limits
from offsite.secure.errors import DiskFullError, IntegrityError, MachineError

DIGEST_BYTES: Final = 32
_BATCH_CHUNKS: Final = 8
_BATCH_S: Final = 0.05
"""On a slow line nothing waits longer than this, so that a kill loses next to nothing."""
_QUEUE_BATCHES: Final = 2
_WRITEBACK_BYTES: Final = 16 * limits.MIB

Chunk = bytes | memoryview


class VerifiedSink:
    """Appends to the file at `path` from a multiple of the chunk size on; a context manager.

    `digests` are the SHA-256 of all chunks of the file, 32 bytes each.
    """

    def __init__(self, path: Path, digests: bytes, position: int) -> None:
        self.position = position
        self._path = path
        self._digests = digests
        self._advised = position
        self._error: BaseException | None = None
        self._batch: list[Chunk] = []
        self._handed_over = time.monotonic()
        self._queue: queue.Queue[list[Chunk] | None] = queue.Queue(_QUEUE_BATCHES)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        self._thread = threading.Thread(target=self._drain, name="offsite-sink", daemon=True)

    def __enter__(self) -> Self:
        os.ftruncate(self._descriptor, self.position)
        os.lseek(self._descriptor, self.position, os.SEEK_SET)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits until everything put was verified and written; raises what the thread raised."""
        self._queue.put(self._batch)
        self._queue.put(None)
        self._thread.join()
        try:
            if self._error is None:
                with _explained(self._path):
                    os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
        if self._error is not None:
            raise self._error

    def put(self, chunk: Chunk) -> None:
        """Takes the next chunk; what was wrong with an earlier one is raised here."""
        if self._error is not None:
            raise self._error
        self._batch.append(chunk)
        now = time.monotonic()
        if len(self._batch) >= _BATCH_CHUNKS or now - self._handed_over >= _BATCH_S:
            self._queue.put(self._batch)
            self._batch, self._handed_over = [], now

    def _drain(self) -> None:
        """Runs in the thread; after an error it only empties the queue, so that nobody waits."""
        while (batch := self._queue.get()) is not None:
            if self._error is None:
                try:
                    for chunk in batch:
                        self._take(chunk)
                except Exception as error:  # noqa: BLE001 - the caller raises it
                    self._error = error

    def _take(self, chunk: Chunk) -> None:
        index = self.position // limits.CHUNK_BYTES
        expected = self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        if hashlib.sha256(chunk).digest() != expected:
            raise IntegrityError(
                f"{self._path.name}: chunk {index} of {len(self._digests) // DIGEST_BYTES} differs "
                "from its signed digest; it was not written, what was verified before is kept"
            )
        with _explained(self._path):
            self._write(chunk)
            if self.position - self._advised >= _WRITEBACK_BYTES:
                self._write_back()

    def _write(self, chunk: Chunk) -> None:
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.position += len(chunk)

    def _write_back(self) -> None:
        if hasattr(os, "posix_fadvise"):
            # Twice over every range: dirty pages are written back first, and clean the next time.
            start = max(self._advised - _WRITEBACK_BYTES, 0)
            length = self.position - start
            os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_DONTNEED)
        self._advised = self.position


def verified_bytes(path: Path, digests: bytes, size: int) -> int:
    """How many bytes at the start of a file, in whole chunks, are as their digests say."""
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        return 0
    with file:
        position = 0
        for start in range(0, len(digests), DIGEST_BYTES):
            chunk = file.read(min(limits.CHUNK_BYTES, size - position))
            if hashlib.sha256(chunk).digest() != digests[start : start + DIGEST_BYTES]:
                break
            position += len(chunk)
        return position


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no room left to write {path}") from error
        raise MachineError(f"cannot write {path}: {error.strerror}") from error
