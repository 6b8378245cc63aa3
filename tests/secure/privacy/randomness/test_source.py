"""Entropy goes in, two streams come out, once."""

import copy
import pickle

import numpy as np
import pytest
from tests.secure.privacy.randomness.streams import entropy, source

from offsite.secure.errors import PolicyError
from offsite.secure.privacy.randomness.source import NoiseSource


@pytest.mark.parametrize(
    "seed",
    [
        0,
        42,
        True,
        None,
        "42",
        1.5,
        bytearray(entropy("mutable")),
        np.random.default_rng(1),
        np.random.SeedSequence(1),
        np.frombuffer(entropy("array"), np.uint8),
    ],
    ids=lambda seed: type(seed).__name__,
)
def test_a_seed_is_an_error(seed: bytes) -> None:
    with pytest.raises(PolicyError, match="never a seed"):
        NoiseSource(seed, b"step")


@pytest.mark.parametrize(
    "seed",
    [
        bytes(32),
        (42).to_bytes(32, "big"),
        (2**120 - 1).to_bytes(32, "little"),
        bytes(range(32)),
        bytes(range(0, 96, 3)),
        b"my secret seed of 32 characters!",
        entropy("hex").hex()[:32].encode(),
        entropy("short")[:31],
        entropy("long") + b"\0",
        entropy("half")[:16] + bytes(16),
        b"",
    ],
    ids=lambda seed: seed.hex()[:12],
)
def test_bytes_that_are_no_entropy_are_an_error(seed: bytes) -> None:
    with pytest.raises(PolicyError, match="never a seed"):
        NoiseSource(seed, b"step")


def test_entropy_is_hardly_ever_refused() -> None:
    """Refused is one in 2^32; of 20,000 digests none is."""
    for index in range(20_000):
        NoiseSource(entropy("refused", index), b"step")


def test_a_source_gives_each_stream_once() -> None:
    origin = source("once")
    sampling, noise = origin.sampling().words(4), origin.noise().words(4)
    assert not np.array_equal(sampling, noise)
    for take in (origin.sampling, origin.noise):
        with pytest.raises(PolicyError, match="already drawn"):
            take()


def test_a_source_cannot_be_copied() -> None:
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PolicyError, match="never copied"):
            duplicate(source("copy"))


def test_a_source_shows_nothing() -> None:
    origin = source("shown")
    assert repr(origin) == "NoiseSource()"
    assert repr(origin.noise()) == "UniformStream()"


def test_entropy_and_step_each_change_both_streams() -> None:
    seeds = [(entropy(e), s) for e in "ab" for s in (b"1", b"2")]
    sources = [NoiseSource(*pair) for pair in seeds]
    firsts = [s.sampling().words(1)[0] for s in sources] + [s.noise().words(1)[0] for s in sources]
    assert len(set(firsts)) == len(firsts)


def test_the_same_entropy_is_recognised_under_another_step() -> None:
    one, two = NoiseSource(entropy("e"), b"1"), NoiseSource(entropy("e"), b"2")
    assert one.identity == two.identity != source("other").identity
