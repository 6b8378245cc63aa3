"""Numbers in the ring: how exact a mean is, and what the guard band catches."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offsite.secure.aggregation.fixed_point import LEAST_WEIGHT, FixedPoint, decode, encode
from offsite.secure.errors import ConfigError, PeerError


def total(words: list[np.ndarray]) -> np.ndarray:
    added: np.ndarray = np.add.reduce(words, dtype=np.uint32)
    return added


@given(
    st.lists(st.floats(LEAST_WEIGHT, 1.0), min_size=2, max_size=60),
    st.floats(0.01, 8.0),
    st.integers(0, 2**32 - 1),
)
def test_a_mean_is_as_exact_as_promised(weights: list[float], bound: float, seed: int) -> None:
    members = len(weights)
    settings = FixedPoint.for_cohort(members, bound)
    draw = np.random.default_rng(seed)
    updates = [draw.uniform(-bound, bound, 20).astype(np.float32) for _ in weights]
    found = decode(
        total([encode(u, w, settings) for u, w in zip(updates, weights, strict=True)]),
        members,
        settings,
    )
    exact_weight = sum(weights)
    exact = sum(np.float64(w) * u for u, w in zip(updates, weights, strict=True)) / exact_weight
    step = 2.0**-settings.fraction_bits
    assert abs(found.total_weight - exact_weight) <= members * step / 2
    # Half a step for every member's values, the same for the weight, and what float32 rounds.
    allowed = members * step / 2 * (1 + bound) / found.total_weight + bound * 2.0**-23
    assert np.abs(found.values - exact).max() <= allowed


@given(st.integers(2, 255), st.floats(0.001, 100))
def test_an_honest_sum_never_leaves_the_guard_band(members: int, bound: float) -> None:
    settings = FixedPoint.for_cohort(members, bound)
    assert settings.bound(members) < 2**31
    extreme = np.full(4, bound, np.float32)
    for update in (extreme, -extreme):
        decode(total([encode(update, 1.0, settings)] * members), members, settings)


def test_coordinates_and_norm_are_clipped() -> None:
    settings = FixedPoint(20, coordinate_bound=0.5, norm_bound=1.0)
    words = encode(np.array([3.0, 4.0], np.float32), 1.0, settings)
    assert words[:-1].view(np.int32).tolist() == [2**19, 2**19]  # 0.6 and 0.8, cut at 0.5
    words = encode(np.array([0.3, 0.4], np.float32), 1.0, settings)
    assert np.allclose(words[:-1].view(np.int32) / 2**20, [0.3, 0.4], atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_never_leaves(value: float) -> None:
    with pytest.raises(ConfigError, match="finite"):
        encode(np.array([0.0, value], np.float32), 1.0, FixedPoint(20, 1.0, math.inf))


@pytest.mark.parametrize("weight", [0.0, LEAST_WEIGHT / 2, 1.01, math.nan])
def test_other_weights_are_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight"):
        encode(np.zeros(2, np.float32), weight, FixedPoint(20, 1.0, math.inf))


def test_a_sum_beyond_the_guard_band_is_refused() -> None:
    settings = FixedPoint.for_cohort(4, 1.0)
    words = total([encode(np.ones(3, np.float32), 1.0, settings)] * 4)
    words[1] = 2**31 - 1
    with pytest.raises(PeerError, match="did not follow the protocol"):
        decode(words, 4, settings)


def test_a_weight_that_members_cannot_have_is_refused() -> None:
    settings = FixedPoint.for_cohort(4, 1.0)
    words = total([encode(np.ones(3, np.float32), 1.0, settings)] * 4)
    words[-1] = 0
    with pytest.raises(PeerError, match="total weight"):
        decode(words, 4, settings)


def test_bits_in_which_the_least_weight_is_nothing_are_refused() -> None:
    """A sum of such weights would be divided by 0."""
    with pytest.raises(ConfigError, match="fraction_bits: expected 8 to 28, found 7"):
        FixedPoint(7, 1.0, math.inf)
    settings = FixedPoint(8, 1.0, math.inf)
    with pytest.raises(PeerError, match="total weight"):
        decode(np.zeros(4, np.uint32), 3, settings)


def test_too_wide_a_bound_is_refused() -> None:
    with pytest.raises(ConfigError, match="clip more"):
        FixedPoint.for_cohort(255, 1e9)
    with pytest.raises(ConfigError, match="fewer fraction_bits"):
        FixedPoint(28, 1.0, math.inf).bound(255)


def test_encoding_is_a_function_of_its_input() -> None:
    update = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)
    settings = FixedPoint.for_cohort(3, 4.0, 1.0)
    assert np.array_equal(encode(update, 0.3, settings), encode(update, 0.3, settings))
