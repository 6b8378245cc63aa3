"""Which blocks of the full model an emulator has, and which of them are adapter slots.

Notable decisions: a slot is known by a name (`bottom.0`, `top.1`), never by a position, so an
adapter that comes back is mapped by name on whichever model it belongs to. The map is checked as
a whole when it is made, since one arrives from the other side inside a manifest.

Rules: kept blocks ascend without repetition; every slot is a kept block; bottom slots are the
first blocks and top slots the last ones.

Source: the sandwich placement of Offsite-Tuning (arXiv 2302.04870, section 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from offsite.emulator.strict_json import Fields, JsonObject, JsonValue
from offsite.secure.errors import ConfigError, PeerError

MAX_BLOCKS = 10_000


@dataclass(frozen=True, slots=True)
class Placement:
    """How many blocks at the bottom and at the top are adapter slots."""

    bottom: int
    top: int

    def __post_init__(self) -> None:
        for side, count in (("bottom", self.bottom), ("top", self.top)):
            if count < 0:
                raise ConfigError(f"placement.{side} is {count}; expected 0 or more blocks")

    def middle(self, base_blocks: int) -> range:
        """The blocks between the slots; at least one."""
        if self.bottom + self.top >= base_blocks:
            raise ConfigError(
                f"{self.bottom} bottom and {self.top} top slots leave no middle in a model of"
                f" {base_blocks} blocks; place fewer slots"
            )
        return range(self.bottom, base_blocks - self.top)


@dataclass(frozen=True, slots=True)
class Slot:
    """A block that trains: its name, and where it stands in either model."""

    name: str
    base_block: int
    emulator_block: int


@dataclass(frozen=True, slots=True)
class LayerMap:
    """Blocks of the full model, those the emulator kept (ascending), and the slots."""

    base_blocks: int
    kept: tuple[int, ...]
    slots: tuple[Slot, ...]

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise ConfigError(f"layer map: {problem}")

    @classmethod
    def of(cls, placement: Placement, base_blocks: int, kept_middle: Sequence[int]) -> "LayerMap":
        """The map of an emulator that keeps the slots and `kept_middle` (base indices)."""
        middle = placement.middle(base_blocks)
        bottom, top = range(middle.start), range(middle.stop, base_blocks)
        kept = (*bottom, *kept_middle, *top)
        first_top = len(kept) - len(top)
        slots = [Slot(f"bottom.{i}", block, i) for i, block in enumerate(bottom)]
        slots += [Slot(f"top.{i}", block, first_top + i) for i, block in enumerate(top)]
        return cls(base_blocks, kept, tuple(slots))

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        slots: list[JsonValue] = [
            {"name": s.name, "base_block": s.base_block, "emulator_block": s.emulator_block}
            for s in self.slots
        ]
        return {"base_blocks": self.base_blocks, "kept": list(self.kept), "slots": slots}

    @classmethod
    def from_json(cls, value: JsonValue) -> "LayerMap":
        """Read what `to_json` gave. Raises PeerError, since it comes from the other side."""
        fields = Fields(value, "layer map")
        base_blocks = fields.integer("base_blocks", 1, MAX_BLOCKS)
        kept = [_block(block) for block in fields.items("kept", MAX_BLOCKS)]
        slots = [_slot(slot) for slot in fields.items("slots", MAX_BLOCKS)]
        fields.close()
        try:
            return cls(base_blocks, tuple(kept), tuple(slots))
        except ConfigError as error:
            raise PeerError(str(error)) from None


def _problem(layer_map: LayerMap) -> str | None:
    """What is wrong with the map, if anything."""
    base_blocks, kept, slots = layer_map.base_blocks, layer_map.kept, layer_map.slots
    if not 0 < base_blocks <= MAX_BLOCKS:
        return f"base_blocks is {base_blocks}, expected 1 to {MAX_BLOCKS}"
    ascending = all(a < b for a, b in pairwise(kept))
    if not kept or not ascending or kept[0] < 0 or kept[-1] >= base_blocks:
        return f"kept must ascend within 0 to {base_blocks - 1} and hold a block"
    bottom = sum(slot.name.startswith("bottom.") for slot in slots)
    top = len(slots) - bottom
    if len(slots) > len(kept):
        return f"{len(slots)} slots in an emulator of {len(kept)} blocks"
    expected = [Slot(f"bottom.{i}", i, i) for i in range(bottom)]
    for i in range(top):
        expected.append(Slot(f"top.{i}", base_blocks - top + i, len(kept) - top + i))
    for slot, wanted in zip(slots, expected, strict=True):
        if slot != wanted:
            return f"found {slot}, expected {wanted}"
        if kept[slot.emulator_block] != slot.base_block:
            return f"slot {slot.name} is block {slot.base_block}, which the emulator did not keep"
    return None


def _block(value: JsonValue) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PeerError(f"layer map: kept: expected block numbers, found {value!a:.64}")
    return value


def _slot(value: JsonValue) -> Slot:
    fields = Fields(value, "layer map: slot")
    slot = Slot(
        fields.text("name", 32),
        fields.integer("base_block", 0, MAX_BLOCKS),
        fields.integer("emulator_block", 0, MAX_BLOCKS),
    )
    fields.close()
    return slot
