"""Low-rank maps of the hidden states, in the place of dropped blocks.

A harmoniser before block p computes x ← x + x·downᵀ·upᵀ, down (r, H) and up (H, r), on what the
block receives. They stand at the root of the model, outside the blocks, so that a block keeps the
names and shapes it has in the full model: `harmonisers.<position>.down.weight` and `.up.weight`.

Notable decisions: the map is a forward pre-hook, which every way of calling a block runs through:
decoding with a cache, gradient checkpointing, the model without its head. The hook is an object
that holds the map, so a deep copy of the model uses its own maps.

Rules: 1 ≤ r ≤ H; positions are blocks of the emulator, written without leading zeros.

Source: the harmonizers of ScaleOT (arXiv 2412.09812).
"""

import re
from collections.abc import Mapping
from itertools import chain

import torch
from torch import nn

from offsite.emulator.block_call import block_input, with_input
from offsite.emulator.schema import TensorSpec
from offsite.secure.errors import PeerError

HARMONISERS = "harmonisers"
_NAME = re.compile(rf"{HARMONISERS}\.(0|[1-9][0-9]{{0,4}})\.(?:down|up)\.weight")


class HarmoniserMap(nn.Module):
    """x ← x + up(down(x)); starts uninitialised."""

    def __init__(self, hidden: int, rank: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, hidden, bias=False, device=device, dtype=dtype)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., H) to (..., H)."""
        mapped: torch.Tensor = hidden_states + self.up(self.down(hidden_states))
        return mapped


class _BeforeBlock:
    """The pre-hook: maps the hidden states a block is called with."""

    def __init__(self, harmoniser: HarmoniserMap) -> None:
        self.harmoniser = harmoniser

    def __call__(
        self, block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        return with_input(args, kwargs, self.harmoniser(block_input(args, kwargs)))


def tensor_name(position: int, factor: str) -> str:
    """The name of one matrix, `factor` being `down` or `up`."""
    return f"{HARMONISERS}.{position}.{factor}.weight"


def add_harmonisers(
    model: nn.Module,
    blocks: nn.ModuleList,
    hidden: int,
    schema: Mapping[str, TensorSpec],
    dtype: torch.dtype,
) -> None:
    """Put the empty maps that a schema names before their blocks, on the meta device.

    Raises:
        PeerError: a position that is none, or a rank that does not fit.
    """
    positions = sorted({int(match[1]) for name in schema if (match := _NAME.fullmatch(name))})
    if not positions:
        return  # names of another form are found when the model is compared with the schema
    maps = nn.ModuleDict()
    for position in positions:
        if position >= len(blocks):
            raise PeerError(f"harmoniser {position}: the emulator has {len(blocks)} blocks")
        rank = _rank(schema, position, hidden)
        harmoniser = HarmoniserMap(hidden, rank, torch.device("meta"), dtype)
        blocks[position].register_forward_pre_hook(_BeforeBlock(harmoniser), with_kwargs=True)
        maps[str(position)] = harmoniser
    model.add_module(HARMONISERS, maps)


def _rank(schema: Mapping[str, TensorSpec], position: int, hidden: int) -> int:
    """The rank both matrices agree on; that they fit is seen when the model is compared."""
    shapes = chain.from_iterable(
        schema[name].shape
        for name in (tensor_name(position, factor) for factor in ("down", "up"))
        if name in schema
    )
    rank = min(shapes, default=0)
    if not 1 <= rank <= hidden:
        raise PeerError(f"harmoniser {position}: rank {rank}, expected 1 to {hidden}")
    return rank
