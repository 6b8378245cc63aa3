"""A file that grows by verified chunks.

Notable: hashing and writing happen in the thread that receives. gRPC reads from the line and
decrypts in threads of its own meanwhile; handing chunks to yet another thread was measured to cost
as much as it gained. Every 2 MiB the kernel is told that the file will not be read soon: it starts
to write back what is dirty and drops what is clean, so the last fsync is short and a large bundle
does not push the machine's other work out of memory.

Rules it enforces: no byte is written before its digest was compared; `position` counts verified
bytes in the file.
"""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from offsite.emulator.bundle.manifest import DIGEST_BYTES
from offsite.emulator.durable import machine_errors
from offsite.secure import limits
from offsite.secure.errors import IntegrityError

_WRITEBACK_BYTES: Final = 2 * limits.MIB

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
        self._descriptor = -1

    def __enter__(self) -> Self:
        with machine_errors(self._path):
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.ftruncate(self._descriptor, self.position)
                os.lseek(self._descriptor, self.position, os.SEEK_SET)
            except OSError:
                os.close(self._descriptor)
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with machine_errors(self._path):
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def put(self, chunk: Chunk) -> None:
        """Verifies and writes the next chunk.

        Raises:
            IntegrityError: it differs from its digest; it was not written.
            DiskFullError: no room; the verified chunks before it are kept.
        """
        index = self.position // limits.CHUNK_BYTES
        expected = self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        if hashlib.sha256(chunk).digest() != expected:
            raise IntegrityError(
                f"{self._path.name}: chunk {index} of {len(self._digests) // DIGEST_BYTES} differs "
                "from its signed digest; it was not written, what was verified before is kept"
            )
        with machine_errors(self._path):
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
