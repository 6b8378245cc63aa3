"""fp32 master copies of what trains, with AdamW on the masters.

A model in bf16 has too few bits to take small steps: 1 + 2⁻⁹ is 1. So values, gradients over the
micro-batches, moments and the step itself are fp32, and the model's parameters are rounded copies
that forward and backward use. An fp32 parameter is its own master, without copies.

Notable: a bf16 gradient is added to the master's the moment autograd has it, and freed; the model
never holds a second set of gradients.
"""

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

BETAS = (0.9, 0.999)
EPSILON = 1e-8
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Masters:
    """The masters of named parameters and their optimiser; use as a context."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        values: Mapping[str, torch.Tensor],
        weight_decay: float,
        proximal_mu: float = 0.0,
    ) -> None:
        """Start from ``values``, fp32, which the parameters take too.

        With ``proximal_mu`` they stay the anchor of `add_proximal_gradient`.
        """
        self.parameters = dict(parameters)
        self.values = {
            name: parameter if parameter.dtype is torch.float32 else _master(parameter)
            for name, parameter in parameters.items()
        }
        self.optimiser = torch.optim.AdamW(
            self.values.values(), 0.0, BETAS, EPSILON, weight_decay, fused=True
        )
        self._handles: list[RemovableHandle] = []
        self._proximal_mu = proximal_mu
        self._anchor = {
            name: values[name].to(master.device, torch.float32, copy=True)
            for name, master in self.values.items()
            if proximal_mu
        }
        self.load(values)

    def __enter__(self) -> Self:
        for name, master in self.values.items():
            parameter = self.parameters[name]
            if parameter is not master:
                hook = _gradient_hook(master)
                handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                self._handles.append(handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        self.optimiser.zero_grad()

    @torch.no_grad()
    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Set the masters and with them the model's parameters."""
        for name, master in self.values.items():
            master.copy_(values[name])
        self._publish()

    def copies(self) -> dict[str, torch.Tensor]:
        """Return the masters as fp32 tensors on the CPU that later steps do not change."""
        return {
            name: master.detach().to("cpu", copy=True).contiguous()
            for name, master in self.values.items()
        }

    @torch.no_grad()
    def add_proximal_gradient(self) -> None:
        """Add mu·(w - w0), the gradient of mu/2 · |w - w0|² (FedProx, arXiv 1812.06127).

        w0 are the values that the masters were made with, wherever they went since. With mu = 0
        nothing is touched.
        """
        for name, anchor in self._anchor.items():
            master = self.values[name]
            pull = (master - anchor).mul_(self._proximal_mu)
            master.grad = pull if master.grad is None else master.grad.add_(pull)

    def clip(self, largest_norm: float) -> float:
        """Scale the gradients down to ``largest_norm`` (0: not at all); return their norm."""
        gradients = [master.grad for master in self.values.values() if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if largest_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self.values.values(), largest_norm, norm)
        return float(norm)

    def step(self, learning_rate: float) -> None:
        """Take one optimiser step and round the masters into the model."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._publish()

    def moments(self) -> dict[str, torch.Tensor]:
        """Return the optimiser's state, `<moment>/<parameter>`, of what had a gradient so far."""
        return {
            f"{moment}/{name}": self.optimiser.state[master][moment]
            for name, master in self.values.items()
            for moment in _MOMENTS
            if master in self.optimiser.state
        }

    def load_moments(self, moments: Mapping[str, torch.Tensor]) -> None:
        """Continue from what `moments` returned; other names are ignored."""
        for name, master in self.values.items():
            if f"{_MOMENTS[0]}/{name}" in moments:
                self.optimiser.state[master] = {
                    moment: moments[f"{moment}/{name}"].to(master.device, copy=True)
                    for moment in _MOMENTS
                }

    @torch.no_grad()
    def _publish(self) -> None:
        for name, master in self.values.items():
            if self.parameters[name] is not master:
                self.parameters[name].copy_(master)


def _master(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)


def _gradient_hook(master: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """Return a hook that moves a parameter's fresh gradient into its master."""

    def move(parameter: torch.Tensor) -> None:
        if parameter.grad is None:
            return
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return move
