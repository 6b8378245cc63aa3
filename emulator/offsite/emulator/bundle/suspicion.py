"""The outcome of a check against a hostile release: a figure beside the limit for it.

A finding is a warning, not a refusal: the figures have honest explanations too, and a release that
passes is not proven harmless (`docs/hostile-release.md`). The person at the edge decides.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from offsite.emulator.strict_json import JsonObject


class Verdict(Enum):
    """How a check against a hostile release ended."""

    CLEAR = "clear"
    FINDING = "finding"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True)
class Suspect:
    """One thing that is looked for, and what to do when it is found."""

    name: str
    looks_for: str
    advice: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured at one place; up to `limit` it is sane."""

    figure: float
    limit: float
    what: str  # the figure in words, with its place

    @property
    def excess(self) -> float:
        """The figure in units of its limit; a limit of 0 allows nothing."""
        if self.limit == 0:
            return 2.0 if self.figure > 0 else 0.0
        return self.figure / self.limit


@dataclass(frozen=True, slots=True)
class HostileCheck:
    """One check that was run: the reading that is furthest out, or why there is none."""

    suspect: Suspect
    verdict: Verdict
    worst: Reading | None
    places: int  # readings beyond their limit
    reason: str = ""  # for a check that could not judge

    @property
    def warning(self) -> str:
        """A finding in one line."""
        if self.worst is None:
            return f"{self.suspect.name}: {self.reason}"
        more = f" (and {self.places - 1} more)" if self.places > 1 else ""
        limit = f"; sane is at most {number(self.worst.limit)}"
        return f"{self.suspect.name}: {self.worst.what}{more}{limit}. {self.suspect.advice}"

    def to_json(self) -> JsonObject:
        """The check as a JSON object."""
        worst = self.worst
        return {
            "name": self.suspect.name,
            "looks_for": self.suspect.looks_for,
            "outcome": self.verdict.value,
            "figure": None if worst is None else float(f"{worst.figure:.4g}"),
            "limit": None if worst is None else worst.limit,
            "detail": self.reason if worst is None else worst.what,
            "places": self.places,
            "advice": self.suspect.advice if self.verdict is Verdict.FINDING else "",
        }


def judge(suspect: Suspect, readings: Iterable[Reading], reason: str = "") -> HostileCheck:
    """A finding when any reading is beyond its limit; without readings, `reason` says why."""
    found = list(readings)
    if not found:
        return HostileCheck(suspect, Verdict.NOT_JUDGED, None, 0, reason)
    beyond = sum(reading.excess > 1 for reading in found)
    verdict = Verdict.FINDING if beyond else Verdict.CLEAR
    return HostileCheck(suspect, verdict, max(found, key=lambda r: r.excess), beyond)


def number(value: float) -> str:
    """A figure for a person: three significant digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
