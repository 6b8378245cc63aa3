"""How much of the full model's weights an emulator ships as they are.

Whatever a method keeps as it is, a thief has. Compression by choice keeps whole rows (a channel's
weights in up and gate projections) or whole columns (in down projections), so a number counts as
verbatim if its whole row or its whole column stands in the same tensor of the full model. What is
rotated, factored, averaged or distilled does not count, although it may be worth as much: the figure
is a lower bound of what leaks, never a proof that nothing does.

Notable: packing removes nothing, it rounds, and a model in 8 bits is worth what it is worth in 16. So
whoever packs an emulator counts before that; what was only packed counts as verbatim.

Rows and columns are compared by 64-bit fingerprints of their bytes, so the full model need not be
in memory when the emulator is looked at. By accident two of n and m differ unseen with a
probability of at most n·m/2³³ in fp32 and n·m/2⁴⁹ in bf16; nobody gains by making them collide.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from offsite.emulator.blocks import find_blocks
from offsite.emulator.figures import rounded
from offsite.emulator.layer_map import LayerMap
from offsite.emulator.strict_json import JsonObject
from offsite.emulator.weights import named_weights

_AT_ONCE = 1 << 22
"""Numbers that are held as 64-bit integers at once."""
_SEED = 20_260_101
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprints:
    """Of every row and of every column of one tensor; one that is a vector has no columns."""

    rows: torch.Tensor
    columns: torch.Tensor


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Parameters that the emulator has as the full model does, by where, and of how many in all."""

    middle: int
    middle_of: int
    """Of the full model's blocks that are compressed."""
    slots: int
    outside: int
    """Embedding, last norm and head."""
    base_parameters: int

    @property
    def share(self) -> float:
        """Of all the full model's parameters; slots and what is outside the blocks included."""
        return (self.middle + self.slots + self.outside) / self.base_parameters

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {
            "share": rounded(self.share),
            "share_of_middle": rounded(self.middle / max(1, self.middle_of)),
            "middle_parameters": self.middle,
            "slot_parameters": self.slots,
            "outside_parameters": self.outside,
        }


def fingerprint_weights(base_model: nn.Module) -> dict[str, Fingerprints]:
    """The fingerprints of every tensor of the full model, by name."""
    return {name: fingerprint(tensor) for name, tensor in named_weights(base_model).items()}


def fingerprint(weight: torch.Tensor) -> Fingerprints:
    """The fingerprints of one tensor; more than two dimensions count as (first, all others)."""
    matrix = weight.detach().flatten(1) if weight.dim() > 1 else weight.detach().view(1, -1)
    matrix = matrix.cpu()
    rows, width = matrix.shape
    along_rows, along_columns = _factors(width), _factors(rows)
    found, columns = [], torch.zeros(width, dtype=torch.int64)
    step = max(1, _AT_ONCE // max(1, width))
    for start in range(0, rows, step):
        part = matrix[start : start + step].contiguous()
        bits = part.view(_BITS[part.element_size()]).long()
        found.append((bits * along_rows).sum(1))
        columns += (bits * along_columns[start : start + step, None]).sum(0)
    is_vector = weight.dim() < 2 or rows < 2
    return Fingerprints(torch.cat(found), columns[:0] if is_vector else columns)


def _factors(count: int) -> torch.Tensor:
    """Odd 64-bit numbers, the same for every tensor of that size."""
    generator = torch.Generator().manual_seed(_SEED)
    numbers = torch.randint(-(2**62), 2**62, (count,), generator=generator, dtype=torch.int64)
    return 2 * numbers + 1


def verbatim_elements(weight: torch.Tensor, base: Fingerprints) -> int:
    """How many numbers of ``weight`` lie in a row or column that the full model's tensor has."""
    own = fingerprint(weight)
    rows = int(torch.isin(own.rows, base.rows).sum())
    columns = int(torch.isin(own.columns, base.columns).sum())
    height = len(own.rows)
    width = weight.numel() // height
    return rows * width + columns * height - rows * columns


def measure_verbatim(
    emulator: nn.Module,
    layer_map: LayerMap,
    base: Mapping[str, Fingerprints],
    block_parameters: tuple[int, ...],
    base_parameters: int,
) -> Verbatim:
    """Compare every tensor of an emulator with the one it comes from.

    ``block_parameters`` are those of each block of the full model.
    """
    path = f"{find_blocks(emulator).path}."
    middle = set(layer_map.middle)
    counts = {"middle": 0, "slots": 0, "outside": 0}
    for name, weight in named_weights(emulator).items():
        place, base_name = _origin(name, path, layer_map, middle)
        if base_name in base:
            counts[place] += verbatim_elements(weight, base[base_name])
    whole = {layer_map.kept[i] for i in range(len(layer_map.kept)) if i not in middle}
    middle_of = sum(n for block, n in enumerate(block_parameters) if block not in whole)
    return Verbatim(
        counts["middle"], middle_of, counts["slots"], counts["outside"], base_parameters
    )


def _origin(name: str, path: str, layer_map: LayerMap, middle: set[int]) -> tuple[str, str]:
    """Where a tensor of the emulator stands, and its name in the full model."""
    if not name.startswith(path):
        return "outside", name
    position, _, inside = name.removeprefix(path).partition(".")
    place = "middle" if int(position) in middle else "slots"
    return place, f"{path}{layer_map.kept[int(position)]}.{inside}"
