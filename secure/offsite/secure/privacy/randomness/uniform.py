"""Uniform 64-bit words and 53-bit fractions of one ChaCha20 keystream.

The words are those of `aggregation/keystream.py`, two of its little-endian 32-bit words at a time.
A stream is drawn from its beginning to wherever its reader stops; nothing is drawn twice.
"""

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from offsite.secure.aggregation.keystream import MOST_WORDS, Generator, Keystream
from offsite.secure.errors import ConfigError

Words64 = NDArray[np.uint64]

FRACTION_BITS: Final = 53
"""What a double holds exactly."""
MOST_WORDS64: Final = MOST_WORDS // 2
_BLOCK: Final = 1 << 15


class WordSource(Protocol):
    """Where independent uniform words come from."""

    def words(self, count: int) -> Words64:
        """The next `count` words."""
        ...


class UniformStream:
    """The words of one key, each drawn once. `repr` hides the key."""

    def __init__(self, key: bytes) -> None:
        self._keystream = Keystream(Generator.CHACHA20, key)
        self._zeros = np.zeros(2 * _BLOCK, np.uint32)
        self._left = MOST_WORDS64

    def words(self, count: int) -> Words64:
        """The next `count` words, uint64.

        Raises:
            ConfigError: beyond the 2^38 bytes of one key.
        """
        if count > self._left:
            raise ConfigError(f"expected at most {MOST_WORDS64} words of one key, found more")
        self._left -= count
        halves = np.empty(2 * count, np.uint32)
        for start in range(0, len(halves), len(self._zeros)):
            block = halves[start : start + len(self._zeros)]
            self._keystream.next_into(block, self._zeros[: len(block)])
        return halves.view(np.uint64)

    def __repr__(self) -> str:
        return "UniformStream()"


def fractions(words: Words64) -> NDArray[np.float64]:
    """Words as fractions k / 2^53 in [0, 1), every k equally likely."""
    return (words >> np.uint64(64 - FRACTION_BITS)).astype(np.float64) * 2.0**-FRACTION_BITS
