"""A file that is looked at like bytes, through a small window that moves along."""

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self, overload

from offsite.secure.limits import KIB

WINDOW_BYTES: Final = 64 * KIB


class FileWindow:
    """`window[at]` is a byte of the file, `window[start:end]` some of them; a context manager.

    For whoever goes through a file once and steps over most of it: no more than one window is in
    memory. Raises OSError where the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._descriptor).st_size
        self._start, self._bytes = 0, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> bytes: ...
    def __getitem__(self, at: int | slice) -> int | bytes:
        if isinstance(at, slice):
            return self._read(at.start, at.stop - at.start)
        inside = at - self._start
        if not 0 <= inside < len(self._bytes):
            self._start, self._bytes, inside = at, self._read(at, WINDOW_BYTES), 0
        return self._bytes[inside]

    def _read(self, at: int, size: int) -> bytes:
        """Up to so many bytes, fewer at the end of the file only."""
        parts = []
        while size and (part := os.pread(self._descriptor, size, at)):
            parts.append(part)
            size, at = size - len(part), at + len(part)
        return b"".join(parts)
