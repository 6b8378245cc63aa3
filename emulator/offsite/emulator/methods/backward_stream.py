"""Backward passes over calibration tokens, one stretch of the middle at a time, upwards.

The model runs once as a whole, to keep what the first block of the middle receives. A pass begins
with the states that enter its first block, runs the model from there to the loss and back, shows
what the tapped layers receive and what gradients reach them, and keeps the states that enter the
first block of the next pass.

So the blocks below a pass may be gone already, and a method that needs sums inside the blocks holds
those of a few blocks at a time. What stays is one hidden state per token.

Notable decisions:

* A layer is tapped by an identity in the autograd graph, which meets inputs and gradients of the
  same tokens in the backward pass; nothing is stored per token.
* Every block is checkpointed, so what the graph holds is one hidden state per block and the inside
  of one block. Rows are run one by one. No gradient of a weight is made by autograd, and none
  below the first block of the pass.
* The blocks below are replaced by the identity for the time of a pass, and what leaves them by the
  states that were kept, so that the model's own code still makes masks and positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from offsite.emulator.block_call import block_input, with_input
from offsite.emulator.blocks import find_blocks
from offsite.emulator.methods.block_activations import finite_states, run
from offsite.emulator.progress import Report

LOSS_TOKENS = 64
"""Positions whose logits are held in fp32 at once."""

See = Callable[[torch.Tensor, torch.Tensor], None]
"""Called as `see(x, g)` with inputs (tokens, in) and gradients (tokens, out), fp32."""


class BackwardStream:
    """The hidden states of all calibration rows where the next pass begins."""

    def __init__(
        self,
        model: PreTrainedModel,
        first: int,
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> None:
        """Runs the model once over every batch (B, T); `report` is told of each."""
        self._model, self._first = model, first
        self._modules = find_blocks(model).modules
        self._rows = [
            row.to(model.device) for batch in calibration for row in torch.split(batch, 1)
        ]
        self._given: dict[int, int] = {}  # length of the tuple that a block gives, if it does
        self._entering: list[torch.Tensor] = []
        with self._noting_forms(), _entering(self._modules[first], self._entering):
            for done, batch in enumerate(calibration, start=1):
                for row in torch.split(batch, 1):
                    run(model, row)
                report(done, len(calibration))

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(row.numel() for row in self._rows)

    def backpropagate(self, taps: Mapping[nn.Module, See], after: int | None = None) -> None:
        """Shows the taps all inputs and gradients of their layers.

        Args:
            taps: by layer, of blocks from the first of this pass on.
            after: the first block of the next pass, if there is one.
        """
        following: list[torch.Tensor] = []
        with ExitStack() as stack:
            for index, module in enumerate(self._modules):
                skipped = index < self._first
                changed = self._skipped(index, module) if skipped else _checkpointed(module)
                stack.enter_context(changed)
            for layer, see in taps.items():
                stack.enter_context(_tapped(layer, see))
            if after is not None:
                stack.enter_context(_entering(self._modules[after], following))
            stack.enter_context(finite_states(self._model))
            for row, hidden in zip(self._rows, self._entering, strict=True):
                self._run_row(row, hidden)
        if after is not None:
            self._first, self._entering = after, following

    def _run_row(self, row: torch.Tensor, hidden: torch.Tensor) -> None:
        """Backward through the summed next-token loss of one row (1, T), down to its states."""
        leaf = hidden.detach().requires_grad_(True)
        with torch.enable_grad(), _replaced_input(self._modules[self._first], leaf):
            logits = self._model(input_ids=row, use_cache=False).logits
            torch.autograd.grad(logits, leaf, loss_gradient(logits.detach(), row))

    @contextmanager
    def _noting_forms(self) -> Iterator[None]:
        def hook_for(index: int) -> Callable[[nn.Module, object, object], None]:
            def hook(_: nn.Module, __: object, output: object) -> None:
                if isinstance(output, tuple):
                    self._given[index] = len(output)

            return hook

        modules = enumerate(self._modules)
        handles = [module.register_forward_hook(hook_for(i)) for i, module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _skipped(self, index: int, block: nn.Module) -> Iterator[None]:
        """The block gives what it receives, in the form of its own output."""
        length = self._given.get(index)

        def identity(*args: object, **kwargs: object) -> object:
            hidden = block_input(args, kwargs)
            return hidden if length is None else (hidden, *[None] * (length - 1))

        block.forward = identity
        try:
            yield
        finally:
            del block.forward  # of the instance; the class has its own


def loss_gradient(logits: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Of the summed next-token loss of a row (1, T) in its logits (1, T, V).

    In pieces: several fp32 copies of all logits would be a fifth of a model of a billion parameters.
    """
    gradient = torch.zeros_like(logits)
    predicting, targets = logits[0, :-1], row[0, 1:]
    for start in range(0, len(predicting), LOSS_TOKENS):
        piece = slice(start, start + LOSS_TOKENS)
        with torch.enable_grad():
            some = predicting[piece].detach().float().requires_grad_(True)
            loss = functional.cross_entropy(some, targets[piece], reduction="sum")
        (gradient[0, :-1][piece],) = torch.autograd.grad(loss, some)
    return gradient


@contextmanager
def _entering(block: nn.Module, states: list[torch.Tensor]) -> Iterator[None]:
    """Adds what the block is called with."""

    def note(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        states.append(block_input(args, kwargs).detach())

    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced_input(block: nn.Module, hidden: torch.Tensor) -> Iterator[None]:
    """The block is called with these hidden states."""

    def replace(
        _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        return with_input(args, kwargs, hidden)

    handle = block.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
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
