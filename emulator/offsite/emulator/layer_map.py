"""Which blocks of the full model an emulator has, and which of them are adapter slots.

Notable decisions: a slot is known by a name, never by a position, so an adapter that comes back
is mapped by name on whichever model it belongs to:

    bottom.0, bottom.1 ...  the first blocks         spread.0 ...  at even distances between
    top.0, top.1 ...        the last blocks          middle.7 ...  a compressed block, by its index

Only `bottom`, `spread` and `top` slots keep their blocks as they are. A `middle` slot is a block
that is compressed and whose attention trains all the same, so it exists only where every block of
the full model is still present. The map is checked as a whole when it is made, since one arrives
from the other side inside a manifest.

Rules: kept blocks ascend; a repeated one shares its weights and is never a slot; slots ascend in
both models; an emulator is never deeper than its full model.

Source: the sandwich placement of Offsite-Tuning (arXiv 2302.04870, section 3); spread slots and
shared blocks as in CRaSh (arXiv 2310.15477).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from offsite.emulator.strict_json import Fields, JsonObject, JsonValue
from offsite.secure.errors import ConfigError, PeerError

MAX_BLOCKS = 10_000
BOTTOM, SPREAD, MIDDLE, TOP = "bottom", "spread", "middle", "top"


@dataclass(frozen=True, slots=True)
class Placement:
    """Which blocks are adapter slots.

    `spread` slots stand at even distances between those of the bottom and the top. With
    `middle_lora` every compressed block is a slot too, for LoRA on its attention.
    """

    bottom: int
    top: int
    spread: int = 0
    middle_lora: bool = False

    def __post_init__(self) -> None:
        counts = ((BOTTOM, self.bottom), (TOP, self.top), (SPREAD, self.spread))
        for side, count in counts:
            if count < 0:
                raise ConfigError(f"placement.{side} is {count}; expected 0 or more blocks")

    def middle(self, base_blocks: int) -> tuple[int, ...]:
        """The blocks to compress, ascending; at least one."""
        if self.bottom + self.top + self.spread >= base_blocks:
            spread = f", {self.spread} spread" if self.spread else ""
            raise ConfigError(
                f"{self.bottom} bottom{spread} and {self.top} top slots leave no middle in a model"
                f" of {base_blocks} blocks; place fewer slots"
            )
        kept = set(self.spread_blocks(base_blocks))
        return tuple(i for i in range(self.bottom, base_blocks - self.top) if i not in kept)

    def spread_blocks(self, base_blocks: int) -> tuple[int, ...]:
        """The spread slots: between any two of them lie as many blocks, give or take one."""
        between = base_blocks - self.bottom - self.top
        parts = self.spread + 1
        return tuple(self.bottom + i * (between + 1) // parts - 1 for i in range(1, parts))


@dataclass(frozen=True, slots=True)
class Slot:
    """A block in which an adapter trains: its name, and where it stands in either model."""

    name: str
    base_block: int
    emulator_block: int

    @property
    def is_middle(self) -> bool:
        """Whether the block is compressed, so that only LoRA on its attention fits both models."""
        return self.name.startswith(f"{MIDDLE}.")


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
        if not set(kept_middle) <= set(middle):
            raise ConfigError(f"layer map: kept blocks {list(kept_middle)} are not all of {middle}")
        names = _slot_names(placement, base_blocks)
        kept = tuple(sorted((*names, *kept_middle)))
        if placement.middle_lora:
            if kept != tuple(range(base_blocks)):
                raise ConfigError(
                    "placement.middle_lora needs every block of the middle in the emulator, once;"
                    " this method drops or shares some"
                )
            names |= {block: f"{MIDDLE}.{block}" for block in middle}
        slots = [Slot(names[b], b, position) for position, b in enumerate(kept) if b in names]
        return cls(base_blocks, kept, tuple(slots))

    @property
    def middle(self) -> tuple[int, ...]:
        """Positions in the emulator of its compressed blocks, repeated ones too."""
        whole = {slot.emulator_block for slot in self.slots if not slot.is_middle}
        return tuple(i for i in range(len(self.kept)) if i not in whole)

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


def first_positions(kept: Sequence[int]) -> tuple[int, ...]:
    """For every block of an emulator, the first one that has its weights; mostly itself."""
    first: dict[int, int] = {}
    return tuple(first.setdefault(block, position) for position, block in enumerate(kept))


def _slot_names(placement: Placement, base_blocks: int) -> dict[int, str]:
    """Names of the slots that stay whole, by block."""
    first_top = base_blocks - placement.top
    names = {i: f"{BOTTOM}.{i}" for i in range(placement.bottom)}
    for i, block in enumerate(placement.spread_blocks(base_blocks)):
        names[block] = f"{SPREAD}.{i}"
    return names | {first_top + i: f"{TOP}.{i}" for i in range(placement.top)}


def _problem(layer_map: LayerMap) -> str | None:
    """What is wrong with the map, if anything."""
    base_blocks, kept, slots = layer_map.base_blocks, layer_map.kept, layer_map.slots
    if not 0 < base_blocks <= MAX_BLOCKS:
        return f"base_blocks is {base_blocks}, expected 1 to {MAX_BLOCKS}"
    ascending = all(a <= b for a, b in pairwise(kept))
    if not kept or not ascending or kept[0] < 0 or kept[-1] >= base_blocks:
        return f"kept must ascend within 0 to {base_blocks - 1} and hold a block"
    if len(kept) > base_blocks:
        return f"{len(kept)} kept blocks of {base_blocks}; sharing never makes a model deeper"
    if len(slots) > len(kept):
        return f"{len(slots)} slots in an emulator of {len(kept)} blocks"
    return next(_slot_problems(layer_map), None)


def _slot_problems(layer_map: LayerMap) -> Iterator[str]:
    kept, slots = layer_map.kept, layer_map.slots
    kinds = [slot.name.partition(".")[0] for slot in slots]
    uses = Counter(kept)
    numbers = {kind: iter(range(count)) for kind, count in Counter(kinds).items()}
    for kind, slot in zip(kinds, slots, strict=True):
        if not slot.emulator_block < len(kept) or kept[slot.emulator_block] != slot.base_block:
            yield f"slot {slot.name} is block {slot.base_block}, which the emulator did not keep"
        if uses[slot.base_block] > 1:
            yield f"slot {slot.name} is block {slot.base_block}, which the emulator repeats"
        number = slot.base_block if kind == MIDDLE else next(numbers[kind])
        wanted = _expected(layer_map, kind, number, kinds.count(TOP)) or slot
        if slot != wanted or slot.name != f"{kind}.{number}":
            yield f"found {slot}, expected {wanted}"
    if any(a.emulator_block >= b.emulator_block for a, b in pairwise(slots)):
        yield "slots must ascend"
    if MIDDLE in kinds and not len(slots) == len(kept) == layer_map.base_blocks:
        yield "middle slots need every block of the full model, each of them a slot"
    if unknown := set(kinds) - {BOTTOM, SPREAD, MIDDLE, TOP}:
        yield f"slots named {min(unknown)}; expected bottom, spread, middle or top"


def _expected(layer_map: LayerMap, kind: str, number: int, top: int) -> Slot | None:
    """The slot of that name, where its name says which block it is."""
    if kind == BOTTOM:
        return Slot(f"{BOTTOM}.{number}", number, number)
    if kind == TOP:
        first_base, first = layer_map.base_blocks - top, len(layer_map.kept) - top
        return Slot(f"{TOP}.{number}", first_base + number, first + number)
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
