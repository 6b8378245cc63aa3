"""Tuning an adapter with the edge's own loop, and choosing its learning rate."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from benchmarks.emulators import sources
from benchmarks.emulators.lab import Lab
from benchmarks.emulators.rows import digest_of
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import tune
from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.rounds.plan import ComputeDtype, TuningSettings

Tensors = dict[str, torch.Tensor]
InputFields = dict[str, str | int | float]


def tuning_inputs(lab: Lab) -> InputFields:
    """What a tuning depends on, beside model, adapter, rate, task and seed."""
    return {
        "steps": lab.settings.steps,
        "batch": lab.settings.batch_examples,
        "micro_batch": lab.settings.micro_batch_tokens,
        "tuning_code": sources.tuning(),
    }


@dataclasses.dataclass(frozen=True)
class Tuner:
    """One adapter in one model, full or emulator, on one task.

    Tuned adapters lie in `folder` until the row is done: the one that the choice of the rate made
    with seed 0 is also that of the table.
    """

    lab: Lab
    model: PreTrainedModel
    adapter: Adapter
    task: str
    folder: Path

    def tuned(self, rate: float, seed: int) -> Tensors:
        """The adapter after tuning; the model is as it was."""
        how = digest_of(tuning_inputs(self.lab))
        path = self.folder / f"{self.task}-{how}-{seed}-{rate:g}.safetensors"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            save_file(self._tune(rate, seed), partial)
            os.replace(partial, path)
        return load_file(path)

    def forget(self) -> None:
        """Remove this task's adapters."""
        for path in self.folder.glob(f"{self.task}-*"):
            path.unlink()

    def _tune(self, rate: float, seed: int) -> Tensors:
        model, adapter = self.model, self.adapter
        adapter.attach(model)
        before = adapter.extract(model)
        try:
            examples = self.lab.training(self.task)
            outcome = tune(
                model, adapter.trainable(model), before, examples, self._work(rate, seed)
            )
        finally:
            adapter.load(model, before)
            adapter.detach(model)
        return {name: value + outcome.delta[name] for name, value in before.items()}

    def _work(self, rate: float, seed: int) -> Task:
        settings = self.lab.settings
        plan = TuningSettings(
            learning_rate=rate,
            local_steps=settings.steps,
            batch_examples=settings.batch_examples,
            micro_batch_tokens=settings.micro_batch_tokens,
            validation_share=0.0,
            dtype=ComputeDtype(str(self.model.dtype).removeprefix("torch.")),
        )
        return Task(plan, seed=seed)


def best(rates: Sequence[float], accuracy_of: Callable[[float], float]) -> float:
    """The rate of the highest accuracy; of equal ones the lowest. A single one needs no trial."""
    if len(rates) == 1:
        return rates[0]
    return max(sorted(rates), key=accuracy_of)
