"""Sampling draw by draw: exact rates, the cap, and what is refused."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.secure.privacy.randomness.streams import Scripted, source

from offsite.secure.errors import ConfigError
from offsite.secure.privacy.randomness.poisson import PoissonSampler, TruncatedPoissonSampler

RATES = st.fractions(0, 1, max_denominator=10**30).filter(lambda rate: 0 < rate < 1)


def decided(rate: Fraction, *words: int) -> bool:
    """Whether one unit is in when its random number begins with these words."""
    stream = Scripted(*(np.array([word], np.uint64) for word in words))
    drawn = PoissonSampler(1, rate).draw(stream)
    assert not stream.answers, "words were left over"
    return len(drawn) == 1


@given(rate=RATES, second=st.integers(0, 2**64 - 1))
def test_the_rate_is_exact(rate: Fraction, second: int) -> None:
    """In exactly if the number read so far lies below q; equal words ask for the next ones.

    So the probability is floor(q 2^64) / 2^64 + 2^-64 · (that of the rest), which is q.
    """
    first = int(rate * 2**64)
    if first:
        assert decided(rate, first - 1)
    if first + 1 < 2**64:
        assert not decided(rate, first + 1)
    following = rate * 2**64 - first
    if following and second != int(following * 2**64):
        assert decided(rate, first, second) == (Fraction(second, 2**64) < following)


def test_a_rate_of_whole_words_asks_for_no_more() -> None:
    assert decided(Fraction(1, 2), 2**63 - 1)
    assert not decided(Fraction(1, 2), 2**63)


def test_rates_that_are_one_double_are_told_apart() -> None:
    close = Fraction(1, 3), Fraction(1, 3) + Fraction(1, 3**50)
    assert float(close[0]) == float(close[1])
    first, second = (int(close[0] * 2**bits) % 2**64 for bits in (64, 128))
    assert not decided(close[0], first, second + 1)
    assert decided(close[1], first, second + 1)


def test_a_rate_of_one_takes_all() -> None:
    assert PoissonSampler(5, Fraction(1)).draw(source("all").sampling()).tolist() == [0, 1, 2, 3, 4]


def test_a_batch_may_be_empty() -> None:
    drawn = PoissonSampler(5, Fraction(1, 10**9)).draw(source("empty").sampling())
    assert drawn.shape == (0,) and drawn.dtype == np.int64


def test_units_are_ascending_over_blocks() -> None:
    drawn = PoissonSampler(200_000, Fraction(1, 2)).draw(source("blocks").sampling())
    assert (np.diff(drawn) > 0).all() and 0 <= drawn[0] and drawn[-1] < 200_000
    assert len(np.unique(drawn // (1 << 16))) == 4


def test_a_cap_only_takes_away() -> None:
    rate, seen = Fraction(1, 4), set()
    for step in range(200):
        free = PoissonSampler(40, rate).draw(source("cap", step).sampling())
        capped = TruncatedPoissonSampler(40, rate, 10).draw(source("cap", step).sampling())
        assert (np.diff(capped) > 0).all() and set(capped) <= set(free)
        assert len(capped) == min(len(free), 10)
        seen.add(len(free) > 10)
    assert seen == {True, False}


def test_equal_words_are_drawn_again_for_a_subset() -> None:
    words = [np.array(column, np.uint64) for column in ([5, 5, 1], [3, 2, 1])]
    stream = Scripted(*words)
    assert TruncatedPoissonSampler(3, Fraction(1), 2).draw(stream).tolist() == [1, 2]
    assert not stream.answers


@pytest.mark.parametrize("rate", [Fraction(0), Fraction(-1, 2), Fraction(3, 2)])
def test_rates_outside_of_0_to_1_are_refused(rate: Fraction) -> None:
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        PoissonSampler(10, rate)


def test_a_rate_that_is_not_exact_is_refused() -> None:
    with pytest.raises(ConfigError, match="exact Fraction"):
        PoissonSampler(10, 0.1)  # type: ignore[arg-type]


def test_no_units_and_no_cap_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 unit"):
        PoissonSampler(0, Fraction(1, 2))
    with pytest.raises(ConfigError, match="cap"):
        TruncatedPoissonSampler(10, Fraction(1, 2), 0)
