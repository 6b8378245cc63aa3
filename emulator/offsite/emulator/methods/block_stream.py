"""Calibration tokens carried through the middle one block at a time, each block run once.

The model runs once as a whole, to see with what every block is called and what goes into the first
block of each stretch of the middle. From then on a block is run by itself over the hidden states of
all tokens, which its outputs replace.

So a method that needs sums inside the blocks (moments of the inputs of linear layers) holds those
of one block at a time, and what it needs of the model is only the block at hand: the blocks before
may be gone already. What stays is one hidden state per token, whatever the number of blocks.

Rule: blocks of a stretch are run in ascending order, each once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.block_call import block_input, block_output, with_input
from offsite.emulator.blocks import find_blocks
from offsite.emulator.methods.block_activations import require_finite, run, runs_of, watching
from offsite.emulator.progress import Report
from offsite.secure.errors import ConfigError

MAX_RELATIVE_ERROR = 1e-2
"""Between two runs of the same block on the same input; 0 but for kernels that sum at random."""

PreHook = Callable[[nn.Module, tuple[object, ...], dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class _Call:
    """What a block is called with beside the hidden states: masks, positions, rotary tables."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    def __call__(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        args, kwargs = with_input(self.args, self.kwargs, hidden)
        return block_output(block(*args, **kwargs))


class BlockStream:
    """The hidden states of all calibration batches, at one depth of the middle at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        middle: Sequence[int],
        calibration: Sequence[torch.Tensor],
        report: Report,
    ) -> None:
        """Runs the model once over every batch; `report` is told of each."""
        self._starts = {run[0] for run in runs_of(middle)}
        self._entering: dict[int, list[torch.Tensor]] = {index: [] for index in self._starts}
        self._calls: dict[tuple[int, torch.Size], _Call] = {}
        self._hidden: list[torch.Tensor] = []
        self._next = middle[0]
        modules = find_blocks(model).modules
        last: list[torch.Tensor] = []  # what the first block gave for the last batch

        def see(_: int, __: torch.Tensor, after: torch.Tensor) -> None:
            last[:] = [after]

        blocks = {index: modules[index] for index in middle}
        first = {middle[0]: modules[middle[0]]}
        with _before_blocks(blocks, self._note_call), watching(first, see):
            for done, batch in enumerate(calibration, start=1):
                run(model, batch)
                report(done, len(calibration))
        self._check_alone(middle[0], modules[middle[0]], last[0])

    def advance(self, index: int, block: nn.Module) -> Iterator[None]:
        """Runs the block over every batch; yields after each."""
        if index in self._starts:
            self._hidden, self._next = self._entering.pop(index), index
        assert index == self._next  # the stretch in order, each block once
        self._next = index + 1
        for i, hidden in enumerate(self._hidden):
            self._hidden[i] = self._run(index, block, hidden)
            yield

    def outputs(self, batch: int) -> torch.Tensor:
        """What the block at hand gave for a batch that has passed it, (B, T, H)."""
        return self._hidden[batch]

    def _run(self, index: int, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            given = self._calls[index, hidden.shape](block, hidden)
        require_finite(f"block {index}", given)
        return given

    def _check_alone(self, index: int, block: nn.Module, expected: torch.Tensor) -> None:
        """Raises ConfigError where what a block is called with depends on the tokens."""
        found = self._run(index, block, self._entering[index][-1])
        error = (found - expected).float().norm() / expected.float().norm()
        if not error < MAX_RELATIVE_ERROR:
            raise ConfigError(
                f"a {type(block).__name__} run by itself differs from one inside its model, by"
                f" {float(error):.2g} of the hidden states; use width_prune or uniform_drop"
            )

    def _note_call(self, index: int, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        hidden = block_input(args, kwargs)
        if index in self._starts:
            self._entering[index].append(hidden)
        if (index, hidden.shape) not in self._calls:
            # Without the hidden states, which would be kept alive once per block
            self._calls[index, hidden.shape] = _Call(*with_input(args, kwargs, None))


@contextmanager
def _before_blocks(
    blocks: Mapping[int, nn.Module],
    note: Callable[[int, tuple[object, ...], dict[str, object]], None],
) -> Iterator[None]:
    """Shows what each block is called with."""

    def hook_for(index: int) -> PreHook:
        return lambda _, args, kwargs: note(index, args, kwargs)

    handles = [
        block.register_forward_pre_hook(hook_for(index), with_kwargs=True)
        for index, block in blocks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
