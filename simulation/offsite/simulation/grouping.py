"""What a row is counted as when data are divided by label or by length.

    label       the column `label`, else `gold`; where the data have neither, the first word that a
                row begins with (of its prompt, its text, or its first message)
    length      in which tenth of all rows it is, by its characters; ties are in one tenth
    any other   the column of that name

Rule: a column that some usable row lacks is an error that names the line: a row of no label is no
group."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from offsite.edge_client.data import ChatRow, Data, PairRow, Row
from offsite.edge_client.data_formats import Record, detect_format, read_records
from offsite.secure.errors import ConfigError

LABEL: Final = "label"
LENGTH: Final = "length"
LABEL_COLUMNS: Final = ("label", "gold")
TENTHS: Final = 10
LABEL_CHARS: Final = 200
"""What a person would call a label; more is a text in the wrong column."""


def groups_of(path: Path, data: Data, by: str) -> tuple[str, tuple[Hashable, ...]]:
    """What rows are divided by, in words, and the group of every row of `data`, read from `path`.

    Raises:
        ConfigError: a row has no such column, or what stands there is no label.
    """
    if by == LENGTH:
        return "tenths of their length", _tenths([len(_text(row)) for row in data.rows])
    columns = LABEL_COLUMNS if by == LABEL else (by,)
    records = {
        record.line: record.fields
        for record in read_records(path, detect_format(path), columns)
        if isinstance(record, Record)
    }
    fields = [records[row.line] for row in data.rows]
    for column in columns:
        if any(one.get(column) is not None for one in fields):
            found = tuple(
                _label(column, row.line, one) for row, one in zip(data.rows, fields, strict=True)
            )
            return f"the column {column}", found
    if by != LABEL:
        raise ConfigError(f"--by: expected a column of {path.name}, found none called {by[:80]!a}")
    return "their first word", tuple(_text(row).split()[0].casefold() for row in data.rows)


def _label(column: str, line: int, fields: Mapping[str, object]) -> Hashable:
    value = fields.get(column)
    if isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= LABEL_CHARS):
        return value
    raise ConfigError(
        f"line {line}: expected a label in `{column}`, a number or a few words, found "
        f"{'nothing' if value is None else type(value).__name__}"
    )


def _text(row: Row) -> str:
    """All that the row says, the given part first."""
    if isinstance(row, PairRow):
        return f"{row.prompt} {row.completion}"
    if isinstance(row, ChatRow):
        return " ".join(message.content for message in row.messages)
    return row.text


def _tenths(lengths: list[int]) -> tuple[Hashable, ...]:
    bounds = np.quantile(lengths, np.arange(1, TENTHS) / TENTHS)
    return tuple(map(int, np.searchsorted(bounds, lengths, side="right")))
