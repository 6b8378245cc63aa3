"""The map of slots and kept blocks, and what it refuses."""

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


@pytest.mark.parametrize("placement", [Placement(0, 2), Placement(2, 0), Placement(0, 0)])
def test_either_side_may_have_no_slot(placement: Placement) -> None:
    layer_map = LayerMap.of(placement, 6, tuple(placement.middle(6)))
    assert len(layer_map.slots) == placement.bottom + placement.top
    assert layer_map.kept == tuple(range(6))


def test_placement_must_leave_a_middle() -> None:
    with pytest.raises(ConfigError, match="no middle"):
        Placement(3, 3).middle(6)
    with pytest.raises(ConfigError, match="top is -1"):
        Placement(0, -1)


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
        {"slots": [{"name": "bottom.0"}]},
        {"more": 1},
    ],
)
def test_malformed_map_is_refused(change: dict[str, object]) -> None:
    assert LayerMap.from_json(GOOD)
    with pytest.raises(PeerError):
        LayerMap.from_json({**GOOD, **change})
