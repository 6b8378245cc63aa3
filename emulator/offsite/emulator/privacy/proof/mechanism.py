"""The private step as it will train, cut at its joints so that each can be tried by itself.

`PrivateStep` is made of the very parts of training: the backend on the model at hand, the packing of
units into micro-batches, the logical batch with its sampler and noise. Nothing private passes here:
gradients are of made-up units, and a step that is begun to see whom it draws is abandoned.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from offsite.emulator.privacy.backends.backend import Backend
from offsite.emulator.training.batches import MicroBatch
from offsite.emulator.training.tokens import Example
from offsite.secure.privacy.logical_batch import LogicalBatch, StepTerms
from offsite.secure.privacy.randomness.poisson import Units
from offsite.secure.privacy.randomness.source import ENTROPY_BYTES, NoiseSource

Unit = Sequence[Example]
Packed = tuple[MicroBatch, torch.Tensor]
"""Rows, and the unit [B] of each, counted within the batch from 0."""

_NAME = b"offsite/start-up proof"


class Mechanism(Protocol):
    """What the proof tries."""

    @property
    def terms(self) -> StepTerms:
        """What a step is stated to do."""

    @property
    def values(self) -> int:
        """P."""

    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        """Return the sum [P] of the gradients of units, each clipped to ``clip``; no noise."""

    def draw(self) -> Units:
        """Return the units that a step would see."""

    def noise(self) -> NDArray[np.float32]:
        """Return what a step releases whose units have no gradient, before the division [P]."""


@dataclass(frozen=True, slots=True)
class PrivateStep:
    """See `Mechanism`; the backend must be entered."""

    backend: Backend
    terms: StepTerms
    values: int
    device: torch.device
    pack: Callable[[Sequence[Unit]], Iterable[Packed]]
    entropy: Callable[[int], bytes] = os.urandom

    def clipped_sum(self, units: Sequence[Unit], clip: float) -> torch.Tensor:
        total = torch.zeros(self.values, device=self.device)
        for batch, unit_of_row in self.pack(units):
            rows = batch.to(self.device), unit_of_row.to(self.device)
            self.backend.clipped_sum_into(*rows, clip, total)
        return total

    def draw(self) -> Units:
        batch = LogicalBatch(self.terms, 1, 1)
        drawn = batch.begin(self._source())
        batch.abandon()
        return drawn

    def noise(self) -> NDArray[np.float32]:
        batch = LogicalBatch(self.terms, self.values, 1)
        drawn = batch.begin(self._source())
        batch.add(drawn, lambda total: np.zeros(len(drawn), np.float32))
        release = np.empty(self.values, np.float32)
        batch.finish(release)
        release *= float(self.terms.expected_units)
        return release

    def _source(self) -> NoiseSource:
        return NoiseSource(self.entropy(ENTROPY_BYTES), _NAME)
