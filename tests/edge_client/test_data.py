"""Reading the data owner's file: every row is kept, or counted with its line and the reason."""

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offsite.edge_client import data_formats
from offsite.edge_client.data import (
    PROBLEMS_LISTED,
    ChatMessage,
    ChatRow,
    Data,
    Layout,
    PairRow,
    TextRow,
    read_data,
)
from offsite.edge_client.data_formats import Format
from offsite.secure.errors import ConfigError

PAIRS = [{"prompt": f"Question {i}", "completion": f"answer {i}"} for i in range(3)]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
Writer = Callable[[Path, list[dict[str, str]]], None]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_gzip(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, str]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def read_bytes(tmp_path: Path, content: bytes, name: str = "data.jsonl") -> Data:
    path = tmp_path / name
    path.write_bytes(content)
    return read_data(path)


def problems_of(data: Data) -> list[tuple[int, str]]:
    return [(problem.line, problem.reason) for problem in data.report.problems]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows", "rows.txt.gz"])
@pytest.mark.parametrize(
    ("write", "file_format"),
    [
        (write_jsonl, Format.JSONL),
        (write_gzip, Format.JSONL),
        (write_csv, Format.CSV),
        (write_parquet, Format.PARQUET),
    ],
)
def test_the_content_decides_the_format(
    tmp_path: Path, name: str, write: Writer, file_format: Format
) -> None:
    write(tmp_path / name, PAIRS)
    data = read_data(tmp_path / name)
    assert data.report.file_format is file_format
    assert data.report.layout is Layout.PAIR
    assert [(row.prompt, row.completion) for row in data.rows if isinstance(row, PairRow)] == [
        (pair["prompt"], pair["completion"]) for pair in PAIRS
    ]
    assert (data.report.rows_read, data.report.rows_kept, data.report.rows_unusable) == (3, 3, 0)


def test_every_bad_row_is_reported_by_line_and_reason(tmp_path: Path) -> None:
    good = b'{"prompt": "p", "completion": "c"}\n'
    bad = [
        (b"not json\n", "not JSON: Expecting value at character 1"),
        (b'{"prompt": "p", "completion": "\xff"}\n', "not UTF-8 (byte 32)"),
        (b'["p", "c"]\n', "expected a JSON object, found list"),
        (b'{"prompt": "p", "completion": null}\n', "completion is null"),
        (b'{"prompt": 7, "completion": "c"}\n', "prompt is of type int, expected a string"),
        (b'{"prompt": "p", "completion": " \\n"}\n', "completion is empty"),
        (b'{"prompt": "p"}\n', "expected `prompt` and `completion`, found `prompt`"),
        (b"{}\n", "expected `prompt` and `completion`, found nothing"),
        (
            b'{"prompt": "p", "completion": "\\ud800"}\n',
            "completion holds half of a surrogate pair, which is no text",
        ),
        (b'{"prompt": "p", "completion": "c"\n', "not JSON: Expecting ',' delimiter at character"),
        (b"[" * 200_000 + b"\n", "not JSON that can be read: RecursionError"),
        (b'{"prompt": ' + b"9" * 5000 + b"}\n", "not JSON that can be read: ValueError"),
    ]
    data = read_bytes(tmp_path, good + b"\n" + b"".join(line for line, _ in bad) + good)
    found = problems_of(data)
    assert [line for line, _ in found] == list(range(3, 3 + len(bad)))  # line 2 is blank
    for (_, reason), (_, expected) in zip(found, bad, strict=True):
        assert reason.startswith(expected)
    report = data.report
    assert report.rows_read == report.rows_kept + report.rows_unusable == 2 + len(bad)
    assert [row.line for row in data.rows] == [1, 3 + len(bad)]
    assert "line 3: not JSON" in "\n".join(report.lines())


def test_all_problems_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    content = b'{"text": "good"}\n' + b'{"text": ""}\n' * (PROBLEMS_LISTED + 50)
    report = read_bytes(tmp_path, content).report
    assert report.rows_unusable == PROBLEMS_LISTED + 50
    assert len(report.problems) == PROBLEMS_LISTED
    assert report.lines()[-1] == "and 50 more"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b'{"text": ""}\n{"text": null}\n', "found 2 rows and none that is usable"),
        (b"{broken\n{broken\n", "found 2 rows and none that is usable"),
        (b'{"question": "q"}\n', "none that is usable (line 1: expected `text`"),
        (b'[{"text": "a"},\n {"text": "b"}]', "found a JSON array"),
        ('{"text": "a"}'.encode("utf-16"), "expected UTF-8 text, found UTF-16"),
        (b"PAR1 but not really", "cut or damaged"),
        (gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0)[:-20], "cut or damaged"),
        (b"\x00\x01\x02", "expected JSON lines, a CSV header"),
        (b"text,text\na,b\n", "a column name stands twice"),
        (b"text\n", "found 0 rows and none that is usable"),
    ],
)
def test_an_empty_or_malformed_file_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_bytes(tmp_path, content, "data.bin")
    assert found in str(refusal.value)
    assert "data.bin" in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.jsonl: cannot be read: No such file"):
        read_data(tmp_path / "gone.jsonl")


def test_mixed_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found `text` at line 1 and `prompt` and .* at line 2"):
        read_bytes(tmp_path, b'{"text": "a"}\n{"prompt": "p", "completion": "c"}\n')


def test_columns_of_two_layouts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "t", "prompt": "p", "completion": "c"}))
    with pytest.raises(ConfigError, match=r"more than one layout .*; leave only the columns"):
        read_data(path)


def test_columns_that_are_null_do_not_choose_the_layout(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(
        pa.table(
            {"text": pa.nulls(2, pa.string()), "prompt": ["p", "q"], "completion": ["c", None]}
        ),
        path,
    )
    data = read_data(path)
    assert data.rows == (PairRow(1, "p", "c"),)
    assert data.report.rows_unusable == 1


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    jsonl = read_bytes(tmp_path, b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n{"text": "c"}\r\n')
    assert jsonl.rows == (TextRow(1, "a\r\nb"), TextRow(2, "c"))
    text = b"\xef\xbb\xbftext,other\r\na,1\r\nb,2\r\n"
    assert read_bytes(tmp_path, text).rows == (TextRow(2, "a"), TextRow(3, "b"))


def test_a_huge_line_is_read_and_one_above_the_limit_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = b'{"text": "%s"}\n' % (b"x" * 300_000)
    assert read_bytes(tmp_path, huge).rows == (TextRow(1, "x" * 300_000),)
    assert (
        read_bytes(tmp_path, b"text\n" + b"x" * 300_000 + b"\nb\n", "a.csv").report.rows_kept == 2
    )
    monkeypatch.setattr(data_formats, "ROW_BYTES", 1000)
    data = read_bytes(tmp_path, huge + b'{"text": "a"}\n')
    assert problems_of(data) == [(1, "longer than 0 MiB")]
    assert data.rows == (TextRow(2, "a"),)
    data = read_bytes(tmp_path, b"text,b\n" + b"x" * 300_000 + b",1\na,2\n", "a.csv")
    assert problems_of(data) == [(2, "longer than 0 MiB")]
    assert data.rows == (TextRow(3, "a"),)


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    lines = [
        b'prompt,completion,"note"',
        b'"two',
        b'lines",c,',
        b"p,c",
        b"p,\xff,",
        b",c,",
        b'"p"x,c,',
        b"",
        b"p,c,n",
        b'"never closed,c,n',
    ]
    data = read_bytes(tmp_path, b"\n".join(lines) + b"\n", "a.csv")
    assert data.rows == (PairRow(2, "two\nlines", "c"), PairRow(9, "p", "c"))
    assert problems_of(data) == [
        (4, "expected 3 fields, found 2"),
        (5, "not UTF-8"),
        (6, "prompt is empty"),
        (7, "not CSV: ',' expected after '\"'"),
        (10, "not CSV: unexpected end of data"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_of_csv(tmp_path: Path, delimiter: str) -> None:
    text = f"\nprompt{delimiter} completion\np{delimiter}c\n"
    assert read_bytes(tmp_path, text.encode(), "a.csv").rows == (PairRow(3, "p", "c"),)


def test_reading_csv_leaves_the_limit_of_the_process(tmp_path: Path) -> None:
    before = csv.field_size_limit(12_345)
    try:
        read_bytes(tmp_path, b"text\na\n", "a.csv")
        assert csv.field_size_limit() == 12_345
    finally:
        csv.field_size_limit(before)


def test_messages_in_every_format(tmp_path: Path) -> None:
    wanted = tuple(ChatMessage(turn["role"], turn["content"]) for turn in TURNS)
    write_jsonl(tmp_path / "a", [{"messages": TURNS}])  # type: ignore[dict-item]
    write_csv(tmp_path / "b", [{"id": "1", "messages": json.dumps(TURNS)}])
    write_parquet(tmp_path / "c", [{"messages": TURNS}])  # type: ignore[dict-item]
    for name, line in (("a", 1), ("b", 2), ("c", 1)):
        assert read_data(tmp_path / name).rows == (ChatRow(line, wanted),)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "messages is null, expected a list of role and content"),
        ("[", "messages is a string but not JSON"),
        ([], "messages has no turn of the role `assistant` to learn from"),
        (TURNS[:1], "messages has no turn of the role `assistant` to learn from"),
        (["Hi"], "message 1 is str, expected an object"),
        ([{"role": "assistant", "content": None}], "the content of message 1 is null"),
        ([{"content": "Hi"}], "the role of message 1 is null"),
        ([*TURNS, {"role": "user", "content": ["a"]}], "the content of message 3 is of type list"),
    ],
)
def test_bad_messages(tmp_path: Path, messages: object, reason: str) -> None:
    lines = [json.dumps({"messages": value}) for value in (TURNS, messages)]
    data = read_bytes(tmp_path, "\n".join(lines).encode())
    ((line, found),) = problems_of(data)
    assert line == 2
    assert found.startswith(reason)


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    strings = pa.array([b"a", b"\xff", None, b""], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    data = read_data(tmp_path / "a.parquet")
    assert data.rows == (TextRow(1, "a"),)
    assert problems_of(data) == [(2, "not UTF-8"), (3, "text is null"), (4, "text is empty")]
    assert "row 2: not UTF-8" in data.report.lines()
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"found \['question'\]"):
        read_data(tmp_path / "b.parquet")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.jsonl")
    with pytest.raises(ConfigError, match="a pipe"):
        read_data(tmp_path / "data.jsonl")


def test_persons_are_read_from_parquet_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_parquet(path, [{"text": "One.", "patient": "a"}, {"text": "Two.", "patient": "b"}])
    assert read_data(path, "patient").persons == ("a", "b")


def test_a_row_that_names_no_person_is_unusable_where_persons_count(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [
        {"text": "a", "patient": "p1"},
        {"text": "b", "patient": 2},
        {"text": "c"},
        {"text": "d", "patient": " "},
        {"text": "e", "patient": ["p1"]},
        {"patient": "p3"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_data(path, "patient")
    assert data.persons == ("p1", "2") and [row.line for row in data.rows] == [1, 2]
    assert [problem.line for problem in data.report.problems] == [3, 4, 5, 6]
    assert "`patient` names no person" in data.report.problems[0].reason
    assert read_data(path).persons is None and len(read_data(path).rows) == 5
