"""The loss over the learnt tokens, with the output head applied to nothing else.

A head over 50,000 and more tokens costs as much as several blocks, and its logits more memory than
all activations. Most positions of a prompt teach nothing, so the hidden states are reduced to the
positions that predict a learnt token before they reach the head. This is done by a hook on the head
module itself, so that whatever a model does to its logits (scaling, soft caps) is done as ever, and
no model's `forward` must know of it (`logits_to_keep` would keep whole columns of a batch).

A model whose head cannot be found is computed in full; the shape of the logits tells which it was.

Axes: ``B`` rows, ``T`` tokens, ``H`` hidden, ``N`` learnt tokens, ``V`` vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from offsite.emulator.training.batches import MicroBatch


def summed_loss(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """Return the sum of -ln p over the learnt tokens of ``batch``, a scalar in fp32."""
    logits = _learnt_logits(model, batch)
    return functional.cross_entropy(logits.float(), batch.targets, reduction="sum")


def token_losses(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """Return -ln p of every learnt token of ``batch``, [N] in fp32."""
    logits = _learnt_logits(model, batch)
    return functional.cross_entropy(logits.float(), batch.targets, reduction="none")


def _learnt_logits(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """Return [N, V]."""
    with _only_learnt(model, batch):
        output = model(input_ids=batch.ids, use_cache=False)
    logits: torch.Tensor = output.logits  # [1, N, V] or [B, T, V]
    if logits.shape[:2] != (1, len(batch.rows)):  # no hook reduced it
        logits = logits[batch.rows, batch.columns]
    return logits.view(-1, logits.shape[-1])


@contextmanager
def _only_learnt(model: PreTrainedModel, batch: MicroBatch) -> Iterator[None]:
    """Let the head see [1, N, H] in place of [B, T, H]."""

    def reduce(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *others = args
        return hidden[batch.rows, batch.columns][None], *others

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(reduce)
    try:
        yield
    finally:
        handle.remove()
