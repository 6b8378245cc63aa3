"""When a round may begin: inside windows of the day, and not too soon after the one before. UTC.

A window is "HH:MM-HH:MM", its end excluded; one that ends before it begins goes over midnight. What
has begun is let end, also past the end of its window: a window is about beginnings. Nothing is made
up for, so a coordinator that was down in the night starts no round in the morning.

Days of 86,400 s are counted from 1970-01-01, as Unix time does; leap seconds do not exist in it.
"""

import re
from dataclasses import dataclass
from typing import Final

from offsite.secure.errors import ConfigError

DAY_S: Final = 24 * 3600
_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|(24):(00))")


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds since midnight, UTC; `end_s` may be the next day's."""

    begin_s: int
    end_s: int

    @classmethod
    def parse(cls, text: str) -> "Window":
        """Raises ConfigError for what is no window."""
        found = _WINDOW.fullmatch(text)
        hours = [int(part) for part in found.groups() if part is not None] if found else []
        if not hours or hours[:2] == hours[2:]:
            raise ConfigError(f"expected HH:MM-HH:MM with two different times, found {text[:40]!a}")
        begin_s, end_s = 3600 * hours[0] + 60 * hours[1], 3600 * hours[2] + 60 * hours[3]
        return cls(begin_s, end_s if end_s > begin_s else end_s + DAY_S)

    def next_start(self, earliest_unix_s: float) -> float:
        """The first moment inside, from `earliest_unix_s` on."""
        midnight = earliest_unix_s // DAY_S * DAY_S
        for day in (midnight - DAY_S, midnight, midnight + DAY_S):
            if earliest_unix_s < day + self.end_s:
                return max(earliest_unix_s, day + self.begin_s)
        raise AssertionError("a window ends at most two days after the day before began")


@dataclass(frozen=True, slots=True)
class Schedule:
    """By default a round begins as soon as it can."""

    interval_s: float = 0.0
    """From the beginning of one round to that of the next, at least."""
    windows: tuple[Window, ...] = ()

    def next_start(self, last_begun_unix_s: float | None, now_unix_s: float) -> float:
        """When the next round may begin; not after `now_unix_s` means at once."""
        earliest = now_unix_s
        if last_begun_unix_s is not None:
            earliest = max(earliest, last_begun_unix_s + self.interval_s)
        return min((w.next_start(earliest) for w in self.windows), default=earliest)
