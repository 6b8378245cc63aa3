"""Units as rows of one batch."""

from collections.abc import Iterator, Sequence

import torch

from offsite.emulator.privacy.proof.mechanism import Packed, Unit
from offsite.emulator.training.batches import pack


def packed(units: Sequence[Unit]) -> Iterator[Packed]:
    """All units in one batch, the longest row first."""
    pairs = [(example, place) for place, unit in enumerate(units) for example in unit]
    pairs.sort(key=lambda pair: len(pair[0].ids), reverse=True)
    if pairs:
        yield (
            pack([example for example, _ in pairs]),
            torch.tensor([place for _, place in pairs]),
        )
