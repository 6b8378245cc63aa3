"""Mask words from a key, written in place, block by block, without the interpreter lock.

    ChaCha20   RFC 8439, key of 32 bytes, counter from 0, nonce 0                     suite default
    AES-256    counter mode, NIST SP 800-38A, key of 32 bytes, counter block from 0   negotiable

The words are the keystream read as little-endian uint32. A key is used for one stream of one
round and never again; streams are kept apart by key derivation, so the nonce is always zero. Both
are seekable by blocks of 64 bytes, which lets two cores write two halves of one stream.

Philox and Mersenne Twister, which numpy and torch offer, are no such generators: whoever sees a
little of their output computes the rest. ChaCha20 was measured at 5 GB/s and AES-256 at 8 GB/s on
one core with AES-NI (`benchmarks/secure_aggregation`), without it AES falls behind.
"""

from enum import Enum
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from offsite.secure.errors import ConfigError

Words = NDArray[np.uint32]

KEY_BYTES: Final = 32
WORD_BYTES: Final = 4
BLOCK_WORDS: Final = 16
"""64 bytes: a block of ChaCha20, four of AES; streams start at multiples of it."""
MOST_WORDS: Final = (1 << 38) // WORD_BYTES
"""The block counter of ChaCha20 has 32 bits."""
_AES_BLOCK_BYTES: Final = 16


class Generator(Enum):
    """Which keystream; the value is that of the signed round configuration."""

    CHACHA20 = 1
    AES256_CTR = 2


class Keystream:
    """The words of one key from `first_word` on; `next_into` continues where it ended."""

    def __init__(self, generator: Generator, key: bytes, first_word: int = 0) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"keystream: expected a key of {KEY_BYTES} bytes, found {len(key)}")
        if first_word % BLOCK_WORDS or not 0 <= first_word < MOST_WORDS:
            raise ConfigError(f"keystream: expected a multiple of 16 as start, found {first_word}")
        self._context = _context(generator, key, first_word * WORD_BYTES)

    def next_into(self, out: Words, zeros: Words) -> None:
        """Writes the next words over `out`; `zeros` is as long and holds only zeros."""
        self._context.update_into(zeros.view(np.uint8).data, out.view(np.uint8).data)


def _context(generator: Generator, key: bytes, offset_bytes: int) -> CipherContext:
    if generator is Generator.CHACHA20:
        counter = (offset_bytes // (BLOCK_WORDS * WORD_BYTES)).to_bytes(4, "little")
        return Cipher(ChaCha20(key, counter + bytes(12)), None).encryptor()
    start = (offset_bytes // _AES_BLOCK_BYTES).to_bytes(_AES_BLOCK_BYTES, "big")
    return Cipher(AES256(key), CTR(start)).encryptor()
