"""From the rows of a batch to what it adds to a step; each way is a context with one call.

`opacus_hooks` and `opacus_ghost` are Opacus as it comes, with the loss that makes it right (a sum over
rows of the mean over their own tokens) and without any of the checks that our backend adds.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.dp.setups import Setup
from offsite.emulator.privacy.backends.backend import Backend
from offsite.emulator.privacy.backends.functional import Functional
from offsite.emulator.privacy.backends.one_by_one import OneByOne
from offsite.emulator.privacy.backends.opacus_hooks import OpacusHooks
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.training.attention import attention_kernel
from offsite.emulator.training.batches import MicroBatch
from offsite.emulator.training.loss import token_losses

CLIP = 0.5

Accumulate = Callable[[MicroBatch, torch.Tensor], None]
"""Adds what a batch gives to the flat total [P]; `non_private` adds to `.grad` in its place."""
Way = Callable[[Setup], AbstractContextManager[Accumulate]]
MakeBackend = Callable[[PreTrainedModel, Mapping[str, nn.Parameter]], Backend]


def ours(make: MakeBackend) -> Way:
    """A backend of the product."""

    @contextmanager
    def way(setup: Setup) -> Iterator[Accumulate]:
        with make(setup.model, setup.parameters) as backend:

            def accumulate(batch: MicroBatch, total: torch.Tensor) -> None:
                units = torch.arange(len(batch.ids))
                backend.clipped_sum_into(batch, units, CLIP, total)

            yield accumulate

    return way


@contextmanager
def non_private(setup: Setup) -> Iterator[Accumulate]:
    """The mean over the tokens of the batch, as every tuning here takes it."""

    def accumulate(batch: MicroBatch, total: torch.Tensor) -> None:
        with attention_kernel(batch.ids, setup.model.dtype):
            loss = token_losses(setup.model, batch).mean()
            loss.backward()  # type: ignore[no-untyped-call]

    yield accumulate
    setup.model.zero_grad(set_to_none=True)


@contextmanager
def opacus_hooks(setup: Setup) -> Iterator[Accumulate]:
    """`DPOptimizer.clip_and_accumulate`, which leaves the summed `.grad` unused."""
    from opacus.grad_sample import GradSampleHooks

    hooks = GradSampleHooks(setup.model, loss_reduction="sum")

    def accumulate(batch: MicroBatch, total: torch.Tensor) -> None:
        _row_losses(setup.model, batch).sum().backward()  # type: ignore[no-untyped-call]
        samples = {n: p.grad_sample for n, p in setup.parameters.items()}  # type: ignore[attr-defined]
        norms = [s.reshape(len(s), -1).norm(2, dim=-1) for s in samples.values()]
        factors = (CLIP / (torch.stack(norms, dim=1).norm(2, dim=1) + 1e-6)).clamp(max=1.0)
        for summed, sample in zip(_views(setup, total), samples.values(), strict=True):
            summed += torch.einsum("i,i...", factors, sample)
        hooks.set_grad_sample_to_none()
        setup.model.zero_grad(set_to_none=True)

    yield accumulate
    hooks.cleanup()


@contextmanager
def opacus_ghost(setup: Setup) -> Iterator[Accumulate]:
    """`DPTensorFastGradientClipping.backward`: norms first, then the weighted loss once more."""
    from opacus.grad_sample import GradSampleHooksFastGradientClipping

    hooks = GradSampleHooksFastGradientClipping(
        setup.model, loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
    )

    def accumulate(batch: MicroBatch, total: torch.Tensor) -> None:
        losses = _row_losses(setup.model, batch)
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        for summed, parameter in zip(_views(setup, total), setup.parameters.values(), strict=True):
            parameter.grad = summed
        factors = hooks.get_clipping_coef()
        hooks.disable_hooks()
        (factors * losses).sum().backward()
        hooks.enable_hooks()
        setup.model.zero_grad(set_to_none=True)

    yield accumulate
    hooks.cleanup()


def _views(setup: Setup, total: torch.Tensor) -> Iterator[torch.Tensor]:
    """The part of the total of each parameter, in its shape."""
    sizes = [parameter.numel() for parameter in setup.parameters.values()]
    for part, parameter in zip(total.split(sizes), setup.parameters.values(), strict=True):  # type: ignore[no-untyped-call]
        yield part.view_as(parameter)


def _row_losses(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """Return the mean loss of every row [B]."""
    with attention_kernel(batch.ids, model.dtype):
        losses = token_losses(model, batch)
    counts = batch.rows.bincount()
    return losses.new_zeros(len(batch.ids)).index_add(0, batch.rows, losses) / counts


NON_PRIVATE, ENGINE = "non_private", "engine"
WAYS: dict[str, Way] = {
    NON_PRIVATE: non_private,
    ENGINE: ours(PerExampleEngine),
    "one_by_one": ours(OneByOne),
    "vmap": ours(Functional),
    "opacus": ours(OpacusHooks),
    "opacus_hooks": opacus_hooks,
    "opacus_ghost": opacus_ghost,
}
