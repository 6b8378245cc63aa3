"""Every row belongs to one unit, and a unit's rows are found together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offsite.secure.errors import ConfigError
from offsite.secure.privacy.randomness.unit_rows import UnitRows


def test_every_record_is_a_unit() -> None:
    units = UnitRows.of_records(3)
    assert units.count == 3
    assert [units.rows_of(unit).tolist() for unit in range(3)] == [[0], [1], [2]]


@given(st.lists(st.sampled_from(["ada", "ada ", "Ada", "grace", "1", "01"]), min_size=1))
def test_the_rows_of_a_person_are_one_unit(persons: list[str]) -> None:
    units, seen = UnitRows.of_persons(persons), list(dict.fromkeys(persons))
    assert units.count == len(seen)
    for unit, person in enumerate(seen):
        rows = [row for row, name in enumerate(persons) if name == person]
        assert np.array_equal(units.rows_of(unit), rows)


def test_a_row_that_names_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"found 2 rows without, the first is row 2"):
        UnitRows.of_persons(["ada", "", "grace", " \t"])


def test_no_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 row"):
        UnitRows.of_records(0)
    with pytest.raises(ConfigError, match="1 row"):
        UnitRows.of_persons([])
