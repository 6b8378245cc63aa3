"""What one forward and backward pass over calibration tokens says about linear layers.

For a layer y = W·x and the gradient g = ∂loss/∂y of the summed language loss, over all tokens:

    inputs     E[x·xᵀ]  (in, in)     what the layer receives
    gradients  E[g·gᵀ]  (out, out)   what the loss asks of its outputs
    slope      E[g·xᵀ]  (out, in)    the gradient of the mean loss in the weight

and of the channels a of an MLP, with b = ∂loss/∂a: E[a²], E[b²] and E[a·b], and for each input
projection E[g²]. The first two are the Kronecker factors of the Fisher matrix (K-FAC).

Notable decisions:

* A layer is tapped by an identity in the autograd graph, which meets x and g of the same tokens in
  the backward pass and adds to the sums at once; nothing is stored per token.
* Every block is checkpointed, so what the graph holds is one hidden state per block and the inside
  of one block. Rows are run one by one. No gradient of a weight is made by autograd, and none
  below the lowest block looked at.
* The matrices of the middle are as large as its attention: they are collected for a few blocks at a
  time (`groups`), from the top down, one pass each.

Source: K-FAC, arXiv 1503.05671, section 3, with the empirical Fisher of the calibration text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from offsite.emulator.blocks import find_blocks
from offsite.emulator.linear import Linear, features
from offsite.emulator.methods.block_activations import HIDDEN, block_input
from offsite.emulator.progress import Report
from offsite.secure.errors import ConfigError

GROUP_BYTES = 4 << 30
"""Of matrices held at a time; one block is always taken."""

See = Callable[[torch.Tensor, torch.Tensor], None]
"""Called as `see(x, g)` with inputs (tokens, in) and gradients (tokens, out), fp32."""


@dataclass(slots=True)
class LayerMoments:
    """Sums over tokens, then means: see the module. fp32, on the model's device."""

    inputs: torch.Tensor
    gradients: torch.Tensor
    slope: torch.Tensor

    @classmethod
    def zeros(cls, layer: Linear) -> "LayerMoments":
        """For a layer that has seen nothing."""
        inputs, outputs = features(layer)
        shapes = ((inputs, inputs), (outputs, outputs), (outputs, inputs))
        return cls(*(torch.zeros(shape, device=layer.weight.device) for shape in shapes))

    def see(self, x: torch.Tensor, g: torch.Tensor) -> None:
        """Adds some tokens."""
        self.inputs.addmm_(x.T, x)
        self.gradients.addmm_(g.T, g)
        self.slope.addmm_(g.T, x)

    def divide(self, tokens: int) -> None:
        """From sums to means. Raises ConfigError when the tokens gave no finite numbers."""
        for moment in (self.inputs, self.gradients, self.slope):
            moment.div_(tokens)
            if not bool(moment.isfinite().all()):
                raise ConfigError(
                    "the calibration text gives this model activations or gradients that are not"
                    " finite; load it in bfloat16 or float32, or use width_prune"
                )


def moments_bytes(layers: Sequence[Linear]) -> int:
    """What the moments of these layers take."""
    sizes = [features(layer) for layer in layers]
    return sum(4 * (i * i + o * o + i * o) for i, o in sizes)


def groups(sizes: Mapping[int, int], limit: int) -> list[list[int]]:
    """Consecutive keys whose sizes sum to at most `limit`, the last keys first."""
    result: list[list[int]] = []
    total = 0
    for index in sorted(sizes, reverse=True):
        total += sizes[index]
        if not result or total > limit:
            result.append([])
            total = sizes[index]
        result[-1].insert(0, index)
    return result


def backpropagate(
    model: PreTrainedModel,
    first: int,
    taps: Mapping[nn.Module, See],
    calibration: Sequence[torch.Tensor],
    report: Report,
) -> int:
    """Shows the taps all inputs and gradients of their layers; returns the number of tokens.

    Args:
        model: frozen; nothing of it is changed.
        first: the lowest block that holds a tapped layer.
        taps: by layer.
        calibration: token batches (B, T).
        report: told after each batch.
    """
    tokens = 0
    with ExitStack() as stack:
        for module in find_blocks(model).modules[first:]:
            stack.enter_context(_checkpointed(module))
        for layer, see in taps.items():
            stack.enter_context(_tapped(layer, see))
        leaves = stack.enter_context(_gradient_from(find_blocks(model).modules[first]))
        for done, batch in enumerate(calibration, start=1):
            for row in torch.split(batch, 1):
                _run_row(model, row.to(model.device), leaves)
                tokens += row.numel()
            report(done, len(calibration))
    return tokens


def _run_row(model: PreTrainedModel, row: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    """Backward through the summed next-token loss of one row (1, T), down to the leaf."""
    leaves.clear()
    with torch.enable_grad():
        logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
        loss = functional.cross_entropy(logits, row[0, 1:], reduction="sum")
        torch.autograd.grad(loss, leaves)


@contextmanager
def _gradient_from(block: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Makes the hidden states that enter the block a leaf, and puts it into the list."""
    leaves: list[torch.Tensor] = []

    def cut(
        _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        leaf = block_input(args, kwargs).detach().requires_grad_(True)
        leaves.append(leaf)
        if HIDDEN in kwargs:
            return args, kwargs | {HIDDEN: leaf}
        return (leaf, *args[1:]), kwargs

    handle = block.register_forward_pre_hook(cut, with_kwargs=True)
    try:
        yield leaves
    finally:
        handle.remove()


@contextmanager
def _checkpointed(block: nn.Module) -> Iterator[None]:
    """The block forgets what it computed and computes it again in the backward pass."""
    forward = block.forward

    def again(*args: object, **kwargs: object) -> object:
        run = partial(forward, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)

    block.forward = again
    try:
        yield
    finally:
        del block.forward  # of the instance; the class has its own


@contextmanager
def _tapped(layer: nn.Module, see: See) -> Iterator[None]:
    def tap(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        tapped: torch.Tensor = _Tap.apply(output, args[0], see)  # type: ignore[no-untyped-call]
        return tapped

    handle = layer.register_forward_hook(tap)
    try:
        yield
    finally:
        handle.remove()


class _Tap(torch.autograd.Function):
    """*Semantics*: the identity of `output`; backward shows `see` the input and the gradient.

    The input is a saved tensor, so that checkpointing frees and recomputes it.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, output: torch.Tensor, x: torch.Tensor, see: See
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.see = see  # type: ignore[attr-defined]
        return output.view_as(output)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        (g,) = gradients
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        ctx.see(x.flatten(0, -2).float(), g.flatten(0, -2).float())  # type: ignore[attr-defined]
        return g, None, None
