"""Norms: every module whose parameters are vectors that its output takes elementwise.

*Semantics*: y[b] = f(x[b], w), computed as f(x[b], w[b]) with one copy w[b] of w for each row;
∂w[b] is what autograd finds for that copy, the sum over the tokens of row b.

Notable: no list of classes. There are two hundred kinds of `RMSNorm` in the transformers library,
some of which scale by 1 + w. A module fits if, on a probe, it takes different vectors for different
rows, and each row comes out as if its own had been the module's. `nn.LayerNorm` takes none: it has
a site of its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from offsite.emulator.privacy.per_example.flat_buffer import FlatBuffer
from offsite.emulator.privacy.per_example.sites.site import Site


class ScaleSite(Site):
    """See the module."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether the module is one of those described above."""
        own = dict(module.named_parameters(recurse=False))
        if not own or any(parameter.dim() != 1 for parameter in own.values()):
            return False
        try:
            return _takes_one_vector_a_row(module, own)
        except (RuntimeError, TypeError, ValueError):  # a probe is not what it takes
            return False

    def forward(self, x: torch.Tensor, by_row: torch.Tensor) -> torch.Tensor:
        copies = {
            own: _copies(parameter, self.names[own], by_row, self.buffer)
            for own, parameter in self.trained().items()
        }
        return _scaled(self.module, by_row, copies).view_as(x)


def _scaled(
    module: nn.Module, x: torch.Tensor, vectors: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Return the module's output for ``x`` with ``vectors`` in the place of its parameters."""
    with _in_place(module, vectors):
        output: torch.Tensor = type(module).forward(module, x)
        return output


@contextmanager
def _in_place(module: nn.Module, vectors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let a module find other tensors under the names of its parameters."""
    own = module.__dict__["_parameters"]
    module.__dict__["_parameters"] = {**own, **vectors}
    try:
        yield
    finally:
        module.__dict__["_parameters"] = own


@torch.no_grad()
def _takes_one_vector_a_row(module: nn.Module, own: Mapping[str, nn.Parameter]) -> bool:
    """Try two rows, whose vectors differ, together and each by itself."""
    first = next(iter(own.values()))
    generator = torch.Generator().manual_seed(0)

    def probe(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(first.device, first.dtype)

    x = probe(2, 3, len(first))
    vectors = {name: probe(2, 1, len(parameter)) for name, parameter in own.items()}
    together = _scaled(module, x, vectors)
    alone = [
        _scaled(module, x[row : row + 1], {name: v[row, 0] for name, v in vectors.items()})
        for row in range(2)
    ]
    return torch.equal(together, torch.cat(alone))


def _copies(
    parameter: nn.Parameter, name: str, by_row: torch.Tensor, buffer: FlatBuffer
) -> torch.Tensor:
    """Return one copy for each row, [B, 1, ..., H] beside ``by_row`` [B, ..., H]."""
    copies: torch.Tensor = _Copies.apply(parameter, name, by_row.shape, buffer)  # type: ignore[no-untyped-call]
    return copies


class _Context(Protocol):
    wire_name: str
    buffer: FlatBuffer


class _Copies(Function):
    """To every row its own copy; the gradients of the copies go to the buffer."""

    @staticmethod
    def forward(
        ctx: _Context, parameter: torch.Tensor, name: str, shape: torch.Size, buffer: FlatBuffer
    ) -> torch.Tensor:
        ctx.wire_name, ctx.buffer = name, buffer
        return parameter.repeat(shape[0], *(1,) * (len(shape) - 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, g: torch.Tensor) -> tuple[None, None, None, None]:
        ctx.buffer.add(ctx.wire_name, g.flatten(1))
        return None, None, None, None
