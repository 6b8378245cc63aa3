"""Tuning the adapter with differential privacy: DP-SGD's noisy gradients into AdamW.

    block of steps:  claim ──► step … step ──► checkpoint ──► commit
    step:            draw units ──► per-unit gradients, clipped to C, summed ──► + N(0, (σC)²)
                     ──► / (q n) ──► AdamW

Notable decisions:

* Everything that decides privacy lies in `LogicalBatch` (drawing, counting, noise) and in the
  per-example engine (clipping); here is the loop around them, and what it must not do: no loss is
  looked at, nothing is validated, no count is reported, and the optimiser sees noised sums alone.
  The proximal term of FedProx is added to them: it is made of the round's adapter, which is public,
  and of values that noised sums have led to, so it costs nothing.
* A claim is in the ledger, synced, before its first step. A crash inside a block costs the block; the
  run goes on from the last checkpoint with a new claim. When no step is left to claim, the round
  ends early: that is post-processing.
* AdamW's moments and the checkpoint are made of noised gradients, so they are no more secret than
  what is released. There is no random state in a checkpoint: noise and sampling get fresh entropy
  from the operating system in every step, also after a restart.

Rules: a unit whose gradient is not finite adds nothing and stops nothing, and nor does a run in which no
unit has a gradient: a stop would tell of the data. That the adapter trains at all is what the start-up
proof has shown, on made-up units.
Source: Abadi et al., CCS 2016, algorithm 1.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from offsite.edge_client.checkpoint import Checkpoint, Snapshot
from offsite.edge_client.outcome import difference
from offsite.edge_client.privacy.unit_examples import UnitBatch, UnitExamples
from offsite.edge_client.task import Task, learning_rate
from offsite.edge_client.tuning import NO_CHECKPOINT, Callbacks
from offsite.emulator.privacy.backends.backend import Backend, flat_size
from offsite.emulator.privacy.proof.dropout import without_dropout
from offsite.emulator.training.masters import Masters
from offsite.secure.errors import MachineError, PolicyError
from offsite.secure.privacy.logical_batch import LogicalBatch, StepTerms
from offsite.secure.privacy.randomness.source import ENTROPY_BYTES, NoiseSource

BLOCKS_PER_ROUND = 10
"""Claims, and with them checkpoints, of a round: what a crash costs is one of them."""


class Claims(Protocol):
    """The ledger, for one attempt at one round."""

    def claim(self, steps: int, parent: Mapping[str, torch.Tensor]) -> int:
        """Claim up to so many steps that start from these values; how many, 0 for none left."""

    def commit(self, steps: int, result: Mapping[str, torch.Tensor]) -> None:
        """Of the last claim, so many steps ran and led to these values."""

    @property
    def name(self) -> bytes:
        """What names the last claim on this machine."""


@dataclass(frozen=True, slots=True)
class PrivateOutcome:
    """The tuned adapter minus the one the round began with; nothing else is known outside."""

    delta: dict[str, torch.Tensor]
    steps: int
    seconds: float
    has_trained: bool
    """Whether any unit had a gradient; for the owner alone."""


@dataclass(frozen=True, slots=True)
class PrivateRun:
    """What is tuned, on what, and how far."""

    backend: Callable[[PreTrainedModel, Mapping[str, nn.Parameter]], Backend]
    model: PreTrainedModel
    parameters: Mapping[str, nn.Parameter]
    base: Mapping[str, torch.Tensor]
    """The values that the round begins with."""
    units: UnitExamples
    task: Task
    steps: int
    """At most."""
    terms: StepTerms

    def masters(self) -> Masters:
        """Of the values that train. Not as a context, so without hooks: gradients are ours.

        Raises:
            PolicyError: steps would be drawn from another number of units than there are.
        """
        if self.terms.sampler.units != self.units.count:
            raise PolicyError(
                f"expected steps drawn from {self.units.count} units, found terms for steps drawn "
                f"from {self.terms.sampler.units}"
            )
        settings, mu = self.task.settings, self.task.proximal_mu
        return Masters(self.parameters, self.base, settings.weight_decay, mu)


def tune_privately(
    run: PrivateRun,
    claims: Claims,
    *,
    checkpoint: Checkpoint | None = None,
    callbacks: Callbacks | None = None,
    entropy: Callable[[int], bytes] = os.urandom,
) -> PrivateOutcome:
    """Take private steps from the run's base; its model is left with the tuned values.

    Raises:
        PolicyError: no step could be claimed, or one was not what was claimed; nothing is released.
    """
    return _PrivateTuner(run, claims, checkpoint, callbacks or Callbacks(), entropy).tune()


class _PrivateTuner:
    """One run."""

    def __init__(
        self,
        run: PrivateRun,
        claims: Claims,
        checkpoint: Checkpoint | None,
        callbacks: Callbacks,
        entropy: Callable[[int], bytes],
    ) -> None:
        self.run, self.masters = run, run.masters()
        self.backend = run.backend(run.model, run.parameters)
        self.claims, self.checkpoint, self.callbacks = claims, checkpoint, callbacks
        self.entropy = entropy
        self.values = flat_size(self.masters.parameters)
        self.step, self.seconds, self.has_trained = 0, 0.0, False

    def tune(self) -> PrivateOutcome:
        # (1) Where we are: a checkpoint of this plan, this data and these terms, or the beginning.
        self._resume()
        self._prepare(training=True)
        try:
            # Of what the start-up proof showed: with dropout no two sums could be compared.
            with without_dropout(self.run.model), self.backend:
                # (2) Block after block, each claimed before it runs.
                while self.step < self.run.steps and self._block():
                    pass
        finally:
            self._prepare(training=False)
        # (3) What changed.
        if not self.step:
            raise PolicyError(
                "no step is left of those that were reserved for this campaign: too many attempts "
                "or restarts; this edge sits the rest of it out"
            )
        delta = difference(self.masters.copies(), self.run.base)
        return PrivateOutcome(delta, self.step, self.seconds, self.has_trained)

    def _block(self) -> bool:
        """Claim and run a block; False where nothing is left to claim."""
        wanted = min(-(-self.run.steps // BLOCKS_PER_ROUND), self.run.steps - self.step)
        allowed = self.claims.claim(wanted, self.masters.values)
        if not allowed:
            self.callbacks.status("the reserved steps are used up; the round ends early")
            return False
        batch, first = LogicalBatch(self.run.terms, self.values, allowed), self.step
        try:
            for number in range(allowed):
                self.callbacks.between_steps()
                self._step(batch, number)
        finally:
            # Steps that ran are committed whatever stopped the others; those count, too.
            try:
                self._save()
            finally:
                self.claims.commit(self.step - first, self.masters.values)
        return True

    def _step(self, batch: LogicalBatch, number: int) -> None:
        started = time.monotonic()
        name = self.claims.name + number.to_bytes(8, "big")
        drawn = batch.begin(NoiseSource(self.entropy(ENTROPY_BYTES), name))
        gradient = np.empty(self.values, np.float32)
        try:
            for part in self.run.units.batches(
                drawn.tolist(), self.run.task.settings.micro_batch_tokens
            ):
                batch.add(np.array(part.units), lambda total, part=part: self._add(part, total))  # type: ignore[misc]
            if empty := self.run.units.empty(drawn.tolist()):
                batch.add(np.array(empty), lambda total: np.zeros(len(empty), np.float32))
            batch.finish(gradient)
        except BaseException:
            batch.abandon()
            raise
        self._descend(gradient)
        self.step += 1
        self.seconds += time.monotonic() - started
        self.callbacks.progress(self.step, self.run.steps)

    def _add(self, part: UnitBatch, total: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add the clipped gradients of a part; their norms before clipping, which stay here."""
        device = self.run.model.device
        on_device = torch.from_numpy(total).to(device)
        norms = self.backend.clipped_sum_into(
            part.batch.to(device), part.unit_of_row.to(device), self.run.terms.clip_norm, on_device
        )
        if on_device.data_ptr() != total.ctypes.data:
            torch.from_numpy(total).copy_(on_device)
        self.has_trained = self.has_trained or bool(((norms > 0) & norms.isfinite()).any())
        return norms.cpu().numpy()

    def _descend(self, gradient: NDArray[np.float32]) -> None:
        flat, start = torch.from_numpy(gradient), 0
        for master in self.masters.values.values():
            end = start + master.numel()
            master.grad = flat[start:end].view_as(master).to(master.device)
            start = end
        self.masters.add_proximal_gradient()  # after the noise: it depends on noised values alone
        self.masters.step(learning_rate(self.run.task, self.step, self.run.steps))

    def _prepare(self, *, training: bool) -> None:
        self.run.model.train(training)
        if not self.run.task.settings.gradient_checkpointing:
            return
        if training:
            self.run.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
        else:
            self.run.model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]

    # Checkpoints.

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        numbers = {
            "step": self.step,
            "seconds": self.seconds,
            "has_trained": float(self.has_trained),
        }
        tensors = {f"master/{name}": value for name, value in self.masters.values.items()}
        try:
            self.checkpoint.save(Snapshot(numbers, tensors | self.masters.moments()))
        except MachineError:
            self.callbacks.status(NO_CHECKPOINT)

    def _resume(self) -> None:
        snapshot = self.checkpoint.load() if self.checkpoint else None
        if snapshot is None:
            return
        self.step = int(snapshot.numbers["step"])
        self.seconds = snapshot.numbers["seconds"]
        self.has_trained = bool(snapshot.numbers["has_trained"])
        prefix = "master/"
        self.masters.load(
            {
                name.removeprefix(prefix): tensor
                for name, tensor in snapshot.tensors.items()
                if name.startswith(prefix)
            }
        )
        self.masters.load_moments(snapshot.tensors)
        self.callbacks.status("resuming")  # the steps may follow from the number of units
        self.callbacks.progress(self.step, self.run.steps)
