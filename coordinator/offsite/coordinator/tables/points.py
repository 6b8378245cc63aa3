"""What `emulate --auto` has measured: one row for each measurement, kept for ever.

A measurement is known by the full model (fingerprint), by what was measured (stage and settings of
the emulator, canonical JSON), by how (`measured_with`: digest of the texts, questions and recipes)
and by its seed. Whoever asks for the same gets the row and measures nothing.

What has begun and has not ended with a row is an attempt: with a reason where the measurement
failed, without one where the program was gone before it ended.

Rule: the first row of a measurement stays; a second one is not written over it.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from offsite.coordinator.tables.database import Database


class Stage(StrEnum):
    """What a measurement costs and says."""

    BOUND = "bound"
    """The adapter tuned on the full model: what no emulator is expected to surpass."""
    QUICK = "quick"
    """Build, fidelity and zero-shot."""
    FULL = "full"
    """The adapter tuned on the emulator, its plug-in, and healing."""


@dataclass(frozen=True, slots=True)
class PointKey:
    """What makes two measurements the same."""

    base_fingerprint: str
    measured_with: str
    stage: Stage
    settings: str
    seed: int


@dataclass(frozen=True, slots=True)
class PointRow:
    """A measurement; where the settings cannot be built, `refused` says why and figures are none."""

    key: PointKey
    figures: Mapping[str, float]
    refused: str
    seconds: float
    measured_unix_s: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """A measurement that has begun and gave no row."""

    key: PointKey
    failure: str
    """Empty while it runs, and for ever if the program ends meanwhile."""
    seconds: float
    begun_unix_s: float


class PointTable:
    """Rows of `search_points` and `search_attempts`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: PointRow) -> None:
        """A measurement that has ended; its attempt goes with it."""
        figures = json.dumps(dict(row.figures), sort_keys=True, allow_nan=False)
        with self._database.transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO search_points VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *_values(row.key),
                figures,
                row.refused,
                row.seconds,
                row.measured_unix_s,
            )
            self.forget(row.key)

    def get(self, key: PointKey) -> PointRow | None:
        row = self._database.row(f"SELECT * FROM search_points WHERE {_IS_KEY}", *_values(key))
        return None if row is None else _point(row)

    def begin(self, key: PointKey, now_unix_s: float) -> None:
        """Written before a measurement begins."""
        self._database.execute(
            "INSERT OR REPLACE INTO search_attempts VALUES (?, ?, ?, ?, ?, '', 0, ?)",
            *_values(key),
            now_unix_s,
        )

    def fail(self, key: PointKey, failure: str, seconds: float) -> None:
        """What has begun ended without a row."""
        self._database.execute(
            f"UPDATE search_attempts SET failure = ?, seconds = ? WHERE {_IS_KEY}",
            failure,
            seconds,
            *_values(key),
        )

    def forget(self, key: PointKey) -> None:
        """The attempt never was."""
        self._database.execute(f"DELETE FROM search_attempts WHERE {_IS_KEY}", *_values(key))

    def attempt(self, key: PointKey) -> Attempt | None:
        """What has begun and gave no row."""
        row = self._database.row(f"SELECT * FROM search_attempts WHERE {_IS_KEY}", *_values(key))
        if row is None:
            return None
        return Attempt(key, row["failure"], row["seconds"], row["begun_unix_s"])

    def all(self) -> list[PointRow]:
        """Every measurement of this coordinator, oldest first."""
        rows = self._database.rows("SELECT * FROM search_points ORDER BY measured_unix_s, rowid")
        return [_point(row) for row in rows]


_IS_KEY = "base_fingerprint = ? AND measured_with = ? AND stage = ? AND settings = ? AND seed = ?"


def _values(key: PointKey) -> tuple[str, str, str, str, int]:
    return (key.base_fingerprint, key.measured_with, key.stage.value, key.settings, key.seed)


def _point(row: sqlite3.Row) -> PointRow:
    key = PointKey(
        base_fingerprint=row["base_fingerprint"],
        measured_with=row["measured_with"],
        stage=Stage(row["stage"]),
        settings=row["settings"],
        seed=row["seed"],
    )
    return PointRow(
        key=key,
        figures=json.loads(row["figures"]),
        refused=row["refused"],
        seconds=row["seconds"],
        measured_unix_s=row["measured_unix_s"],
    )
