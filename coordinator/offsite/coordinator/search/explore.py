"""The search: cheap measurements of everything, expensive ones of what is left, until time is up.

(1) what is known: rows of the same model, settings, way of measuring and seed are not measured again
(2) quick: every candidate is built; fidelity, zero-shot, size
(3) what breaks a limit already, or is dominated by another, is left
(4) bound: the adapter tuned on the full model, once for each placement of what is left
(5) full: the adapter tuned on the emulator, its plug-in, and healing

Notable decisions: the compute budget counts the seconds of every measurement of this search, those
of earlier runs too, so a run that was killed goes on with what is left, and one that is run again
measures nothing; quick measurements may spend half of it, whatever the others took. A measurement
that has begun is ended. One that fails, or takes the program down with it, costs its candidate
alone: the next run names it and passes it by, unless it is told to try again.

Rule: a row is written before the next measurement begins, and an attempt before each begins.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Protocol

from offsite.coordinator.config_release import EmulatorSection
from offsite.coordinator.search.candidates import bound_of, key_of, label_of
from offsite.coordinator.search.frontier import FULL, QUICK, Breach, breaches, frontier
from offsite.coordinator.tables.points import Attempt, PointKey, PointRow, PointTable, Stage
from offsite.secure.errors import ConfigError

QUICK_SHARE = 0.5
"""Of the compute budget, for quick measurements."""
MAX_REASON_CHARS = 300


class Measurer(Protocol):
    """Builds an emulator and measures it."""

    def prepare(self) -> None:
        """Called once, before the first measurement.

        Raises:
            ConfigError: nothing could be judged; the search ends.
        """

    def measure(self, stage: Stage, section: EmulatorSection) -> dict[str, float]:
        """The figures of a stage.

        Raises:
            ConfigError: these settings cannot be built of this model.
        """


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched, how it is measured and where it is written."""

    candidates: Sequence[EmulatorSection]
    limits: Mapping[str, float]
    compute_s: float
    base_fingerprint: str
    measured_with: str
    seed: int
    measurer: Measurer
    points: PointTable
    note: Callable[[str], None]
    tries_again: bool = False
    """Whether what failed or was not ended before is measured after all."""
    clock: Callable[[], float] = time.monotonic

    def key(self, stage: Stage, section: EmulatorSection) -> PointKey:
        return PointKey(
            self.base_fingerprint, self.measured_with, stage, key_of(section), self.seed
        )


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate with everything that was measured of it."""

    section: EmulatorSection
    figures: Mapping[str, float]
    refused: str
    is_full: bool
    broken: tuple[Breach, ...]

    @property
    def label(self) -> str:
        return label_of(self.section)

    @property
    def qualifies(self) -> bool:
        """Whether it was measured in full and keeps every limit."""
        return self.is_full and not self.broken


@dataclass(frozen=True, slots=True)
class Outcome:
    """All points, and what of them is worth a look."""

    points: tuple[Point, ...]
    bound: float | None
    """Accuracy of the best adapter that was tuned on the full model."""
    spent_s: float
    left_out: int
    """Measurements for which there was no time."""

    @property
    def full(self) -> list[Point]:
        return [point for point in self.points if point.is_full]

    @property
    def frontier(self) -> list[Point]:
        """Of the points within the limits; the best plug-in first."""
        found = frontier([p for p in self.full if p.qualifies], lambda p: p.figures, FULL)
        return sorted(found, key=_rank)

    @property
    def best(self) -> Point | None:
        """The best plug-in within the limits; of equal ones that which leaks less, then smaller."""
        return next(iter(self.frontier), None)

    @property
    def closest(self) -> Point | None:
        """Of the points that break a limit, the one that breaks it by the least.

        One that was measured in full, if any was: others may break more than is known.
        """
        broken = [point for point in self.full if point.broken]
        broken = broken or [point for point in self.points if point.broken]
        return min(broken, key=lambda p: max(b.excess for b in p.broken), default=None)


def explore(search: Search) -> Outcome:
    """Measure until all is known or the time is up."""
    # (1) What is known; the seconds it took count.
    run = _Run(search)
    # (2) Everything quickly.
    quick = run.measure_all(Stage.QUICK, search.candidates)
    # (3) What is left of it.
    promising = _promising(search, quick)
    search.note(f"{len(promising)} of {len(search.candidates)} are worth measuring in full")
    # (4) What the adapter gives on the full model.
    bounds = {key_of(bound): bound for bound in map(bound_of, promising)}
    bound = run.measure_all(Stage.BOUND, list(bounds.values()))
    # (5) The rest.
    full = run.measure_all(Stage.FULL, promising)
    best_bound = max((row.figures["tuned_acc"] for row in _made(bound.values())), default=None)
    points = [
        _point(search, section, quick.get(key_of(section)), full.get(key_of(section)))
        for section in search.candidates
    ]
    return Outcome(tuple(points), best_bound, run.spent_s, run.left_out)


class _Run:
    """The seconds spent, and the measurements by way of the database."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._is_prepared = False
        self._spent_s = dict.fromkeys(Stage, 0.0)
        self.left_out = 0
        keys = [
            search.key(stage, s) for s in search.candidates for stage in (Stage.QUICK, Stage.FULL)
        ]
        bounds = {search.key(Stage.BOUND, bound_of(s)) for s in search.candidates}
        known = [row for key in (*keys, *bounds) if (row := self._known(key)) is not None]
        for row in known:
            self._spent_s[row.key.stage] += row.seconds
        if known:
            search.note(f"{len(known)} measurements are known, which took {self.spent_s:.0f} s")

    @property
    def spent_s(self) -> float:
        """On all stages."""
        return sum(self._spent_s.values())

    def measure_all(self, stage: Stage, sections: Sequence[EmulatorSection]) -> dict[str, PointRow]:
        """Rows by settings: those known, and new ones while there is time."""
        rows: dict[str, PointRow] = {}
        for number, section in enumerate(sections, start=1):
            key = self._search.key(stage, section)
            row = self._known(key)
            if row is None:
                if not self._has_time(stage):
                    self.left_out += 1
                    continue
                self._search.note(f"{stage} {number} of {len(sections)}: {label_of(section)}")
                row = self._measure(key, section)
            elif self._search.points.get(key) is None:
                self._search.note(f"passed by: {stage} of {label_of(section)}: {row.refused}")
            rows[key.settings] = row
        return rows

    def _has_time(self, stage: Stage) -> bool:
        compute_s = self._search.compute_s
        if stage is Stage.QUICK and self._spent_s[stage] >= QUICK_SHARE * compute_s:
            return False
        return self.spent_s < compute_s

    def _known(self, key: PointKey) -> PointRow | None:
        """A row; of what failed before, one that says so and that is in no table."""
        points = self._search.points
        row = points.get(key)
        if row is not None or self._search.tries_again:
            return row
        attempt = points.attempt(key)
        return None if attempt is None else _passed_by(attempt)

    def _measure(self, key: PointKey, section: EmulatorSection) -> PointRow:
        search, points = self._search, self._search.points
        if not self._is_prepared:
            search.measurer.prepare()
            self._is_prepared = True
        points.begin(key, time.time())
        started = search.clock()
        refused, failure = "", ""
        figures: Mapping[str, float] = {}
        try:
            figures = search.measurer.measure(key.stage, section)
        except ConfigError as error:
            refused = str(error)
        except Exception as error:  # noqa: BLE001 - the others are measured, whatever one does
            failure = _line_of(error)
        except BaseException:  # whoever stops the search blames no candidate
            points.forget(key)
            raise
        seconds, now = search.clock() - started, time.time()
        self._spent_s[key.stage] += seconds
        if refused or failure:
            search.note(f"{label_of(section)}: {refused or failure}")
        if failure:
            points.fail(key, failure, seconds)
            return _passed_by(Attempt(key, failure, seconds, now))
        points.add(PointRow(key, figures, refused, seconds, now))
        written = points.get(key)
        assert written is not None
        return written


def _line_of(error: Exception) -> str:
    """Its type and the first line of what it says, not too long for a table."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *(line[:MAX_REASON_CHARS] for line in lines[:1])])


def _passed_by(attempt: Attempt) -> PointRow:
    """The row of what failed: measured again only by who asks for it."""
    if attempt.failure:
        why = f"failed: {attempt.failure}"
    else:
        began = datetime.fromtimestamp(attempt.begun_unix_s, UTC).isoformat(" ", "seconds")
        why = f"the program ended while it was measured (from {began})"
    again = f"{why}; search.try_again = true measures it again"
    return PointRow(attempt.key, {}, again, attempt.seconds, attempt.begun_unix_s)


def _made(rows: Iterable[PointRow]) -> list[PointRow]:
    return [row for row in rows if not row.refused]


def _promising(search: Search, quick: Mapping[str, PointRow]) -> list[EmulatorSection]:
    """Within the limits so far and not dominated; every method in turn, nearest emulator first."""
    within = {
        row.key.settings: row
        for row in _made(quick.values())
        if not breaches(row.figures, search.limits)
    }
    kept = {row.key.settings for row in frontier(list(within.values()), lambda r: r.figures, QUICK)}
    sections = [section for section in search.candidates if key_of(section) in kept]
    by_method: dict[str, list[EmulatorSection]] = {}
    for section in sorted(
        sections, key=lambda s: within[key_of(s)].figures.get("perplexity", math.inf)
    ):
        by_method.setdefault(section.method.value, []).append(section)
    turns = zip_longest(*by_method.values())
    return [section for turn in turns for section in turn if section is not None]


def _point(
    search: Search, section: EmulatorSection, quick: PointRow | None, full: PointRow | None
) -> Point:
    rows = [row for row in (quick, full) if row is not None]
    figures = {name: value for row in rows for name, value in row.figures.items()}
    refused = next((row.refused for row in rows if row.refused), "")
    is_full = full is not None and not full.refused
    broken = breaches(figures, search.limits)
    if is_full:  # a limit on what means nothing here is not kept: nobody could say that it is
        missing = {name: limit for name, limit in search.limits.items() if name not in figures}
        broken += tuple(Breach(name, math.inf, limit) for name, limit in missing.items())
    return Point(section, figures, refused, is_full, broken)


def _rank(point: Point) -> tuple[float, ...]:
    return tuple(-objective.of(point.figures) for objective in FULL)
