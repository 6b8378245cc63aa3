"""Rows as token ids, and which of them are learnt.

What is learnt: every token of `text`, the completion of `prompt` and `completion`, the
assistant's turns of `messages` (see `chat`).

Notable decisions:

* A prompt and its completion are encoded exactly as the scoring encodes a query and a choice
  (lm-evaluation-harness: together, the boundary is the length of the prompt encoded by itself,
  white space at the prompt's end belongs to the completion, one space between them where there is
  none, no special tokens but Gemma's BOS). What is trained is what is measured.
* No end-of-sequence token is added: it takes no part in the likelihood of a choice, and a
  completion that ends a turn can say so itself. Chat turns end with the template's own token, which
  is learnt, so generation stops.
* Too long, a prompt loses its left, then a completion its right; a text is split into pieces that
  overlap by one token, so that each token is predicted once. All of it is counted.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from offsite.edge_client.chat import encode_chat, require_template
from offsite.edge_client.data import (
    PROBLEMS_LISTED,
    ChatRow,
    Data,
    DataReport,
    Layout,
    PairRow,
    Problems,
    Row,
    TextRow,
    nothing_usable,
)
from offsite.emulator.progress import Report, silent
from offsite.emulator.scoring import TARGET_DELIMITER

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Encoding:
    """How rows become tokens.

    ``special_tokens`` lets the tokenizer add its own (Gemma needs its BOS).
    """

    max_tokens: int
    special_tokens: bool = False

    @classmethod
    def for_model(cls, model_type: str, max_tokens: int) -> "Encoding":
        """Return the encoding that agrees with how models of this type are scored."""
        return cls(max_tokens, special_tokens="gemma" in model_type)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One sequence of at least two tokens: ``ids`` [T] and which of them are ``learnt`` [T].

    The first token has nothing before it and is never learnt.
    """

    ids: npt.NDArray[np.int32]
    learnt: npt.NDArray[np.bool_]

    @property
    def learnt_tokens(self) -> int:
        """How many tokens count in the loss; at least one."""
        return int(self.learnt.sum())


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples in the order of their rows, and what became of the rows."""

    examples: tuple[Example, ...]
    report: DataReport


@dataclass(slots=True)
class _Counts:
    rows_kept: int = 0
    truncated: int = 0
    split: int = 0
    problems: Problems = field(default_factory=Problems)


_Tokens = tuple[list[int], list[bool]]


def encode(
    data: Data, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, report: Report = silent
) -> Encoded:
    """Return the examples of all rows; ``report`` counts rows.

    Raises:
        ConfigError: no row is usable, or the tokenizer lacks what the rows need.
    """
    if data.report.layout is Layout.CHAT:
        require_template(tokenizer)
    counts, examples = _Counts(), list[Example]()
    for start in range(0, len(data.rows), _ROWS_AT_ONCE):
        rows = data.rows[start : start + _ROWS_AT_ONCE]
        for row, tokens in zip(rows, _encode_rows(rows, tokenizer, encoding), strict=True):
            examples += _examples(row, tokens, encoding.max_tokens, counts)
        report(start + len(rows), len(data.rows))
    final = _final_report(data.report, examples, counts)
    if not examples:
        problems = Problems(final.rows_unusable, list(final.problems))
        raise nothing_usable(final.source, final.rows_read, problems)
    return Encoded(tuple(examples), final)


def digest(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of all examples, in order, in hexadecimal."""
    sha256 = hashlib.sha256()
    for example in examples:
        sha256.update(len(example.ids).to_bytes(8, "big"))
        sha256.update(example.ids.astype("<i4").tobytes())
        sha256.update(np.packbits(example.learnt).tobytes())
    return sha256.hexdigest()


def _final_report(report: DataReport, examples: list[Example], counts: _Counts) -> DataReport:
    problems = sorted((*report.problems, *counts.problems.listed), key=lambda item: item.line)
    return replace(
        report,
        rows_kept=counts.rows_kept,
        rows_unusable=report.rows_unusable + counts.problems.count,
        problems=tuple(problems[:PROBLEMS_LISTED]),
        examples=len(examples),
        tokens=sum(len(example.ids) for example in examples),
        learnt_tokens=sum(example.learnt_tokens for example in examples),
        truncated_rows=counts.truncated,
        split_rows=counts.split,
    )


def _encode_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> Iterator[_Tokens | str]:
    """Yield the tokens of every row, or why it has none. The rows are of one layout."""
    pairs = [row for row in rows if isinstance(row, PairRow)]
    texts = [row.text for row in rows if isinstance(row, TextRow)]
    if pairs:
        yield from _encode_pairs(pairs, tokenizer, encoding)
    elif texts:
        for ids in _token_ids(tokenizer, texts, encoding):
            yield ids, [True] * len(ids)
    for row in rows:
        if isinstance(row, ChatRow):
            try:
                yield encode_chat(tokenizer, row.messages)
            except ValueError as error:
                yield str(error)


def _encode_pairs(
    rows: Sequence[PairRow], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> Iterator[_Tokens]:
    prompts = [row.prompt.rstrip() for row in rows]
    wholes = [_whole(row) for row in rows]
    prompt_ids = _token_ids(tokenizer, prompts, encoding)
    for prompt, whole in zip(prompt_ids, _token_ids(tokenizer, wholes, encoding), strict=True):
        given = min(len(prompt), len(whole))
        yield whole, [False] * given + [True] * (len(whole) - given)


def _whole(row: PairRow) -> str:
    has_gap = row.prompt[-1].isspace() or row.completion[0].isspace()
    return f"{row.prompt}{'' if has_gap else TARGET_DELIMITER}{row.completion}"


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], encoding: Encoding
) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=encoding.special_tokens,
        return_attention_mask=False,
        verbose=False,
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _examples(
    row: Row, tokens: _Tokens | str, max_tokens: int, counts: _Counts
) -> Iterator[Example]:
    """Yield what a row gives, cut or split to ``max_tokens``, and count what was done to it."""
    if isinstance(tokens, str):
        counts.problems.add(row.line, tokens)
        return
    ids, learnt = np.array(tokens[0], np.int32), np.array(tokens[1], np.bool_)
    learnt[:1] = False
    if not learnt.any():
        counts.problems.add(row.line, "nothing is left to learn once it is encoded as tokens")
        return
    counts.rows_kept += 1
    if isinstance(row, TextRow):
        counts.split += len(ids) > max_tokens
        yield from _pieces(ids, max_tokens)
        return
    window = _window(learnt, max_tokens)
    cut_left = window.start > 0
    counts.truncated += cut_left or bool(learnt[window.stop :].any())
    ids, learnt = ids[window].copy(), learnt[window].copy()
    learnt[0] = False
    yield Example(ids, learnt)


def _pieces(ids: npt.NDArray[np.int32], max_tokens: int) -> Iterator[Example]:
    for start in range(0, len(ids) - 1, max_tokens - 1):
        piece = ids[start : start + max_tokens].copy()
        learnt = np.ones(len(piece), np.bool_)
        learnt[0] = False
        yield Example(piece, learnt)


def _window(learnt: npt.NDArray[np.bool_], max_tokens: int) -> slice:
    """Return what is kept: up to the last learnt token, and of too much the left is cut first.

    The last run of learnt tokens keeps its start and one token before it, at the price of its end.
    """
    end = int(np.flatnonzero(learnt)[-1]) + 1
    if end <= max_tokens:
        return slice(0, end)
    given = np.flatnonzero(~learnt[:end])
    start = min(end - max_tokens, int(given[-1]))
    return slice(start, start + max_tokens)
