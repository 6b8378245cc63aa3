"""However a batch is cut, every row is computed once, with its own tokens."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.emulator.privacy.per_example.square import SIDE, square_batch

from offsite.emulator.privacy.per_example.passes import Cut, Part
from offsite.emulator.training.batches import MicroBatch

Learnt = tuple[int, int, int, float]
"""Unit, column, target, weight of a learnt token."""


def batch_of(lengths: list[int]) -> MicroBatch:
    """Row b is b·100, b·100 + 1, ...; its last token and every third are learnt."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = 100 * row + torch.arange(length)
    learnt = [(b, t) for b, n in enumerate(lengths) for t in range(n) if t == n - 1 or t % 3 == 0]
    rows, columns = (torch.tensor([pair[axis] for pair in learnt]).long() for axis in (0, 1))
    targets = 100 * rows + columns + 1
    return MicroBatch(ids, rows, columns, targets, sum(lengths))


def seen(part: Part, first: int) -> list[Learnt]:
    """What a part learns; and that it can: the tokens before are there."""
    batch = part.batch
    for row, column, target in zip(
        batch.rows.tolist(), batch.columns.tolist(), batch.targets.tolist(), strict=True
    ):
        before = batch.ids[row, : column + 1].tolist()
        assert before == list(range(target // 100 * 100, target))
    units = (part.units[batch.rows] + first).tolist()
    return list(
        zip(
            units,
            batch.columns.tolist(),
            batch.targets.tolist(),
            part.weights.tolist(),
            strict=True,
        )
    )


@settings(deadline=None)
@given(st.data())
def test_every_learnt_token_is_in_one_part(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=9))
    named = data.draw(st.lists(st.integers(0, 4), min_size=len(lengths), max_size=len(lengths)))
    units = torch.tensor([sorted(set(named)).index(unit) for unit in named])
    batch = batch_of(lengths)
    weights = torch.arange(len(batch.rows)).float()
    cut = Cut(batch, units, weights, 64)
    wanted = zip(
        units[batch.rows].tolist(),
        batch.columns.tolist(),
        batch.targets.tolist(),
        weights.tolist(),
        strict=True,
    )
    most_units, most_tokens = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 80))
    found: list[Learnt] = []
    next_unit = 0
    for group in cut.groups(most_units):
        assert group.first == next_unit and 1 <= group.units <= most_units
        next_unit += group.units
        for part in cut.parts(group, most_tokens):
            height, width = part.batch.ids.shape
            assert width == 16 and (height == 1 or height * width <= most_tokens)
            assert height != width or len(part.units.unique()) == 1
            assert 0 <= int(part.units.min()) and int(part.units.max()) < group.units
            found += seen(part, group.first)
    assert next_unit == int(units.max()) + 1
    assert Counter(found) == Counter(wanted)


def test_the_rows_of_a_part_have_one_width_whatever_is_beside_them() -> None:
    """The width of a row is its own, so that kernels add up the same for it in every batch."""
    lengths = [40, 3, 18, 33, 2, 50]
    batch = batch_of(lengths)
    cut = Cut(batch, torch.arange(len(lengths)), torch.ones(len(batch.rows)), 50)
    widths = {
        unit: part.batch.ids.shape[1]
        for group in cut.groups(10)
        for part in cut.parts(group, 1000)
        for unit in part.units.tolist()
    }
    assert widths == {0: 48, 1: 16, 2: 32, 3: 48, 4: 16, 5: 50}  # 50 is all that the model has


@pytest.mark.parametrize("units", [torch.arange(SIDE), torch.arange(SIDE) // 2], ids=["one", "two"])
def test_a_square_batch_is_cut(units: torch.Tensor) -> None:
    square = square_batch()
    cut = Cut(square, units, torch.ones(SIDE), 64)
    parts = [part for group in cut.groups(SIDE) for part in cut.parts(group, 1000)]
    assert len(parts) == 2
    assert torch.equal(torch.cat([part.batch.ids for part in parts]), square.ids)


def test_a_square_batch_of_one_unit_is_not() -> None:
    cut = Cut(square_batch(), torch.zeros(SIDE, dtype=torch.int64), torch.ones(SIDE), 64)
    assert [len(p.units) for g in cut.groups(1) for p in cut.parts(g, 1000)] == [SIDE]


@pytest.mark.parametrize("most_units", [1, 3])
def test_an_empty_batch_has_no_groups(most_units: int) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    batch = MicroBatch(none.view(0, 0), none, none, none, 0)
    assert not list(Cut(batch, none, torch.zeros(0), 64).groups(most_units))
