"""The map of slots and kept blocks, and what it refuses."""

from itertools import pairwise

import pytest

from offsite.emulator.layer_map import LayerMap, Placement, Slot
from offsite.secure.errors import ConfigError, PeerError


def test_slots_are_named_and_mapped() -> None:
    layer_map = LayerMap.of(Placement(2, 1), 8, (3, 5))
    assert layer_map.kept == (0, 1, 3, 5, 7)
    assert layer_map.slots == (
        Slot("bottom.0", 0, 0),
        Slot("bottom.1", 1, 1),
        Slot("top.0", 7, 4),
    )


@pytest.mark.parametrize(
    ("placement", "base_blocks", "spread"),
    [
        (Placement(1, 1, 1), 5, (2,)),
        (Placement(1, 1, 2), 28, (9, 18)),  # 8 blocks before, between and after
        (Placement(2, 0, 3), 9, (3, 5, 7)),
        (Placement(0, 0, 2), 3, (0, 1)),
        (Placement(1, 1, 4), 7, (1, 2, 3, 4)),
    ],
)
def test_spread_slots_stand_at_even_distances(
    placement: Placement, base_blocks: int, spread: tuple[int, ...]
) -> None:
    middle = placement.middle(base_blocks)
    layer_map = LayerMap.of(placement, base_blocks, middle)
    found = [slot for slot in layer_map.slots if slot.name.startswith("spread.")]
    assert found == [Slot(f"spread.{i}", block, block) for i, block in enumerate(spread)]
    assert sorted((*middle, *(slot.base_block for slot in layer_map.slots))) == list(
        range(base_blocks)
    )
    assert layer_map.middle == middle


@pytest.mark.parametrize("base_blocks", range(2, 24))
def test_any_number_of_spread_slots_fits(base_blocks: int) -> None:
    for spread in range(base_blocks):
        blocks = Placement(0, 0, spread).spread_blocks(base_blocks)
        gaps = [b - a for a, b in pairwise((-1, *blocks, base_blocks))]
        assert len(blocks) == spread and min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


def test_slots_between_dropped_and_shared_blocks() -> None:
    layer_map = LayerMap.of(Placement(1, 1, 1), 9, (2, 2, 5, 5, 5))
    assert layer_map.kept == (0, 2, 2, 4, 5, 5, 5, 8)
    assert layer_map.slots == (
        Slot("bottom.0", 0, 0),
        Slot("spread.0", 4, 3),
        Slot("top.0", 8, 7),
    )
    assert layer_map.middle == (1, 2, 4, 5, 6)
    assert LayerMap.from_json(layer_map.to_json()) == layer_map


def test_middle_slots_are_named_by_their_block() -> None:
    placement = Placement(1, 1, 1, middle_lora=True)
    layer_map = LayerMap.of(placement, 7, placement.middle(7))
    names = ["bottom.0", "middle.1", "middle.2", "spread.0", "middle.4", "middle.5", "top.0"]
    assert [slot.name for slot in layer_map.slots] == names
    assert [slot.is_middle for slot in layer_map.slots] == [n.startswith("mid") for n in names]
    assert layer_map.middle == (1, 2, 4, 5)
    assert LayerMap.from_json(layer_map.to_json()) == layer_map
    for kept in ((1, 2, 4), (1, 1, 2, 4), (1, 2, 4, 4)):
        with pytest.raises(ConfigError, match="middle_lora needs every block"):
            LayerMap.of(placement, 7, kept)


@pytest.mark.parametrize("placement", [Placement(0, 2), Placement(2, 0), Placement(0, 0)])
def test_either_side_may_have_no_slot(placement: Placement) -> None:
    layer_map = LayerMap.of(placement, 6, tuple(placement.middle(6)))
    assert len(layer_map.slots) == placement.bottom + placement.top
    assert layer_map.kept == tuple(range(6))


def test_placement_must_leave_a_middle() -> None:
    with pytest.raises(ConfigError, match="no middle"):
        Placement(3, 3).middle(6)
    with pytest.raises(ConfigError, match="1 bottom, 3 spread and 2 top slots leave no middle"):
        Placement(1, 2, 3).middle(6)
    with pytest.raises(ConfigError, match="top is -1"):
        Placement(0, -1)
    with pytest.raises(ConfigError, match="spread is -1"):
        Placement(0, 0, -1)


def test_json_round_trip() -> None:
    layer_map = LayerMap.of(Placement(1, 2), 9, (2, 4))
    assert LayerMap.from_json(layer_map.to_json()) == layer_map


GOOD = {
    "base_blocks": 4,
    "kept": [0, 2, 3],
    "slots": [
        {"name": "bottom.0", "base_block": 0, "emulator_block": 0},
        {"name": "top.0", "base_block": 3, "emulator_block": 2},
    ],
}


def slot(name: str, base_block: int, emulator_block: int) -> dict[str, object]:
    return {"name": name, "base_block": base_block, "emulator_block": emulator_block}


@pytest.mark.parametrize(
    "change",
    [
        {"base_blocks": 0},
        {"base_blocks": 10**9},
        {"base_blocks": True},
        {"kept": []},
        {"kept": [2, 0, 3]},
        {"kept": [0, 0, 3]},
        {"kept": [-1, 2, 3]},
        {"kept": [0, 2, 4]},
        {"kept": [0, 2, "3"]},
        {"kept": "023"},
        {"slots": [slot("bottom.1", 0, 0)]},
        {"slots": [slot("bottom.0", 1, 0)]},
        {"slots": [slot("top.0", 2, 2)]},
        {"slots": [slot("top.0", 3, 1)]},
        {"slots": [slot("side.0", 3, 2), slot("bottom.0", 0, 0)]},
        {"slots": [slot("bottom.0", 0, 0), slot("bottom.1", 1, 1)]},
        {"slots": [slot(f"bottom.{i}", i, i) for i in range(4)]},
        {"slots": [slot("bottom.0", 0, 0), slot("bottom.0", 0, 0)]},
        {"slots": [slot("bottom.00", 0, 0)]},
        {"slots": [slot("top.0", 3, 2), slot("bottom.0", 0, 0)]},
        {"slots": [slot("spread.1", 2, 1)]},
        {"slots": [slot("spread.0", 1, 1)]},
        {"slots": [slot("spread.0", 2, 99)]},
        {"slots": [slot("spread.0", 2, 1), slot("spread.1", 2, 1)]},
        {"slots": [slot("spread", 2, 1)]},
        {"slots": [slot(".0", 2, 1)]},
        {"slots": [slot("middle.2", 2, 1)]},  # a block was dropped
        {"kept": [0, 1, 2, 3], "slots": [slot("middle.2", 2, 2)]},  # not every block a slot
        {"kept": [0, 1, 2, 3], "slots": [slot(f"middle.{3 - i}", i, i) for i in range(4)]},
        {"kept": [0, 2, 2, 3], "slots": [slot("spread.0", 2, 1)]},  # a slot is never shared
        {"kept": [0, 1, 2, 2, 3], "slots": [slot("bottom.0", 0, 0)]},  # deeper than the model
        {"slots": [{"name": "bottom.0"}]},
        {"more": 1},
    ],
)
def test_malformed_map_is_refused(change: dict[str, object]) -> None:
    assert LayerMap.from_json(GOOD)
    with pytest.raises(PeerError):
        LayerMap.from_json({**GOOD, **change})
