"""The examples of every unit: what is drawn, clipped and protected as one.

A unit is a row of the data, or all rows of a person. A row that was split into several examples, or
that gave none with this tokenizer, is a unit all the same: its neighbours' chances do not depend on it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from offsite.edge_client.data import Data
from offsite.emulator.training.batches import MicroBatch, pack
from offsite.emulator.training.tokens import Example
from offsite.secure.privacy.randomness.unit_rows import UnitRows


@dataclass(frozen=True, slots=True)
class UnitBatch:
    """Whole units in one forward pass."""

    units: tuple[int, ...]
    batch: MicroBatch
    unit_of_row: torch.Tensor
    """[B] int64, places in `units`."""


@dataclass(frozen=True, slots=True)
class UnitExamples:
    """Examples by unit; units are numbered from 0."""

    of_unit: tuple[tuple[Example, ...], ...]

    @classmethod
    def of(cls, data: Data, examples: Sequence[Example], rows: Sequence[int]) -> "UnitExamples":
        """Group examples by row, or by person where the data say whom a row is about.

        Args:
            rows: for each example, the place of its row in the data.
        """
        persons = data.persons
        units = (
            UnitRows.of_records(len(data.rows)) if persons is None else UnitRows.of_persons(persons)
        )
        of_row: list[list[Example]] = [[] for _ in data.rows]
        for example, row in zip(examples, rows, strict=True):
            of_row[row].append(example)
        return cls(
            tuple(
                tuple(example for row in units.rows_of(unit) for example in of_row[row])
                for unit in range(units.count)
            )
        )

    @property
    def count(self) -> int:
        """n."""
        return len(self.of_unit)

    def batches(self, drawn: Sequence[int], micro_batch_tokens: int) -> Iterator[UnitBatch]:
        """The drawn units that have examples, packed by length; a large unit lies alone."""
        group: list[int] = []
        width = rows = 0
        for unit in sorted(drawn, key=self._width, reverse=True):
            count = len(self.of_unit[unit])
            if not count:
                continue
            if group and (rows + count) * width > micro_batch_tokens:
                yield self._packed(group)
                group, rows = [], 0
            width = width if group else self._width(unit)
            group.append(unit)
            rows += count
        if group:
            yield self._packed(group)

    def empty(self, drawn: Sequence[int]) -> list[int]:
        """The drawn units that have no example; their gradient is 0."""
        return [unit for unit in drawn if not self.of_unit[unit]]

    def _width(self, unit: int) -> int:
        return max((len(example.ids) - 1 for example in self.of_unit[unit]), default=0)

    def _packed(self, group: Sequence[int]) -> UnitBatch:
        pairs = [
            (example, place) for place, unit in enumerate(group) for example in self.of_unit[unit]
        ]
        pairs.sort(key=lambda pair: len(pair[0].ids), reverse=True)
        batch = pack([example for example, _ in pairs])
        return UnitBatch(tuple(group), batch, torch.tensor([place for _, place in pairs]))
