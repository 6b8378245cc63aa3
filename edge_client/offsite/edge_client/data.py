"""The data owner's examples: rows of text, of prompt and completion, or of chat messages.

Notable decisions:

* The columns decide the layout. A file holds one layout; a row of another is an error that
  names both lines, because a mixture is nearly always a mistake in how the file was made.
* No row vanishes: each is kept, or counted in the `DataReport` with its line and the reason.
* A file without a single usable row is an error.
* Where a column names the person that a row is about (the unit that privacy is accounted for), a
  row that names nobody is unusable: it would be protected as nobody's.

The rules of reading bytes and formats are in `data_formats`.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from offsite.edge_client.data_formats import (
    Format,
    Record,
    Unreadable,
    detect_format,
    read_records,
)
from offsite.secure.errors import ConfigError

PROBLEMS_LISTED = 100
ASSISTANT = "assistant"


class Layout(Enum):
    """Which columns a file has; the value is their names."""

    TEXT = ("text",)
    PAIR = ("prompt", "completion")
    CHAT = ("messages",)

    def __str__(self) -> str:
        return " and ".join(f"`{name}`" for name in self.value)


@dataclass(frozen=True, slots=True)
class TextRow:
    """Plain text; every token of it is learnt."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class PairRow:
    """A prompt, which is given, and its completion, which is learnt."""

    line: int
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation; the assistant's turns are learnt."""

    line: int
    messages: tuple[ChatMessage, ...]


Row = TextRow | PairRow | ChatRow


@dataclass(frozen=True, slots=True)
class RowProblem:
    """Why a row is not used; ``line`` counts from 1."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of every row of a file. ``rows_read`` = ``rows_kept`` + ``rows_unusable``.

    ``problems`` lists the first `PROBLEMS_LISTED`. The counts of the last line are 0 until the
    rows were encoded: ``examples`` differs from ``rows_kept`` where texts were split.
    """

    source: str
    file_format: Format
    layout: Layout
    rows_read: int
    rows_kept: int
    rows_unusable: int
    problems: tuple[RowProblem, ...]
    examples: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    truncated_rows: int = 0
    split_rows: int = 0

    def lines(self) -> list[str]:
        """Return the report as text for a person, the summary first."""
        counts = f"{self.rows_read} rows, {self.rows_kept} kept, {self.rows_unusable} unusable"
        lines = [f"{self.source}: {counts} ({self.layout})"]
        if self.truncated_rows:
            lines.append(f"{self.truncated_rows} rows are longer than the limit and were cut")
        if self.split_rows:
            lines.append(f"{self.split_rows} texts are longer than the limit and were split")
        unit = "row" if self.file_format is Format.PARQUET else "line"
        lines += [f"{unit} {problem.line}: {problem.reason}" for problem in self.problems]
        if self.rows_unusable > len(self.problems):
            lines.append(f"and {self.rows_unusable - len(self.problems)} more")
        return lines


@dataclass(frozen=True, slots=True)
class Data:
    """The usable rows of one file, all of one layout, in order."""

    rows: tuple[Row, ...]
    report: DataReport
    persons: tuple[str, ...] | None = None
    """Whom each row is about, where a column says so."""

    @property
    def unit_count(self) -> int:
        """What privacy counts: rows, or persons where a column names them."""
        return len(self.rows if self.persons is None else set(self.persons))


@dataclass(slots=True)
class Problems:
    """Counts every problem and remembers the first few."""

    count: int = 0
    listed: list[RowProblem] = field(default_factory=list)

    def add(self, line: int, reason: str) -> None:
        """Count one unusable row."""
        self.count += 1
        if len(self.listed) < PROBLEMS_LISTED:
            self.listed.append(RowProblem(line, reason))


def read_data(path: Path, person_column: str | None = None) -> Data:
    """Return the rows of a JSONL, CSV (both also gzipped) or Parquet file.

    Args:
        person_column: the column that names the person whom a row is about.

    Raises:
        ConfigError: the file is missing, damaged, empty, mixes layouts, or has no usable row.
    """
    file_format = detect_format(path)
    chooser = _LayoutChooser(path)
    problems, rows, persons, rows_read = Problems(), list[Row](), list[str](), 0
    more = () if person_column is None else (person_column,)
    for record in read_records(path, file_format, more):
        rows_read += 1
        row, person = _parse(record, chooser), _person(record, person_column)
        if isinstance(row, Unreadable) or isinstance(person, Unreadable):
            problem = row if isinstance(row, Unreadable) else person
            assert isinstance(problem, Unreadable)
            problems.add(problem.line, problem.reason)
        else:
            rows.append(row)
            persons.append(person)
    if not rows or chooser.layout is None:
        raise nothing_usable(path.name, rows_read, problems)
    counts = (rows_read, len(rows), problems.count)
    listed = tuple(problems.listed)
    report = DataReport(path.name, file_format, chooser.layout, *counts, listed)
    return Data(tuple(rows), report, None if person_column is None else tuple(persons))


def nothing_usable(source: str, rows_read: int, problems: Problems) -> ConfigError:
    """Return the error for a file without one usable row; its commonest reasons are named."""
    reasons = Counter(problem.reason for problem in problems.listed)
    first = {problem.reason: problem.line for problem in reversed(problems.listed)}
    found = "; ".join(
        f"line {first[reason]}{f' and {count - 1} more' if count > 1 else ''}: {reason}"
        for reason, count in reasons.most_common(3)
    )
    return ConfigError(
        f"{source}: expected rows with `text`, with `prompt` and `completion`, or with "
        f"`messages`; found {rows_read} rows and none that is usable"
        f"{f' ({found})' if found else ''}; correct the file and start again"
    )


@dataclass(slots=True)
class _LayoutChooser:
    """Settles the layout with the first row that has one, and holds the others to it."""

    path: Path
    layout: Layout | None = None
    line: int = 0

    def choose(self, record: Record) -> Layout | None:
        """Return the layout of a row, or None where it has none; `ConfigError` if mixed."""
        found = self._candidates(record)
        if not found:
            return None
        if len(found) > 1:
            raise ConfigError(
                f"{self.path}: line {record.line} has the columns of more than one layout "
                f"({'; '.join(map(str, found))}); leave only the columns that are to be learnt"
            )
        if self.layout is None:
            self.layout, self.line = found[0], record.line
        elif found[0] is not self.layout:
            raise ConfigError(
                f"{self.path}: expected one layout, found {self.layout} at line {self.line} "
                f"and {found[0]} at line {record.line}; split the file"
            )
        return self.layout

    def _candidates(self, record: Record) -> list[Layout]:
        """Return the layouts whose columns are there; filled columns decide between several."""
        there = [layout for layout in Layout if record.fields.keys() >= set(layout.value)]
        if len(there) < 2:
            return there
        filled = [layout for layout in there if all(map(record.fields.get, layout.value))]
        return filled or [layout for layout in there if layout is self.layout]


def _parse(record: Record | Unreadable, chooser: _LayoutChooser) -> Row | Unreadable:
    if isinstance(record, Unreadable):
        return record
    layout = chooser.choose(record)
    try:
        match layout:
            case None:
                raise ValueError(_missing_columns(record, chooser.layout))
            case Layout.TEXT:
                return TextRow(record.line, _text(record, "text"))
            case Layout.PAIR:
                prompt, completion = _text(record, "prompt"), _text(record, "completion")
                return PairRow(record.line, prompt, completion)
            case Layout.CHAT:
                return ChatRow(record.line, _messages(record.fields["messages"]))
    except (TypeError, ValueError) as error:
        return Unreadable(record.line, str(error))


def _person(record: Record | Unreadable, column: str | None) -> str | Unreadable:
    """Whom a row is about, as text; nobody where no column is named."""
    if column is None or isinstance(record, Unreadable):
        return ""
    value = record.fields.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        return Unreadable(record.line, f"`{column}` names no person")
    return value.strip()


def _missing_columns(record: Record, layout: Layout | None) -> str:
    expected = layout or "`text`, `prompt` and `completion`, or `messages`"
    found = ", ".join(f"`{name}`" for name, value in record.fields.items() if value is not None)
    return f"expected {expected}, found {found or 'nothing':.200}"


def _text(record: Record, name: str) -> str:
    return _checked(name, record.fields[name])


def _checked(name: str, value: object) -> str:
    """Return a text that holds something and can be written as UTF-8."""
    if value is None:
        raise ValueError(f"{name} is null")
    if not isinstance(value, str):
        raise TypeError(f"{name} is of type {type(value).__name__}, expected a string")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half of a surrogate pair, which is no text") from None
    return value


def _messages(value: object) -> tuple[ChatMessage, ...]:
    """Return the turns of a conversation given as a list or, in CSV, as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("messages is a string but not JSON") from None
    if not isinstance(value, list):
        found = "null" if value is None else type(value).__name__
        raise TypeError(f"messages is {found}, expected a list of role and content")
    messages = tuple(_message(number, turn) for number, turn in enumerate(value, start=1))
    if all(message.role != ASSISTANT for message in messages):
        raise ValueError(f"messages has no turn of the role `{ASSISTANT}` to learn from")
    return messages


def _message(number: int, turn: object) -> ChatMessage:
    if not isinstance(turn, dict):
        raise TypeError(f"message {number} is {type(turn).__name__}, expected an object")
    role = _checked(f"the role of message {number}", turn.get("role"))
    return ChatMessage(role, _checked(f"the content of message {number}", turn.get("content")))
