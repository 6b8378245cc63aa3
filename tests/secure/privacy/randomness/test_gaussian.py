"""Noise value by value: against a scalar reference, at its ends, and on its grid."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.secure.privacy.randomness.streams import Scripted, source

from offsite.secure.errors import ConfigError, PolicyError
from offsite.secure.privacy.randomness.gaussian import TAIL, grid_bits, noise_into, noised_into


def reference(words: list[int], scale: float) -> list[float]:
    """Box and Muller in integers and the scalar functions of `math`."""
    half = len(words) // 2
    cosines, sines = [], []
    for radius_word, angle_word in zip(words[:half], words[half:], strict=True):
        uniform = (2 * (radius_word * 2048 + angle_word % 2048) + 1) / 2**76
        radius = scale * math.sqrt(-2 * math.log(uniform))
        angle = 2 * math.pi * (angle_word // 2048) / 2**53
        cosines.append(radius * math.cos(angle))
        sines.append(radius * math.sin(angle))
    return cosines + sines


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_noise_is_that_of_box_and_muller(count: int) -> None:
    out = np.empty(count)
    noise_into(out, 0.7, source("reference").noise())
    words = source("reference").noise().words(count + count % 2).tolist()
    assert out == pytest.approx(reference(words, 0.7)[:count], rel=1e-12, abs=1e-12)


def test_blocks_use_up_the_stream_in_order() -> None:
    whole, stream = np.empty((1 << 16) + 5), source("blocks").noise()
    noise_into(whole, 1.0, stream)
    again, parts = source("blocks").noise(), (np.empty(1 << 16), np.empty(5))
    for part in parts:
        noise_into(part, 1.0, again)
    assert np.array_equal(whole, np.concatenate(parts))
    assert stream.words(1) == again.words(1)


def test_the_tail_reaches_beyond_53_bits_and_is_finite() -> None:
    ends = [0, 1, 2047, 2048, (1 << 53) - 1, (1 << 64) - 2, (1 << 64) - 1]
    pairs = [(radius, angle) for radius in ends for angle in ends]
    radii, angles = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    out = np.empty(2 * len(pairs))
    noise_into(out, 1.0, Scripted(np.concatenate([radii, angles])))
    assert np.isfinite(out).all()
    assert np.abs(out).max() == pytest.approx(TAIL) and TAIL > 10.2


@given(exponent=st.integers(-400, 400), mantissa=st.floats(1, 2, exclude_max=True))
def test_the_grid_follows_from_the_scale(exponent: int, mantissa: float) -> None:
    assert grid_bits(math.ldexp(mantissa, exponent)) == 16 - exponent


@pytest.mark.parametrize("scale", [0.37, 1.0, 3e-5, 1e6])
def test_a_release_lies_on_the_grid(scale: float) -> None:
    total = np.linspace(-3 * scale, 3 * scale, 70_000).astype(np.float32)
    released = np.empty_like(total)
    noised_into(released, total, scale, 1.0, source("grid", scale).noise())
    steps = released.astype(np.float64) * 2.0 ** grid_bits(scale)
    assert np.array_equal(steps, np.rint(steps))
    assert np.abs(steps).max() < 2**24  # so float32 holds it exactly


def test_no_zero_of_a_release_has_a_sign() -> None:
    """Tiny radii on both sides: everything rounds to zero, and to the same one."""
    count = 64
    radii = np.full(count // 2, (1 << 64) - 1, np.uint64)
    angles = np.linspace(0, 2.0**64 * 0.99, count // 2).astype(np.uint64)
    total = np.full(count, -1e-9, np.float32)
    noised_into(total, total, 1.0, 1.0, Scripted(np.concatenate([radii, angles])))
    assert not total.any() and not np.signbit(total).any()


def test_a_release_is_sum_plus_noise_over_the_expected_batch() -> None:
    total = np.linspace(-5, 5, 1001).astype(np.float32)
    noise, released = np.empty(1001), np.empty_like(total)
    noise_into(noise, 2.0, source("sum").noise())
    noised_into(released, total, 2.0, 8.0, source("sum").noise())
    assert released == pytest.approx((total + noise) / 8, abs=2.0 ** -grid_bits(2.0) / 8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sum_that_is_not_finite_is_not_released(value: float) -> None:
    total, released = np.zeros(10, np.float32), np.zeros(10, np.float32)
    total[7] = value
    with pytest.raises(PolicyError, match="finite"):
        noised_into(released, total, 1.0, 1.0, source("finite").noise())
    assert not released.any()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e-300])
def test_a_scale_without_noise_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="scale"):
        noise_into(np.empty(4), scale, source("scale").noise())


@pytest.mark.parametrize("divisor", [0.0, -1.0, math.nan, math.inf])
def test_a_divisor_of_another_kind_is_refused(divisor: float) -> None:
    vector = np.zeros(4, np.float32)
    with pytest.raises(ConfigError, match="divisor"):
        noised_into(vector, vector, 1.0, divisor, source("divisor").noise())


def test_other_arrays_are_refused() -> None:
    short, vector, double = np.zeros(3, np.float32), np.zeros(4, np.float32), np.zeros(4)
    with pytest.raises(ConfigError, match="float64"):
        noise_into(vector, 1.0, source("kind").noise())  # type: ignore[arg-type]
    for out in (short, double, vector.reshape(2, 2)):
        with pytest.raises(ConfigError, match="expected"):
            noised_into(out, vector, 1.0, 1.0, source("kind").noise())  # type: ignore[arg-type]
