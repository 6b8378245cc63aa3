"""Words are those of the keystream, and fractions are 53 bits of them."""

import numpy as np
import pytest
from tests.secure.privacy.randomness.streams import entropy

from offsite.secure.aggregation.keystream import Generator, Keystream
from offsite.secure.errors import ConfigError
from offsite.secure.privacy.randomness.uniform import MOST_WORDS64, UniformStream, fractions


def test_words_are_the_keystream_however_they_are_asked_for() -> None:
    key, total = entropy("key"), 150_000
    expected = np.empty(2 * total, np.uint32)
    Keystream(Generator.CHACHA20, key).next_into(expected, np.zeros(2 * total, np.uint32))
    stream = UniformStream(key)
    parts = [stream.words(count) for count in (0, 1, 3, 70_000, 79_996)]
    assert np.array_equal(np.concatenate(parts), expected.view(np.uint64))


def test_a_key_ends_before_its_counter_does() -> None:
    stream = UniformStream(entropy("end"))
    with pytest.raises(ConfigError, match="of one key"):
        stream.words(MOST_WORDS64 + 1)


def test_fractions_are_exact() -> None:
    words = np.array([0, 2047, 2048, 1 << 63, (1 << 64) - 1], np.uint64)
    assert fractions(words).tolist() == [0.0, 0.0, 2.0**-53, 0.5, 1 - 2.0**-53]
