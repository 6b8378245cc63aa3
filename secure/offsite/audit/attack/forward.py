"""The losses of rows under a model: one forward pass over all of them.

Axes: ``U`` units, ``N`` learnt tokens of a micro-batch.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from transformers import PreTrainedModel

from offsite.audit.attack.losses import Losses
from offsite.emulator.progress import Report, silent
from offsite.emulator.training.attention import attention_kernel
from offsite.emulator.training.batches import micro_batches
from offsite.emulator.training.loss import token_losses
from offsite.emulator.training.tokens import Example
from offsite.secure.errors import MachineError

Unit: TypeAlias = Sequence[Example]
"""At least one example."""


@torch.inference_mode()
def measure_losses(
    model: PreTrainedModel,
    units: Sequence[Unit],
    micro_batch_tokens: int,
    report: Report = silent,
) -> Losses:
    """The losses of units under a model, which is left in the mode it had.

    Raises:
        MachineError: a loss is not finite, so that nothing can be said about the adapter.
    """
    pairs = [(place, example) for place, unit in enumerate(units) for example in unit]
    # `micro_batches` lays examples out longest first, ties as they came: so are these.
    pairs.sort(key=lambda pair: len(pair[1].ids), reverse=True)
    owner = np.array([place for place, _ in pairs], np.int64)
    batches = micro_batches([example for _, example in pairs], micro_batch_tokens)
    nats, tokens, first = np.zeros(len(units)), np.zeros(len(units)), 0
    was_training = model.training
    model.train(False)
    try:
        for done, batch in enumerate(batches, start=1):
            with attention_kernel(batch.ids, model.dtype):
                losses = token_losses(model, batch.to(model.device)).double().cpu().numpy()  # [N]
            places = owner[first + batch.rows.numpy()]
            np.add.at(nats, places, losses)
            np.add.at(tokens, places, 1.0)
            first += len(batch.ids)
            report(done, len(batches))
    finally:
        model.train(was_training)
    if not np.isfinite(nats).all():
        raise MachineError(
            "expected finite losses, found one that is not: the adapter cannot be judged; tune "
            "again with dtype float32 or a lower learning rate"
        )
    return Losses(nats, tokens)
