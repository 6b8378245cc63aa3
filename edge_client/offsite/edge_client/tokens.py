"""The data owner's rows as examples, and what became of every row.

What is learnt: every token of `text`, the completion of `prompt` and `completion`, the
assistant's turns of `messages` (see `chat`; they end with the template's own token, which is
learnt, so generation stops). How sequences are encoded and cut is in `emulator.training.tokens`;
here all of it is counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

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
from offsite.emulator.training.tokens import (
    Encoding,
    Example,
    Tokens,
    arrays,
    encode_pairs,
    fit,
    pieces,
    token_ids,
)

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples in the order of their rows, and what became of the rows."""

    examples: tuple[Example, ...]
    report: DataReport
    rows: tuple[int, ...]
    """For each example, the place of its row in the data."""


@dataclass(slots=True)
class _Counts:
    rows_kept: int = 0
    truncated: int = 0
    split: int = 0
    problems: Problems = field(default_factory=Problems)


def encode(
    data: Data, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, report: Report = silent
) -> Encoded:
    """Return the examples of all rows; ``report`` counts rows.

    Raises:
        ConfigError: no row is usable, or the tokenizer lacks what the rows need.
    """
    if data.report.layout is Layout.CHAT:
        require_template(tokenizer)
    counts, examples, places = _Counts(), list[Example](), list[int]()
    for start in range(0, len(data.rows), _ROWS_AT_ONCE):
        rows = data.rows[start : start + _ROWS_AT_ONCE]
        encoded = zip(rows, _encode_rows(rows, tokenizer, encoding), strict=True)
        for place, (row, tokens) in enumerate(encoded, start=start):
            examples += _examples(row, tokens, encoding.max_tokens, counts)
            places += [place] * (len(examples) - len(places))
        report(start + len(rows), len(data.rows))
    final = _final_report(data.report, examples, counts)
    if not examples:
        problems = Problems(final.rows_unusable, list(final.problems))
        raise nothing_usable(final.source, final.rows_read, problems)
    return Encoded(tuple(examples), final, tuple(places))


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
) -> Iterator[Tokens | str]:
    """Yield the tokens of every row, or why it has none. The rows are of one layout."""
    pairs = [(row.prompt, row.completion) for row in rows if isinstance(row, PairRow)]
    texts = [row.text for row in rows if isinstance(row, TextRow)]
    if pairs:
        yield from encode_pairs(pairs, tokenizer, encoding)
    elif texts:
        for ids in token_ids(tokenizer, texts, encoding):
            yield ids, [True] * len(ids)
    for row in rows:
        if isinstance(row, ChatRow):
            try:
                yield encode_chat(tokenizer, row.messages)
            except ValueError as error:
                yield str(error)


def _examples(
    row: Row, tokens: Tokens | str, max_tokens: int, counts: _Counts
) -> Iterator[Example]:
    """Yield what a row gives, cut or split to ``max_tokens``, and count what was done to it."""
    if isinstance(tokens, str):
        counts.problems.add(row.line, tokens)
        return
    ids, learnt = arrays(tokens)
    if not learnt.any():
        counts.problems.add(row.line, "nothing is left to learn once it is encoded as tokens")
        return
    counts.rows_kept += 1
    if isinstance(row, TextRow):
        counts.split += len(ids) > max_tokens
        yield from pieces(ids, max_tokens)
        return
    fitted = fit(ids, learnt, max_tokens)
    counts.truncated += fitted.truncated
    yield fitted.example
