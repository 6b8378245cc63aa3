"""The masked vectors of a sum: compared with what was signed, kept as evidence, added up.

Everything goes over pieces of a vector that lies on the disk, so a coordinator holds the sum and
one piece, whatever the number of members. What is added is what is kept: both are read from the file
whose digest was compared.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from offsite.emulator.durable import machine_errors, unreadable, write_atomic_parts
from offsite.emulator.rounds.exchange import MaskedWords
from offsite.emulator.rounds.stored_array import PIECE_BYTES
from offsite.secure.aggregation.keystream import WORD_BYTES, Words

FOLDER_MODE: Final = 0o700


class VectorSum:
    """The sum of `count` words of each member; `folder` takes the vectors."""

    def __init__(self, folder: Path, count: int) -> None:
        with machine_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        self._folder = folder
        self.words: Words = np.zeros(count, np.uint32)

    def add(self, name: str, words: MaskedWords, check: Callable[[bytes], None]) -> None:
        """Takes in the vector of a member.

        Args:
            check: gets the SHA-256 of the words; raises PeerError unless they are those that the
                member signed, and nothing changes then.

        Raises:
            MachineError: it cannot be kept; the sum is as it was.
        """
        # (1) The words that were signed?
        digest = hashlib.sha256()
        for piece in words.pieces():
            digest.update(piece.data)
        check(digest.digest())
        # (2) On the disk.
        write_atomic_parts(self._path(name), (piece.data for piece in words.pieces()))
        # (3) In the sum.
        for start, piece in self._kept(name):
            part = self.words[start : start + len(piece)]
            np.add(part, piece, out=part)

    def take_out(self, name: str) -> None:
        """Takes a vector out of the sum again; it stays in the folder."""
        for start, piece in self._kept(name):
            part = self.words[start : start + len(piece)]
            np.subtract(part, piece, out=part)

    def _kept(self, name: str) -> Iterator[tuple[int, Words]]:
        """The pieces of a kept vector, with the number of their first word."""
        path, start = self._path(name), 0
        try:
            with path.open("rb", buffering=0) as file:
                while start < len(self.words):
                    size = min(PIECE_BYTES, WORD_BYTES * (len(self.words) - start))
                    data = file.read(size)
                    piece = np.frombuffer(data, "<u4")
                    yield start, piece
                    start += len(piece)
        except OSError as error:
            raise unreadable(path, error) from error

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.masked"
