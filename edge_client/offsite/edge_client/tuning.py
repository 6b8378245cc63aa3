"""Tuning the adapter on the data owner's examples: the local part of one round.

Notable decisions:

* The loss of a step is the sum of -ln p over the learnt tokens of its logical batch divided by
  their number. How the batch is split into micro-batches does not change it.
* The learning rate and every seed follow from plan and step (see `task`). AdamW's moments start
  afresh in every round, for an edge keeps nothing between rounds.
* With checkpoints between steps a killed run resumes bit for bit
  (`test_a_killed_run_resumes_bit_for_bit`).
* With a proximal term (FedProx) its gradient is a part of the step's, and clipped with it; the loss
  that is reported is that of the data alone.
* An early stop returns the values with the best validation loss, not the last ones.

Rules: a loss or gradient that is not finite stops the run, and so does an adapter that did not
change; nothing is returned then.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.edge_client.checkpoint import Checkpoint, Snapshot
from offsite.edge_client.outcome import TuningMetrics, TuningOutcome, difference, loss_curve
from offsite.edge_client.task import Task, learning_rate
from offsite.emulator.progress import Report, silent
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.training.attention import attention_kernel
from offsite.emulator.training.batches import (
    MicroBatch,
    Split,
    logical_batch,
    micro_batches,
    split,
    steps_of,
)
from offsite.emulator.training.loss import summed_loss
from offsite.emulator.training.masters import Masters
from offsite.emulator.training.tokens import Example
from offsite.secure.errors import ConfigError, MachineError

CHECKPOINT_S = 30.0
CHECKPOINT_SHARE = 0.05
"""Writing checkpoints takes no more than this share of the time."""

NO_CHECKPOINT = "no checkpoint can be written here; tuning goes on without"
VALIDATIONS_PER_ROUND = 10
VALIDATION_EXAMPLES = 256
"""Most examples that one validation reads."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Who listens, and who may stop the run.

    ``status`` may be sent to the coordinator: fixed words and numbers, no path, no data.
    ``between_steps`` runs where a checkpoint is possible; if it raises, one is written and the
    exception goes on.
    """

    progress: Report = silent
    status: Callable[[str], None] = lambda text: None
    between_steps: Callable[[], None] = lambda: None


class Tune(Protocol):
    """What `tune` does."""

    def __call__(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, nn.Parameter],
        base: Mapping[str, torch.Tensor],
        examples: Sequence[Example],
        task: Task,
        *,
        checkpoint: Checkpoint | None = None,
        callbacks: Callbacks | None = None,
    ) -> TuningOutcome: ...


@dataclass(slots=True)
class _Run:
    """Where a run stands after some steps; all that a checkpoint holds beside the masters."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    examples_seen: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    seconds: float = 0.0
    validation_before: float = math.nan
    best_validation: float = math.inf
    validations_without_gain: int = 0
    best: dict[str, torch.Tensor] = field(default_factory=dict)


def tune(
    model: PreTrainedModel,
    parameters: Mapping[str, nn.Parameter],
    base: Mapping[str, torch.Tensor],
    examples: Sequence[Example],
    task: Task,
    *,
    checkpoint: Checkpoint | None = None,
    callbacks: Callbacks | None = None,
) -> TuningOutcome:
    """Tune ``parameters`` of ``model``, starting from ``base``, and return what changed.

    ``parameters`` are the only ones that require gradients; ``base`` holds their fp32 values.
    The model is left in evaluation mode with the tuned values in it.

    Raises:
        ConfigError: the loss is not finite, or the adapter did not change.
        MachineError: there is not enough memory.
    """
    with Masters(parameters, base, task.settings.weight_decay, task.proximal_mu) as masters:
        tuner = _Tuner(model, masters, examples, task, checkpoint, callbacks or Callbacks())
        with torch.random.fork_rng(devices=[]), _memory_named(task.settings):
            return tuner.run(base)


@contextmanager
def _memory_named(settings: TuningSettings) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch says it in the words of a RuntimeError alone.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise MachineError(
            f"not enough memory for {settings.micro_batch_tokens} tokens at once; ask the "
            "coordinator for fewer micro_batch_tokens or for gradient_checkpointing"
        ) from error


class _Tuner:
    """One run: the loop, and what it calls."""

    def __init__(
        self,
        model: PreTrainedModel,
        masters: Masters,
        examples: Sequence[Example],
        task: Task,
        checkpoint: Checkpoint | None,
        callbacks: Callbacks,
    ) -> None:
        self.model, self.masters, self.examples = model, masters, examples
        self.task, self.settings = task, task.settings
        self.checkpoint, self.callbacks = checkpoint, callbacks
        self.split: Split = split(examples, self.settings.validation_share)
        count = len(self.split.train)
        self.steps = self.settings.local_steps or steps_of(
            count, self.settings.batch_examples, self.settings.local_epochs
        )
        self.steps_per_epoch = -(-count // self.settings.batch_examples)
        self.validation = self._validation_batches()
        self.run_state = _Run()
        self.saved_at = time.monotonic()
        self.save_pause_s = 0.0

    def run(self, base: Mapping[str, torch.Tensor]) -> TuningOutcome:
        """Tune from ``base``, or from the checkpoint."""
        run = self.run_state
        # (1) Where we are: a checkpoint of this plan and these examples, or the beginning.
        if not self._resume():
            run.validation_before = self._validate()
        # (2) Step after step, with checkpoints between them.
        self._prepare(training=True)
        try:
            while run.step < self.steps and not self._patience_is_over():
                self._between_steps()
                self._step()
                if self.settings.patience and run.step % self._validation_interval() == 0:
                    self._note_validation()
        finally:
            self._prepare(training=False)
        # (3) The best values where an early stop looked for them, else the last.
        stopped_early = run.step < self.steps
        if run.best:
            self.masters.load(run.best)
        # (4) What changed, and what was done.
        delta = difference(self.masters.copies(), base)
        return TuningOutcome(delta, self._metrics(stopped_early))

    def _step(self) -> None:
        """One optimiser step on one logical batch."""
        run, started = self.run_state, time.monotonic()
        batch = self._batch(run.step)
        learnt = sum(len(micro.targets) for micro in batch)
        torch.manual_seed(self.task.step_seed(run.step))  # for dropout alone
        loss = torch.zeros((), device=self.model.device)
        for micro in batch:
            moved = micro.to(self.model.device)
            with attention_kernel(moved.ids, self.model.dtype):
                part = summed_loss(self.model, moved) / learnt
                part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        self.masters.add_proximal_gradient()
        norm = self.masters.clip(self.settings.grad_clip)
        self._require_finite(float(loss), norm)
        self.masters.step(learning_rate(self.task, run.step, self.steps))
        run.step += 1
        run.losses.append(float(loss))
        run.examples_seen += min(self.settings.batch_examples, len(self.split.train))
        run.tokens += sum(micro.tokens for micro in batch)
        run.learnt_tokens += learnt
        run.seconds += time.monotonic() - started
        self.callbacks.progress(run.step, self.steps)

    def _batch(self, step: int) -> list[MicroBatch]:
        train = self.split.train
        size, seed = self.settings.batch_examples, self.task.order_seed
        places = logical_batch(len(train), size, seed, step)
        chosen = [self.examples[train[place]] for place in places]
        return micro_batches(chosen, self.settings.micro_batch_tokens)

    def _require_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise ConfigError(
            f"tuning diverged at step {self.run_state.step + 1} of {self.steps}: expected a finite "
            f"loss and gradient, found {loss} and {norm}; lower learning_rate "
            f"({self.settings.learning_rate:g}) or use dtype float32"
        )

    def _prepare(self, *, training: bool) -> None:
        self.model.train(training)
        if not self.settings.gradient_checkpointing:
            return
        if training:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
        else:
            self.model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]

    # Validation and early stop.

    def _validation_batches(self) -> list[MicroBatch]:
        held_out = self.split.validation[:VALIDATION_EXAMPLES]
        chosen = [self.examples[index] for index in held_out]
        return micro_batches(chosen, self.settings.micro_batch_tokens)

    def _validation_interval(self) -> int:
        return max(1, self.steps // VALIDATIONS_PER_ROUND)

    def _patience_is_over(self) -> bool:
        patience = self.settings.patience
        return 0 < patience <= self.run_state.validations_without_gain

    @torch.no_grad()
    def _validate(self) -> float:
        """Return the loss per learnt token on the split held out, NaN where there is none."""
        if not self.validation:
            return math.nan
        was_training = self.model.training
        self.model.train(False)
        total = 0.0
        for micro in self.validation:
            total += float(summed_loss(self.model, micro.to(self.model.device)))
        self.model.train(was_training)
        return total / sum(len(micro.targets) for micro in self.validation)

    def _note_validation(self) -> None:
        run, loss = self.run_state, self._validate()
        if loss < run.best_validation:
            run.best_validation, run.validations_without_gain = loss, 0
            run.best = self.masters.copies()
        elif self.validation:
            run.validations_without_gain += 1

    # Checkpoints.

    def _between_steps(self) -> None:
        run = self.run_state
        try:
            self.callbacks.between_steps()
        except BaseException:
            self._save()
            raise
        since_s = time.monotonic() - self.saved_at
        after_epoch = run.step % self.steps_per_epoch == 0
        if since_s >= self.save_pause_s and (since_s >= CHECKPOINT_S or after_epoch):
            self._save()

    def _save(self) -> None:
        """Write a checkpoint; where none can be written the run goes on and says so."""
        if self.checkpoint is None or not self.run_state.step:
            return
        started = time.monotonic()
        try:
            self.checkpoint.save(self._snapshot())
        except MachineError as error:
            # The status goes to the coordinator: the path in the error's text stays here.
            _log.warning("no checkpoint at step %d: %s", self.run_state.step, error)
            self.callbacks.status(NO_CHECKPOINT)
        self.saved_at = time.monotonic()
        self.save_pause_s = (self.saved_at - started) / CHECKPOINT_SHARE

    def _snapshot(self) -> Snapshot:
        run = self.run_state
        numbers = {name: getattr(run, name) for name in _NUMBERS}
        tensors = {f"master/{name}": value for name, value in self.masters.values.items()}
        tensors |= self.masters.moments()
        tensors |= {f"best/{name}": value for name, value in run.best.items()}
        tensors["losses"] = torch.tensor(run.losses, dtype=torch.float64)
        return Snapshot(numbers, tensors)

    def _resume(self) -> bool:
        """Continue from the checkpoint, if there is one."""
        snapshot = self.checkpoint.load() if self.checkpoint else None
        if snapshot is None:
            return False
        run = self.run_state
        for name in _NUMBERS:
            setattr(run, name, snapshot.numbers[name])
        run.losses = snapshot.tensors["losses"].tolist()
        run.best = _with_prefix(snapshot.tensors, "best/")
        self.masters.load(_with_prefix(snapshot.tensors, "master/"))
        self.masters.load_moments(snapshot.tensors)
        self.callbacks.status(f"resuming at step {run.step + 1} of {self.steps}")
        self.callbacks.progress(run.step, self.steps)
        return True

    def _metrics(self, stopped_early: bool) -> TuningMetrics:
        run = self.run_state
        has_validation = bool(self.validation)
        return TuningMetrics(
            steps=run.step,
            examples=min(len(self.split.train), run.examples_seen),
            examples_seen=run.examples_seen,
            tokens=run.tokens,
            learnt_tokens=run.learnt_tokens,
            seconds=run.seconds,
            first_loss=run.losses[0],
            last_loss=run.losses[-1],
            loss_curve=loss_curve(run.losses),
            validation_before=run.validation_before if has_validation else None,
            validation_after=self._validate() if has_validation else None,
            stopped_early=stopped_early,
        )


_NUMBERS = (
    "step",
    "examples_seen",
    "tokens",
    "learnt_tokens",
    "seconds",
    "validation_before",
    "best_validation",
    "validations_without_gain",
)


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
