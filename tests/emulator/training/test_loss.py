"""The loss over the learnt tokens is that of full logits, at the price of few of them."""

import pytest
import torch
from tests.emulator.training.samples import make_examples, make_model

from offsite.emulator.training.batches import micro_batches, text_batches
from offsite.emulator.training.loss import summed_loss, token_losses

EXAMPLES = make_examples(40)
FAMILIES = ["llama", "gpt2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_full_logits_with_an_attention_mask(family: str) -> None:
    model = make_model(family).double().eval()
    for batch in micro_batches(EXAMPLES[:8], 60):
        mask = torch.zeros_like(batch.ids)
        for row in range(len(mask)):
            mask[row, : int(batch.columns[batch.rows == row].max()) + 1] = 1
        logits = model(input_ids=batch.ids, attention_mask=mask).logits.log_softmax(-1)
        wanted = -logits[batch.rows, batch.columns, batch.targets].sum()
        torch.testing.assert_close(summed_loss(model, batch).double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_sees_only_positions_that_predict_something_learnt(family: str) -> None:
    model = make_model(family)
    seen: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(tuple(output.shape[:2]))
    )
    (batch,) = micro_batches(EXAMPLES[:1], 60)
    summed_loss(model, batch)
    assert seen == [(1, EXAMPLES[0].learnt_tokens)]
    model(input_ids=batch.ids)
    assert seen[-1] == tuple(batch.ids.shape)  # nothing is left behind


def test_a_model_whose_head_is_hidden_is_computed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    (batch,) = micro_batches(EXAMPLES[:1], 60)
    wanted = summed_loss(model, batch)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(summed_loss(model, batch), wanted)


def test_the_sum_is_that_of_the_tokens() -> None:
    model = make_model("llama").eval()
    for batch in micro_batches(EXAMPLES[:8], 60):
        torch.testing.assert_close(token_losses(model, batch).sum(), summed_loss(model, batch))


def test_whole_text_is_learnt_but_for_the_first_token_of_a_row() -> None:
    model = make_model("llama").eval()
    rows = torch.randint(2, 96, (5, 12), generator=torch.Generator().manual_seed(1))
    batches = text_batches(rows, 24)
    assert [batch.ids.shape for batch in batches] == [(2, 11), (2, 11), (1, 11)]
    logits = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
    wanted = -logits.gather(-1, rows[:, 1:, None]).sum()
    found = sum(summed_loss(model, batch) for batch in batches)
    torch.testing.assert_close(found, wanted)
