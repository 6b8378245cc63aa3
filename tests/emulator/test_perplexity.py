"""Perplexity is exp of the mean -ln p, with rows as the unit of its error."""

import math
from dataclasses import replace

import pytest
import torch
from tests.emulator.exams import perplexity
from tests.emulator.training.samples import make_examples, make_model

from offsite.emulator.perplexity import measure_perplexity
from offsite.emulator.training.batches import micro_batches, text_batches
from offsite.secure.errors import ConfigError

ROWS = torch.randint(2, 96, (6, 12), generator=torch.Generator().manual_seed(1))


def by_hand(rows: torch.Tensor) -> torch.Tensor:
    """-ln p [rows] summed over the tokens of each row."""
    with torch.no_grad():
        output = make_model("llama").eval()(input_ids=rows)
    logits = output.logits[:, :-1].double().log_softmax(-1)
    return -logits.gather(-1, rows[:, 1:, None])[..., 0].sum(1)


def test_it_is_that_of_the_definition() -> None:
    model = make_model("llama")
    sums = by_hand(ROWS)
    wanted = float(sums.mean() / 11)
    found = measure_perplexity(model, text_batches(ROWS, 25))
    assert found.nats == pytest.approx(wanted, rel=1e-6)
    assert found.nats_stderr == pytest.approx(float(sums.std() / 11 / math.sqrt(6)), rel=1e-4)
    assert (found.tokens, found.rows) == (66, 6)
    assert perplexity(model, (ROWS[:4], ROWS[4:])) == pytest.approx(math.exp(wanted), rel=1e-6)
    assert model.training  # left in the mode it had


def test_of_a_row_with_a_prompt_only_the_completion_counts() -> None:
    model, examples = make_model("llama"), make_examples(9)
    found = measure_perplexity(model, micro_batches(examples, 60))
    assert found.tokens == sum(example.learnt_tokens for example in examples)
    assert found.rows == 9
    other = [replace(example, learnt=example.learnt.copy()) for example in examples]
    for example in other:
        example.learnt[1:] = True
    assert measure_perplexity(model, micro_batches(other, 60)).nats != pytest.approx(found.nats)


def test_a_single_row_has_no_error_and_no_text_no_perplexity() -> None:
    found = measure_perplexity(make_model("llama"), text_batches(ROWS[:1], 25))
    assert math.isnan(found.nats_stderr)
    assert found.to_json()["nats_stderr"] is None
    with pytest.raises(ConfigError, match="at least one row"):
        measure_perplexity(make_model("llama"), [])
