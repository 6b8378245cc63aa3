"""What rows are counted as when they are divided."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.tiny import write_jsonl

from offsite.edge_client.data import read_data
from offsite.secure.errors import ConfigError
from offsite.simulation.grouping import groups_of


def _groups(path: Path, by: str) -> tuple[str, tuple[object, ...]]:
    return groups_of(path, read_data(path), by)


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    return write_jsonl(path / "rows.jsonl", rows)


@pytest.mark.parametrize(
    ("column", "by"), [("label", "label"), ("gold", "label"), ("topic", "topic")]
)
def test_a_column_is_the_label(tmp_path: Path, column: str, by: str) -> None:
    path = _write(tmp_path, [{"text": f"Some text {i}.", column: i % 3} for i in range(6)])
    what, groups = _groups(path, by)
    assert what == f"the column {column}" and groups == (0, 1, 2, 0, 1, 2)


def test_a_column_of_parquet_is_found_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": ["One text.", "Another."], "topic": ["a", "b"], "more": [1, 2]})
    pq.write_table(table, path)
    assert _groups(path, "topic")[1] == ("a", "b")


def test_rows_that_are_not_usable_move_no_label(tmp_path: Path) -> None:
    rows = [
        {"text": "One.", "label": "a"},
        {"text": "", "label": "b"},
        {"text": "Two.", "label": "c"},
    ]
    assert _groups(_write(tmp_path, rows), "label")[1] == ("a", "c")


def test_without_a_column_the_first_word_is_the_label(tmp_path: Path) -> None:
    rows = [{"prompt": f"{w} is it?", "completion": "x"} for w in ("What", "which", "what")]
    what, groups = _groups(_write(tmp_path, rows), "label")
    assert what == "their first word" and groups == ("what", "which", "what")


def test_length_is_counted_in_tenths(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"text": "x" * (i + 1)} for i in range(100)])
    _, groups = _groups(path, "length")
    assert sorted({groups.count(tenth) for tenth in range(10)}) == [10]
    assert groups[0] == 0 and groups[-1] == 9


def test_rows_of_one_length_are_one_group(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"text": "same"}] * 20)
    assert len(set(_groups(path, "length")[1])) == 1


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"text": "One.", "label": 1}, {"text": "Two."}])
    with pytest.raises(ConfigError, match=r"line 2: expected a label in `label`.*found nothing"):
        _groups(path, "label")


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"expected a column of rows\.jsonl, found none called 'topic'"
    ):
        _groups(_write(tmp_path, [{"text": "One."}]), "topic")
