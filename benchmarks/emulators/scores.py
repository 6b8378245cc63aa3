"""Scoring a model on a task's questions, and what of it is kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.emulators.ledger import Json
from offsite.emulator.perplexity import measure_perplexity
from offsite.emulator.questions import Question
from offsite.emulator.scoring import score_choices, summarise
from offsite.emulator.training.batches import micro_batches
from offsite.emulator.training.tokens import Encoding, Example, question_examples

MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Score:
    """One model on the questions of one task and seed."""

    acc: float
    acc_norm: float
    answer_perplexity: float
    """Of the right answers' tokens, given their questions."""
    text_perplexity: float
    """Of question and right answer as one text, every token of it."""
    correct: str
    """A 1 for every question that was answered right and a 0 for the others, in order."""

    def to_json(self) -> Json:
        """A dict of plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, fields: object) -> "Score":
        """Read what `to_json` gave."""
        assert isinstance(fields, dict)
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions made ready to score any model with."""

    questions: Sequence[Question]
    answer_tokens: int
    texts: Sequence[Example]

    @classmethod
    def of(
        cls, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, texts: int
    ) -> "Asked":
        """The first `texts` of them are also read as plain text."""
        answers = question_examples(questions, tokenizer, Encoding(MAX_TOKENS))
        tokens = sum(example.learnt_tokens for example in answers)
        return cls(questions, tokens, [_all_learnt(example) for example in answers[:texts]])


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Asked, batch_tokens: int
) -> Score:
    """The model on these questions; it is left as it was."""
    scores = score_choices(model, tokenizer, asked.questions, batch_tokens=batch_tokens)
    found = summarise(scores)
    answers = -sum(item.log_likelihoods[item.gold] for item in scores)
    return Score(
        acc=found.acc,
        acc_norm=found.acc_norm,
        answer_perplexity=_exp(answers / asked.answer_tokens),
        text_perplexity=_exp(
            measure_perplexity(model, micro_batches(asked.texts, batch_tokens)).nats
        ),
        correct="".join("1" if item.correct else "0" for item in scores),
    )


def _exp(loss: float) -> float:
    """Perplexity of a loss in nats per token; a hopeless model's is infinite, which JSON lacks."""
    return round(math.exp(min(loss, 80.0)), 4) if math.isfinite(loss) else math.exp(80.0)


def _all_learnt(example: Example) -> Example:
    learnt = np.ones(len(example.ids), np.bool_)
    learnt[0] = False
    return Example(example.ids, learnt)
