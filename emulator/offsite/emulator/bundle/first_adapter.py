"""Checks of an adapter's first values: does training start where this program would start it?

An owner who warms an adapter up, on data like the edge's own, or draws it by design, decides how
much of the edge's data it will remember (PreCurious, arXiv 2403.09562, section 4). An honest first
adapter changes nothing and holds no information: LoRA's B is zero and its A the draw that the
stated seed gives; whole blocks are the emulator's own. Where B alone trains A is not in the release:
this program draws it.

Notable: whole blocks that the owner warmed up *inside* the emulator pass. Only who holds the full
model could tell.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from offsite.emulator.adapters.adapter import AdapterKind, AdapterSpec, TrainedFactors
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.statistics import Places
from offsite.emulator.bundle.suspicion import HostileCheck, Reading, Suspect, judge

if TYPE_CHECKING:
    import torch

MAX_SCALING = 32.0
"""alpha over rank. LoRA's authors use 1 to 2, Offsite-Tuning 8."""
DRAW_TOLERANCE = 1e-6
_LOW, _HIGH = ".lora_A.weight", ".lora_B.weight"

NEUTRAL = Suspect(
    "first adapter is neutral",
    "an adapter that starts warmed up: LoRA B that is not 0, whole blocks that are not the"
    " emulator's own",
    "Ask the owner what the adapter was trained on before, or refuse.",
)
DRAWN = Suspect(
    "first adapter is drawn as stated",
    "LoRA A that differs from the draw of the stated seed, so that it could be made to single out"
    " data",
    "Ask the owner for a release whose adapter starts from its seed.",
)
SCALING = Suspect(
    "adapter scaling",
    "a factor alpha/rank that makes every step of tuning large, so that rows are memorised",
    "Ask the owner for a usual alpha, or refuse.",
)


def adapter_checks(bundle: Bundle) -> list[HostileCheck]:
    """The checks of the first adapter of a verified bundle."""
    spec = bundle.manifest.adapter
    if spec.kind is AdapterKind.WHOLE_BLOCK:
        reason = "whole blocks have no such values"
        neutral = judge(NEUTRAL, [_foreign_blocks(bundle)])
        return [neutral, judge(DRAWN, (), reason), judge(SCALING, (), reason)]
    adapter = bundle.load_adapter()
    scaling = Reading(spec.scaling, MAX_SCALING, f"alpha/rank is {spec.scaling:g}")
    return [
        judge(NEUTRAL, _changes(adapter)),
        _drawn(adapter, spec),
        judge(SCALING, [scaling]),
    ]


def _drawn(adapter: "Mapping[str, torch.Tensor]", spec: AdapterSpec) -> HostileCheck:
    if spec.trains is TrainedFactors.B:
        what = "A is not shipped: this program draws it from the stated seed"
        return judge(DRAWN, [Reading(0.0, DRAW_TOLERANCE, what)])
    return judge(DRAWN, _differences(adapter, spec.seed))


def _foreign_blocks(bundle: Bundle) -> Reading:
    """Adapter tensors with values of their own, or with those of another place."""
    path = Places.of(bundle.schema.emulator).blocks_path
    blocks = {slot.name: slot.emulator_block for slot in bundle.manifest.layer_map.slots}
    foreign = []
    for name in bundle.adapter_schema:
        kind, position, rest = name.split(".", 2)
        own = f"{path}.{blocks[f'{kind}.{position}']}.{rest}"
        if bundle.schema.shared.get(name) != own:
            foreign.append(name)
    example = f", {min(foreign)} for one" if foreign else ""
    total = len(bundle.adapter_schema)
    what = f"{len(foreign)} of {total} tensors are not the emulator's own{example}"
    return Reading(len(foreign), 0.0, what)


def _changes(adapter: "Mapping[str, torch.Tensor]") -> Iterator[Reading]:
    for name, tensor in adapter.items():
        if name.endswith(_HIGH):
            largest = float(tensor.abs().max())
            yield Reading(largest, 0.0, f"the largest value of {name} is {largest:.3g}")


def _differences(adapter: "Mapping[str, torch.Tensor]", seed: int) -> Iterator[Reading]:
    from offsite.emulator.adapters.lora import first_low

    for name, tensor in adapter.items():
        if name.endswith(_LOW) and tensor.dim() == 2:
            drawn = first_low(seed, name.removesuffix(_LOW), tensor.shape)
            largest = float((tensor - drawn).abs().max())
            yield Reading(largest, DRAW_TOLERANCE, f"{name} differs by up to {largest:.3g}")
