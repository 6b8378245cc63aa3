"""When a round may begin, against a minute-by-minute search of the days around."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offsite.coordinator.policy.schedule import DAY_S, Schedule, Window
from offsite.secure.errors import ConfigError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


def _at(text: str, day: int = 1) -> float:
    hours, minutes = map(int, text.split(":"))
    return datetime(2026, 3, day, hours, minutes, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("window", "now", "expected"),
    [
        ("22:00-05:00", _at("12:00"), _at("22:00")),
        ("22:00-05:00", _at("22:00"), _at("22:00")),
        ("22:00-05:00", _at("23:59"), _at("23:59")),
        ("22:00-05:00", _at("04:59", day=2), _at("04:59", day=2)),
        ("22:00-05:00", _at("05:00", day=2), _at("22:00", day=2)),
        ("08:00-09:00", _at("09:00"), _at("08:00", day=2)),
        ("00:00-24:00", _at("13:37"), _at("13:37")),
        ("12:00-24:00", _at("00:00"), _at("12:00")),
    ],
)
def test_a_round_begins_inside_a_window(window: str, now: float, expected: float) -> None:
    assert Schedule(windows=(Window.parse(window),)).next_start(None, now) == expected


def test_without_windows_and_interval_a_round_begins_at_once() -> None:
    assert Schedule().next_start(NOON - 1, NOON) == NOON


def test_the_interval_counts_from_the_beginning_of_the_round_before() -> None:
    schedule = Schedule(interval_s=3600)
    assert schedule.next_start(NOON - 1800, NOON) == NOON + 1800
    assert schedule.next_start(NOON - 3601, NOON) == NOON
    assert schedule.next_start(None, NOON) == NOON


def test_an_interval_that_ends_outside_waits_for_the_next_window() -> None:
    schedule = Schedule(23 * 3600, (Window.parse("22:00-05:00"),))
    assert schedule.next_start(_at("22:00"), _at("22:30")) == _at("22:00", day=2)
    assert schedule.next_start(_at("04:00", day=2), _at("06:00", day=2)) == _at("03:00", day=3)


@given(
    windows=st.lists(
        st.tuples(st.integers(0, 1439), st.integers(0, 1439)).filter(lambda w: w[0] != w[1]),
        max_size=3,
    ),
    now_minutes=st.integers(0, 2 * 1440),
)
def test_it_is_the_first_minute_that_is_inside(
    windows: list[tuple[int, int]], now_minutes: int
) -> None:
    def inside(minute: int) -> bool:
        of_day = minute % 1440
        return not windows or any(
            begin <= of_day < end if begin < end else of_day >= begin or of_day < end
            for begin, end in windows
        )

    texts = [f"{b // 60:02}:{b % 60:02}-{e // 60:02}:{e % 60:02}" for b, e in windows]
    schedule = Schedule(windows=tuple(map(Window.parse, texts)))
    expected = next(m for m in range(now_minutes, now_minutes + 3 * 1440) if inside(m))
    midnight = NOON // DAY_S * DAY_S
    found = schedule.next_start(None, midnight + 60 * now_minutes)
    assert found == midnight + 60 * expected


@pytest.mark.parametrize(
    "text",
    [
        "22:00",
        "22-05",
        "24:00-05:00",
        "22:60-05:00",
        "22:00-22:00",
        "22:00-05:00 ",
        "22:00-24:01",
        "",
    ],
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="HH:MM-HH:MM"):
        Window.parse(text)
