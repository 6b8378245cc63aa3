"""Which rows belong to which unit: one row each, or all rows of one person.

Sampling, clipping and the guarantee are by unit. A unit is all or nothing: it is drawn as a whole,
its rows have one loss, and their gradient is clipped once. The person's name is a value of a column
and compared exactly, so two spellings are two persons; a row without a name is refused, since it
could be anybody's.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from offsite.secure.errors import ConfigError
from offsite.secure.privacy.randomness.poisson import Units


class UnitRows:
    """The rows of every unit; units count from 0 in the order in which they first appear."""

    def __init__(self, unit_of_row: Units, count: int) -> None:
        self.count = count
        self._rows = np.argsort(unit_of_row, kind="stable")
        self._starts = np.searchsorted(unit_of_row[self._rows], np.arange(count + 1))

    @classmethod
    def of_records(cls, rows: int) -> "UnitRows":
        """Every row is a unit of its own.

        Raises:
            ConfigError: no row.
        """
        _check_some(rows)
        return cls(np.arange(rows), rows)

    @classmethod
    def of_persons(cls, persons: Sequence[str]) -> "UnitRows":
        """Rows with the same person are one unit.

        Args:
            persons: the value of the column in every row.

        Raises:
            ConfigError: no row, or rows that name nobody.
        """
        _check_some(len(persons))
        nameless = [row for row, person in enumerate(persons) if not person.strip()]
        if nameless:
            raise ConfigError(
                f"expected a person in every row, found {len(nameless)} rows without, the first is "
                f"row {nameless[0] + 1}: fill the column in or remove these rows"
            )
        index: dict[str, int] = {}
        unit_of_row = [index.setdefault(person, len(index)) for person in persons]
        return cls(np.array(unit_of_row, np.int64), len(index))

    def rows_of(self, unit: int) -> NDArray[np.int64]:
        """The rows of one unit, ascending."""
        return self._rows[self._starts[unit] : self._starts[unit + 1]]


def _check_some(rows: int) -> None:
    if rows < 1:
        raise ConfigError("expected 1 row of data or more, found none")
