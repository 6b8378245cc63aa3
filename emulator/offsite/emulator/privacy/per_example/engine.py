"""The per-example gradient engine: one backward pass a part, then norm, clip and sum.

    batch ──► group of units ──► part ──► loss of each unit ──► backward ──► buffer [U, P]
                    │             └─ once more, where a group has several        │
                    └───────────── total += Σ min(1, C/‖g‖)·g  ◄─────────────────┘

Notable decisions:

* Exactness before anything: the gradient of a row is what autograd would give for that row alone
  (`test_equals_batch_of_one`), because each site computes the very products of autograd and only
  ends their sums at the row (`sites`). Both kinds of gradient checkpointing, attention in either
  form, flattened tokens and layers that run twice need nothing special.
* It fails closed. What trains and lies in no known site, what a site is given in another shape
  than rows and tokens, a parameter that no backward pass reached or that one reached by another way
  than its site: each is an error that names it, and none a wrong sum (`refusals`).
* Units do not reach one another by rounding either: rows run beside others of their own width alone
  (`passes`).
* The buffer holds a gradient for each unit of a group, at most `buffer_bytes`. LoRA's are small: a
  group is the whole batch. Those of whole blocks are not: a group is a few units, whose passes need
  so much less for activations that all in all the peak is no higher than without privacy.

Axes: ``B`` rows, ``U`` units, ``P`` values.
"""

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from offsite.emulator.privacy.backends.backend import unit_count
from offsite.emulator.privacy.backends.unit_weights import token_weights
from offsite.emulator.privacy.per_example.flat_buffer import FlatBuffer
from offsite.emulator.privacy.per_example.passes import Cut, Part
from offsite.emulator.privacy.per_example.refusals import (
    check_owned,
    check_uncoupled,
    check_width,
    most_width,
)
from offsite.emulator.privacy.per_example.sites.choice import sites_of
from offsite.emulator.privacy.per_example.sites.site import Site
from offsite.emulator.training.attention import attention_kernel
from offsite.emulator.training.batches import MicroBatch
from offsite.emulator.training.loss import token_losses
from offsite.secure.errors import ConfigError

BUFFER_BYTES = 128 << 20
"""Default for the gradients of a group; one unit has its place whatever it takes."""

PASS_TOKENS = 1 << 16
"""Default for the tokens of one forward and backward pass, padding included."""


class PerExampleEngine:
    """See `Backend`, and the module."""

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, nn.Parameter],
        *,
        buffer_bytes: int = BUFFER_BYTES,
        pass_tokens: int = PASS_TOKENS,
    ) -> None:
        self.model, self.parameters, self.pass_tokens = model, dict(parameters), pass_tokens
        self.buffer = FlatBuffer(self.parameters)
        self.group_units = max(1, buffer_bytes // (4 * max(1, self.buffer.size)))
        self.sites: list[Site] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        check_owned(self.model, self.parameters)
        check_uncoupled(self.model)
        self.sites = sites_of(self.model, self.parameters, self.buffer)
        for site in self.sites:
            site.attach()
        for name, parameter in self.parameters.items():
            self._handles.append(parameter.register_hook(_no_other_way(name)))  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        while self.sites:
            self.sites.pop().detach()
        self.buffer.free()

    def clipped_sum_into(
        self, batch: MicroBatch, units: torch.Tensor, clip: float, total: torch.Tensor
    ) -> torch.Tensor:
        """See `Backend`.

        Guarantees: leaving a unit out changes what is added by at most ``clip``, up to rounding
        (`test_one_unit_moves_the_sum_by_at_most_the_clip_norm`).
        """
        if not self.sites:
            raise ConfigError("the engine is not in the model: use it as a context")
        unit_count(batch, units, clip, total, self.buffer.size)
        check_width(self.model, batch.ids.shape[1])
        cut = Cut(batch, units, token_weights(batch, units), most_width(self.model, batch))
        norms = [torch.empty(0, device=total.device)]
        for group in cut.groups(self.group_units):
            self.buffer.begin_group(group.units, total.device)
            for part in cut.parts(group, self.pass_tokens):
                self._backward(part)
            norms.append(self.buffer.add_clipped(clip, total))
        return torch.cat(norms)

    def _backward(self, part: Part) -> None:
        """Write the gradients of a part's rows into the buffer."""
        ids = part.batch.ids
        with (
            self.buffer.recording(part.units, ids.shape[1]),
            attention_kernel(ids, self.model.dtype),
        ):
            losses = token_losses(self.model, part.batch)  # [N]
            torch.dot(losses, part.weights).backward()  # type: ignore[no-untyped-call]


def _no_other_way(name: str) -> Callable[[torch.Tensor | None], None]:
    """Return a hook for what autograd itself finds: nothing, for sites give it no gradient."""

    def refuse(gradient: torch.Tensor | None) -> None:
        if gradient is not None:
            raise ConfigError(
                f"{name} has a gradient that went past its layer, so that the rows in it cannot be "
                "told apart: the model uses the parameter in more than one way, or something ran "
                "backwards inside the engine's context without `clipped_sum_into`"
            )

    return refuse
