"""How a batch is cut: groups of units whose gradients fit into the buffer, parts that run at once.

    batch ──► groups: at most so many units, for each holds a gradient of P values
                └──► parts: one forward and backward pass; a unit may need several

The rows of a part are all of one width, their own rounded up to `WIDTH_STEP`: kernels add up in
another order for another width, and what a row gets would depend on the longest one beside it. In
bf16 that moved other units' gradients by 0.03 to 0.1 clip norms, in fp32 by 0.0002; with one width it
is 1e-7, whatever the number of rows. Where whole blocks train, few units a group keep the memory that
their gradients take below what smaller passes save.

Rule: a part of several units never has as many rows as columns, so that a site that is handed
[T, B, H] for [B, T, H] is recognised by its sizes.

Axes: ``B`` rows, ``T`` tokens, ``N`` learnt tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from offsite.emulator.training.batches import PAD_ID, MicroBatch

WIDTH_STEP = 16
"""Widths are multiples of it, or the most that the model admits."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of one forward and backward pass."""

    batch: MicroBatch
    units: torch.Tensor
    """[B] int64, the unit of each row, counted within the group."""
    weights: torch.Tensor
    """[N] fp32, what each learnt token weighs in the loss."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Units ``first`` to ``first + units - 1``, and their rows, unit by unit."""

    first: int
    units: int
    rows: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A batch with the unit of every row [B] and the weight of every learnt token [N]."""

    batch: MicroBatch
    units: torch.Tensor
    weights: torch.Tensor
    most_width: int
    """Positions that the model has."""

    def groups(self, most_units: int) -> Iterator[Group]:
        """Yield groups of at most ``most_units``, in order."""
        if not len(self.units):
            return
        rows, first = torch.argsort(self.units, stable=True), 0
        for rows_of_each in torch.split(torch.bincount(self.units), most_units):
            count = int(rows_of_each.sum())
            yield Group(first, len(rows_of_each), rows[:count])
            rows, first = rows[count:], first + len(rows_of_each)

    def parts(self, group: Group, most_tokens: int) -> Iterator[Part]:
        """Yield the rows of a group by width, in parts of at most ``most_tokens``, or of one row."""
        widths = self._widths()[group.rows]
        for width in sorted(set(widths.tolist()), reverse=True):
            for rows in torch.split(group.rows[widths == width], max(1, most_tokens // width)):
                yield from self._not_square(rows, group.first, width)

    def _widths(self) -> torch.Tensor:
        """Return what each row needs [B]; what stands behind its last learnt token is never seen."""
        batch = self.batch
        needed = torch.zeros(len(batch.ids), dtype=torch.int64, device=batch.ids.device)
        needed.scatter_reduce_(0, batch.rows, batch.columns + 1, "amax")
        rounded = (needed + WIDTH_STEP - 1) // WIDTH_STEP * WIDTH_STEP
        return torch.where(rounded > self.most_width, self.most_width, rounded)

    def _not_square(self, rows: torch.Tensor, first: int, width: int) -> Iterator[Part]:
        part = self._part(rows, first, width)
        if len(rows) == width and int(part.units[0]) != int(part.units[-1]):
            yield from self._not_square(rows[:1], first, width)
            yield from self._not_square(rows[1:], first, width)
        else:
            yield part

    def _part(self, rows: torch.Tensor, first: int, width: int) -> Part:
        batch = self.batch
        place = torch.full((len(batch.ids),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        row = place[batch.rows]  # [N], -1 where another part has it
        learnt = row >= 0
        ids = batch.ids.new_full((len(rows), width), PAD_ID)
        there = min(width, batch.ids.shape[1])
        ids[:, :there] = batch.ids[rows, :there]
        of_part = MicroBatch(
            ids, row[learnt], batch.columns[learnt], batch.targets[learnt], ids.numel()
        )
        return Part(of_part, self.units[rows] - first, self.weights[learnt])
