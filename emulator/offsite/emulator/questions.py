"""Multiple-choice questions: a query, its choices and the right one; read from JSON lines.

Rule: a malformed line is an error that names line and reason; nothing is skipped.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard


@dataclass(frozen=True, slots=True)
class Question:
    """A query, the texts that may follow it and the index of the right one.

    Between the two stands one space, unless the query ends or the choice begins with
    white space already.
    """

    query: str
    choices: tuple[str, ...]
    gold: int

    def __post_init__(self) -> None:
        if not self.query.strip():
            raise ValueError("query is empty")
        if len(self.choices) < 2:
            raise ValueError(f"expected at least 2 choices, found {len(self.choices)}")
        if not all(choice.strip() for choice in self.choices):
            raise ValueError("a choice is empty")
        if not 0 <= self.gold < len(self.choices):
            raise ValueError(f"gold is {self.gold}, expected 0 to {len(self.choices) - 1}")


def read_questions(path: Path) -> list[Question]:
    """Read questions from JSON lines with ``query``, ``choices`` and ``gold``.

    A path that ends in ``.gz`` is decompressed; blank lines are skipped.

    Raises:
        ValueError: a line is malformed, or there is none; names the line and the reason.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        questions = [
            _parse_question(line, f"{path}, line {number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
    if not questions:
        raise ValueError(f"{path}: expected at least one question, found none")
    return questions


def _parse_question(line: bytes, where: str) -> Question:
    try:
        return _question(json.loads(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _question(record: object) -> Question:
    if not isinstance(record, dict):
        raise TypeError(f"expected an object, found {type(record).__name__}")
    query, choices, gold = record.get("query"), record.get("choices"), record.get("gold")
    if not isinstance(query, str):
        raise TypeError(f"query must be a string, found {query!r:.60}")
    if not _is_text_list(choices):
        raise TypeError(f"choices must be a list of strings, found {choices!r:.60}")
    if not isinstance(gold, int) or isinstance(gold, bool):
        raise TypeError(f"gold must be an integer, found {gold!r:.60}")
    return Question(query, tuple(choices), gold)


def _is_text_list(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
