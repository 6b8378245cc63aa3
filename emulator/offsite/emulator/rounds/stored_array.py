"""An array of a message whose bytes stay on the disk until somebody reads them, piece by piece.

A masked update is as large as the adapter, and a round has one of each client. Nobody needs one in
memory: it is hashed, kept and added up in passes over pieces, so a coordinator takes as much memory
for two hundred updates as for one, and little for one. To whoever asks for `data` it is an array
like any other, read whole.

The file is read by position, never mapped: one that is cut while it is mapped kills the process.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flwr.app import Array

from offsite.emulator.durable import unreadable
from offsite.secure.errors import IntegrityError
from offsite.secure.limits import MIB

PIECE_BYTES: Final = 4 * MIB
"""A multiple of every item's size, and of a keystream's block."""


class StoredArray(Array):
    """`size` bytes of the file at `path` from `offset` on."""

    def __init__(
        self, dtype: str, shape: tuple[int, ...], stype: str, path: Path, offset: int, size: int
    ) -> None:
        self.dtype, self.shape, self.stype = dtype, shape, stype
        self.size = size
        self._path, self._offset = path, offset

    @property
    def data(self) -> bytes:  # type: ignore[override]  # Flower's is an attribute
        """All bytes, read now."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """All bytes in order, `PIECE_BYTES` at a time; may be asked for again.

        Raises:
            MachineError: the file cannot be read.
            IntegrityError: it is shorter than it was.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(self._path, error) from error
        try:
            left, at = self.size, self._offset
            while left:
                piece = self._read(descriptor, min(left, PIECE_BYTES), at)
                left, at = left - len(piece), at + len(piece)
                yield piece
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, size: int, at: int) -> bytes:
        """Exactly so many bytes; the kernel may give fewer at a time."""
        parts: list[bytes] = []
        while size:
            try:
                part = os.pread(descriptor, size, at)
            except OSError as error:
                raise unreadable(self._path, error) from error
            if not part:
                raise IntegrityError(f"{self._path}: became shorter while it was read")
            parts.append(part)
            size, at = size - len(part), at + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def pieces_of(array: Array) -> Iterator[bytes | memoryview]:
    """The bytes of any array, `PIECE_BYTES` at a time."""
    if isinstance(array, StoredArray):
        yield from array.pieces()
        return
    view = memoryview(array.data)
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]


def size_of(array: Array) -> int:
    """How many bytes an array has, without reading them."""
    return array.size if isinstance(array, StoredArray) else len(array.data)
