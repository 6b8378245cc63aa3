"""Opacus' hooks, in the cells of the matrix where they are exact; `pip install 'offsite[opacus]'`.

Opacus takes whatever stands first in a module's input for the batch. Where that is not so it goes
on: OPT's feed-forward layers see [B·T, H], so every token counts as an example and the sum moves by
up to T clip norms; a prompt encoder or GPT-2's position table is run once a batch, so the batch
counts as one example. It is also right only for a module that is called once. So after every
backward pass three things must hold of every parameter, or nothing is added:

(1) its module ran once with gradients on (twice under a non-reentrant checkpoint),
(2) it has one gradient for each row of the batch,
(3) those add up to the gradient that autograd has for it, which Opacus computes and nobody uses.

What of Opacus is not used: its loader, samplers, optimiser, noise and accountants (see `refusals`).
Source: Opacus 1.6, `GradSampleHooks`; pytorch/opacus issue 841.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from offsite.emulator.privacy.backends.backend import flat_size, unit_count
from offsite.emulator.privacy.backends.ownership import owners_of
from offsite.emulator.privacy.backends.unit_weights import token_weights, unit_gradients
from offsite.emulator.privacy.per_example.clipping import add_clipped
from offsite.emulator.training.batches import MicroBatch
from offsite.emulator.training.loss import token_losses
from offsite.secure.errors import ConfigError

if TYPE_CHECKING:
    from opacus.grad_sample import GradSampleHooks

_SAME, _SAME_OF_ALL = 1e-3, 1e-6
"""Largest difference in (3), relative to the parameter's gradient and to the whole one: sums in fp32
differ by less, a bug by more. A key's bias has a gradient of nothing but rounding."""


class OpacusHooks:
    """See `Backend`; the model must be in training mode."""

    def __init__(self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter]) -> None:
        self.model = model
        self.parameters = dict(parameters)
        self._owners: dict[str, nn.Module] = {}
        self._calls: dict[nn.Module, int] = {}
        self._handles: list[RemovableHandle] = []
        self._hooks: GradSampleHooks | None = None

    def __enter__(self) -> Self:
        self._owners = owners_of(self.model, self.parameters)
        self._hooks = _hooks_of(self.model)
        for module in set(self._owners.values()):
            self._handles.append(module.register_forward_hook(self._count))
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        if self._hooks is not None:
            self._hooks.cleanup()
            self._hooks = None
        self._forget()

    def clipped_sum_into(
        self, batch: MicroBatch, units: torch.Tensor, clip: float, total: torch.Tensor
    ) -> torch.Tensor:
        if self._hooks is None or not self.model.training:
            raise ConfigError(
                "the Opacus backend works as a context and on a model in training mode only; "
                "enter it and call model.train()"
            )
        count = unit_count(batch, units, clip, total, flat_size(self.parameters))
        if not count:
            return total.new_empty(0)
        self._forget()
        try:
            self._backward(batch, units)
            rows = [self._rows(name, len(batch.ids)) for name in self.parameters]
            self._require_sums(rows)
        finally:
            self._forget()
        return add_clipped(unit_gradients(torch.cat(rows, dim=1), units, count), clip, total)

    def _backward(self, batch: MicroBatch, units: torch.Tensor) -> None:
        """Fill `grad_sample` and `grad`; what Opacus stumbles over becomes a ConfigError."""
        try:
            with warnings.catch_warnings():  # the first block's input needs no gradient
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                loss = (token_losses(self.model, batch) * token_weights(batch, units)).sum()
                loss.backward()  # type: ignore[no-untyped-call]
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"Opacus cannot do this model and adapter ({type(error).__name__}); use the engine"
            ) from error

    def _rows(self, name: str, batch_rows: int) -> torch.Tensor:
        """Return the gradients [B, P'] of a parameter after the checks (1) and (2)."""
        calls = self._calls.get(self._owners[name], 0)
        if calls != 1:
            raise _refusal(name, f"its module to run once, found {calls} runs")
        gradients = getattr(self.parameters[name], "grad_sample", None)
        if not isinstance(gradients, torch.Tensor):
            raise _refusal(name, f"one gradient a row, found {type(gradients).__name__}")
        if len(gradients) != batch_rows:
            raise _refusal(name, f"{batch_rows} gradients, one a row, found {len(gradients)}")
        return gradients.float().flatten(1)

    def _require_sums(self, rows: Sequence[torch.Tensor]) -> None:
        """Check (3); a sum with a unit that is not finite says nothing, and that unit adds nothing."""
        whole = torch.stack([part.norm() for part in rows]).norm()
        for (name, parameter), part in zip(self.parameters.items(), rows, strict=True):
            expected = (
                torch.zeros(()) if parameter.grad is None else parameter.grad.float().flatten()
            )
            difference = (part.sum(0) - expected).norm()
            if difference > _SAME * expected.norm() + _SAME_OF_ALL * whole:
                raise _refusal(name, "gradients that add up to autograd's, found others")

    def _count(self, module: nn.Module, args: object, output: object) -> None:
        if torch.is_grad_enabled():
            self._calls[module] = self._calls.get(module, 0) + 1

    def _forget(self) -> None:
        self._calls.clear()
        for parameter in self.parameters.values():
            parameter.grad = None
            if self._hooks is not None:
                parameter.grad_sample = None  # type: ignore[attr-defined]
                parameter._forward_counter = 0  # type: ignore[attr-defined]
        for module in self._owners.values():
            module.__dict__.pop("activations", None)
            module.__dict__.pop("max_batch_len", None)


def _hooks_of(model: PreTrainedModel) -> "GradSampleHooks":
    try:
        from opacus.grad_sample import GradSampleHooks
    except ImportError as error:
        raise ConfigError(
            "the Opacus backend needs Opacus: pip install 'offsite[opacus]'; the engine does not"
        ) from error
    try:
        return GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=True)
    except NotImplementedError as error:
        raise ConfigError(f"Opacus cannot do this model: {error}") from error


def _refusal(name: str, problem: str) -> ConfigError:
    return ConfigError(f"Opacus is not exact here: {name}: expected {problem}; use the engine")
