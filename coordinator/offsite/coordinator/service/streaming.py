"""Files as streams of chunks, read from the disk as the peer takes them.

Nothing holds a whole file: two blocks of 2 MiB live per stream, one on its way and one being read
in a worker thread, so that a slow disk never holds up the event loop. HTTP/2 flow control decides
the pace.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from offsite.secure import limits
from offsite.secure.errors import IntegrityError, PeerError

_BLOCK_CHUNKS: Final = 8


async def stream_file(path: Path, offset: int) -> AsyncGenerator[bytes, None]:
    """Yields the bytes of a file from `offset` in chunks of `limits.CHUNK_BYTES`.

    The file is opened once: one that is replaced or erased meanwhile is streamed to its end. It is
    closed when the generator is, so whoever may stop early wraps it in `aclosing`.

    Raises:
        PeerError: the offset is neither a multiple of the chunk size nor the size of the file.
    """
    descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY)
    block: asyncio.Future[list[bytes]] | None = None
    try:
        size = os.fstat(descriptor).st_size
        _check_offset(offset, size)
        while offset < size:
            chunks = await (block or _start_reading(descriptor, offset))
            offset += sum(map(len, chunks))
            block = _start_reading(descriptor, offset) if offset < size else None
            for chunk in chunks:
                yield chunk
    finally:
        if block is not None:  # the descriptor may not be closed, and reused, under a reader
            await asyncio.wait([block])
        os.close(descriptor)


def _start_reading(descriptor: int, offset: int) -> "asyncio.Future[list[bytes]]":
    return asyncio.ensure_future(asyncio.to_thread(_read_block, descriptor, offset))


def _read_block(descriptor: int, offset: int) -> list[bytes]:
    chunks: list[bytes] = []
    while len(chunks) < _BLOCK_CHUNKS:
        chunk = os.pread(descriptor, limits.CHUNK_BYTES, offset)
        if not chunk:
            break
        chunks.append(chunk)
        offset += len(chunk)
    if not chunks:
        raise IntegrityError("a file became shorter while it was streamed: fetch it again")
    return chunks


def _check_offset(offset: int, size_bytes: int) -> None:
    if offset > size_bytes or (offset % limits.CHUNK_BYTES and offset != size_bytes):
        raise PeerError(
            f"expected an offset that is a multiple of {limits.CHUNK_BYTES} or the file's size "
            f"{size_bytes}, found {offset}"
        )
