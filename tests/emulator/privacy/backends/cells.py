"""A cell of the matrix: an adapter of a family under a kind of checkpointing, done by a backend.

Every backend is measured against gradients of one unit at a time in fp64, from the full logits of
the model, with nothing of the product in between but the model.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from tests.emulator.conftest import FAMILIES, VOCABULARY
from tests.emulator.forms import FORMS, planned
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from offsite.emulator.adapters.adapter import (
    Adapter,
    AdapterKind,
    AdapterSpec,
    TrainedFactors,
    make_adapter,
)
from offsite.emulator.build import build_emulator
from offsite.emulator.factored import Factor
from offsite.emulator.instantiate import attention_implementation
from offsite.emulator.layer_map import Placement
from offsite.emulator.methods.method import MethodName
from offsite.emulator.privacy.backends.backend import Backend
from offsite.emulator.privacy.backends.functional import Functional
from offsite.emulator.privacy.backends.one_by_one import OneByOne
from offsite.emulator.privacy.backends.opacus_hooks import OpacusHooks
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.privacy.proof.dropout import without_dropout
from offsite.emulator.training.batches import MicroBatch, micro_batches
from offsite.emulator.training.tokens import Example

MakeBackend = Callable[[PreTrainedModel, Mapping[str, nn.Parameter]], Backend]

BACKENDS: dict[str, MakeBackend] = {
    "engine": PerExampleEngine,
    "one_by_one": OneByOne,
    "vmap": Functional,
    "opacus": OpacusHooks,
}


class Kind(StrEnum):
    """The adapters of a release."""

    LORA = "LoRA, all linears"
    HIGH = "LoRA, all linears, B alone"
    MIDDLE = "LoRA, middle factored"
    BLOCKS = "whole blocks"


class Checkpointing(StrEnum):
    """How activations are kept."""

    NONE = "none"
    REENTRANT = "reentrant"
    NON_REENTRANT = "non-reentrant"


@dataclass(frozen=True)
class Subject:
    """A model with an adapter attached, its parameters, and their gradients in fp64."""

    model: PreTrainedModel
    parameters: dict[str, nn.Parameter]
    gradients: torch.Tensor
    """[U, P] fp64, of the units of `batch`."""


UNITS = torch.tensor([0, 1, 2, 1, 3, 4])
"""Unit 1 has two rows."""


def make_batch(vocabulary: int = VOCABULARY, rows: int = len(UNITS)) -> MicroBatch:
    """Ragged rows, of which some learn one token and some all."""
    random = np.random.default_rng(5)
    examples = []
    for length in sorted(random.integers(12, 20, rows).tolist(), reverse=True):
        learnt = random.random(length) < random.choice([0.1, 0.5, 1.0])
        learnt[0], learnt[-1] = False, True
        examples.append(Example(random.integers(3, vocabulary, length, dtype=np.int32), learnt))
    (batch,) = micro_batches(examples, 10**6)
    return batch


def make_subject(family: str, kind: Kind) -> Subject:
    """An emulator of a random model, in training mode, whose adapter is not where it started."""
    torch.manual_seed(2)
    config = FAMILIES[family]()
    implementation = attention_implementation(config)
    base = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    model, adapter = _emulator(base.eval().requires_grad_(False), kind)
    adapter.attach(model)
    parameters = adapter.trainable(model)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.03 * torch.randn_like(parameter))
    model.train()
    with without_dropout(model):
        return Subject(model, parameters, exact_gradients(model, parameters, make_batch(), UNITS))


def _emulator(base: PreTrainedModel, kind: Kind) -> tuple[PreTrainedModel, Adapter]:
    spec = AdapterSpec(
        AdapterKind.WHOLE_BLOCK if kind is Kind.BLOCKS else AdapterKind.LORA,
        rank=4,
        alpha=12,
        trains=TrainedFactors.B if kind is Kind.HIGH else TrainedFactors.AB,
    )
    if kind is Kind.MIDDLE:
        with planned(FORMS["factored"]):
            placement = Placement(1, 1, middle_lora=True)
            built = build_emulator(base, placement, MethodName.UNIFORM_DROP, 1.0)
        _tame(built.model)
    else:
        built = build_emulator(base, Placement(1, 1), MethodName.UNIFORM_DROP, 0.5)
    return built.model, make_adapter(spec, built.layer_map)


def _tame(model: PreTrainedModel) -> None:
    """Random factors are larger than any real ones: with them fp32 itself is off by 4e-6."""
    for module in model.modules():
        if isinstance(module, Factor):
            module.weight.detach().mul_(0.3)


def exact_gradients(
    model: PreTrainedModel,
    parameters: Mapping[str, nn.Parameter],
    batch: MicroBatch,
    units: torch.Tensor,
) -> torch.Tensor:
    """[U, P] in fp64: plain autograd on the full logits, one unit at a time."""
    names = {id(parameter): path for path, parameter in model.named_parameters()}
    double = copy.deepcopy(model).double()
    trained = dict(double.named_parameters())
    ours = [trained[names[id(parameter)]] for parameter in parameters.values()]
    return torch.stack([_unit_gradient(double, ours, batch, units == u) for u in units.unique()])


def _unit_gradient(
    model: PreTrainedModel, ours: list[nn.Parameter], batch: MicroBatch, chosen: torch.Tensor
) -> torch.Tensor:
    logits = model(input_ids=batch.ids, use_cache=False).logits.log_softmax(-1)
    losses = -logits[batch.rows, batch.columns, batch.targets]
    gradients = torch.autograd.grad(losses[chosen[batch.rows]].mean(), ours)
    return torch.cat([gradient.flatten() for gradient in gradients])


def clipped(gradients: torch.Tensor, clip: float) -> torch.Tensor:
    """The clipped sum [P] of gradients [U, P]."""
    return (gradients * (clip / gradients.norm(dim=1)).clamp(max=1)[:, None]).sum(0)


@contextmanager
def checkpointed(model: PreTrainedModel, how: Checkpointing) -> Iterator[None]:
    """Gradient checkpointing on, without dropout."""
    if how is not Checkpointing.NONE:
        model.gradient_checkpointing_enable({"use_reentrant": how is Checkpointing.REENTRANT})
    try:
        with without_dropout(model):
            yield
    finally:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()  # which checkpointing had put on the embedding


def largest_difference(make: MakeBackend, subject: Subject, how: Checkpointing) -> float:
    """Between a backend's sums and the exact ones, all, some and none clipped; at unit scale."""
    norms = subject.gradients.norm(dim=1)
    largest = 0.0
    with checkpointed(subject.model, how), make(subject.model, subject.parameters) as backend:
        for clip in (float(norms.min()) / 2, float(norms.median()), float(norms.max()) * 2):
            total = torch.zeros(subject.gradients.shape[1])
            found = backend.clipped_sum_into(make_batch(), UNITS, clip, total)
            wanted = clipped(subject.gradients, clip)
            scale = min(clip, float(norms.max()))
            largest = max(largest, float((total - wanted).abs().max()) / scale)
            largest = max(largest, float(((found - norms) / norms).abs().max()))
    return largest
