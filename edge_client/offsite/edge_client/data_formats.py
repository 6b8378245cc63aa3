"""Raw records of a JSONL, CSV or Parquet file, whatever the file is called.

Notable decisions:

* The content decides the format: Parquet and gzip by their magic bytes, JSON lines by their
  braces, CSV by a header that names a known column. The name only breaks a tie.
* A record that cannot be read is yielded with its line and the reason, so that the caller can
  count it. A file that is damaged as a whole (cut gzip, no UTF-8, broken Parquet) is an error.
* Lines are split as bytes: one bad byte spoils one row, not the file. CSV text is decoded with
  `surrogateescape` for the same reason; a row that holds an escaped byte is unreadable.

Lines count from 1 (a CSV record from its first line), rows of Parquet from 1.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from offsite.secure.errors import ConfigError
from offsite.secure.limits import MIB

if TYPE_CHECKING:
    import pyarrow as pa

ROW_BYTES = 16 * MIB
"""A longer line is reported, not read."""

KNOWN_COLUMNS = frozenset({"text", "prompt", "completion", "messages"})
_PARQUET_MAGIC = b"PAR1"
_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_SNIFFED_LINES = 20
_DELIMITERS = (",", ";", "\t")
_TOO_LONG = "\udc00"
"""Stands for a line above `ROW_BYTES` in CSV; no decoder yields this half of a pair."""


class Format(Enum):
    """What a data file is, by its content."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class Record:
    """The named values of one row."""

    line: int
    fields: dict[str, object]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that cannot be read, and why."""

    line: int
    reason: str


def detect_format(path: Path) -> Format:
    """Return the format of ``path`` by its content.

    Raises:
        ConfigError: the file is missing, empty, or nothing that is known.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: expected a file, found a folder, a pipe or a device")
    try:
        with path.open("rb") as file:
            magic = file.read(len(_PARQUET_MAGIC))
        if magic == _PARQUET_MAGIC:
            return Format.PARQUET
        with _open(path) as stream:
            lines = [line for line in islice(_lines(stream), _SNIFFED_LINES) if line]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise _damaged(path, error) from None
    return _sniff(path, [line for line in lines if line.strip()])


def read_records(
    path: Path, file_format: Format, more: Sequence[str] = ()
) -> Iterator[Record | Unreadable]:
    """Yield every row of ``path`` in order; blank lines are no rows.

    Args:
        more: columns that are wanted beside the known ones; of Parquet no others are read.

    Raises:
        ConfigError: the file as a whole is damaged or its header is unusable.
    """
    try:
        if file_format is Format.PARQUET:
            yield from _read_parquet(path, more)
            return
        with _open(path) as stream:
            yield from (
                _read_jsonl(stream) if file_format is Format.JSONL else _read_csv(path, stream)
            )
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path}: the file is cut or damaged ({error}); copy it again")


def _sniff(path: Path, lines: Sequence[bytes]) -> Format:
    if not lines:
        raise ConfigError(f"{path}: the file is empty; expected JSON lines, CSV or Parquet")
    if lines[0].startswith(_UTF16_BOMS):
        raise ConfigError(f"{path}: expected UTF-8 text, found UTF-16; save it as UTF-8")
    if lines[0].strip().replace(b" ", b"")[:2] in (b"[", b"[{"):
        raise ConfigError(
            f"{path}: expected one JSON object a line, found a JSON array; "
            "write each of its elements on a line of its own"
        )
    if 2 * sum(line.lstrip().startswith(b"{") for line in lines) >= len(lines):
        return Format.JSONL
    if _delimiter(lines[0].decode(errors="replace")) is not None:
        return Format.CSV
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if suffixes & {".jsonl", ".json", ".ndjson"}:
        return Format.JSONL
    raise ConfigError(
        f"{path}: expected JSON lines, a CSV header with `text`, `prompt` and `completion`, "
        f"or `messages`, or Parquet; found a first line of {lines[0][:60]!r}"
    )


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(len(_GZIP_MAGIC))
    return cast(IO[bytes], gzip.open(path, "rb")) if magic == _GZIP_MAGIC else path.open("rb")


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Yield the lines without a byte-order mark, and None for one above `ROW_BYTES`."""
    first = True
    while line := stream.readline(ROW_BYTES + 1):
        too_long = len(line) > ROW_BYTES
        while too_long and line and not line.endswith(b"\n"):
            line = stream.readline(ROW_BYTES)
        yield None if too_long else line.removeprefix(_UTF8_BOM) if first else line
        first = False


def _read_jsonl(stream: IO[bytes]) -> Iterator[Record | Unreadable]:
    for number, line in enumerate(_lines(stream), start=1):
        if line is None or line.strip():
            yield _parse_json(number, line)


def _parse_json(number: int, line: bytes | None) -> Record | Unreadable:
    if line is None:
        return Unreadable(number, f"longer than {ROW_BYTES // MIB} MiB")
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Unreadable(number, f"not UTF-8 (byte {error.start + 1})")
    except json.JSONDecodeError as error:
        return Unreadable(number, f"not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return Unreadable(number, f"not JSON that can be read: {type(error).__name__}")
    if not isinstance(value, dict):
        return Unreadable(number, f"expected a JSON object, found {type(value).__name__}")
    return Record(number, value)


def _delimiter(header: str) -> str | None:
    """Return the delimiter by which ``header`` names a known column, if one does."""
    for delimiter in _DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter), [])
        if KNOWN_COLUMNS & {name.strip() for name in names}:
            return delimiter
    return None


def _read_csv(path: Path, stream: IO[bytes]) -> Iterator[Record | Unreadable]:
    text = (_TOO_LONG if line is None else _decode(line) for line in _lines(stream))
    header, blank_lines = "", 0
    for header in text:
        if header.strip():
            break
        blank_lines += 1
    delimiter = _delimiter(header) or ","
    columns = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    if len(set(columns)) != len(columns):
        raise ConfigError(f"{path}: a column name stands twice in the header: {columns}")
    with _long_fields():
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        while True:
            number = blank_lines + 2 + reader.line_num
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Unreadable(number, f"not CSV: {error}")
                continue
            if values:
                yield _parse_csv(number, columns, values)


def _decode(line: bytes) -> str:
    return line.decode(errors="surrogateescape")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the limit of the csv module, which is global to the process, for a while."""
    before = csv.field_size_limit(ROW_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parse_csv(number: int, columns: list[str], values: list[str]) -> Record | Unreadable:
    if any(_TOO_LONG in value for value in values):
        return Unreadable(number, f"longer than {ROW_BYTES // MIB} MiB")
    if any(not _is_unicode(value) for value in values):
        return Unreadable(number, "not UTF-8")
    if len(values) != len(columns):
        return Unreadable(number, f"expected {len(columns)} fields, found {len(values)}")
    return Record(number, dict(zip(columns, values, strict=True)))


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\udc00" <= character <= "\udfff" for character in text)


def _read_parquet(path: Path, more: Sequence[str]) -> Iterator[Record | Unreadable]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [name for name in names if name in KNOWN_COLUMNS or name in more]
            if not KNOWN_COLUMNS.intersection(wanted):
                raise ConfigError(
                    f"{path}: expected a column `text`, columns `prompt` and `completion`, "
                    f"or a column `messages`; found {file.schema_arrow.names}"
                )
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                for row in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(number, batch, row)
    except pa.ArrowException as error:
        raise _damaged(path, error) from None


def _parquet_row(number: int, batch: "pa.RecordBatch", row: int) -> Record | Unreadable:
    try:
        fields = {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except UnicodeDecodeError:
        return Unreadable(number, "not UTF-8")
    return Record(number, fields)
