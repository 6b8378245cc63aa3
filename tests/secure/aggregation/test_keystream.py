"""Mask words against published vectors, and masks against one another."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offsite.secure.aggregation.keystream import BLOCK_WORDS, Generator, Keystream
from offsite.secure.aggregation.masks import PIECE_WORDS, Mask, Sign, apply_masks
from offsite.secure.errors import ConfigError

# RFC 8439, appendix A.1, test vectors 1 and 2: key 0, nonce 0, counters 0 and 1.
CHACHA20 = bytes.fromhex(
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
    "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
)
# AES-256 of the all-zero block under the all-zero key (FIPS 197 known answer, GFSbox 0), and of 1.
AES256 = bytes.fromhex("dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738b")


def words(generator: Generator, key: bytes, count: int, first: int = 0) -> np.ndarray:
    out = np.empty(count, np.uint32)
    Keystream(generator, key, first).next_into(out, np.zeros(count, np.uint32))
    return out


def test_chacha20_is_that_of_rfc_8439() -> None:
    expected = np.frombuffer(CHACHA20, "<u4")
    assert np.array_equal(words(Generator.CHACHA20, bytes(32), 32), expected)


def test_aes_counter_mode_begins_at_the_zero_block() -> None:
    expected = np.frombuffer(AES256, "<u4")
    assert np.array_equal(words(Generator.AES256_CTR, bytes(32), 8), expected)


@pytest.mark.parametrize("generator", Generator)
@given(start=st.integers(0, 20), count=st.integers(1, 100))
def test_a_stream_can_be_entered_anywhere(generator: Generator, start: int, count: int) -> None:
    key = hashlib.sha256(b"key").digest()
    whole = words(generator, key, start * BLOCK_WORDS + count)
    part = words(generator, key, count, start * BLOCK_WORDS)
    assert np.array_equal(whole[start * BLOCK_WORDS :], part)


def masks_of(count: int) -> list[Mask]:
    keys = [hashlib.sha256(bytes([i])).digest() for i in range(count)]
    return [Mask(key, Sign.PLUS if i % 3 else Sign.MINUS) for i, key in enumerate(keys)]


@pytest.mark.parametrize("generator", Generator)
@pytest.mark.parametrize("size", [1, 17, PIECE_WORDS, PIECE_WORDS * 17 + 5])
def test_pieces_and_threads_change_nothing(generator: Generator, size: int) -> None:
    expected = np.zeros(size, np.uint32)
    for mask in masks_of(3):
        whole = words(generator, mask.key, size)
        expected += whole if mask.sign is Sign.PLUS else np.uint32(0) - whole
    for threads in (1, 2, 5):
        found = np.zeros(size, np.uint32)
        apply_masks(found, masks_of(3), generator, threads)
        assert np.array_equal(found, expected)


def test_opposite_masks_cancel() -> None:
    vector = np.arange(1000, dtype=np.uint32)
    masks = masks_of(5)
    apply_masks(vector, masks, Generator.CHACHA20)
    assert not np.array_equal(vector, np.arange(1000, dtype=np.uint32))
    apply_masks(vector, [mask.opposite for mask in masks], Generator.CHACHA20)
    assert np.array_equal(vector, np.arange(1000, dtype=np.uint32))


def test_a_key_is_never_used_twice() -> None:
    mask = Mask(bytes(32), Sign.PLUS)
    with pytest.raises(ConfigError, match="never used twice"):
        apply_masks(np.zeros(4, np.uint32), [mask, mask.opposite], Generator.CHACHA20)


@pytest.mark.parametrize(
    "vector", [np.zeros(4, np.int64), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]]
)
def test_other_arrays_are_refused(vector: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="uint32"):
        apply_masks(vector, masks_of(1), Generator.CHACHA20)


def test_a_mask_does_not_show_its_key() -> None:
    assert repr(Mask(b"k" * 32, Sign.PLUS)) == "Mask(PLUS)"
