"""Weather: by its seed, as often as it says, and in every phase."""

import math
from collections import Counter
from statistics import median

import pytest

from offsite.secure.errors import ConfigError
from offsite.simulation.weather import Moment, Weather

NAMES = [f"client-{i}" for i in range(2000)]


def test_as_many_leave_as_it_says_at_every_moment() -> None:
    weather = Weather(dropout=0.3, seed=1)
    left = [weather.leaves_at(name, 1, 1) for name in NAMES]
    counts = Counter(left)
    assert sum(moment is not None for moment in left) / len(left) == pytest.approx(0.3, abs=0.03)
    assert all(60 < counts[moment] < 140 for moment in Moment)


def test_who_has_left_stays_away_for_the_rest_of_the_attempt() -> None:
    weather = Weather(dropout=1.0, seed=2)
    for name in NAMES[:200]:
        answers = [weather.answers(name, 1, 1, moment) for moment in Moment]
        assert answers == sorted(answers, reverse=True) and not answers[-1]


def test_it_is_another_one_in_every_attempt_and_the_same_when_asked_again() -> None:
    weather = Weather(dropout=0.5, seed=3)
    of = {
        turn: [weather.leaves_at(name, *turn) for name in NAMES]
        for turn in [(1, 1), (1, 2), (2, 1)]
    }
    assert of[1, 1] != of[1, 2] and of[1, 1] != of[2, 1]
    assert of[1, 1] == [Weather(dropout=0.5, seed=3).leaves_at(name, 1, 1) for name in NAMES]
    assert of[1, 1] != [Weather(dropout=0.5, seed=4).leaves_at(name, 1, 1) for name in NAMES]


def test_stragglers_are_slow_machines() -> None:
    weather = Weather(stragglers=0.2, seed=5)
    slow = [weather.factor(name) for name in NAMES if weather.is_straggler(name)]
    usual = [weather.factor(name) for name in NAMES if not weather.is_straggler(name)]
    assert len(slow) / len(NAMES) == pytest.approx(0.2, abs=0.03)
    assert median(usual) == pytest.approx(1, rel=0.05) and median(slow) == pytest.approx(5, rel=0.1)
    assert all(math.isfinite(factor) and factor > 0 for factor in slow + usual)


def test_good_weather() -> None:
    weather = Weather()
    assert all(weather.leaves_at(name, 1, 1) is None for name in NAMES)
    assert not any(map(weather.is_straggler, NAMES))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_are_shares(share: float) -> None:
    with pytest.raises(ConfigError, match="--dropout"):
        Weather(dropout=share)
    with pytest.raises(ConfigError, match="--stragglers"):
        Weather(stragglers=share)
