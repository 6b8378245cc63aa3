"""A batch of as many rows as tokens, in which [B, T] and [T, B] have the same sizes."""

import torch
from tests.emulator.privacy.backends.cells import make_batch

from offsite.emulator.training.batches import MicroBatch

SIDE = 16


def square_batch() -> MicroBatch:
    """Every row learns the token after its last one."""
    batch, rows = make_batch(rows=SIDE), torch.arange(SIDE)
    last = torch.full((SIDE,), SIDE - 1)
    return MicroBatch(batch.ids[:, :SIDE], rows, last, batch.targets[:SIDE], SIDE * SIDE)
