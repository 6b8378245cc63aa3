"""The edge's loop (`edge_client.tuning`) for several clients at once, each as if it were alone.

Step for step it is the same: a client's logical batch, its loss over its own learnt tokens, its
own norm for clipping, its own rate, AdamW value by value. Rows of all clients share micro-batches,
and the frozen model is passed once for all of them. In fp32 the outcome is that of one client at a
time, to rounding (`test_clients_in_a_stack_tune_as_they_would_alone`).

What this loop does not do, and what is then tuned one by one (`why_not`): whole blocks, early
stopping, dropout, gradient checkpointing, differential privacy."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.edge_client.outcome import TuningMetrics, TuningOutcome, difference, loss_curve
from offsite.edge_client.task import Task, learning_rate
from offsite.emulator.adapters.adapter import Adapter
from offsite.emulator.adapters.lora import LoraAdapter
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.training.attention import attention_kernel
from offsite.emulator.training.batches import logical_batch, pack, packed_groups, split, steps_of
from offsite.emulator.training.loss import token_losses
from offsite.emulator.training.masters import BETAS, EPSILON
from offsite.emulator.training.tokens import Example
from offsite.secure.errors import ConfigError, OffsiteError
from offsite.simulation.stacked_lora import Stack, stacked

Tensors = Mapping[str, torch.Tensor]
_CLIP_EPSILON = 1e-6
"""As torch's `clip_grads_with_norm_` has it."""


def why_not(adapter: Adapter, settings: TuningSettings, model: PreTrainedModel) -> str:
    """Why clients cannot be tuned in a stack; "" if they can."""
    if not isinstance(adapter, LoraAdapter):
        return "the adapter is whole blocks, whose weights no two clients share"
    if settings.patience:
        return "tuning.patience stops each client at a step of its own"
    if settings.gradient_checkpointing:
        return "tuning.gradient_checkpointing is to save the memory that a stack takes"
    if any(isinstance(m, nn.Dropout) and m.p for m in model.modules()) or any(
        value
        for name, value in model.config.to_dict().items()
        if "dropout" in name and isinstance(value, float)
    ):
        return "the model has dropout, which is drawn batch by batch"
    return ""


@dataclass(slots=True)
class _Own:
    """One client of a stack."""

    examples: Sequence[Example]
    train: tuple[int, ...]
    steps: int
    losses: list[float] = field(default_factory=list)
    examples_seen: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    error: OffsiteError | None = None

    @classmethod
    def of(cls, examples: Sequence[Example], settings: TuningSettings) -> "_Own":
        train = split(examples, settings.validation_share).train
        steps = settings.local_steps or steps_of(
            len(train), settings.batch_examples, settings.local_epochs
        )
        return cls(examples, train, steps)

    def batch(self, task: Task, step: int) -> list[Example]:
        """The logical batch of a step; none once the client is done."""
        if step >= self.steps or self.error is not None:
            return []
        size = task.settings.batch_examples
        places = logical_batch(len(self.train), size, task.order_seed, step)
        return [self.examples[self.train[place]] for place in places]


def tune_stacked(
    model: PreTrainedModel,
    adapter: LoraAdapter,
    base: Tensors,
    clients: Sequence[Sequence[Example]],
    task: Task,
) -> list[TuningOutcome | OffsiteError]:
    """For each client what `tune` would return, or raise.

    Args:
        model: with the adapter attached; it is left as it was.
        base: fp32, what all clients start from.
        clients: the examples of each.
    """
    own = [_Own.of(examples, task.settings) for examples in clients]
    started = time.monotonic()
    model.train(True)
    try:
        with stacked(model, adapter, base, len(own)) as stack:
            optimiser = _AdamW(stack.parameters, task, base)
            for step in range(max(one.steps for one in own)):
                _step(stack, own, optimiser, task, step)
            tuned = {name: p.detach().to("cpu", copy=True) for name, p in stack.parameters.items()}
    finally:
        model.train(False)
    seconds = (time.monotonic() - started) / len(own)
    return [_outcome(one, place, tuned, base, seconds) for place, one in enumerate(own)]


def _step(stack: Stack, own: Sequence[_Own], optimiser: "_AdamW", task: Task, step: int) -> None:
    """One optimiser step of every client that is not done."""
    batches = [one.batch(task, step) for one in own]
    owner = {id(example): place for place, batch in enumerate(batches) for example in batch}
    learnt = [sum(example.learnt_tokens for example in batch) for batch in batches]
    losses = torch.zeros(len(own), device=stack.model.device)
    most_tokens = task.settings.micro_batch_tokens * len(own)
    for group in packed_groups([e for batch in batches for e in batch], most_tokens):
        micro = pack(group).to(stack.model.device)
        stack.owners.of_row = torch.tensor([owner[id(e)] for e in group], device=micro.ids.device)
        clients = stack.owners.of_row[micro.rows]  # [N]
        scale = torch.tensor(learnt, device=micro.ids.device).reciprocal()[clients]
        with attention_kernel(micro.ids, stack.model.dtype):
            parts = token_losses(stack.model, micro) * scale
            parts.sum().backward()  # type: ignore[no-untyped-call]
        losses.index_add_(0, clients, parts.detach())
    norms = optimiser.clip(task.settings.grad_clip)
    rates = [
        learning_rate(task, step, o.steps) if b else 0.0 for o, b in zip(own, batches, strict=True)
    ]
    optimiser.step(rates)
    for place, (one, batch) in enumerate(zip(own, batches, strict=True)):
        if batch:
            _note(one, batch, float(losses[place]), float(norms[place]), task, step)


def _note(
    one: _Own, batch: Sequence[Example], loss: float, norm: float, task: Task, step: int
) -> None:
    one.losses.append(loss)
    one.examples_seen += min(task.settings.batch_examples, len(one.train))
    one.tokens += sum(len(example.ids) - 1 for example in batch)
    one.learnt_tokens += sum(example.learnt_tokens for example in batch)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        one.error = ConfigError(
            f"tuning diverged at step {step + 1} of {one.steps}: expected a finite loss and "
            f"gradient, found {loss} and {norm}"
        )


def _outcome(
    one: _Own, place: int, tuned: Tensors, base: Tensors, seconds: float
) -> TuningOutcome | OffsiteError:
    if one.error is not None:
        return one.error
    try:
        delta = difference(
            {name: values[place].contiguous() for name, values in tuned.items()}, base
        )
    except ConfigError as error:
        return error
    metrics = TuningMetrics(
        steps=one.steps,
        examples=min(len(one.train), one.examples_seen),
        examples_seen=one.examples_seen,
        tokens=one.tokens,
        learnt_tokens=one.learnt_tokens,
        seconds=seconds,
        first_loss=one.losses[0],
        last_loss=one.losses[-1],
        loss_curve=loss_curve(one.losses),
        validation_before=None,
        validation_after=None,
        stopped_early=False,
    )
    return TuningOutcome(delta, metrics)


class _AdamW:
    """AdamW on parameters (K, ...), with a rate and a norm for each of the K."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], task: Task, base: Tensors) -> None:
        self.parameters = dict(parameters)
        self.decay, self.mu = task.settings.weight_decay, task.proximal_mu
        self.anchor = {n: base[n].to(p.device) for n, p in parameters.items() if self.mu}
        self.first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def clip(self, largest_norm: float) -> torch.Tensor:
        """Adds FedProx's pull, scales each client's gradient down; the norms before, (K,)."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.mu:
                parameter.grad.add_(self.mu * (parameter - self.anchor[name]))
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        squares = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients])  # (P, K)
        norms = squares.sum(dim=0).sqrt()
        if largest_norm > 0:
            factors = (largest_norm / (norms + _CLIP_EPSILON)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(_beside(factors, gradient))
        return norms

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """One step; with a rate of 0 a client stays where it is."""
        self.steps += 1
        corrections = [1 - beta**self.steps for beta in BETAS]
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            assert gradient is not None  # `clip` has seen to it
            rate = _beside(torch.tensor(rates, device=parameter.device), parameter)
            first, second = self.first[name], self.second[name]
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            denominator = (second.sqrt() / math.sqrt(corrections[1])).add_(EPSILON)
            change = rate / corrections[0] * first / denominator
            parameter.mul_(1 - rate * self.decay).sub_(change)
            parameter.grad = None


def _beside(values: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """(K,) as (K, 1, ...)."""
    return values.reshape(len(values), *[1] * (parameter.dim() - 1))
