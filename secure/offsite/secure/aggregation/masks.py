"""Adding and removing masks: out ← out ± Σ PRG(key), word by word modulo 2^32.

All keys are applied to one piece of the vector before the next, so the piece stays in the cache
of the core; pieces are shared out over threads, since ciphers and numpy's arithmetic release the
interpreter lock. The result does not depend on pieces, threads or the order of keys.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

from offsite.secure.aggregation.keystream import MOST_WORDS, Generator, Keystream, Words
from offsite.secure.errors import ConfigError

PIECE_WORDS: Final = 1 << 16
"""256 KiB: measured fastest; accumulator and keystream fit into a core's cache together."""
_STRETCH_PIECES: Final = 16
"""Pieces that a thread takes at a time."""


class Sign(Enum):
    """Whether a mask is added or taken away."""

    PLUS = 1
    MINUS = -1


@dataclass(frozen=True, slots=True)
class Mask:
    """One keystream and its sign. `repr` hides the key."""

    key: bytes
    sign: Sign

    def __repr__(self) -> str:
        return f"Mask({self.sign.name})"

    @property
    def opposite(self) -> "Mask":
        """What takes this mask away again."""
        return Mask(self.key, Sign.MINUS if self.sign is Sign.PLUS else Sign.PLUS)


def apply_masks(
    vector: Words, masks: Sequence[Mask], generator: Generator, threads: int = 1
) -> None:
    """Applies all masks to `vector`, uint32 (d,), contiguous, in place.

    Raises:
        ConfigError: another dtype or shape, or a vector beyond one keystream.
    """
    if vector.dtype != np.uint32 or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ConfigError("masks: expected a contiguous vector of uint32, found another array")
    if len(vector) > MOST_WORDS:
        raise ConfigError(f"masks: expected at most {MOST_WORDS} words, found {len(vector)}")
    if len({mask.key for mask in masks}) != len(masks):
        raise ConfigError("masks: expected every key once; a keystream is never used twice")
    step = PIECE_WORDS * _STRETCH_PIECES
    starts = range(0, len(vector), step)

    def work(start: int) -> None:
        _apply_to_stretch(vector[start : start + step], start, masks, generator)

    if threads <= 1 or len(starts) <= 1:
        for start in starts:
            work(start)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, starts))


def _apply_to_stretch(
    stretch: Words, first_word: int, masks: Sequence[Mask], generator: Generator
) -> None:
    size = min(PIECE_WORDS, len(stretch))
    zeros, words = np.zeros(size, np.uint32), np.empty(size, np.uint32)
    streams = [(Keystream(generator, mask.key, first_word), mask.sign) for mask in masks]
    for start in range(0, len(stretch), PIECE_WORDS):
        piece = stretch[start : start + PIECE_WORDS]
        count = len(piece)
        for stream, sign in streams:
            stream.next_into(words[:count], zeros[:count])
            operation = np.add if sign is Sign.PLUS else np.subtract
            operation(piece, words[:count], out=piece)
