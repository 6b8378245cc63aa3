"""Sequences of token ids, and which of them are learnt.

Notable decisions:

* A prompt and its completion are encoded exactly as the scoring encodes a query and a choice
  (lm-evaluation-harness: together, the boundary is the length of the prompt encoded by itself,
  white space at the prompt's end belongs to the completion, one space between them where there is
  none, no special tokens but Gemma's BOS). What is trained is what is measured.
* No end-of-sequence token is added: it takes no part in the likelihood of a choice, and a
  completion that ends a turn can say so itself.
* Too long, a prompt loses its left, then a completion its right; a text is split into pieces that
  overlap by one token, so that each token is predicted once.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from offsite.emulator.questions import Question
from offsite.emulator.scoring import TARGET_DELIMITER


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


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """An example that is not longer than the limit, and whether learnt or left tokens went."""

    example: Example
    truncated: bool


Tokens = tuple[list[int], list[bool]]
"""Token ids of a whole row, and which of them are learnt."""


def digest(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of all examples, in order, in hexadecimal."""
    sha256 = hashlib.sha256()
    for example in examples:
        sha256.update(len(example.ids).to_bytes(8, "big"))
        sha256.update(example.ids.astype("<i4").tobytes())
        sha256.update(np.packbits(example.learnt).tobytes())
    return sha256.hexdigest()


def question_examples(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> list[Example]:
    """Return each question with its right choice as what is learnt."""
    pairs = [(question.query, question.choices[question.gold]) for question in questions]
    rows = encode_pairs(pairs, tokenizer, encoding)
    return [fit(ids, learnt, encoding.max_tokens).example for ids, learnt in map(arrays, rows)]


def encode_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> Iterator[Tokens]:
    """Yield the tokens of every prompt with its completion, of which the latter is learnt."""
    prompts = [prompt.rstrip() for prompt, _ in pairs]
    wholes = [_whole(*pair) for pair in pairs]
    prompt_ids = token_ids(tokenizer, prompts, encoding)
    for prompt, whole in zip(prompt_ids, token_ids(tokenizer, wholes, encoding), strict=True):
        given = min(len(prompt), len(whole))
        yield whole, [False] * given + [True] * (len(whole) - given)


def _whole(prompt: str, completion: str) -> str:
    has_gap = prompt[-1].isspace() or completion[0].isspace()
    return f"{prompt}{'' if has_gap else TARGET_DELIMITER}{completion}"


def token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], encoding: Encoding
) -> list[list[int]]:
    """Return the token ids of every text."""
    encoded = tokenizer(
        texts,
        add_special_tokens=encoding.special_tokens,
        return_attention_mask=False,
        verbose=False,
    )
    return [list(ids) for ids in encoded["input_ids"]]


def arrays(tokens: Tokens) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Return ids and learnt marks as arrays; the first token is never learnt."""
    ids, learnt = np.array(tokens[0], np.int32), np.array(tokens[1], np.bool_)
    learnt[:1] = False
    return ids, learnt


def fit(ids: npt.NDArray[np.int32], learnt: npt.NDArray[np.bool_], max_tokens: int) -> Fitted:
    """Cut a row with at least one learnt token to ``max_tokens``; the left goes first."""
    window = _window(learnt, max_tokens)
    truncated = window.start > 0 or bool(learnt[window.stop :].any())
    ids, learnt = ids[window].copy(), learnt[window].copy()
    learnt[0] = False
    return Fitted(Example(ids, learnt), truncated)


def pieces(ids: npt.NDArray[np.int32], max_tokens: int) -> Iterator[Example]:
    """Yield a text in examples of at most ``max_tokens``, each token learnt once."""
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
