"""What goes into the blocks of a model and comes out of them, over calibration tokens.

Rules: nothing seen here is kept by this module; a caller keeps sums or a bounded sample. Hidden
states that are not finite end the pass with an error that names the first block that gives them,
so that no method ranks, sorts or factors NaN.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from offsite.emulator.block_call import block_input, block_output
from offsite.emulator.blocks import find_blocks
from offsite.emulator.methods.method import MethodName
from offsite.emulator.progress import Report
from offsite.secure.errors import ConfigError

Key = TypeVar("Key")
See = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called as `see(index, before, after)` with the hidden states (B, T, H) around one block."""


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


@contextmanager
def receiving(
    layers: Mapping[Key, nn.Module], see: Callable[[Key, torch.Tensor], None]
) -> Iterator[None]:
    """Shows what each layer receives, under its key."""

    def hook_for(key: Key) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _, inputs: see(key, inputs[0])

    handles = [layer.register_forward_pre_hook(hook_for(key)) for key, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def finite_states(model: nn.Module) -> Iterator[None]:
    """Raises ConfigError as soon as a block of the model gives hidden states that are not finite.

    Where they enter the first block, the embedding is to blame.
    """

    def see(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        if index == 0:
            require_finite("the embedding", before)
        require_finite(f"block {index}", after)

    with watching(dict(enumerate(find_blocks(model).modules)), see):
        yield


def require_finite(where: str, *tensors: torch.Tensor) -> None:
    """Raises ConfigError that says where numbers came from that are not finite."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise ConfigError(
            f"{where} of the full model gives numbers that are not finite on the calibration text;"
            " load the model in bfloat16 or float32; if it is, its weights there are damaged"
        )


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
    """The model without its head, since nothing here needs logits; its states must be finite."""
    with torch.no_grad(), finite_states(model):
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
