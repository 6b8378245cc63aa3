"""The loop from the first step to the last: it learns, in parts or whole, and stops when it must."""

import math
from collections.abc import Iterator

import pytest
import torch
from tests.emulator.training.samples import make_examples, make_model
from torch import nn

from offsite.emulator.training.batches import micro_batches
from offsite.emulator.training.loss import summed_loss
from offsite.emulator.training.run import Recipe, train, train_in_parts
from offsite.emulator.training.text_rows import TextRows
from offsite.secure.errors import ConfigError


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    recipe = Recipe(100, 1.0, warmup_share=0.1)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert 0 < rates[-1] < 1e-3


def test_it_finds_a_minimum_in_bf16_with_fp32_masters() -> None:
    """1 + 2⁻⁹ is 1 in bf16: without masters the small steps at the end would be lost."""
    weight = nn.Parameter(torch.zeros(64, dtype=torch.bfloat16))
    goal = torch.linspace(-1, 1, 64)
    losses = train(
        {"w": weight}, lambda step: ((weight.float() - goal) ** 2).sum(), Recipe(300, 0.05)
    )
    assert losses[-1] < 1e-3 * losses[0]
    torch.testing.assert_close(weight.float(), goal.bfloat16().float(), atol=0.01, rtol=0.02)


def test_parts_are_one_step() -> None:
    examples, recipe = make_examples(16), Recipe(4, 1e-2)

    def trained(tokens: int) -> list[torch.Tensor]:
        model = make_model("llama").eval()
        batches = micro_batches(examples, tokens)
        learnt = sum(len(batch.targets) for batch in batches)

        def parts_of(step: int) -> Iterator[torch.Tensor]:
            for batch in batches:
                yield summed_loss(model, batch) / learnt

        losses = train_in_parts(dict(model.named_parameters()), parts_of, recipe)
        return [torch.tensor(losses), *model.parameters()]

    for whole, in_parts in zip(trained(10**6), trained(40), strict=True):
        torch.testing.assert_close(whole, in_parts, atol=2e-4, rtol=1e-3)


def test_progress_is_told_and_the_random_state_is_left_alone() -> None:
    weight, told = nn.Parameter(torch.ones(1)), []
    before = torch.get_rng_state()
    train(
        {"w": weight},
        lambda step: weight.sum() * torch.rand(()),
        Recipe(3, 0.1),
        lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(ConfigError, match="diverged at step 2 of 5: expected a finite loss"):
        train({"w": weight}, lambda step: weight.sum() * (math.nan if step else 1), Recipe(5, 0.1))


@pytest.mark.parametrize(
    ("values", "named"),
    [((0, 0.1), "steps is 0"), ((1, 0.0), "learning_rate is 0"), ((1, 0.1, 1.0), "warmup_share")],
)
def test_a_recipe_that_cannot_be_is_refused(values: tuple[int, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Recipe(*values)


def test_rows_of_text_are_seen_once_an_epoch() -> None:
    rows = TextRows.of([torch.arange(60).view(6, 10), torch.arange(60, 80).view(2, 10)], 35, 1)
    seen = [tuple(row.tolist()) for step in range(8) for row in rows.step(step)]
    assert [len(rows.step(step)) for step in range(8)] == [3] * 8
    assert sorted(seen) == sorted(3 * [tuple(row.tolist()) for row in rows.rows])
    assert (rows.tokens(8), rows.epoch_tokens) == (8 * 3 * 9, 8 * 9)


def test_text_that_gives_no_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="found none"):
        TextRows.of([], 100, 0)
    with pytest.raises(ConfigError, match="at least a row, 10 tokens"):
        TextRows.of([torch.arange(60).view(6, 10)], 9, 0)
