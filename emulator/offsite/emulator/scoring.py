"""Multiple-choice scoring as lm-evaluation-harness does it.

The likelihood of every choice is read after its query; ``acc`` takes the choice with
the largest sum of token log-probabilities, ``acc_norm`` the largest sum per character.

Notable decisions:

* Queries share their prefix: queries of the same token length form one batch, are read
  once without any padding, and their key-value cache is repeated for the choices. The
  choices are padded on the right, which causal attention cannot see. So no model needs a
  padding token or position ids, and the first choice token is scored by the last query
  position.
* A cache that cannot be repeated (recurrent states), or a question longer than the model,
  is scored from whole sequences, cut on the left as the harness does.
* Of choices that tie the first is taken, as the harness does (bf16 makes some tie). Unlike there, a
  question counts as wrong if a likelihood is not finite or all of them are equal: the first choice
  would win by ``argmax``, and a gate whose right choices stand first would let a broken model pass.
* Tokenisation is that of the harness (``HFLM`` in ``lm_eval/models/huggingface.py``):
  query and choice are encoded together, trailing white space of the query belongs to the
  choice, no special tokens are added except a BOS for the Gemma family.

Axes: ``Q`` queries of one batch, ``N`` choices of one batch, ``S`` tokens of a query,
``T`` tokens of a choice, ``V`` vocabulary.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from offsite.emulator.questions import Question

TARGET_DELIMITER = " "
"""What the harness puts between a query and a choice."""

SOFTMAX_ROWS = 256
"""Positions whose logits are held in float32 at once."""


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """The natural log-likelihood and the characters of every choice of one question."""

    log_likelihoods: tuple[float, ...]
    characters: tuple[int, ...]
    gold: int

    @property
    def correct(self) -> bool:
        """Whether the right choice is the likeliest; never if nothing tells them apart."""
        return _wins(self.gold, self.log_likelihoods)

    @property
    def correct_norm(self) -> bool:
        """The same per character."""
        pairs = zip(self.log_likelihoods, self.characters, strict=True)
        return _wins(self.gold, [value / characters for value, characters in pairs])


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracies in 0 to 1 with their standard errors over ``questions`` questions."""

    acc: float
    acc_stderr: float
    acc_norm: float
    acc_norm_stderr: float
    questions: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of ``b - a`` over the same questions, and its standard error."""

    mean: float
    stderr: float
    questions: int


@dataclass(frozen=True, slots=True)
class _Tokens:
    """One question as token ids; ``index`` is its place in the caller's list."""

    index: int
    query: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        return max(len(choice) for choice in self.choices)


def score_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_tokens: int,
    report: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Return the accuracy of ``model`` on ``questions``; arguments as `score_choices`."""
    scores = score_choices(model, tokenizer, questions, batch_tokens=batch_tokens, report=report)
    return summarise(scores)


@torch.inference_mode()
def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_tokens: int,
    report: Callable[[int, int], None] | None = None,
) -> list[ChoiceScores]:
    """Return the scores of every question, in the order given.

    ``batch_tokens`` bounds the tokens of one forward pass, queries and choices each
    (a single question may exceed it). ``report`` is called with the questions done and
    their total. The model is scored in evaluation mode and left in the mode it had.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}, expected at least 1")
    encoded = [_encode(model, tokenizer, i, q) for i, q in enumerate(questions)]
    results: dict[int, tuple[float, ...]] = {}
    was_training = model.training
    model.train(False)
    try:
        with _contiguous_head(model):
            for batch in _batches(encoded, batch_tokens):
                likelihoods = _score_batch(model, batch, batch_tokens)
                results.update(zip((tokens.index for tokens in batch), likelihoods, strict=True))
                if report is not None:
                    report(len(results), len(questions))
    finally:
        model.train(was_training)
    return [_choice_scores(q, results[i]) for i, q in enumerate(questions)]


@contextmanager
def _contiguous_head(model: PreTrainedModel) -> Iterator[None]:
    """Hand the output head hidden states with the strides of a new tensor.

    On a slice of others ``linear`` falls back to a batched product that copies the head's weights
    for every row; with 49,152 tokens that was half of the time of scoring on a CPU.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        yield
        return
    # Not `contiguous()`: it leaves a single row as it is, whose strides are those of the whole.
    handle = head.register_forward_pre_hook(
        lambda _, args: (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def summarise(scores: Sequence[ChoiceScores]) -> Accuracy:
    """Return accuracy and standard errors of at least one question's scores."""
    if not scores:
        raise ValueError("expected at least one scored question, found none")
    acc = sum(score.correct for score in scores) / len(scores)
    acc_norm = sum(score.correct_norm for score in scores) / len(scores)
    return Accuracy(
        acc=acc,
        acc_stderr=_proportion_stderr(acc, len(scores)),
        acc_norm=acc_norm,
        acc_norm_stderr=_proportion_stderr(acc_norm, len(scores)),
        questions=len(scores),
    )


def paired_difference(a: Sequence[ChoiceScores], b: Sequence[ChoiceScores]) -> PairedDifference:
    """Return how much better ``b`` is than ``a`` in ``acc`` on the same questions.

    The standard error is that of the mean of the per-question differences, which is much
    smaller than that of two unpaired accuracies when the models agree often.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"expected scores of the same questions, found {len(a)} and {len(b)}")
    differences = [int(y.correct) - int(x.correct) for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / len(differences)
    squares = sum((difference - mean) ** 2 for difference in differences)
    n = len(differences)
    return PairedDifference(mean, math.sqrt(squares / (n - 1) / n) if n > 1 else math.nan, n)


def _encode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, index: int, question: Question
) -> _Tokens:
    special = "gemma" in str(getattr(model.config, "model_type", ""))
    query = question.query.rstrip()
    gap = question.query[len(query) :]
    query_ids = _token_ids(tokenizer, query, special)
    choices = []
    for choice in question.choices:
        delimiter = "" if gap or choice[0].isspace() else TARGET_DELIMITER
        whole = _token_ids(tokenizer, f"{query}{gap}{delimiter}{choice}", special)
        choices.append(whole[len(query_ids) :])
    if not query_ids or not all(choices):
        raise ValueError(f"question {index} has a query or choice without any token")
    return _Tokens(index, query_ids, tuple(choices))


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])


def _batches(encoded: Sequence[_Tokens], batch_tokens: int) -> Iterator[list[_Tokens]]:
    """Group questions of one query length, in order of length, within ``batch_tokens``."""
    batch: list[_Tokens] = []
    for tokens in sorted(encoded, key=lambda item: (len(item.query), item.width)):
        same_length = batch and len(batch[0].query) == len(tokens.query)
        if batch and not (same_length and _fits([*batch, tokens], batch_tokens)):
            yield batch
            batch = []
        batch.append(tokens)
    if batch:
        yield batch


def _fits(batch: Sequence[_Tokens], batch_tokens: int) -> bool:
    query_tokens = sum(len(tokens.query) for tokens in batch)
    rows = sum(len(tokens.choices) for tokens in batch)
    return max(query_tokens, rows * max(tokens.width for tokens in batch)) <= batch_tokens


def _score_batch(
    model: PreTrainedModel, batch: Sequence[_Tokens], batch_tokens: int
) -> list[tuple[float, ...]]:
    limit = _max_tokens(model)
    if len(batch[0].query) + max(tokens.width for tokens in batch) - 1 <= limit:
        sums = _score_with_shared_query(model, batch)
        if sums is not None:
            return _per_question(batch, sums)
    return _per_question(batch, _score_whole_sequences(model, batch, batch_tokens, limit))


def _score_with_shared_query(
    model: PreTrainedModel, batch: Sequence[_Tokens]
) -> list[float] | None:
    """Return the sum of every choice, or None where the model's cache cannot be repeated."""
    queries = _matrix([tokens.query for tokens in batch], model)  # [Q, S]
    choices = [choice for tokens in batch for choice in tokens.choices]
    owner = [row for row, tokens in enumerate(batch) for _ in tokens.choices]
    rows = torch.tensor(owner, device=queries.device)  # [N]
    output = model(input_ids=queries, use_cache=True, **_last_logits_only(model))
    first = torch.tensor([choice[0] for choice in choices], device=queries.device)[:, None]
    sums = _log_likelihoods(output.logits[:, -1:][rows], first)  # [N, 1]
    if max(len(choice) for choice in choices) > 1:
        cache = _repeat_cache(getattr(output, "past_key_values", None), rows)
        if cache is None:
            return None
        sums = torch.cat([sums, _score_continuations(model, choices, cache)], dim=1)
    return _masked_sums(sums, [len(choice) for choice in choices])


def _last_logits_only(model: PreTrainedModel) -> dict[str, int]:
    """Return the argument that saves the head on all query positions but the last."""
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if known else {}


def _repeat_cache(cache: object, rows: torch.Tensor) -> Cache | None:
    """Select the batch rows ``rows`` [N] of ``cache``, or None where it cannot."""
    if not isinstance(cache, Cache):
        return None
    try:
        cache.batch_select_indices(rows)
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return cache


def _score_continuations(
    model: PreTrainedModel, choices: Sequence[tuple[int, ...]], cache: Cache
) -> torch.Tensor:
    """Return [N, T - 1], the log-likelihood of every choice token but the first."""
    ids = _matrix(choices, model)  # [N, T]
    past = cache.get_seq_length()
    mask = torch.ones(len(choices), past + ids.shape[1] - 1, dtype=torch.long, device=ids.device)
    output = model(
        input_ids=ids[:, :-1], attention_mask=mask, past_key_values=cache, use_cache=True
    )
    return _log_likelihoods(output.logits, ids[:, 1:])


def _score_whole_sequences(
    model: PreTrainedModel, batch: Sequence[_Tokens], batch_tokens: int, limit: float
) -> list[float]:
    """Return the sum of every choice from one padded row per choice."""
    rows = [(*tokens.query, *choice) for tokens in batch for choice in tokens.choices]
    kept = [row[-int(min(limit + 1, len(row))) :] for row in rows]
    lengths = [len(choice) for tokens in batch for choice in tokens.choices]
    step = max(1, batch_tokens // max(len(row) for row in kept))
    sums: list[float] = []
    for start in range(0, len(kept), step):
        part = slice(start, start + step)
        ids = _matrix(kept[part], model)  # [N, S + T]
        values = _log_likelihoods(model(input_ids=ids[:, :-1]).logits, ids[:, 1:])
        for row, tokens, length in zip(values, kept[part], lengths[part], strict=True):
            end = len(tokens) - 1
            sums.append(float(row[max(0, end - length) : end].sum()))
    return sums


def _matrix(rows: Sequence[tuple[int, ...]], model: PreTrainedModel) -> torch.Tensor:
    """Return rows as [N, longest] of int64, filled on the right with each row's last id."""
    width = max(len(row) for row in rows)
    filled = [row + row[-1:] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.long, device=model.device)


def _log_likelihoods(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the float32 log-probability [N, T] of ``ids`` [N, T] in ``logits`` [N, T, V].

    Works through `SOFTMAX_ROWS` positions at a time: a float32 copy of all logits of a
    large vocabulary would take more memory than the model.
    """
    parts = []
    rows = zip(
        torch.split(logits.flatten(0, 1), SOFTMAX_ROWS),
        torch.split(ids.flatten(), SOFTMAX_ROWS),
        strict=True,
    )
    for row_logits, row_ids in rows:
        values = row_logits.float()
        parts.append(values.gather(-1, row_ids[:, None]).squeeze(-1) - values.logsumexp(-1))
    return torch.cat(parts).view(ids.shape)


def _masked_sums(values: torch.Tensor, lengths: Sequence[int]) -> list[float]:
    """Return the sums of the first ``lengths[i]`` entries of every row of [N, T]."""
    positions = torch.arange(values.shape[1], device=values.device)
    inside = positions < torch.tensor(lengths, device=values.device)[:, None]
    return [float(value) for value in values.masked_fill(~inside, 0.0).sum(-1)]


def _per_question(batch: Sequence[_Tokens], sums: Sequence[float]) -> list[tuple[float, ...]]:
    values = iter(sums)
    return [tuple(next(values) for _ in tokens.choices) for tokens in batch]


def _choice_scores(question: Question, likelihoods: tuple[float, ...]) -> ChoiceScores:
    characters = tuple(len(choice.lstrip()) for choice in question.choices)
    return ChoiceScores(likelihoods, characters, question.gold)


def _max_tokens(model: PreTrainedModel) -> float:
    """Return the most tokens that the model's configuration admits."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else math.inf


def _wins(gold: int, values: Sequence[float]) -> bool:
    if not all(map(math.isfinite, values)) or min(values) == max(values):
        return False
    return values.index(max(values)) == gold


def _proportion_stderr(proportion: float, n: int) -> float:
    return math.sqrt(proportion * (1 - proportion) / (n - 1)) if n > 1 else math.nan
