"""Public text for calibration: read, tokenised and packed into batches of equal length.

Reads JSON lines with a `text` field (`.jsonl`, `.json`) and plain text (`.txt`; documents are
separated by blank lines), each also gzipped (`.gz`). Documents follow one another in the order of
the files, parted by the end-of-sequence token, so the same files give the same tokens. Rows of the
Gemma family begin with BOS, as its questions do when they are scored and tuned on
(`training.tokens.Encoding.for_model`): without it such a model gives no sensible activations.

Rule: a malformed line is an error that names file and line; the owner chose these files.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from offsite.emulator.training.tokens import Encoding
from offsite.secure.errors import ConfigError

TEXT_FIELD = "text"


def calibration_batches(
    paths: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    total_tokens: int,
    row_tokens: int = 512,
    batch_rows: int = 2,
    model_type: str | None = None,
) -> tuple[torch.Tensor, ...]:
    """Token batches of (up to `batch_rows`, `row_tokens`), int64, in order.

    Reads no further than `total_tokens`; a shorter text gives fewer rows. Every row counts whole,
    with its BOS if it has one.

    Args:
        model_type: of the full model, which says whether rows begin with BOS; if it is not given,
            the class of the tokenizer does.

    Raises:
        ConfigError: unreadable text, or too little for one row.
    """
    if min(total_tokens, row_tokens, batch_rows) < 1:
        raise ConfigError("calibration needs at least one token, in rows and batches of at least 1")
    row_tokens = min(row_tokens, total_tokens)
    first = _first_tokens(tokenizer, model_type)
    text_tokens = row_tokens - len(first)
    if text_tokens < 1:
        raise ConfigError(
            f"calibration rows of {row_tokens} tokens have no room for text after BOS"
        )
    wanted = total_tokens // row_tokens * text_tokens
    stream: list[int] = []
    for text in read_texts(paths):
        stream += tokenizer.encode(text, add_special_tokens=False, verbose=False)
        if tokenizer.eos_token_id is not None:
            stream.append(tokenizer.eos_token_id)
        if len(stream) >= wanted:
            break
    rows = min(len(stream), wanted) // text_tokens
    if not rows:
        raise ConfigError(
            f"{', '.join(map(str, paths))}: expected at least {text_tokens} tokens of text, found "
            f"{len(stream)}; name a longer file"
        )
    packed = torch.tensor(stream[: rows * text_tokens], dtype=torch.int64).view(rows, text_tokens)
    packed = torch.cat([torch.tensor(first, dtype=torch.int64).expand(rows, -1), packed], dim=1)
    return tuple(packed[start : start + batch_rows] for start in range(0, rows, batch_rows))


def _first_tokens(tokenizer: PreTrainedTokenizerBase, model_type: str | None) -> list[int]:
    """What every row begins with: BOS where scoring adds it too, else nothing."""
    named = type(tokenizer).__name__.lower() if model_type is None else model_type
    if not Encoding.for_model(named, 1).special_tokens or tokenizer.bos_token_id is None:
        return []
    return [tokenizer.bos_token_id]


def read_texts(paths: Sequence[Path]) -> Iterator[str]:
    """The documents of the files, in order, empty ones left out."""
    for path in map(Path, paths):
        suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix
        if suffix not in (".jsonl", ".json", ".txt"):
            raise ConfigError(f"{path}: expected .jsonl, .json or .txt, or one of them with .gz")
        lines = _lines(path)
        texts = _paragraphs(lines) if suffix == ".txt" else _records(path, lines)
        yield from (text for text in texts if text.strip())


def _lines(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)


def _records(path: Path, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: expected JSON: {error}") from None
        text = record.get(TEXT_FIELD) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ConfigError(f"{path}, line {number}: expected an object with text in 'text'")
        yield text
