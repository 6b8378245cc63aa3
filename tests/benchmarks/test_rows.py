"""The rows of the table: what is in the file, and what may not be."""

from pathlib import Path

import pytest
from benchmarks.emulators.rows import ROWS, read_rows, select
from tests.benchmarks.inputs import write_rows

from offsite.emulator.methods.method import MethodName
from offsite.secure.errors import ConfigError

ROW = '[[row]]\nname = "a"\nmethod = "uniform_drop"\nratio = 0.5\n'


def test_every_method_is_in_the_table_and_the_reference_is_first() -> None:
    rows = read_rows(ROWS)
    assert {row.method for row in rows} == set(MethodName)
    assert rows[0].method is MethodName.UNIFORM_DROP and not rows[0].distil_steps
    assert any(row.method is MethodName.UNIFORM_DROP and row.distil_steps for row in rows)


def test_rows_that_differ_in_correction_alone_are_measured_together() -> None:
    rows = {row.name: row for row in read_rows(ROWS)}
    for name, row in rows.items():
        if row.correction:
            assert rows[name.removesuffix("-corrected")].identity == row.identity
    different = [row.identity for row in rows.values() if not row.correction]
    assert len(set(different)) == len(different)


def test_quick_is_a_few_rows_of_different_methods() -> None:
    quick = select(read_rows(ROWS), [], quick=True)
    assert 2 <= len(quick) <= 5
    assert len({row.method for row in quick}) == len(quick)


def test_rows_are_chosen_by_name_or_method() -> None:
    rows = read_rows(ROWS)
    assert {r.method for r in select(rows, ["gradient"], quick=False)} == {MethodName.GRADIENT}
    assert [r.name for r in select(rows, ["width-62"], quick=True)] == ["width-62"]
    with pytest.raises(ConfigError, match="magic"):
        select(rows, ["magic"], quick=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ROW + 'colour = "red"\n', "colour"),
        (ROW.replace("uniform_drop", "magic"), "magic"),
        (ROW + 'packing = "zip"\n', "zip"),
        (ROW + ROW, "twice"),
        ("title = 1\n" + ROW, "nothing else"),
        ("[[row]\n", "TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_rows(write_rows(tmp_path / "rows.toml", text))
