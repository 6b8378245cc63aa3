"""Which clients of a round are tuned together: one by one, K at a time, or what turns out to be
faster.

Before the first instruction of an attempt is answered, the clients that will answer in time are
known. `Stacks` tunes them in stacks and keeps what came of it; the app of each client then checks
its instruction as ever and takes its own outcome in the place of tuning (`tune_of`). With `auto`
the first K clients of the first round are tuned in both ways, and the faster one is kept for the
rest.

What `auto` finds depends on the machine, and the two ways agree to rounding only: who wants a run
to be the same to the last bit names K."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.edge_client.checkpoint import Checkpoint
from offsite.edge_client.outcome import TuningOutcome
from offsite.edge_client.task import Task
from offsite.edge_client.tuning import Callbacks, Tune, tune
from offsite.edge_client.workbench import Warm
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.rounds.plan import RoundPlan
from offsite.emulator.training.tokens import Example
from offsite.secure.errors import OffsiteError
from offsite.simulation.stacked_tuning import tune_stacked, why_not

AUTO: Final = 0
AUTO_CLIENTS: Final = 8
Tensors = Mapping[str, torch.Tensor]
Outcomes = dict[str, TuningOutcome | OffsiteError]
"""By client."""
ExamplesOf = Callable[[str, int], Sequence[Example]]
"""(client, most tokens of an example) -> its examples."""


@dataclass(slots=True)
class Stacks:
    """Tunes the clients of one campaign."""

    size: int
    """K; 1: one by one; `AUTO`: measured."""
    warm: Warm
    examples_of: ExamplesOf
    tell: Callable[[str], None]
    _task: Task | None = None
    """What the outcomes are of; its seed is that of one attempt."""
    _found: Outcomes = field(default_factory=dict)

    def prepare(self, plan: RoundPlan, base: Tensors, names: Sequence[str]) -> None:
        """Tunes those who will be asked, where stacks are wanted and possible."""
        self._found.clear()
        if self.size == 1 or len(names) < 2:
            return
        model, task = self.warm.model(plan.settings.dtype), Task.of(plan)
        if reason := why_not(self.warm.adapter, plan.settings, model):
            self.tell(f"clients are tuned one by one: {reason}")
            self.size = 1
            return
        examples = {n: self.examples_of(n, plan.settings.max_tokens) for n in names}
        ordered = sorted(names, key=lambda name: (-len(examples[name]), name))
        self._task = task
        if self.size == AUTO:
            first, ordered = ordered[:AUTO_CLIENTS], ordered[AUTO_CLIENTS:]
            self._found |= self._measured(model, base, task, first, examples)
        while ordered and self.size > 1:
            group, ordered = ordered[: self.size], ordered[self.size :]
            self._found |= self._stack(model, base, task, group, examples)

    def tune_of(self, name: str) -> Tune:
        """The loop of one client."""

        def tuned(
            model: PreTrainedModel,
            parameters: Mapping[str, nn.Parameter],
            base: Tensors,
            examples: Sequence[Example],
            task: Task,
            *,
            checkpoint: Checkpoint | None = None,
            callbacks: Callbacks | None = None,
        ) -> TuningOutcome:
            found = self._found.pop(name, None) if task == self._task else None
            if isinstance(found, OffsiteError):
                raise found
            if found is not None:
                return found
            # A simulation that is killed begins again: nothing is gained by checkpoints.
            return tune(model, parameters, base, examples, task, callbacks=callbacks)

        return tuned

    def _stack(
        self,
        model: PreTrainedModel,
        base: Tensors,
        task: Task,
        names: Sequence[str],
        examples: Mapping[str, Sequence[Example]],
    ) -> Outcomes:
        adapter = self.warm.adapter
        assert isinstance(adapter, LoraAdapter)  # `why_not`
        outcomes = tune_stacked(model, adapter, base, [examples[n] for n in names], task)
        return dict(zip(names, outcomes, strict=True))

    def _measured(
        self,
        model: PreTrainedModel,
        base: Tensors,
        task: Task,
        names: Sequence[str],
        examples: Mapping[str, Sequence[Example]],
    ) -> Outcomes:
        """Tunes the same clients both ways and settles on one."""
        started = time.monotonic()
        alone: Outcomes = {}
        for name in names:
            self.warm.adapter.load(model, base)
            parameters = self.warm.adapter.trainable(model)
            try:
                alone[name] = tune(model, parameters, base, examples[name], task)
            except OffsiteError as error:
                alone[name] = error
        between = time.monotonic()
        together = self._stack(model, base, task, names, examples)
        alone_s, stacked_s = between - started, time.monotonic() - between
        self.size = len(names) if stacked_s < alone_s else 1
        self.tell(
            f"{len(names)} clients take {alone_s:.2f} s one by one and {stacked_s:.2f} s in a "
            "stack: "
            + (
                f"stacks of {self.size} from here on"
                if self.size > 1
                else "one by one from here on"
            )
        )
        return together if self.size > 1 else alone
