"""The noise of releases is what it is said to be: every release, and none like another.

Power, held by `assert`s here: a release of 20,000 values with a defect below goes unfound with a
probability under 1e-9, and all comparisons of one test together alarm falsely with one under 1e-9.

    scale off by 8 % or more                                   variance
    distribution 5 % off; a uniform one's is 5.7               shape (KS)
    correlation with another of 60 releases of 10 % or more    correlation; of a repeated key 100 %
"""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.secure.privacy.randomness.streams import FALSE_ALARM, MISS, entropy, release, source

from offsite.secure.privacy.randomness import goodness
from offsite.secure.privacy.randomness.gaussian import noise_into
from offsite.secure.privacy.randomness.source import NoiseSource

VALUES = 20_000
RELEASES = 60
SCALES = [1.0, 0.73, 2.0**-20, 31.5]


def test_the_power_is_as_stated() -> None:
    each, pairs = FALSE_ALARM / (2 * RELEASES), RELEASES * (RELEASES - 1) // 2
    for ratio in (0.0001, 0.5, 0.92, 1.08, 2.0):
        assert goodness.variance_miss(VALUES, ratio, each) < MISS
    assert goodness.shape_miss(VALUES, 0.05, each) < MISS
    for correlated in (0.1, 0.5, 1.0):
        assert goodness.correlation_miss(VALUES, correlated, FALSE_ALARM / pairs) < MISS


@pytest.mark.parametrize("scale", SCALES)
def test_every_release_has_the_stated_variance_and_shape(scale: float) -> None:
    each = FALSE_ALARM / (2 * RELEASES)
    for step in range(RELEASES):
        noise = release(source("release", scale, step), VALUES, scale)
        assert goodness.variance(noise, scale, each).passed
        assert goodness.shape(noise, scale, each).passed


def test_a_million_values_have_the_stated_variance_and_shape() -> None:
    """Scale to 1.3 %, distance 0.9 %."""
    each, count = FALSE_ALARM / 2, 1_000_000
    assert goodness.variance_miss(count, 0.987, each) < MISS
    assert goodness.shape_miss(count, 0.009, each) < MISS
    noise = release(source("million"), count, 1.0)
    assert goodness.variance(noise, 1.0, each).passed
    assert goodness.shape(noise, 1.0, each).passed


def test_the_tails_are_not_cut() -> None:
    """Beyond 4 scales lie 6.3e-5 of all values; of a million, none or four times would be found."""
    count, expected = 1_000_000, math.erfc(4 / math.sqrt(2))
    beyond = int((np.abs(release(source("tails"), count, 1.0)) > 4).sum())
    assert goodness.rates(np.array([beyond]), count, expected).passed
    assert goodness.rates_miss(count, expected, 0.0) < MISS
    assert goodness.rates_miss(count, expected, 4 * expected) < MISS


def test_values_of_one_release_are_independent() -> None:
    """Neighbours, and the two values that share a radius."""
    noise = np.empty(1 << 16)
    noise_into(noise, 1.0, source("inside").noise())
    half = len(noise) // 2
    each = FALSE_ALARM / 4
    assert goodness.correlation(noise[0::2], noise[1::2], 1.0, each).passed
    assert goodness.correlation(noise[:half], noise[half:], 1.0, each).passed
    # (sizes too, which a shared radius would link)
    large, share = np.abs(noise) > 1, math.erfc(1 / math.sqrt(2))
    for left, right in ((large[0::2], large[1::2]), (large[:half], large[half:])):
        assert goodness.rates(np.array([(left & right).sum()]), half, share**2, each).passed


def origins() -> dict[str, NoiseSource]:
    """Steps, restarts in the middle of one, clients, and what they could confuse."""
    found = {f"step {i}": NoiseSource(entropy("campaign", i), b"step %d" % i) for i in range(6)}
    found |= {f"step 3, attempt {i}": NoiseSource(entropy("restart", i), b"step 3") for i in "ab"}
    found |= {f"client {i}": NoiseSource(entropy("client", i), b"step 0") for i in range(4)}
    found["the same entropy, another step"] = NoiseSource(entropy("campaign", 0), b"step 9")
    found["a bit of entropy flipped"] = NoiseSource(flipped(entropy("campaign", 0)), b"step 0")
    return found


def flipped(seed: bytes) -> bytes:
    return bytes([seed[0] ^ 1]) + seed[1:]


def test_steps_restarts_and_clients_are_independent() -> None:
    releases = {name: release(origin, VALUES, 1.0) for name, origin in origins().items()}
    pairs = list(combinations(releases, 2))
    for one, other in pairs:
        verdict = goodness.correlation(
            releases[one], releases[other], 1.0, FALSE_ALARM / len(pairs)
        )
        assert verdict.passed, (one, other, verdict)


def test_sampling_and_noise_of_a_step_are_independent() -> None:
    """Noise made of the sampling stream would be noise that the sample foretells."""
    one, noises = source("streams"), np.empty((2, VALUES))
    noise_into(noises[0], 1.0, one.sampling())
    noise_into(noises[1], 1.0, one.noise())
    assert goodness.correlation(noises[0], noises[1], 1.0).passed


def draws(name: str) -> np.random.Generator:
    return np.random.default_rng(list(entropy(name)))


BROKEN: dict[str, Callable[[], NDArray[np.float64]]] = {
    "no noise": lambda: np.zeros(VALUES),
    "half the noise": lambda: release(source("half"), VALUES, 0.5),
    "scale for variance": lambda: release(source("squared"), VALUES, 1.2**2) / 1.2,
    "uniform of the same variance": lambda: draws("uniform").uniform(-(3**0.5), 3**0.5, VALUES),
    "Laplace of the same variance": lambda: draws("laplace").laplace(0, 0.5**0.5, VALUES),
    "a grid as wide as the scale": lambda: np.rint(release(source("coarse"), VALUES, 1.0)),
    "off centre": lambda: release(source("centre"), VALUES, 1.0) + 0.2,
    "one value, repeated": lambda: np.repeat(release(source("one"), 1, 1.0), VALUES),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_noise_is_found(broken: str) -> None:
    noise, each = BROKEN[broken](), FALSE_ALARM / (2 * RELEASES)
    verdicts = goodness.variance(noise, 1.0, each), goodness.shape(noise, 1.0, each)
    assert not all(verdict.passed for verdict in verdicts)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_a_repeated_key_is_found(share: float) -> None:
    """The whole noise of another step, or a tenth of its variance."""
    one, own = (release(source("repeated", i), VALUES, 1.0) for i in range(2))
    other = math.sqrt(share) * one + math.sqrt(1 - share) * own
    assert not goodness.correlation(one, other, 1.0, FALSE_ALARM / RELEASES**2).passed
