"""What goes into the blocks of a model and comes out of them, over calibration tokens.

The hidden state of a block is its first argument or the one named `hidden_states`, and its output
that, or the first of a tuple; so it is in every decoder of the transformers library.

Rule: nothing seen here is kept by this module; a caller keeps sums or a bounded sample.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.methods.method import MethodName
from offsite.emulator.progress import Report
from offsite.secure.errors import ConfigError

HIDDEN = "hidden_states"
See = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called as `see(index, before, after)` with the hidden states (B, T, H) around one block."""


def block_input(args: tuple[object, ...], kwargs: Mapping[str, object]) -> torch.Tensor:
    """The hidden states that a block is called with."""
    hidden = args[0] if args else kwargs[HIDDEN]
    assert isinstance(hidden, torch.Tensor)  # of every decoder block
    return hidden


def block_output(output: object) -> torch.Tensor:
    """The hidden states that a block gives back."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, torch.Tensor)
    return hidden


@contextmanager
def watching(blocks: Mapping[int, nn.Module], see: See) -> Iterator[None]:
    """Shows what goes into each block and comes out of it."""

    def hook_for(
        index: int,
    ) -> Callable[[nn.Module, tuple[object, ...], dict[str, object], object], None]:
        def hook(
            _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
        ) -> None:
            see(index, block_input(args, kwargs), block_output(output))

        return hook

    handles = [
        block.register_forward_hook(hook_for(index), with_kwargs=True)
        for index, block in blocks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch(
    model: PreTrainedModel,
    blocks: Mapping[int, nn.Module],
    see: See,
    calibration: Sequence[torch.Tensor],
    report: Report,
) -> None:
    """Runs the model over every batch and shows what the blocks do; `report` is told of each."""
    with watching(blocks, see):
        for done, batch in enumerate(calibration, start=1):
            run(model, batch)
            report(done, len(calibration))


def run(model: PreTrainedModel, batch: torch.Tensor) -> None:
    """The model without its head: nothing here needs logits."""
    with torch.no_grad():
        model.base_model(input_ids=batch.to(model.device), use_cache=False)


def tokens_of(hidden: torch.Tensor) -> torch.Tensor:
    """(B, T, H) or (B·T, H) as fp32 rows (tokens, H)."""
    return hidden.detach().flatten(0, -2).float()


def check_calibration(method: MethodName, calibration: Sequence[torch.Tensor]) -> None:
    """Raises ConfigError when there is nothing to look at."""
    if not calibration:
        raise ConfigError(f"{method.value} needs calibration tokens; give a public text file")


def check_depth(method: MethodName, model: PreTrainedModel) -> None:
    """Raises ConfigError when blocks compute with their own index, so that none may move."""
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        raise ConfigError(
            f"{method.value} cannot serve this model: scale_attn_by_inverse_layer_idx scales"
            " attention by the index of the block, so no block may go or stand in for another;"
            " use a method that keeps every block, width_prune or activation_svd"
        )


def runs_of(indices: Sequence[int]) -> list[tuple[int, ...]]:
    """Ascending indices, cut wherever one is missing between two."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [tuple(run) for run in runs]
