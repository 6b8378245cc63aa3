"""The hidden states between the blocks of a model: read in passing, or compared by depth.

The state at depth d is what block d receives; at the depth behind the last block, what that one
gives. A harmoniser maps what its block receives, so its work is seen.

Axes: ``B`` rows, ``T`` tokens, ``H`` hidden.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from offsite.emulator.block_call import block_input, block_output
from offsite.emulator.blocks import find_blocks


@contextmanager
def states_at(model: nn.Module, depths: Iterable[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Fill the dict with the states [B, T, H] of the last forward pass, graph and all."""
    blocks = find_blocks(model).modules
    found: dict[int, torch.Tensor] = {}
    handles = [_watch(blocks, depth, found) for depth in depths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _watch(blocks: nn.ModuleList, depth: int, found: dict[int, torch.Tensor]) -> RemovableHandle:
    def entering(block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        found[depth] = block_input(args, kwargs)

    def leaving(block: nn.Module, args: tuple[object, ...], output: object) -> None:
        found[depth] = block_output(output)

    if depth == len(blocks):
        return blocks[-1].register_forward_hook(leaving)
    return blocks[depth].register_forward_pre_hook(entering, with_kwargs=True)


@torch.inference_mode()
def read_states(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The states at every depth for rows ``ids`` [B, T], on the CPU, in the model's dtype."""
    depths = range(len(find_blocks(model).modules) + 1)
    with states_at(model, depths) as found:
        body(model)(input_ids=ids.to(model.device), use_cache=False)
    return tuple(found[depth].cpu() for depth in depths)


def body(model: PreTrainedModel) -> nn.Module:
    """The model without its head."""
    inner = model.base_model
    assert isinstance(inner, nn.Module)
    return inner


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean over tokens of |found - wanted| / |wanted|, for states [B, T, H].

    Each token counts alike: in many models a few of them have states a hundred times longer than
    the others', and would be all that is seen.
    """
    wanted = wanted.float()
    distance = (found.float() - wanted).norm(dim=-1)
    return float((distance / wanted.norm(dim=-1).clamp_min(1e-12)).mean())
