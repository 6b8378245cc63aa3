"""Files in chunks of 256 KiB: written with their digests, and verified, one chunk in memory.

Rules it enforces: a file is on disk (fsync) before its entry exists; verification first proves the
list of chunk digests against the signed manifest, then the file against the list.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from offsite.emulator.bundle.manifest import DIGEST_BYTES, FileEntry
from offsite.emulator.durable import sha256_of
from offsite.secure.errors import IntegrityError
from offsite.secure.limits import CHUNK_BYTES


class ChunkedFile:
    """A new file of a bundle and, beside it, the digests of its chunks."""

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        entry = FileEntry(name, 0, b"", b"")
        self._file = (folder / name).open("xb", buffering=0)
        self._digests = (folder / entry.chunks_path).open("xb")
        self._pending = bytearray()
        self._size = 0
        self._file_hash = hashlib.sha256()
        self._list_hash = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._digests.close()

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes of any length."""
        view = memoryview(data).cast("B")
        while len(view):
            taken = CHUNK_BYTES - len(self._pending)
            self._pending += view[:taken]
            view = view[taken:]
            if len(self._pending) == CHUNK_BYTES:
                self._flush()

    def finish(self) -> FileEntry:
        """Everything is on disk when this returns the entry."""
        if self._pending:
            self._flush()
        self._digests.flush()
        os.fsync(self._file.fileno())
        os.fsync(self._digests.fileno())
        return FileEntry(self._name, self._size, self._file_hash.digest(), self._list_hash.digest())

    def _flush(self) -> None:
        view = memoryview(self._pending)
        self._file_hash.update(view)
        digest = hashlib.sha256(view).digest()
        self._list_hash.update(digest)
        self._digests.write(digest)
        self._size += len(view)
        while len(view):
            view = view[self._file.write(view) :]  # an unbuffered write may be short
        view.release()
        self._pending = bytearray()


def verify_chunks(folder: Path, entry: FileEntry, advance: Callable[[int], None]) -> None:
    """Proves a file and its list of chunk digests against the entry; `advance` counts bytes.

    Raises:
        IntegrityError: the list or a chunk differs; it names the file and the chunk.
    """
    list_path = folder / entry.chunks_path
    if sha256_of(list_path) != entry.chunks_sha256:
        raise IntegrityError(f"{entry.chunks_path}: expected the signed digest, found another")
    whole = hashlib.sha256()
    with list_path.open("rb") as digests:
        for index, chunk in enumerate(_chunks(folder / entry.path)):
            if hashlib.sha256(chunk).digest() != digests.read(DIGEST_BYTES):
                raise IntegrityError(
                    f"{entry.path}: chunk {index} of {entry.num_chunks} differs from its signed"
                    " digest: fetch the bundle again"
                )
            whole.update(chunk)
            advance(len(chunk))
    if whole.digest() != entry.sha256:
        raise IntegrityError(f"{entry.path}: expected the signed digest, found another")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
