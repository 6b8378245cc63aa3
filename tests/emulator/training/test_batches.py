"""Order, split and packing of examples."""

import numpy as np
import pytest
from tests.emulator.training.samples import make_examples

from offsite.emulator.training.batches import (
    epoch_order,
    logical_batch,
    micro_batches,
    split,
    steps_of,
)


def test_the_order_of_an_epoch_is_fixed_for_ever() -> None:
    assert epoch_order(10, 1, 0) == (5, 2, 8, 1, 0, 6, 3, 9, 7, 4)


def test_every_epoch_sees_each_example_once_in_another_order() -> None:
    orders = [epoch_order(50, seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_logical_batches_run_through_the_epochs() -> None:
    seen = [index for step in range(15) for index in logical_batch(10, 4, 3, step)]
    assert len(seen) == 60
    for epoch in range(6):
        assert tuple(seen[10 * epoch : 10 * epoch + 10]) == epoch_order(10, 3, epoch)
    assert sorted(logical_batch(3, 16, 0, 5)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("count", "size", "epochs", "steps"),
    [(100, 16, 1.0, 6), (100, 16, 2.5, 16), (3, 16, 1.0, 1), (100, 16, 0.01, 1), (3, 16, 4.0, 4)],
)
def test_steps_come_nearest_to_the_epochs(count: int, size: int, epochs: float, steps: int) -> None:
    assert steps_of(count, size, epochs) == steps


def test_micro_batches_hold_every_example_within_the_bound() -> None:
    examples = make_examples(40)
    batches = micro_batches(examples, 64)
    assert max(batch.ids.numel() for batch in batches) <= 64
    rows = []
    for batch in batches:
        for row, ids in enumerate(batch.ids.tolist()):
            mine = batch.rows == row
            pairs = zip(batch.columns[mine].tolist(), batch.targets[mine].tolist(), strict=True)
            rows.append((tuple(ids[: max(batch.columns[mine]) + 1]), tuple(pairs)))
    wanted = []
    for example in examples:
        positions = np.flatnonzero(example.learnt)
        targets = [(int(place) - 1, int(example.ids[place])) for place in positions]
        wanted.append((tuple(example.ids[:-1].tolist()), tuple(targets)))
    assert sorted(rows) == sorted(wanted)
    assert sum(batch.tokens for batch in batches) == sum(len(e.ids) - 1 for e in examples)


def test_little_of_a_micro_batch_is_padding() -> None:
    batches = micro_batches(make_examples(16), 10**6)
    padding = 1 - sum(batch.tokens for batch in batches) / sum(b.ids.numel() for b in batches)
    assert padding < 0.25


def test_an_example_above_the_bound_lies_alone() -> None:
    batches = micro_batches(make_examples(3), 1)
    assert [len(batch.ids) for batch in batches] == [1, 1, 1]


def test_the_validation_split_does_not_depend_on_the_order_of_rows() -> None:
    examples = make_examples(100)
    held_out = {examples[i].ids.tobytes() for i in split(examples, 0.1).validation}
    backwards = examples[::-1]
    assert {backwards[i].ids.tobytes() for i in split(backwards, 0.1).validation} == held_out
    assert len(held_out) == 10


def test_a_duplicate_never_lies_on_both_sides() -> None:
    examples = make_examples(30) * 3
    parts = split(examples, 0.25)
    sides = [{examples[i].ids.tobytes() for i in part} for part in (parts.train, parts.validation)]
    assert not sides[0] & sides[1]
    assert 0 < len(parts.validation) <= 22
    assert sorted(parts.train + parts.validation) == list(range(90))


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (2, 0.1), (10, 0.0)])
def test_of_few_examples_none_is_held_out(count: int, share: float) -> None:
    parts = split(make_examples(count), share)
    assert (len(parts.train), parts.validation) == (count, ())
